"""Headless Chromium for the tests of the page: never on the network, and any error in the page fails the test."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

MISSING = "the tests of the page need Chromium and playwright: apt-get install chromium fonts-dejavu-core"


@pytest.fixture(scope="module")  # not the session: a running browser keeps asyncio's loop from other tests
def browser() -> Iterator[Any]:
    """Start Debian's Chromium, or Chrome; skip where there is none."""
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        executable = None
    if executable is None:
        pytest.skip(MISSING)
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """Return ``open(html, width=1440, dark=False)``, which shows a page; any request of it is an error."""
    contexts, errors = [], []

    def open_(html: str, width: int = 1440, dark: bool = False) -> Any:
        scheme = "dark" if dark else "light"
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce", offline=True
        )
        contexts.append(context)
        context.set_default_timeout(30_000)  # CPUs may be busy
        page = context.new_page()
        page.on("request", lambda request: errors.append(f"request of {request.url[:100]}"))
        page.on("console", lambda message: errors.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_content(html)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def open_glass(open_page: Any) -> Any:
    """Return the same for the page of a model, which is ready then."""

    def open_(html: str, **how: Any) -> Any:
        page = open_page(html, **how)
        page.evaluate("glass.ready")
        page.locator(".nt-strip").wait_for(state="attached")  # the last part of the page
        return page

    return open_

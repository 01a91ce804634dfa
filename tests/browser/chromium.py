"""Headless Chromium for the tests of the page: never on the network, and any error in a page fails its test."""

import contextlib
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


@contextlib.contextmanager
def opening(browser: Any) -> Iterator[Any]:
    """Give a function ``open(html, width=1440, dark=False)`` that shows a page. A request or an error of it fails."""
    contexts, errors = [], []

    def open_(html: str, width: int = 1440, dark: bool = False) -> Any:
        scheme = "dark" if dark else "light"
        context = browser.new_context(
            viewport={"width": width, "height": 700}, color_scheme=scheme, reduced_motion="reduce", offline=True
        )
        contexts.append(context)
        context.set_default_timeout(30_000)  # CPUs may be busy
        page = context.new_page()
        page.on("request", lambda request: errors.append(f"request of {request.url[:100]}"))
        page.on("console", lambda message: errors.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_content(html)
        if "glass.ready" in html:
            page.evaluate("glass.ready")
            page.locator(".nt-strip").wait_for(state="attached")  # the last part of the page of a model
        return page

    yield open_
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """Return the function of :func:`opening` for one test."""
    with opening(browser) as open_:
        yield open_

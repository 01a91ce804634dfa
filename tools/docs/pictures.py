"""Make the pictures of the documentation from a run: ``python tools/docs/pictures.py --run runs/quickstart``.

The program's own verbs draw them; Chromium takes the pictures of HTML pages. ``docs/images/README.md`` says how each
was made. It needs matplotlib, playwright and Chromium.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

IMAGES = Path(__file__).parents[2] / "docs" / "images"
PROMPT, SHORT = "To be, or not to be", "To be, or not"
LARGEST = 200_000  # bytes of a picture


class Pictures:
    """Makes pictures of one run, and remembers how.

    Args:
        run: its folder, inside a folder of runs.
        folder: a temporary one.
    """

    def __init__(self, run: Path, folder: Path):
        self.run, self.folder = run, folder
        (folder / "runs").symlink_to(run.parent)  # so that no picture has a path of this machine
        self.rows: list[str] = []

    def verb(self, *arguments: str) -> str:
        """Run ``glassgpt`` on the run, and give what it prints."""
        command = [sys.executable, "-m", "glassgpt", *arguments]
        return subprocess.run(command, check=True, cwd=self.folder, stdout=subprocess.PIPE, encoding="utf-8").stdout

    def add(self, name: str, what: str, *arguments: str) -> None:
        """Draw a picture by a verb that writes a PNG."""
        self.verb(*arguments, "-o", name)
        self.keep(name, what, *arguments, "-o", name)

    def keep(self, name: str, what: str, *arguments: str) -> None:
        """Move a picture to the documentation, without transparency."""
        with Image.open(self.folder / name) as image:
            flat = Image.new("RGB", image.size, "white")
            flat.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
        flat.save(IMAGES / name, optimize=True)
        size = (IMAGES / name).stat().st_size
        if size > LARGEST:
            raise SystemExit(f"{name} has {size:,} bytes, more than {LARGEST:,}")
        shown = " ".join(f'"{argument}"' if " " in argument else argument for argument in arguments)
        self.rows.append(f"| `{name}` | {what} | `glassgpt {shown}` |")


def head_of_previous(pictures: Pictures) -> tuple[str, str]:
    """The layer and the head that attend to the previous token most."""
    heads = json.loads(pictures.verb("attention", pictures.run.name, "--prompt", PROMPT, "--json"))["models"][0][
        "heads"
    ]
    best = max(heads, key=lambda head: head["previous"])
    return str(best["layer"]), str(best["number"])


@contextlib.contextmanager
def page_of(file: Path, width: int, height: int) -> Iterator[Any]:
    """Open an HTML file in Chromium."""
    from playwright.sync_api import sync_playwright

    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(file.as_uri())
        yield page
        browser.close()


def glass(pictures: Pictures) -> None:
    """The page of the model, at the attention of its first block, with the last token selected."""
    command = ["glass", pictures.run.name, "--prompt", PROMPT, "-o", "glass.html"]
    pictures.verb(*command)
    with page_of(pictures.folder / "glass.html", 1280, 900) as page:
        page.evaluate("glass.ready")
        page.locator(".nt-strip").wait_for(state="attached")
        page.evaluate(f"glass.select({len(PROMPT) - 1})")
        page.evaluate("document.querySelector('details.block').open = true")
        for _ in range(3):  # what comes into view is drawn, and moves the rest
            page.get_by_role("heading", name="Scores, mask, softmax").first.evaluate(
                "heading => window.scrollBy(0, heading.getBoundingClientRect().top - 190)"
            )
            page.wait_for_timeout(500)
        page.screenshot(path=pictures.folder / "glass.png")
    pictures.keep("glass.png", "a part of the page of the model", *command)


def doctor(pictures: Pictures) -> None:
    """The first checks of the doctor's page."""
    command = ["doctor", pictures.run.name, "--html", "doctor.html"]
    pictures.verb(*command)
    with page_of(pictures.folder / "doctor.html", 900, 860) as page:
        page.screenshot(path=pictures.folder / "doctor.png")
    pictures.keep("doctor.png", "the first checks of the doctor's page", *command)


def write_readme(run: Path, rows: list[str]) -> None:
    """Say which picture was made from what."""
    recorded = tomllib.loads((run / "run.toml").read_text("utf-8"))
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    final = next(row for row in reversed(metrics) if "final/val_loss" in row)
    origin, train = recorded["provenance"], recorded["train"]
    IMAGES.joinpath("README.md").write_text(
        "# How the pictures were made\n\n"
        f"By `python tools/docs/pictures.py --run runs/{run.name}`, from this run: {train['steps']} steps in "
        f"{train['time']} on {origin['machine']}, with torch {origin['torch']}, on `{recorded['data']['source']}`. "
        f"Its validation loss is {final['final/val_loss']:.4f}.\n\n"
        "| picture | shows | made by |\n|---|---|---|\n" + "\n".join(sorted(rows)) + "\n\n"
        "`python tools/docs/diagrams.py` draws the files in `diagrams/`.\n",
        encoding="utf-8",
    )


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the folder of a run, as `make quickstart` makes it")
    run = parser.parse_args().run.resolve()
    with tempfile.TemporaryDirectory() as folder:
        pictures = Pictures(run, Path(folder))
        pictures.add("quickstart.png", "training and validation loss, with baselines", "plot", run.name)
        layer, head = head_of_previous(pictures)
        pictures.add(
            "attention-head.png", "the head that attends to the previous token most", "attention", run.name,
            "--prompt", PROMPT, "--layer", layer, "--head", head,
        )  # fmt: skip
        pictures.add("lens.png", "what each block would predict", "lens", run.name, "--prompt", SHORT)
        glass(pictures)
        doctor(pictures)
        write_readme(run, pictures.rows)


if __name__ == "__main__":
    main()

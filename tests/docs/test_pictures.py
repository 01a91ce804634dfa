"""The diagrams are those that the program draws, can be read, and are in a page; so are the pictures."""

import importlib
import os
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
DIAGRAMS = sorted((IMAGES / "diagrams").glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def tools() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools" / "docs"))
        yield


@pytest.fixture(scope="module")
def diagrams(tools: None) -> ModuleType:
    return importlib.import_module("diagrams")


def test_diagrams_are_up_to_date(diagrams: ModuleType) -> None:
    assert [path.stem for path in DIAGRAMS] == sorted(diagrams.DIAGRAMS)
    stale = [name for name, draw in diagrams.DIAGRAMS.items() if diagrams.path_of(name).read_text("utf-8") != draw()]
    assert not stale, "run: python tools/docs/diagrams.py"


@pytest.mark.parametrize("path", DIAGRAMS, ids=lambda path: path.stem)
def test_diagram_is_complete_and_loads_nothing(path: Path) -> None:
    root = ElementTree.parse(path).getroot()
    title, description = root.findtext(f"{SVG}title"), root.findtext(f"{SVG}desc")
    assert title and description and len(description) > len(title)
    assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"
    text = path.read_text("utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "prefers-color-scheme:dark" in text
    assert not re.search(r"https?:|href|url\(|@import|@font-face|<script|<image", text)
    sizes = [int(size) for size in re.findall(r"font:(\d+)px", text)] + [
        int(s) for s in re.findall(r"size:(\d+)px", text)
    ]
    assert min(sizes) * 720 / float(root.get("width", "inf")) >= 13


def test_colours_have_contrast(tools: None) -> None:
    canvas = importlib.import_module("drawn.canvas")
    for colours, pages in ((canvas.LIGHT, ["#ffffff"]), (canvas.DARK, ["#1e2129", "#0d1117"])):
        fills = [colour for name, colour in colours.items() if name.endswith("-fill")]
        for text in ("ink", "soft"):
            for ground in [*fills, *pages]:
                assert contrast(colours[text], ground) >= 4.5, (text, ground)
        for name, colour in colours.items():
            if name.endswith("-edge") or name in ("line", "mark"):
                assert min(contrast(colour, page) for page in pages) >= 3, name


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_every_picture_is_in_a_page() -> None:
    pages = [ROOT / "README.md", *(path for path in (ROOT / "docs").rglob("*.md") if path.parent != IMAGES)]
    embedded = {
        (page.parent / target).resolve()
        for page in pages
        for target in re.findall(r"!\[[^\]]+\]\(([^)\s]+)\)", page.read_text("utf-8"))
    }
    pictures = {path.resolve() for path in IMAGES.rglob("*") if path.suffix in (".svg", ".png")}
    assert pictures - embedded == set()


def test_every_picture_says_how_it_was_made() -> None:
    told = (IMAGES / "README.md").read_text("utf-8")
    names = {path.name for path in IMAGES.glob("*.png")}
    assert names == set(re.findall(r"^\| `([\w-]+\.png)` \|", told, re.MULTILINE))
    assert max(path.stat().st_size for path in IMAGES.glob("*.png")) <= 200_000


def test_checkpoint_diagram_has_the_files_of_a_run(tools: None, text_file: Path, cli: Any, tmp_path: Path) -> None:
    running = importlib.import_module("drawn.running")
    options = ["preset=tiny", "steps=4", "keep_every=2", "save_interval=2", "eval_interval=2", "compile=false"]
    code, _, error = cli(
        "train", text_file, *options, "device=cpu", "dtype=float32", "micro_batch_size=4", "--name", "r"
    )
    assert code == 0, error
    run = tmp_path / "runs" / "r"
    shown = {re.sub(r"step-\d+", "step", path) for path in running.FILES}
    shown |= {f"last/{name}" for name in running.SHARED}
    found = {
        re.sub(r"step-\d+", "step", path.relative_to(run).as_posix()) + "/" * path.is_dir() for path in run.rglob("*")
    }
    assert shown == {path for path in found if not re.match(r"(kept/)?step/.", path)}
    kept = {path.name for path in (run / "kept" / "step-000002").iterdir()}
    best = {path.name for path in (run / "best").iterdir()}
    assert kept == best - {"validation.json"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("to look at the diagrams needs Chromium: apt-get install chromium fonts-dejavu-core")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield running
        running.close()


COLLISIONS = """() => {
  const svg = document.querySelector("svg"), page = svg.viewBox.baseVal, found = [];
  const box = e => {
    const b = e.getBBox();
    return {x: b.x, y: b.y, r: b.x + b.width, b: b.y + b.height, s: e.textContent};
  };
  const texts = [...svg.querySelectorAll("text")].map(box), rects = [...svg.querySelectorAll("rect")].map(box);
  const over = (a, b) => [Math.min(a.r, b.r) - Math.max(a.x, b.x), Math.min(a.b, b.b) - Math.max(a.y, b.y)];
  texts.forEach((a, i) => {
    if (a.x < 2 || a.y < 0 || a.r > page.width - 2 || a.b > page.height) found.push(`outside the picture: ${a.s}`);
    texts.slice(i + 1).forEach(b => {
      const [w, h] = over(a, b);
      if (w > 0 && h > 3) found.push(`overlap: ${a.s} | ${b.s}`);
    });
    rects.forEach(b => {
      const [w, h] = over(a, b);
      if (w > 1 && h > 4 && w < a.r - a.x - 0.5) found.push(`crosses a border: ${a.s}`);
    });
  });
  return found;
}"""


def test_no_text_overlaps(browser: Any) -> None:
    page = browser.new_page()
    for path in DIAGRAMS:
        page.set_content(path.read_text("utf-8"))
        assert page.evaluate(COLLISIONS) == [], path.stem
    page.close()

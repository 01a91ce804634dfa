"""The page from the keyboard, for a screen reader, in light and dark, and on narrow screens."""

import re
from typing import Any

import pytest
from chromium import browser, open_glass, open_page  # noqa: F401
from models import TOKENIZER, make_model

from glassgpt.glass.page.writing import glass_page

PROMPT = "To be, or not"


@pytest.fixture(scope="module")
def html() -> str:
    return glass_page(make_model("grouped queries"), TOKENIZER, PROMPT, name="a model").html


@pytest.fixture
def page(open_glass: Any, html: str) -> Any:  # noqa: F811
    page = open_glass(html)
    return page


def test_everything_can_be_done_from_the_keyboard(page: Any) -> None:
    keyboard = page.keyboard
    keyboard.press("Tab")
    assert page.evaluate("document.activeElement.hash") == "#main"  # past the header
    page.locator("#token-bar [aria-checked=true]").focus()
    keyboard.press("ArrowLeft")
    assert page.locator("#token-bar [aria-checked=true]").get_attribute("aria-label").startswith("token 11")
    assert page.evaluate("document.activeElement.getAttribute('aria-checked')") == "true"
    page.locator("#block-0 .heads [aria-checked=true]").focus()
    keyboard.press("ArrowRight")
    head = page.locator("#block-0 .heads [aria-checked=true]").get_attribute("aria-label")
    assert head.startswith("Head 1")
    page.locator("#block-1 > summary").focus()
    keyboard.press("Enter")
    assert page.evaluate("document.getElementById('block-1').open")
    button = page.get_by_role("button", name=re.compile("Open attention weights, head 1"))
    button.focus()
    keyboard.press("Enter")
    title = page.locator("#inspector-explanation h3")
    title.wait_for()
    assert title.text_content().startswith("attention weights[1, 11, 0] = ")
    for key, index in [("ArrowRight", "1, 11, 1"), ("ArrowUp", "1, 10, 1"), ("End", "1, 10, 12"), ("Home", "1, 10, 0")]:
        keyboard.press(key)
        title.get_by_text(f"attention weights[{index}]").wait_for()
    keyboard.press("Escape")
    assert not page.evaluate("document.getElementById('inspector').open")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == button.get_attribute("aria-label")
    page.get_by_label("Temperature", exact=True).focus()
    keyboard.press("ArrowRight")
    page.locator("[aria-valuetext='1.05']").wait_for()
    assert page.get_by_label("Temperature, as a number").input_value() == "1.05"
    page.get_by_label("Top-k, as a number").fill("-3")  # marked, and gone when the field is left
    assert page.get_by_label("Top-k, as a number").get_attribute("aria-invalid") == "true"
    keyboard.press("Tab")
    assert page.get_by_label("Top-k, as a number").input_value() == "0"


# Every stop of the Tab key: what it is, its name, and the width of the outline that shows that it has the focus.
STOP = """
() => {
  const element = document.activeElement;
  const labels = [...(element.labels ?? [])].map((label) => label.textContent);
  const ids = (element.getAttribute("aria-labelledby") ?? "").split(" ");
  const by = ids.map((id) => document.getElementById(id)?.textContent);
  const name = [element.getAttribute("aria-label"), ...by, ...labels, element.textContent].find((text) => text?.trim());
  const { outlineStyle, outlineWidth } = getComputedStyle(element);
  return [element.outerHTML.slice(0, 200), name ?? "", outlineStyle === "none" ? 0 : parseFloat(outlineWidth)];
}
"""


def test_every_stop_of_the_tab_key_has_a_name_and_a_visible_focus(page: Any) -> None:
    stops = []
    for _ in range(400):
        page.keyboard.press("Tab")
        stop = page.evaluate(STOP)
        if stop[0].startswith("<body"):
            break
        stops.append(stop)
    assert 50 < len(stops) < 400
    assert [html for html, name, outline in stops if not name or outline < 2] == []


# Headings, controls without a name, tables without headers, pictures without a text, ids that occur twice.
PROBLEMS = """
() => {
  const problems = [];
  const say = (what, element) => problems.push(`${what}: ${element.outerHTML.slice(0, 160)}`);
  const visible = (element) => element.checkVisibility();
  let before = 0;
  for (const heading of [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")].filter(visible)) {
    const level = Number(heading.tagName[1]);
    if (level > before + 1) say(`h${level} after h${before}`, heading);
    before = level;
  }
  if (document.querySelectorAll("h1").length !== 1) problems.push("not one h1");
  for (const table of document.querySelectorAll("table")) {
    if (!table.rows.length) continue;
    const bodies = [...table.tBodies].flatMap((body) => [...body.rows]);
    const named = table.caption || table.closest("[aria-label]") || table.getAttribute("aria-labelledby");
    if (!table.tHead?.querySelector("th[scope=col]")) say("table without column headers", table);
    if (bodies.some((row) => !row.querySelector("th[scope=row]"))) say("row without a header", table);
    if (!named) say("table without a name", table);
  }
  for (const canvas of document.querySelectorAll("canvas, svg")) {
    const hidden = canvas.closest("[aria-hidden=true]");
    if (!hidden && !canvas.getAttribute("aria-label")) say("picture without a text", canvas);
  }
  for (const holder of document.querySelectorAll("[aria-hidden=true]")) {
    const focusable = holder.querySelector("a, button:not([tabindex='-1']), input, select, summary, [tabindex='0']");
    if (focusable) say("can have the focus, but is hidden from screen readers", focusable);
  }
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  problems.push(...ids.filter((id, i) => ids.indexOf(id) !== i).map((id) => `two elements with the id ${id}`));
  if (document.documentElement.lang !== "en") problems.push("no language");
  return problems;
}
"""


def test_headings_tables_and_pictures_are_made_for_screen_readers(page: Any) -> None:
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    page.locator(".matrix:not([aria-label])").first.wait_for(state="detached")
    page.locator(".nt-table tr").first.wait_for()
    assert page.evaluate(PROBLEMS) == []
    page.evaluate("glass.open('scores', 1, [0, 5, 2])")
    assert page.evaluate(PROBLEMS) == []


# Texts whose contrast with the colour behind them is below 4.5 (3 where large); the panel's bars are behind theirs.
FAINT = """
() => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], under) => [r, g, b].map((x, i) => a * x + (1 - a) * under[i]);
  const backgroundOf = (element) => {
    if (!element) return [255, 255, 255];
    const own = rgba(getComputedStyle(element).backgroundColor);
    return over(own, own[3] < 1 ? backgroundOf(element.parentElement) : [0, 0, 0]);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((x) => (x / 255 <= 0.04045 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const faint = new Map();
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || element.closest("script, :disabled") || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const background = backgroundOf(element);
    const [a, b] = [over(rgba(style.color), background), background].map(light);
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const where = `${element.tagName} ${element.className} in ${element.parentElement.className}`;
    const text = texts.currentNode.data.trim().slice(0, 30);
    if (contrast < (large ? 3 : 4.5)) faint.set(where, `${where}: ${contrast.toFixed(2)} “${text}”`);
  }
  return [...faint.values()];
}
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_has_enough_contrast(open_glass: Any, html: str, dark: bool) -> None:  # noqa: F811
    page = open_glass(html, dark=dark)
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    page.get_by_label("Top-p, as a number").fill("0.5")
    page.locator(".nt-cut").first.wait_for()
    assert page.evaluate(FAINT) == []
    page.evaluate("glass.open('residual after mlp', 1, [5, 2])")
    assert page.evaluate(FAINT) == []


@pytest.mark.parametrize("width", [320, 390, 768, 1440])
def test_the_page_is_never_wider_than_the_screen(open_glass: Any, html: str, width: int) -> None:  # noqa: F811
    page = open_glass(html, width=width)
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    page.evaluate("glass.open('hidden', 0, [0, 3])")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.locator("#inspector").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width

"""A small SVG canvas: boxes, cards, arrows, grids of cells and text, in colours that fit light and dark pages."""

from collections.abc import Iterable, Sequence
from html import escape

#: Width of every diagram. A phone shows it at 0.75 of its size, so text is 14 px or more.
WIDTH = 480
#: What each colour means, in every diagram; the order of the legend.
MEANINGS = {"token": "tokens", "activation": "activations", "weight": "weights", "loss": "loss", "file": "files"}
#: Colours of the two schemes: of text, of lines, and fill and border of each kind of box.
LIGHT = {
    "ink": "#1f2328", "soft": "#57606a", "line": "#6e7781", "mark": "#c2404b",
    "token-fill": "#efe7fd", "token-edge": "#7c4dbd", "activation-fill": "#e1effb", "activation-edge": "#2f74b8",
    "weight-fill": "#fdebd8", "weight-edge": "#b8621b", "loss-fill": "#fde4e6", "loss-edge": "#c2404b",
    "file-fill": "#e5f2e7", "file-edge": "#3f8a4d", "plain-fill": "#f3f4f6", "plain-edge": "#8a9099",
}  # fmt: skip
DARK = {
    "ink": "#e6edf3", "soft": "#b1bac4", "line": "#8f98a3", "mark": "#f08a92",
    "token-fill": "#37284f", "token-edge": "#b794f6", "activation-fill": "#1d3650", "activation-edge": "#6cb2f2",
    "weight-fill": "#47301a", "weight-edge": "#f0a35e", "loss-fill": "#4c2329", "loss-edge": "#f08a92",
    "file-fill": "#1f3b27", "file-edge": "#79c788", "plain-fill": "#2b3038", "plain-edge": "#8f98a3",
}  # fmt: skip

Point = tuple[float, float]


def _style() -> str:
    """The style sheet, the same in every diagram."""
    schemes = ["".join(f"--{name}:{colour};" for name, colour in colours.items()) for colours in (LIGHT, DARK)]
    kinds = "".join(
        f".{kind}{{fill:var(--{kind}-fill);stroke:var(--{kind}-edge)}}.{kind}-edge{{stroke:var(--{kind}-edge)}}"
        f".{kind}-deep{{fill:var(--{kind}-edge)}}"
        for kind in (*MEANINGS, "plain")
    )
    return (
        f":root{{{schemes[0]}}}@media(prefers-color-scheme:dark){{:root{{{schemes[1]}}}}}"
        "text{font:15px system-ui,-apple-system,'Segoe UI',sans-serif;fill:var(--ink)}"
        ".mono{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}.bold{font-weight:600}"
        ".soft{fill:var(--soft)}.small{font-size:14px}.middle{text-anchor:middle}.end{text-anchor:end}"
        "rect{stroke-width:1.5}path{fill:none;stroke:var(--line);stroke-width:1.5}.head{fill:var(--line);stroke:none}"
        ".mark{stroke:var(--mark);stroke-width:2.5;fill:none}.thick{stroke-width:5}"
        ".thin{stroke-width:1;stroke-opacity:.6}.dashed{stroke-dasharray:5 4}"
        f"{kinds}.none{{fill:none}}.strong{{stroke-width:3}}"
    )


def number(value: float) -> str:
    """A coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def _at(x: float, y: float, w: float, h: float) -> str:
    return f'x="{number(x)}" y="{number(y)}" width="{number(w)}" height="{number(h)}"'


class Canvas:
    """One diagram. The origin is at the top left; ``y`` of a text is its baseline.

    Args:
        title: of the picture, a few words.
        description: what it shows, for readers who do not see it.
    """

    def __init__(self, title: str, description: str):
        self.title, self.description = title, description
        self.parts: list[str] = []
        self.kinds: set[str] = set()

    def rect(
        self, x: float, y: float, w: float, h: float, kind: str = "plain", classes: str = "", r: float = 6
    ) -> None:
        """A box. The class ``none`` leaves it empty, ``dashed`` breaks its border."""
        self.kinds.add(kind)
        self.parts.append(f'<rect {_at(x, y, w, h)} rx="{number(r)}" class="{f"{kind} {classes}".strip()}"/>')

    def text(self, x: float, y: float, content: str, classes: str = "") -> None:
        """One line of text. Classes: mono, bold, soft, small, and middle or end for where x is."""
        if not content:
            return
        attribute = f' class="{classes}"' if classes else ""
        space = ' xml:space="preserve"' if "  " in content or content != content.strip() else ""
        self.parts.append(
            f'<text x="{number(x)}" y="{number(y)}"{attribute}{space}>{escape(content, quote=False)}</text>'
        )

    def paragraph(self, x: float, y: float, lines: Iterable[str], classes: str = "", leading: float = 20) -> float:
        """Lines of text below each other; gives the y of the line after them."""
        for line in lines:
            self.text(x, y, line, classes)
            y += leading
        return y

    def card(
        self, x: float, y: float, w: float, kind: str, title: str, lines: Sequence[str] = (), right: str = ""
    ) -> float:
        """A box with a bold title, something at its right end, and mono lines below it; gives its lower edge."""
        height = 34 + 20 * len(lines)
        self.rect(x, y, w, height, kind)
        self.text(x + 12, y + 22, title, "bold")
        if right:
            self.text(x + w - 12, y + 22, right, "mono end")
        self.paragraph(x + 12, y + 42, lines, "mono")
        return y + height

    def line(self, *points: Point, classes: str = "") -> None:
        """A line through points."""
        attribute = f' class="{classes}"' if classes else ""
        path = "L".join(f"{number(x)} {number(y)}" for x, y in points)
        self.parts.append(f'<path d="M{path}"{attribute}/>')

    def arrow(self, *points: Point, classes: str = "") -> None:
        """A line through points with a head at the last one; its last piece is horizontal or vertical."""
        (x0, y0), (x, y) = points[-2:]
        dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
        self.line(*points[:-1], (x - 6 * dx, y - 6 * dy), classes=classes)
        left, right = (x - 8 * dx - 4.5 * dy, y - 8 * dy + 4.5 * dx), (x - 8 * dx + 4.5 * dy, y - 8 * dy - 4.5 * dx)
        corners = "L".join(f"{number(a)} {number(b)}" for a, b in ((x, y), left, right))
        self.parts.append(f'<path d="M{corners}Z" class="head"/>')

    def plus(self, x: float, y: float) -> None:
        """An addition: a circle with a plus."""
        self.parts.append(f'<circle cx="{number(x)}" cy="{number(y)}" r="12" class="activation" stroke-width="1.5"/>')
        self.text(x, y + 5.5, "+", "bold middle")

    def row(
        self, x: float, y: float, texts: Sequence[str], width: float, kind: str, height: float = 26, classes: str = ""
    ) -> None:
        """A row of cells with a text in the middle of each."""
        for i, content in enumerate(texts):
            self.rect(x + i * width, y, width, height, kind, classes, r=2)
            self.text(x + (i + 0.5) * width, y + height / 2 + 5, content, "mono middle")

    def shade(self, x: float, y: float, w: float, h: float, kind: str, strength: float) -> None:
        """Colour an area more or less, from 0 to 1."""
        self.parts.append(f'<rect {_at(x, y, w, h)} class="{kind}-deep" fill-opacity="{strength:.2f}"/>')

    def marked(self, x: float, y: float, w: float, h: float) -> None:
        """A red frame around something."""
        self.parts.append(f'<rect {_at(x, y, w, h)} rx="3" class="mark"/>')

    def legend(self, y: float) -> float:
        """Say what the colours mean that were used; gives the lower edge."""
        x = 16.0
        for kind, meaning in MEANINGS.items():
            if kind in self.kinds:
                self.rect(x, y, 14, 14, kind, r=3)
                self.text(x + 20, y + 12, meaning, "soft small")
                x += 38 + 8.2 * len(meaning)
        return y + 20

    def svg(self, height: float) -> str:
        """The file."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {number(height)}" width="{WIDTH}" '
            f'height="{number(height)}" role="img" aria-labelledby="title desc">\n'
            f'<title id="title">{escape(self.title, quote=False)}</title>\n'
            f'<desc id="desc">{escape(self.description, quote=False)}</desc>\n'
            f"<style>{_style()}</style>\n" + "\n".join(self.parts) + "\n</svg>\n"
        )

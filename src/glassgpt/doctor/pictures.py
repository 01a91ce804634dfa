"""Draw what the checks measured, as SVG inside a page: the reach triangle, the alignment, the learning rates."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

#: Rows of a triangle that are drawn, at most; a longer one is cut.
_MAX_ROWS = 64
#: Below this share of the largest value, a dependence is drawn as none: rounding of float32.
_NOTHING = 1e-6


def draw_evidence(evidence: Mapping[str, Any]) -> str:
    """Return the pictures of the measured values that can be drawn; empty if none can.

    Args:
        evidence: of a result. Drawn are ``triangle`` (the size of d logits[t] / d token[s], rows t), ``alignment`` or
            ``agreement by shift`` (a value by offset k between input and target), and ``rates`` or ``sweep`` (the
            change of the loss, or the loss after one of ``losses on one batch``, by factor on the learning rate).
    """
    pictures = []
    if triangle := evidence.get("triangle"):
        text = "Reach: row t, column s is filled where output t depends on token s."
        pictures.append(_figure(_triangle(triangle), text))
    alignment = evidence.get("alignment") or evidence.get("agreement by shift")
    if isinstance(alignment, Mapping):
        text = "Alignment: the target of position t compared with the token at t + k. Targets belong to k = 1."
        pictures.append(_figure(_bars(alignment, highlighted="1"), text))
    rates = evidence.get("rates") or _changes(evidence)
    if rates and isinstance(rates, Mapping):
        text = "Rates: the change of the loss by one step, by the factor on the learning rate."
        pictures.append(_figure(_bars(rates), text))
    return "".join(pictures)


def _changes(evidence: Mapping[str, Any]) -> dict[str, float]:
    """The losses of a sweep over rates, minus the loss before."""
    sweep, losses = evidence.get("sweep"), evidence.get("losses on one batch")
    return {rate: _number(loss) - losses[0] for rate, loss in sweep.items()} if sweep and losses else {}


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _triangle(rows: Sequence[Sequence[float]]) -> str:
    """Draw one square per pair of positions; what lies above the diagonal is in the colour of a bug."""
    rows = [row[:_MAX_ROWS] for row in rows[:_MAX_ROWS]]
    largest = max((value for row in rows for value in row if math.isfinite(value)), default=0.0) or 1.0
    squares = []
    for t, row in enumerate(rows):
        for s, value in enumerate(row):
            share = value / largest if math.isfinite(value) else 1.0
            # A logarithmic scale: attention is spread over the past, so most values are far below the largest.
            opacity = 0.0 if share < _NOTHING else 1 + math.log10(share) / -math.log10(_NOTHING) * 0.85
            kind = "none" if not opacity else "bad" if s > t else "good"
            title = f"<title>output {t}, token {s}: {value:.2g}</title>"
            style = f' fill-opacity="{opacity:.2f}"' if opacity else ""
            squares.append(f'<rect class="{kind}" x="{s}" y="{t}" width="1" height="1"{style}>{title}</rect>')
    size = f"0 0 {max(map(len, rows))} {len(rows)}"
    return f'<svg class="triangle" viewBox="{size}" role="img" aria-label="reach triangle">{"".join(squares)}</svg>'


def _bars(values: Mapping[Any, Any], highlighted: str = "") -> str:
    """Draw one bar per entry, upwards or downwards from zero, with its name below and its value above.

    The highlighted bar should be the highest: another one that is higher has the colour of a bug.
    """
    numbers = {str(name): _number(value) for name, value in values.items()}
    finite = [value for value in numbers.values() if math.isfinite(value)]
    top, bottom = max([*finite, 0.0]), min([*finite, 0.0])
    scale = 100 / ((top - bottom) or 1.0)
    zero, width = 20 + top * scale, 64
    parts = [f'<line x1="0" x2="{width * len(numbers)}" y1="{zero:.1f}" y2="{zero:.1f}"/>']
    for i, (name, value) in enumerate(numbers.items()):
        shown = value if math.isfinite(value) else (top or 1.0)  # inf: as high as the highest, and its text says so
        y, height, middle = zero - max(shown, 0) * scale, abs(shown) * scale, width * i + width // 2
        wrong = not math.isfinite(value) or value == top > numbers.get(highlighted, math.inf)
        kind = "chosen" if name == highlighted else "bad" if wrong else "good"
        parts.append(
            f'<rect class="{kind}" x="{width * i + 8}" y="{y:.1f}" width="{width - 16}" height="{height:.1f}"/>'
        )
        text_y = y - 5 if shown >= 0 else y + height + 12
        parts.append(f'<text x="{middle}" y="{text_y:.1f}">{value:.3g}</text>')
        parts.append(f'<text class="name" x="{middle}" y="152">{html.escape(name)}</text>')
    wide = width * len(numbers)
    head = f'<svg class="bars" viewBox="0 0 {wide} 160" style="max-width:{wide}px" role="img">'
    return f"{head}{''.join(parts)}</svg>"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan

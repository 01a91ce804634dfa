"""Draw a scored text: the surprise over the positions, and the text itself in colours."""

from bisect import bisect_right
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from glassgpt.glass.inside.score import LEVELS, Score
from glassgpt.glass.pictures import drawable, new_figure, save_figure

#: From no surprise to the most: the backgrounds of tokens, and the dots of the curve.
_COLOURS = ("#ffffff", "#ffee9f", "#ffd37a", "#ff9f5a", "#f2555a")
_NO_COLOUR = "#b8bcc4"  # of the bars without surprise, where white could not be seen
_COLUMNS, _LINES = 110, 40  # of text, at most
_WIDTH, _LINE_HEIGHT, _MARGIN, _CURVE = 11.0, 0.2, 0.6, 1.9  # inches
_CHARACTER = 0.602  # width of a monospaced character, in ems
_BARS = 400  # above as many tokens, dots and their running mean


def draw_score(score: Score, target: Path, title: str = "") -> None:
    """Draw the surprise in bits over the positions, and as many lines of the text as fit, and write it as PNG or SVG.

    Raises:
        MissingExtraError: if matplotlib is not installed.
        CheckpointError: if the file cannot be written.
    """
    lines, shown = _lay_out(score)
    height = _MARGIN - 0.15 + _CURVE + 0.95 + len(lines) * _LINE_HEIGHT + 0.15
    figure = new_figure(_WIDTH, height)
    figure.set_layout_engine("none")
    left, width = _MARGIN / _WIDTH, 1 - (_MARGIN + 0.2) / _WIDTH
    curve = figure.add_axes((left, 1 - (0.35 + _CURVE) / height, width, _CURVE / height))
    _draw_curve(curve, score)
    bits = "" if score.bits_per_byte is None else f", {score.bits_per_byte:.3f} bits per byte"
    loss = f"loss {score.loss:.3f} nats per token, perplexity {score.perplexity:,.1f}{bits}"
    heading = drawable("   ".join(filter(None, [title, loss])))
    curve.set_title(heading, fontsize=10, loc="left", parse_math=False)
    part = "the text" if shown == len(score.ids) else f"the first {shown:,} of {len(score.ids):,} tokens"
    text = figure.add_axes((left, 0.15 / height, width, len(lines) * _LINE_HEIGHT / height))
    _draw_text(text, lines, size=(width * _WIDTH / _COLUMNS) * 72 / _CHARACTER)
    _draw_legend(text, part)
    save_figure(figure, target)


def _level(bits: float) -> int:
    return 0 if np.isnan(bits) else bisect_right(LEVELS, bits)


def _lay_out(score: Score) -> tuple[list[list[tuple[int, str, int]]], int]:
    """Break the text into lines of (column, part of a token, level); return them, and how many tokens they show."""
    lines: list[list[tuple[int, str, int]]] = [[]]
    column = 0
    for position, (token, bits) in enumerate(zip(score.tokens, score.bits.tolist(), strict=True)):
        drawn = drawable(token)
        if column and column + len(drawn) > _COLUMNS:
            lines.append([])
            column = 0
        if len(lines) > _LINES:
            return lines[:_LINES], position
        lines[-1].append((column, drawn[:_COLUMNS], _level(bits)))
        column += len(drawn)
        if token.endswith("\\n"):
            column = _COLUMNS  # the next token begins a line
    return lines, len(score.tokens)


def _draw_text(axes: Any, lines: list[list[tuple[int, str, int]]], size: float) -> None:
    from matplotlib.patches import Rectangle

    axes.set(xlim=(0, _COLUMNS), ylim=(len(lines), 0))
    axes.axis("off")
    font = {"family": ["DejaVu Sans Mono", "DejaVu Sans"], "size": size}  # the second has letters that the first lacks
    for row, line in enumerate(lines):
        for column, drawn, level in line:
            if level:
                box = Rectangle((column, row + 0.06), len(drawn), 0.88, facecolor=_COLOURS[level], linewidth=0)
                axes.add_patch(box)
            axes.text(column, row + 0.52, drawn, fontdict=font, va="center_baseline", parse_math=False)


def _draw_legend(axes: Any, part: str) -> None:
    from matplotlib.patches import Patch

    names = [f"{low} to {high}" for low, high in pairwise(LEVELS)] + [f"{LEVELS[-1]} or more"]
    patches = [Patch(facecolor=colour, label=name) for name, colour in zip(names, _COLOURS[1:], strict=True)]
    axes.legend(
        handles=patches, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.3, ncols=len(names), fontsize=8,
        frameon=False, title=f"{part}; surprise in bits:", title_fontsize=8, alignment="left",
    )  # fmt: skip


def _draw_curve(axes: Any, score: Score) -> None:
    """Draw one bar per token; of a long text, dots and their mean over a hundredth of it."""
    bits = score.bits[1:]
    positions = np.arange(1, len(bits) + 1)
    colours = [_COLOURS[_level(value)] if _level(value) else _NO_COLOUR for value in bits]
    if len(bits) <= _BARS:
        axes.bar(positions, bits, width=1, color=colours, edgecolor="white", linewidth=0.3)
    else:
        axes.scatter(positions, bits, s=3, alpha=min(1, 5000 / len(bits)), color=colours, rasterized=True)
        span = max(20, len(bits) // 100)
        mean = np.convolve(bits, np.full(span, 1 / span), mode="valid")
        axes.plot(positions[span - 1 :] - (span - 1) / 2, mean, color="0.15", linewidth=1.2, label=f"mean of {span:,}")
        axes.legend(fontsize=8, loc="upper right")
    axes.axhline(bits.mean(), color="0.3", linewidth=0.8, linestyle="--")
    axes.set(xlim=(0, max(20, len(bits) + 1)), ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("position in tokens; dashed: the mean", fontsize=8)
    axes.set_ylabel("surprise (bits)", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)

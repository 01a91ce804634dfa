"""Draw a film: losses and heads over the steps of a run, and below them the texts, the lens and chosen heads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glassgpt.glass.inside.film import Film, describe_induction, spread
from glassgpt.glass.inside.heads import head_name
from glassgpt.glass.inside.lens import row_name
from glassgpt.glass.pictures import drawable, label, label_tokens, new_figure, save_figure
from glassgpt.glass.tokens import escaped

#: Statistics that are shares of attention, and their colours.
_COLORS = {"induction": "C3", "duplicate": "C2", "previous": "C0", "first": "0.5"}
#: Checkpoints, and rows of the lens, that are drawn with text, at most.
_MOST_STEPS, _MOST_LAYERS = 16, 13
#: Inches, of which the panels have 9.5; and inches of a letter in a cell of the lens.
_WIDTH, _LETTER = 12, 0.065
#: Characters of a prompt, and of a continuation, that are drawn.
_MAX_PROMPT, _MAX_TEXT = 60, 110


def draw_film(film: Film, heads: Sequence[tuple[int, int]], target: Path) -> None:
    """Draw a film, with the attention of these heads (layer, head), and write it as PNG or SVG.

    Raises:
        MissingExtraError: if matplotlib is not installed.
        CheckpointError: if the file cannot be written.
    """
    S, rows = len(film.frames), len(film.frames[0].lens_tokens)
    shown, layers = spread(S, _MOST_STEPS), spread(rows, _MOST_LAYERS)
    heights = [2.4, 3.2, 0.4 + 0.2 * len(shown), 0.7 + 0.23 * len(layers)]
    heights += [0.9 + min(2.6, 0.16 * max(S, 3))] * len(heads)
    figure = new_figure(_WIDTH, sum(heights) + 0.8)
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    losses = figure.add_subplot(grid[0])
    _draw_losses(losses, film)
    _draw_statistics(figure.add_subplot(grid[1], sharex=losses), film)
    _draw_texts(figure.add_subplot(grid[2]), film, shown)
    _draw_lens(figure.add_subplot(grid[3]), film, shown, layers)
    for row, head in enumerate(heads, 4):
        _draw_attention(figure, figure.add_subplot(grid[row]), film, head, shown)
    figure.suptitle(f"{drawable(film.run.name)}: {describe_induction(film)}".replace("$", r"\$"), fontsize=9, wrap=True)
    save_figure(figure, target)


def _draw_losses(axes: Any, film: Film) -> None:
    """Draw the run's losses, and those of the prompt and of repeated tokens."""
    for key, name, color in (("train/loss", "training", "0.75"), ("val/loss", "validation", "0.35")):
        if points := [(row["step"], row[key]) for row in film.run.metrics if row.get(key) is not None]:
            axes.plot(*zip(*points, strict=True), label=name, color=color, linewidth=1.2)
    for name, values, style in (
        ("the prompt", [frame.loss for frame in film.frames], "C0o-"),
        ("random tokens", [frame.repeated.first_loss for frame in film.frames], "C3o:"),
        ("the same tokens, repeated", [frame.repeated.second_loss for frame in film.frames], "C3o-"),
    ):
        if np.isfinite(values).any():
            axes.plot(film.steps, values, style, markersize=3, label=name)
    axes.set_ylabel("loss (nats per token)")
    axes.tick_params(labelbottom=False)
    _finish(axes, film, "")


def _draw_statistics(axes: Any, film: Film) -> None:
    """Draw the best head of each statistic that is a share of attention, and the induction scores of all heads."""
    axes.plot(film.steps, film.curve("induction").reshape(len(film.frames), -1), color="C3", alpha=0.25, linewidth=0.8)
    near: Any = {"textcoords": "offset points", "va": "center"}
    for name, color in _COLORS.items():
        best, head = [frame.best(name) for frame in film.frames], head_name(film.frames[-1].best_head(name))
        width = 2.2 if name == "induction" else 1.3
        axes.plot(film.steps, best, "o-", color=color, linewidth=width, markersize=3, label=f"{name} ({head})")
        axes.annotate(head, (film.steps[-1], best[-1]), xytext=(6, 0), color=color, fontsize=8, **near)
    for value, name, line in ((film.threshold, "more: an induction head", "--"), (film.chance, "chance", ":")):
        axes.axhline(value, color="C3", linewidth=0.8, linestyle=line)
        place = (0, value), ("axes fraction", "data")
        axes.annotate(name, place[0], xycoords=place[1], xytext=(3, 5), color="C3", fontsize=7, **near)
    axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    axes.set_ylabel("attention of the best head")
    axes.set_xlabel("optimiser step")
    _finish(axes, film, "on repeated random tokens\n(the best head in the end)")


def _finish(axes: Any, film: Film, title: str) -> None:
    """Draw a grid and a legend, and shade the steps between which induction appears."""
    axes.grid(alpha=0.2)
    beside: Any = {"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False}
    axes.legend(title=title, fontsize=8, title_fontsize=8, alignment="left", **beside)
    if film.induction:
        axes.axvspan(film.steps[film.induction - 1], film.steps[film.induction], color="C3", alpha=0.12, linewidth=0)


def _draw_texts(axes: Any, film: Film, shown: Sequence[int]) -> None:
    """Write the continuation of each of these checkpoints on a line."""
    axes.set_axis_off()
    prompt = _shorten("".join(film.prompt.tokens), _MAX_PROMPT)
    axes.set_title(f"what each checkpoint writes after “{prompt}”", fontsize=9, loc="left")
    for line, i in enumerate(shown):
        place: Any = {"y": 1 - (line + 0.5) / len(shown), "transform": axes.transAxes, "fontsize": 8, "va": "center"}
        axes.text(0, s=f"step {film.steps[i]:,}", color="0.4", **place)
        axes.text(0.1, s=_shorten(escaped(film.frames[i].text.encode()), _MAX_TEXT), family="monospace", **place)


def _shorten(text: str, longest: int) -> str:
    text = drawable(text)
    return (text if len(text) <= longest else text[: longest - 1] + "…").replace("$", r"\$")


def _draw_lens(axes: Any, film: Film, shown: Sequence[int], layers: Sequence[int]) -> None:
    """Draw the prediction after the prompt by layer and step; bold where it stays what the model predicts."""
    probability = np.stack([film.frames[i].lens_probability[layers] for i in shown], axis=1)  # [layers, steps]
    axes.imshow(probability, cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
    letters = max(2, int(9.5 / len(shown) / _LETTER) - 5)
    for column, i in enumerate(shown):
        for row, layer in enumerate(layers):
            token, p = label(film.frames[i].lens_texts[layer]), probability[row, column]
            token = token if len(token) <= letters else token[: letters - 1] + "…"
            style: Any = {"weight": "bold"} if layer >= film.frames[i].decided_in else {}
            style["color"] = "white" if p > 0.6 else "black"
            axes.text(column, row, f"{token} {p:.2f}", ha="center", va="center", fontsize=7, **style)
    axes.set_xticks(range(len(shown)), [f"{film.steps[i]:,}" for i in shown], fontsize=8)
    axes.set_yticks(range(len(layers)), [row_name(row) for row in layers], fontsize=8)
    axes.tick_params(length=0)
    title = "logit lens: the next token after each block, and its probability; bold: it stays so to the last block"
    axes.set_title(title, fontsize=9, loc="left")


def _draw_attention(figure: Any, axes: Any, film: Film, head: tuple[int, int], shown: Sequence[int]) -> None:
    """Draw one head's attention from the last token, a row per checkpoint."""
    layer, number = head
    weights = np.stack([frame.attention[layer, number] for frame in film.frames])  # [S, T]
    image = axes.imshow(weights, cmap="Reds", vmin=0, aspect="auto", interpolation="nearest")
    T = weights.shape[1]
    label_tokens(axes, columns=film.prompt.tokens, size=max(2.5, min(8.0, 600 / T)))
    axes.set_yticks(shown, [f"{film.steps[i]:,}" for i in shown], fontsize=7)
    axes.set_ylabel("step")
    axes.set_title(f"head {head_name(head)}: attention from the last token of the prompt", fontsize=9, loc="left")
    figure.colorbar(image, cax=axes.inset_axes((1.01, 0, 0.015, 1)))

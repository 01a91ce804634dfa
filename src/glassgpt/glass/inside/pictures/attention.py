"""Draw the attention weights of one head, or of many as a wall of small pictures; of two models side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glassgpt.glass.pictures import label_tokens, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Beyond so many tokens, axes show positions in place of tokens.
_MAX_LABELLED = 300
#: Pixels of a head in a wall, along one side, at most.
TILE = 96


def draw_head(weights: Sequence[tuple[str, np.ndarray]], tokens: Sequence[str], target: Path) -> None:
    """Draw one head as a picture of queries by keys ``[T, T]``, for each model one, with its title.

    Raises:
        MissingExtraError: if matplotlib is not installed.
        CheckpointError: if the file cannot be written.
    """
    T = len(tokens)
    side = min(max(0.16 * T, 3.5), 26) if T <= _MAX_LABELLED else 12
    figure = new_figure(len(weights) * (side + 1.2) + 0.8, side + 1.3)
    all_axes = figure.subplots(1, len(weights), squeeze=False)[0]
    hidden = np.triu(np.ones((T, T), dtype=bool), 1)
    for axes, (title, values) in zip(all_axes, weights, strict=True):
        image = _show(axes, np.where(hidden, np.nan, values))
        if T <= _MAX_LABELLED:
            label_tokens(axes, rows=tokens, columns=tokens, size=min(8, 0.7 * 72 * side / T))
        if T <= 12:
            for t, s in zip(*np.nonzero(~hidden & (values >= 0.005)), strict=True):
                colour = "white" if values[t, s] > 0.4 else "black"
                axes.text(s, t, f"{100 * values[t, s]:.0f}", ha="center", va="center", fontsize=7, color=colour)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("attended to (key)", fontsize=8)
        axes.set_ylabel("attends (query)", fontsize=8)
    _colour_bar(figure, image, all_axes)
    save_figure(figure, target)


def draw_wall(weights: Sequence[tuple[str, np.ndarray]], first_layer: int, target: Path) -> None:
    """Draw many heads: a row per layer, a column per head, ``[L, H, S, S]``; for each model a wall, with its title.

    Weights of more tokens than TILE are pooled before, by :func:`~glassgpt.glass.inside.heads.attention_maps`.

    Raises:
        MissingExtraError: if matplotlib is not installed.
        CheckpointError: if the file cannot be written.
    """
    L, H = weights[0][1].shape[:2]
    tile = min(max(16 / max(L, H), 0.7), 1.6)
    figure = new_figure(len(weights) * max(tile * H, 2.5) + 1.5, max(tile * L, 1.5) + 0.7)
    all_axes = figure.subplots(1, len(weights), squeeze=False)[0]
    for axes, (title, values) in zip(all_axes, weights, strict=True):
        wall, step = _wall(values)
        image = _show(axes, wall)
        places = (step - TILE // 16 - 1) / 2 + step * np.arange(max(L, H))
        axes.set_xticks(places[:H], range(H), fontsize=8)
        axes.set_yticks(places[:L], range(first_layer, first_layer + L), fontsize=8)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("head", fontsize=8)
        axes.xaxis.set_label_position("top")
        axes.set_ylabel("layer", fontsize=8)
    _colour_bar(figure, image, all_axes)
    save_figure(figure, target)


def _wall(weights: np.ndarray) -> tuple[np.ndarray, int]:
    """Put the heads beside each other, with a gap of NaN; return the picture, and its pixels from head to head."""
    L, H, S, _ = weights.shape
    repeated = max(1, TILE // S)
    size = S * repeated
    step = size + TILE // 16
    wall = np.full((L * step, H * step), np.nan, dtype=np.float32)
    for layer in range(L):
        for head in range(H):
            place = wall[layer * step :, head * step :][:size, :size]
            place[:] = weights[layer, head].repeat(repeated, axis=0).repeat(repeated, axis=1)
    return wall, step


def _show(axes: Any, values: np.ndarray) -> Any:
    from matplotlib.colors import PowerNorm

    return axes.imshow(values, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")


def _colour_bar(figure: "Figure", image: Any, all_axes: Any) -> None:
    shrink = min(0.7, 4 / figure.get_figheight())
    bar = figure.colorbar(image, ax=all_axes, shrink=shrink, aspect=25, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
    bar.set_label("attention weight", fontsize=8)
    bar.ax.tick_params(labelsize=7)

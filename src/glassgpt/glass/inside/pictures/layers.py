"""Draw the logit lens, attribution, ablation and reach. Layers go down the page, from the first."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from glassgpt.glass.inside.ablation import Ablation
from glassgpt.glass.inside.attribution import Attribution
from glassgpt.glass.inside.lens import Lens, row_name
from glassgpt.glass.inside.reach import Reach
from glassgpt.glass.pictures import label, label_tokens, new_figure, save_figure

#: Positions of a lens that are drawn, the last ones; more could not be read.
LENS_POSITIONS = 24
#: Positions up to which a picture of reach has the tokens on its axes.
_LABELLED = 64
#: Colours of reach: neither expected nor found, both, found only, expected only.
_REACH = {"does not depend": "white", "depends": "#4477aa", "depends, and should not": "#cc3311",
          "should depend, and does not": "#ffb000"}  # fmt: skip


def draw_lens(lens: Lens, target: Path) -> None:
    """Draw the grid of layers and positions: the predicted tokens, on the colour of their probability.

    Of a long prompt, the last positions are drawn; the title says how many.

    Raises:
        MissingExtraError: if matplotlib is not installed.
        CheckpointError: if the file cannot be written.
    """
    L1, T = lens.tokens.shape
    first = max(0, T - LENS_POSITIONS)
    drawn = T - first
    cells = [[label(text) for text in row[first:]] for row in lens.texts]
    longest = max(len(cell) for row in cells for cell in row)
    figure = new_figure(max(5.0, 2.2 + (0.25 + 0.07 * max(3, longest)) * drawn), 1.6 + 0.27 * L1)
    axes = figure.add_subplot()
    image = axes.imshow(lens.probability[:, first:], cmap="YlGnBu", vmin=0, vmax=1, aspect="auto")
    for row in range(L1):
        for column in range(drawn):
            place = row, first + column
            axes.text(
                column, row, cells[row][column], ha="center", va="center", fontsize=7,
                color="white" if lens.probability[place] > 0.55 else "black",
                weight="bold" if lens.rank[place] == 1 else "normal",
            )  # fmt: skip
    label_tokens(axes, columns=lens.prompt.tokens[first:])
    axes.set_yticks(range(L1), map(row_name, range(L1)), fontsize=8)
    part = f"the last {drawn} of {T} positions" if first else "each position"
    axes.set_title(f"Predicted next token after each block, at {part}.\nBold: what the model predicts in the end.")
    figure.colorbar(image, ax=axes, label="probability of the token", shrink=min(1.0, 4 / (0.27 * L1)), pad=0.01)
    save_figure(figure, target)


def draw_attribution(attribution: Attribution, target: Path) -> None:
    """Draw what each head, each MLP, the embeddings and the biases add to a logit.

    Raises:
        MissingExtraError: if matplotlib is not installed.
        CheckpointError: if the file cannot be written.
    """
    others = {"token embedding": attribution.token_embedding}
    if attribution.position_embedding is not None:
        others["position embedding"] = attribution.position_embedding
    for name, biases in (("attention biases", attribution.attention_biases), ("MLP biases", attribution.mlp_biases)):
        if biases is not None:
            others[name] = float(biases.sum())
    if attribution.final_norm_bias is not None:
        others["final norm bias"] = attribution.final_norm_bias
    others["all heads"], others["all MLPs"] = float(attribution.heads.sum()), float(attribution.mlps.sum())
    names = [label(text) for text in attribution.texts]
    what = f"logit of '{names[0]}'" + (f" less that of '{names[1]}'" if len(names) > 1 else "")
    after = label(attribution.prompt.tokens[attribution.position])
    where = f"after '{after}' (position {attribution.position})"
    title = f"What adds to the {what}\n{where}: {attribution.value:+.3f} in all"
    layers = list(range(len(attribution.mlps)))
    _draw_components(target, title, "added to the logit", layers, attribution.heads, attribution.mlps, others)


def draw_ablation(ablation: Ablation, target: Path) -> None:
    """Draw how much the loss changes without each head and each MLP.

    Raises:
        MissingExtraError: if matplotlib is not installed.
        CheckpointError: if the file cannot be written.
    """
    title = (
        f"Change of the loss without each component ({ablation.by} ablation)\n"
        f"loss of the whole model {ablation.loss:.4f} nats per token, {ablation.tokens:,} tokens"
    )
    heads, mlps = ablation.heads - ablation.loss, ablation.mlps - ablation.loss
    _draw_components(target, title, "change of the loss (nats per token)", ablation.layers, heads, mlps, {})


def _draw_components(
    target: Path,
    title: str,
    unit: str,
    layers: list[int],
    heads: np.ndarray,
    mlps: np.ndarray,
    others: Mapping[str, float],
) -> None:
    """Draw heads ``[N, H]`` as a map, MLPs ``[N]`` as bars beside it, and named numbers as bars below."""
    N, H = heads.shape
    map_width, map_height = max(2.6, 0.36 * H), max(1.6, 0.27 * N)
    below = 0.5 + 0.25 * len(others) if others else 0.0
    figure = new_figure(map_width + 5.0, map_height + below + 1.7)
    ratios: Any = {"width_ratios": [map_width, 2.4], "height_ratios": [map_height, below] if others else [1]}
    grid = figure.add_gridspec(2 if others else 1, 2, **ratios)
    axes, bars = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    limit = float(np.abs(heads).max()) or 1.0
    image = axes.imshow(heads, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    step = 1 + (N - 1) // 48
    names = [str(layer) for layer in layers[::step]]
    axes.set_yticks(range(0, N, step), names, fontsize=8)
    axes.set_xticks(range(0, H, 1 + (H - 1) // 32))
    axes.tick_params(labelsize=8)
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    bar = figure.colorbar(image, ax=axes, location="bottom", pad=0.02, aspect=30, fraction=0.3 / map_height)
    bar.set_label(unit, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.ax.locator_params(nbins=5)
    _draw_bars(bars, mlps)
    bars.set_ylim(N - 0.5, -0.5)
    bars.set_yticks(range(0, N, step), names, fontsize=8)
    bars.set_title("MLP", fontsize=10)
    axes.set_title("heads", fontsize=10)
    bars.set_xlabel(unit, fontsize=8)
    if others:
        rest = figure.add_subplot(grid[1, :])
        drawn = _draw_bars(rest, np.array(list(others.values())))
        rest.set_yticks(range(len(others)), list(others), fontsize=8)
        rest.bar_label(drawn, fmt="%+.3f", padding=3, fontsize=8)
        rest.margins(x=0.12)
        rest.invert_yaxis()
    figure.suptitle(title, fontsize=11)
    save_figure(figure, target)


def _draw_bars(axes: Any, values: np.ndarray) -> Any:
    """Draw horizontal bars, red above zero and blue below, as the map's colours."""
    bars = axes.barh(range(len(values)), values, color=["#b2182b" if value > 0 else "#2166ac" for value in values])
    axes.axvline(0, color="0.3", linewidth=0.8)
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(labelsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    return bars


def draw_reach(reach: Reach, target: Path) -> None:
    """Draw which positions the output at each position depends on, and where that is not as it should be.

    Raises:
        MissingExtraError: if matplotlib is not installed.
        CheckpointError: if the file cannot be written.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    T = len(reach.depends)
    side = max(2.4, 0.2 * T) if T <= _LABELLED else 8.0
    figure = new_figure(side + 1.6, side + 1.8)
    axes = figure.add_subplot()
    kinds = np.where(reach.depends, np.where(reach.expected, 1, 2), np.where(reach.expected, 3, 0))
    axes.imshow(kinds, cmap=ListedColormap(list(_REACH.values())), vmin=-0.5, vmax=3.5)
    if T <= _LABELLED:
        axes.set_xticks(np.arange(T + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(T + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="0.85", linewidth=0.5)
        axes.tick_params(which="minor", length=0)
        label_tokens(axes, rows=reach.prompt.tokens, columns=reach.prompt.tokens, size=7)
    else:
        axes.xaxis.tick_top()
    axes.set_xlabel("token")
    axes.set_ylabel("output at")
    axes.set_title("Which tokens each output depends on")
    patches = [
        Patch(facecolor=colour, edgecolor="0.7", label=name)
        for number, (name, colour) in enumerate(_REACH.items())
        if number < 2 or (kinds == number).any()
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    save_figure(figure, target)

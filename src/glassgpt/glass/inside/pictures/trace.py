"""Draw the spread and the extremes of every tensor of a forward pass, through the layers."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glassgpt.glass.inside.trace import TensorFacts, Trace
from glassgpt.glass.pictures import new_figure, save_figure

_COLUMNS = 6


def draw_trace(trace: Trace, target: Path) -> None:
    """Draw one panel per tensor of the layers, and one for those outside of them, and write them as PNG or SVG.

    Raises:
        MissingExtraError: if matplotlib is not installed.
        CheckpointError: if the file cannot be written.
    """
    panels: dict[str, list[TensorFacts]] = {}
    for facts in trace.tensors[1:]:  # not the ids
        panels.setdefault("outside the layers" if facts.layer is None else facts.name, []).append(facts)
    panels["outside the layers"] = panels.pop("outside the layers")  # at the end
    rows = math.ceil(len(panels) / _COLUMNS)
    figure = new_figure(2.3 * _COLUMNS, 1.75 * rows + 0.9)
    grid = figure.subplots(rows, _COLUMNS, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, (name, tensors) in zip(grid.flat, panels.items(), strict=False):
        lines = _draw_panel(axes, tensors)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.2)
        if name == "outside the layers":
            names = [facts.name.replace(" ", "\n") for facts in tensors]
            axes.set_xticks(range(len(tensors)), names, rotation=90, fontsize=7)
        else:
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_yscale("log")
        axes.minorticks_off()  # they take most of the time
    grid[0, 0].margins(y=0.08)  # of all: they share the scale
    count = len(trace.prompt.ids)
    figure.suptitle(f"Sizes of the numbers in every tensor, by layer; {count} token{'s' * (count > 1)}", fontsize=11)
    figure.legend(handles=lines, loc="outside lower center", ncols=4, fontsize=8)
    save_figure(figure, target)


def _draw_panel(axes: Any, tensors: Sequence[TensorFacts]) -> list[Any]:
    """Draw the lines of a tensor; return them for the legend."""
    kinds: list[tuple[str, list[float], dict[str, Any]]] = [
        ("largest number", [facts.largest for facts in tensors], {"color": "C1"}),
        ("smallest number, times -1", [-facts.smallest for facts in tensors], {"color": "C2", "linestyle": "--"}),
        ("standard deviation", [facts.std for facts in tensors], {"color": "C0", "linewidth": 2}),
    ]
    marker = "o" if len(tensors) < 12 else ""
    lines = []
    for name, values, style in kinds:
        drawn = [value if value > 0 else math.nan for value in values]  # the scale is a logarithm
        lines += axes.plot(drawn, marker=marker, markersize=3, label=name, **({"linewidth": 1} | style))
    lines += axes.plot([], color="red", linewidth=6, alpha=0.3, label="not finite")
    for number, facts in enumerate(tensors):
        if facts.not_finite:
            axes.axvspan(number - 0.5, number + 0.5, color="red", alpha=0.3, linewidth=0)
    return lines

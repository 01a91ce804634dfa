"""Plot the measurements of attention."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glassgpt.bench.attention import AttentionBench
from glassgpt.glass.pictures import new_figure, save_figure

_NAMES = {"fused": "fused", "explicit": "explicit (scores written out)"}
#: The label and the style of each measured time.
_PASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "forward_seconds": ("forward", {"linestyle": "--", "markerfacecolor": "white"}),
    "training_seconds": ("forward and backward", {"linestyle": "-"}),
}


def draw_attention(rows: Sequence[AttentionBench], title: str, target: Path) -> None:
    """Plot time and memory of attention against the context length to a PNG or SVG file, with logarithmic axes.

    Raises:
        MissingExtraError: if matplotlib is not installed.
        CheckpointError: if the file cannot be written.
    """
    figure = new_figure(12, 5.5)
    figure.suptitle(title, fontsize=11)
    times, memory = figure.subplots(1, 2)
    contexts = sorted({row.context for row in rows})
    for number, kind in enumerate(_NAMES):
        measured = [row for row in rows if row.kind == kind and not row.skipped]
        x = [row.context for row in measured]
        for field, (label, style) in _PASSES.items():
            y = [1000 * getattr(row, field) for row in measured]
            times.plot(x, y, color=f"C{number}", marker="o", label=f"{_NAMES[kind]}, {label}", **style)
        y = [(row.memory or 0) / 2**20 for row in measured]
        memory.plot(x, y, color=f"C{number}", marker="o", label=_NAMES[kind])
    _scale(times, contexts, "time of one layer's attention (ms)")
    _scale(memory, contexts, "memory of one layer's attention (MiB)")
    save_figure(figure, target)


def _scale(axes: Any, contexts: Sequence[int], label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(contexts, [f"{context:,}" for context in contexts], rotation=45 if len(contexts) > 7 else 0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("context (tokens)")
    axes.set_ylabel(label)
    axes.grid(alpha=0.2, which="both")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False, fontsize=9)  # below the curves

"""Draw training and validation curves with the baseline losses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glassgpt.errors import CheckpointError
from glassgpt.glass.pictures import new_figure, save_figure
from glassgpt.training.checkpoint import Run

#: Labels of the baseline losses in metrics.jsonl: ``baseline/uniform`` and so on, ``floor/uniform`` in old runs.
BASELINE_LABELS = {"uniform": "uniform baseline (ln V)", "unigram": "unigram baseline", "bigram": "bigram baseline"}


def draw_curves(runs: Sequence[Run], target: Path) -> None:
    """Draw the curves of runs on one figure, with the baselines of the first run's text, and write it as PNG or SVG.

    Raises:
        MissingExtraError: if matplotlib is not installed.
        CheckpointError: if a run has no losses yet, or the file cannot be written.
    """
    figure = new_figure(9, 5.5)
    axes = figure.add_subplot()
    for number, run in enumerate(runs):
        _draw_run(axes, run, f"C{number}")
    for label, value in _baselines(runs[0]).items():
        axes.axhline(value, color="0.6", linewidth=0.8, linestyle="--")
        place: Any = {"xy": (1, value), "xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axes.annotate(f"{label} {value:.3f}", xytext=(-4, 3), ha="right", fontsize=8, color="0.4", **place)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.2)
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.93), fontsize=9)
    save_figure(figure, target)


def _baselines(run: Run) -> dict[str, float]:
    """Return the baseline losses of a run, by label."""
    return {
        label: row[key]
        for row in reversed(run.metrics)
        for prefix in ("floor", "baseline")
        for name, label in BASELINE_LABELS.items()
        if row.get(key := f"{prefix}/{name}") is not None
    }


def _draw_run(axes: Any, run: Run, color: str) -> None:
    keys = ("train/loss", "val/loss", "val/ema_loss")
    training, validation, average = (
        [(row["step"], row[key]) for row in run.metrics if row.get(key) is not None] for key in keys
    )
    if not training and not validation:
        raise CheckpointError(f"{run.path} has no losses to draw yet")
    if training:
        axes.plot(*zip(*training, strict=True), color=color, alpha=0.35, linewidth=1, label=f"{run.name}, training")
    for points, style, what in ((validation, "o-", "validation"), (average, "o--", "validation of the EMA")):
        if points:
            label = f"{run.name}, {what} (best {min(loss for _, loss in points):.4f})"
            axes.plot(*zip(*points, strict=True), style, color=color, markersize=3, linewidth=1.8, label=label)

"""Curves of a run with its baselines."""

import json
from pathlib import Path
from typing import Any

import pytest

from glassgpt.errors import CheckpointError
from glassgpt.glass import curves
from glassgpt.glass.curves import draw_curves
from glassgpt.training.checkpoint import Run

pytest.importorskip("matplotlib")
LOSSES = [{"step": step, "train/loss": 4 - step / 10, "val/loss": 4.1 - step / 10} for step in (10, 20)]
BASELINES = {"uniform": 4.2, "unigram": 3.3, "bigram": 2.5}


def draw(folder: Path, *rows: dict[str, Any]) -> bytes:
    """Draw a run with these rows of metrics.jsonl."""
    run = Run(folder / "run")
    run.path.mkdir(parents=True)
    metrics = "".join(json.dumps(row) + "\n" for row in rows)
    (run.path / "metrics.jsonl").write_text(metrics, encoding="utf-8")
    draw_curves([run], folder / "curve.png")
    return (folder / "curve.png").read_bytes()


def test_old_runs_whose_baselines_are_called_floors_are_drawn_alike(tmp_path: Path) -> None:
    new = draw(tmp_path / "new", {"step": 0} | {f"baseline/{key}": value for key, value in BASELINES.items()}, *LOSSES)
    old = draw(tmp_path / "old", {"step": 0} | {f"floor/{key}": value for key, value in BASELINES.items()}, *LOSSES)
    assert new == old != draw(tmp_path / "without", *LOSSES)


def test_the_average_of_the_weights_has_a_curve_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, target: (figures.append(figure), target.touch()))
    draw(tmp_path, {"step": 0, "val/loss": 4.2}, *(row | {"val/ema_loss": row["val/loss"] - 0.5} for row in LOSSES))
    labels = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert labels == ["run, training", "run, validation (best 2.1000)", "run, validation of the EMA (best 1.6000)"]


def test_a_run_without_losses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no losses to draw yet"):
        draw(tmp_path, {"step": 0})

"""The records of training: metrics.jsonl on disk, and events for a :class:`Reporter` that shows them.

Rows of metrics.jsonl are objects with a ``step`` (optimiser steps completed) and named values: ``train/loss``,
``val/loss``, ``val/bpb``, ``val/ema_loss``, ``opt/adamw_lr``, ``opt/muon_lr``, ``opt/grad_norm``,
``perf/tok_per_s``, ``perf/data_time_frac``, ``time/elapsed_s``; the first row has the baselines. Only ``perf/`` and
``time/`` vary from run to run; the rest is reproduced bit for bit on a resume.
"""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glassgpt.errors import CheckpointError
from glassgpt.files import parse_json, write_text, writing
from glassgpt.loss import Baselines, Evaluation
from glassgpt.shapes import Shape
from glassgpt.training.trackers import Tracker

#: Steps after which the measured speed is compared with the predicted one.
COMPARED_AFTER = 20


class MetricsLog:
    """Appends rows to a metrics.jsonl, each written at once, and gives their numbers to trackers.

    Args:
        path: the file; None to write nothing.
        trackers: for example TensorBoard's.
    """

    def __init__(self, path: Path | None, trackers: Sequence[Tracker] = ()):
        self.path, self.trackers = path, list(trackers)

    def append(self, step: int, values: dict[str, Any]) -> None:
        """Write one row. JSON has no inf and no NaN; they become null."""
        if self.path is None:
            return
        if numbers := {key: value for key, value in values.items() if isinstance(value, int | float)}:
            self._with_each_tracker(lambda tracker: tracker.log(step, numbers))
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        with writing(self.path), self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")

    def truncate_after(self, step: int) -> None:
        """Drop the rows of later steps, which a resumed run writes again, and any final evaluation."""
        if self.path is None:
            return
        kept = [row for row in read_metrics(self.path) if row["step"] <= step and "final/val_loss" not in row]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def close(self) -> None:
        """Close the trackers."""
        self._with_each_tracker(lambda tracker: tracker.close())

    def _with_each_tracker(self, call: Callable[[Tracker], None]) -> None:
        """One that has failed is not used again."""
        trackers, self.trackers = self.trackers, []
        for tracker in trackers:
            with writing(tracker.folder):
                call(tracker)
            self.trackers.append(tracker)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl. An incomplete last line, left by a killed process, is skipped.

    Raises:
        CheckpointError: if another line is no row of metrics, or the file cannot be read.
    """
    try:
        *lines, incomplete = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    rows = {number: _read_row(line) for number, line in enumerate(lines, 1) if line.strip()}
    damaged = next((number for number, row in rows.items() if row is None), None)
    if damaged:
        raise CheckpointError(
            f"{path} is damaged: line {damaged} is no row of metrics; delete that line, or move the file away: a run "
            "resumes without it"
        )
    return [row for row in [*rows.values(), _read_row(incomplete)] if row]


def _read_row(line: str) -> dict[str, Any] | None:
    """The row in a line; None if it is none: an object with a step, whose measured values are numbers or null."""
    try:
        row = parse_json(line, constant=lambda name: None)  # NaN, which older versions could write
    except ValueError:
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None
    valid = all(isinstance(value, int | float | None) for name, value in row.items() if "/" in name)
    return row if valid else None


@dataclass(frozen=True)
class StepEvent:
    """A finished optimiser step; learning rates by optimiser."""

    step: int
    steps: int
    loss: float
    learning_rates: dict[str, float]
    grad_norm: float
    tokens_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class EvaluationEvent:
    """A finished validation.

    Attributes:
        step: after which it was.
        evaluation: of the weights.
        is_best: whether their loss, or that of their average, is the lowest so far.
        expected: the band of the recipe that the run follows.
        ema_loss: of the average of the weights, if there is one.
    """

    step: int
    evaluation: Evaluation
    is_best: bool
    expected: tuple[float, float] | None = None
    ema_loss: float | None = None


class SpeedCheck:
    """Compares the speed of the first steps with a predicted one, both in tokens per second."""

    def __init__(self, predicted: float | None):
        self.predicted = predicted
        self._speeds: list[float] = []

    def add(self, speed: float) -> str:
        """Add the speed of a step; the comparison once there are enough, else an empty text."""
        if self.predicted is None or len(self._speeds) == COMPARED_AFTER:
            return ""
        self._speeds.append(speed)
        if len(self._speeds) < COMPARED_AFTER:
            return ""
        median = self.median()
        return (
            f"measured over {COMPARED_AFTER} steps: {median:,.0f} tokens/s; predicted: {self.predicted:,.0f} "
            f"({median / self.predicted - 1:+.0%})"
        )

    def median(self) -> float:
        """The median speed of the steps so far, at most COMPARED_AFTER."""
        return statistics.median(self._speeds)


class Reporter:
    """Receives the events of training. This one is silent; the command line has ones that show them."""

    def on_start(
        self, header: dict[str, str], shapes: list[Shape], baselines: Baselines | None, steps: int, step: int
    ) -> None:
        """Training is about to begin, or to resume from ``step``."""

    def note(self, message: str) -> None:
        """A decision or a fact to show."""

    def on_progress(self, label: str, done: int, total: int) -> None:
        """A long preparation makes progress; see :data:`glassgpt.files.Progress`."""

    def warn(self, message: str) -> None:
        """Something is probably wrong."""

    def on_step(self, event: StepEvent) -> None:
        """An optimiser step is done."""

    def on_eval(self, event: EvaluationEvent) -> None:
        """A validation is done."""

    def on_sample(self, step: int, text: str) -> None:
        """The model has generated a text."""

    def on_end(self) -> None:
        """Training has ended, for whatever reason."""

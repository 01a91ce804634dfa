"""What a run tells: metrics.jsonl on disk, and events to whoever shows them.

Rows of metrics.jsonl are objects with a ``step`` (optimiser steps completed) and named values: ``train/loss``,
``val/loss``, ``val/bpb``, ``opt/lr``, ``opt/grad_norm``, ``perf/tok_per_s``, ``time/elapsed_s``; the first row has
the floors. Only ``perf/`` and ``time/`` depend on the machine's mood; the rest is reproduced bit for bit on a resume.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glassgpt.loss import Evaluation, Floors
from glassgpt.shapes import Shape


class MetricsLog:
    """Appends rows to a metrics.jsonl, each written out at once."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, step: int, values: dict[str, Any]) -> None:
        """Write one row. JSON has no inf and no NaN; they become null."""
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def cut_after(self, step: int) -> None:
        """Drop the rows of later steps, which a resumed run is about to write again, and any final evaluation."""
        kept = [row for row in read_metrics(self.path) if row["step"] <= step and "final/val_loss" not in row]
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        text = "".join(json.dumps(row) + "\n" for row in kept)
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, self.path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl. A torn last line, left by a killed process, is passed over."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


@dataclass(frozen=True)
class StepEvent:
    """A finished optimiser step."""

    step: int
    steps: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class EvaluationEvent:
    """A finished validation."""

    step: int
    evaluation: Evaluation
    bits_per_byte: float
    is_best: bool


class Reporter:
    """Receives what happens in training. This one is silent; the command line has ones that show it."""

    def started(self, header: dict[str, str], shapes: list[Shape], floors: Floors, steps: int, step: int) -> None:
        """Training is about to begin, or to go on from ``step``."""

    def note(self, message: str) -> None:
        """Something worth knowing."""

    def warn(self, message: str) -> None:
        """Something that is probably wrong."""

    def stepped(self, event: StepEvent) -> None:
        """An optimiser step is done."""

    def evaluated(self, event: EvaluationEvent) -> None:
        """A validation is done."""

    def sampled(self, step: int, text: str) -> None:
        """The model has written something."""

    def finished(self) -> None:
        """Training has ended, in whatever way."""

"""What a run tells: metrics.jsonl on disk, and events to whoever shows them.

Rows of metrics.jsonl are objects with a ``step`` (optimiser steps completed) and named values: ``train/loss``,
``val/loss``, ``val/bpb``, ``opt/lr``, ``opt/grad_norm``, ``perf/tok_per_s``, ``time/elapsed_s``; the first row has
the baselines. Only ``perf/`` and ``time/`` vary from run to run; the rest is reproduced bit for bit on a resume.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glassgpt.errors import ConfigError
from glassgpt.loss import Baselines, Evaluation
from glassgpt.shapes import Shape


class MetricsLog:
    """Appends rows to a metrics.jsonl, each written out at once; and, if asked, to TensorBoard.

    Args:
        path: the file; None to write nothing.
        events: folder for TensorBoard's event files; None for none.
        step: where training stands; TensorBoard forgets what an earlier process wrote of later steps.

    Raises:
        ConfigError: if TensorBoard is asked for and not installed.
    """

    def __init__(self, path: Path | None, events: Path | None = None, step: int = 0):
        self.path = path
        self.events: Any = None
        if path is not None and events is not None:
            self.events = require_tensorboard()(str(events), purge_step=step + 1 if step else 0)

    def append(self, step: int, values: dict[str, Any]) -> None:
        """Write one row. JSON has no inf and no NaN; they become null."""
        if self.path is None:
            return
        if self.events is not None:
            for key, value in values.items():
                if isinstance(value, int | float):
                    self.events.add_scalar(key, value, step)
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def cut_after(self, step: int) -> None:
        """Drop the rows of later steps, which a resumed run is about to write again, and any final evaluation."""
        if self.path is None:
            return
        kept = [row for row in read_metrics(self.path) if row["step"] <= step and "final/val_loss" not in row]
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        text = "".join(json.dumps(row) + "\n" for row in kept)
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, self.path)

    def close(self) -> None:
        """Write out what TensorBoard still holds."""
        if self.events is not None:
            self.events.close()


def require_tensorboard() -> Any:
    """TensorBoard's writer, which comes with an extra.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "train.tensorboard: TensorBoard is not installed; pip install 'glassgpt[tensorboard]', or leave it off: "
            "`glassgpt plot RUN` draws the same curves"
        ) from None
    return SummaryWriter


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
    bits_per_byte: float | None  # None where the tokens do not hold the text
    is_best: bool
    expected: tuple[float, float] | None = None  # the band of the recipe that the run follows


class Reporter:
    """Receives what happens in training. This one is silent; the command line has ones that show it."""

    def started(self, header: dict[str, str], shapes: list[Shape], baselines: Baselines, steps: int, step: int) -> None:
        """Training is about to begin, or to go on from ``step``."""

    def note(self, message: str) -> None:
        """Something worth knowing."""

    def preparing(self, what: str, done: int, total: int) -> None:
        """The text is being prepared, for example a tokenizer trained: what is done, and of how much."""

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

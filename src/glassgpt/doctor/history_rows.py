"""The rows of a run's metrics.jsonl, and those of other programs under the names that people use."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glassgpt.errors import CheckpointError
from glassgpt.training.checkpoint import Run
from glassgpt.training.metrics import read_metrics

#: Other names of the recorded values, as people write them.
ALIASES = {
    "train/loss": ("loss", "train_loss", "training_loss", "loss/train"),
    "val/loss": ("val_loss", "eval_loss", "valid_loss", "validation_loss", "loss/val", "eval/loss"),
    "opt/grad_norm": ("grad_norm", "train/grad_norm"),
    "opt/adamw_lr": ("lr", "learning_rate", "train/lr", "opt/lr", "opt/muon_lr"),
    "perf/tok_per_s": ("tok_per_s", "tokens_per_second", "tok/s"),
    "perf/data_time_frac": ("data_time_frac",),
    "baseline/uniform": ("floor/uniform",),
    "baseline/unigram": ("floor/unigram",),
    "baseline/bigram": ("floor/bigram",),
}


@dataclass(frozen=True)
class History:
    """The rows of a run.

    Attributes:
        name: of the file.
        rows: in order; a value that was not finite is None.
        clip: the largest gradient norm that is not clipped, or 0; None if it is not known.
        trained_before: whether the run began with a trained model; None if it is not known.
    """

    name: str
    rows: list[dict[str, Any]]
    clip: float | None = None
    trained_before: bool | None = None

    def series(self, key: str) -> list[tuple[int, float]]:
        """The steps and finite values of one quantity."""
        found = ((row["step"], row[name]) for row in self.rows for name in (key, *ALIASES.get(key, ())) if name in row)
        return [(step, float(value)) for step, value in found if is_finite(value)]

    def first(self, key: str) -> float | None:
        """The first value of a quantity."""
        return next((value for _, value in self.series(key)), None)


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def load_history(spec: str | Path) -> History:
    """Load the history of a run: its folder, or a metrics.jsonl.

    Raises:
        CheckpointError: if there is none, or it is damaged.
    """
    path = Path(spec).expanduser()
    file = path / "metrics.jsonl" if path.is_dir() else path
    rows = read_metrics(file)
    if not rows:
        raise CheckpointError(f"{file} has no rows of metrics; give a run, or a metrics.jsonl whose rows have a step")
    if not (file.parent / "run.toml").exists():
        return History(str(spec), rows)
    config = Run(file.parent).config()
    return History(
        str(spec), rows, config.train.grad_clip, bool(config.train.init_from) or config.tune.method != "none"
    )

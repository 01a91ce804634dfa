"""A run on disk: ``run.toml``, ``metrics.jsonl``, and checkpoints that open in `transformers`.

``last/`` and the numbered ``step-000500/`` carry a ``trainer/`` folder to go on from; ``best/`` is the model alone.
There is no random state to save: data, initial weights and dropout are pure functions of (seed, step).
"""

import itertools
import os
import re
import shutil
import tomllib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from glassgpt.config import RunConfig, build, read_toml, write_toml
from glassgpt.errors import CheckpointError, ConfigError
from glassgpt.tokenizer import Tokenizer
from glassgpt.training.metrics import read_metrics
from glassgpt.training.optim import Optimizers
from glassgpt.weights.folder import (
    find_complete,
    read_tensors,
    recover,
    save_model,
    verify,
    write_folder,
    write_json,
)
from glassgpt.weights.sources import read_json

SCHEMA_VERSION = 1


@dataclass
class TrainState:
    """Where training stands, beside the weights and the optimiser."""

    step: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    evaluations_since_best: int = 0
    nonfinite_in_a_row: int = 0
    micro_batch_size: int = 0
    loss_scale: float = 0.0
    good_steps: int = 0


@dataclass(frozen=True)
class Run:
    """A folder ``runs/NAME``."""

    path: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def best(self) -> Path:
        """The checkpoint with the lowest validation loss."""
        return self.path / "best"

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.path / "last"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        return read_metrics(self.path / "metrics.jsonl")

    def config(self) -> RunConfig:
        """The resolved configuration in run.toml.

        Raises:
            CheckpointError: if it is missing or damaged.
        """
        try:
            preset, layer = read_toml(self.path / "run.toml")
            return build(preset or "", [layer])
        except ConfigError as error:
            raise CheckpointError(f"{self.path} is not a run that can be read: {error}") from None

    def numbered(self) -> list[Path]:
        """The numbered checkpoints, oldest first."""
        found = [path for path in self.path.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    def provenance(self) -> dict[str, Any]:
        """What run.toml says of the run's origin; empty if it cannot be read."""
        try:
            content = tomllib.loads((self.path / "run.toml").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content.get("provenance", {})

    def created(self) -> str:
        """When the run began, as an ISO 8601 time; empty if unknown."""
        return str(self.provenance().get("created", ""))

    def best_loss(self) -> float | None:
        """The validation loss that ``best/`` was kept for; None if there is none yet."""
        folder = find_complete(self.best)
        return read_json(folder / "validation.json")["loss"] if folder else None

    def best_or_last(self) -> Path:
        """The model folder that the run means: its best checkpoint, or the newest while there is none.

        Raises:
            CheckpointError: if there is neither yet.
        """
        for path in (self.best, self.last):
            folder = find_complete(path)
            if folder is not None:
                return folder
        raise CheckpointError(f"{self.path} has no checkpoint yet; go on with: glassgpt train --resume {self.path}")

    def latest_checkpoint(self) -> Path | None:
        """The newest checkpoint that is whole, with what a killed process left behind cleaned up; None if none yet."""
        recover(self.last)
        recover(self.best)
        for leftover in self.path.glob(".step-*.glassgpt-new"):
            shutil.rmtree(leftover, ignore_errors=True)
        return self.newest_whole()

    def newest_whole(self) -> Path | None:
        """The newest checkpoint that is whole; None if there is none yet. Changes nothing."""
        damaged = []
        for folder in (self.last, *reversed(self.numbered())):
            if folder.exists():
                try:
                    verify(folder)
                    return folder
                except CheckpointError as error:
                    damaged.append(str(error))
        if damaged:
            raise CheckpointError(f"no checkpoint of {self.path} is whole: {'; '.join(damaged)}")
        return None


def require_name(name: str) -> None:
    """Refuse what cannot be the name of a run's folder.

    Raises:
        ConfigError: if so.
    """
    if name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise ConfigError(f"--name: {name!r} cannot be the name of a folder")


def create_run(parent: Path, name: str, config: RunConfig, provenance: dict[str, Any]) -> Run:
    """Make a new run folder; where the name is taken, the next free of NAME-2, NAME-3, ...

    Raises:
        ConfigError: if the name is none for a folder, or the folder cannot be made.
    """
    require_name(name)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            path = parent / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            write_run_toml(path, config, provenance)
            return Run(path)
    except OSError as error:
        raise ConfigError(f"a run cannot be kept in {parent}: {error.strerror}; choose another --runs-dir") from None
    raise AssertionError("itertools.count never ends")


def write_run_toml(path: Path, config: RunConfig, provenance: dict[str, Any]) -> None:
    """Write run.toml atomically."""
    temporary = path / "run.toml.tmp"
    write_toml(temporary, config, provenance)
    os.replace(temporary, path / "run.toml")


def save_best(run: Run, optimizers: Optimizers, tokenizer: Tokenizer, state: TrainState, native: bool) -> None:
    """Write ``best/``: the model, and the validation loss it is kept for."""
    weights = optimizers.weights
    with write_folder(run.best) as temporary:
        save_model(temporary, weights.model, tokenizer, native=native, state=weights.state_dict())
        write_json(temporary / "validation.json", {"step": state.best_step, "loss": state.best_loss})


def save_checkpoint(
    folder: Path, optimizers: Optimizers, tokenizer: Tokenizer, state: TrainState, native: bool
) -> None:
    """Write a checkpoint with everything needed to go on, atomically. The weights are the float32 ones."""
    weights = optimizers.weights
    with write_folder(folder) as temporary:
        save_model(temporary, weights.model, tokenizer, native=native, state=weights.state_dict())
        trainer = temporary / "trainer"
        trainer.mkdir()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in optimizers.state_tensors().items()}
        save_file(tensors, trainer / "optimizer.safetensors")
        write_json(trainer / "state.json", {"schema_version": SCHEMA_VERSION, **asdict(state)})


def load_trainer(folder: Path, optimizers: Optimizers) -> TrainState:
    """Restore optimiser and state from a checkpoint; its weights are loaded as any model folder's.

    Raises:
        CheckpointError: if anything is missing, damaged or does not fit.
    """
    content = read_json(folder / "trainer" / "state.json")
    version = content.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise CheckpointError(f"{folder} has trainer schema {version}; this version reads {SCHEMA_VERSION}")
    optimizers.load_state_tensors(read_tensors(folder / "trainer" / "optimizer.safetensors"))
    return replace(TrainState(), **content)


def keep_numbered(run: Run, step: int, keep: int) -> None:
    """Keep ``last/`` under its number too, and prune all but the newest ``keep`` numbered checkpoints.

    Files are linked, not copied, where the file system can.
    """
    if keep:
        target = run.path / f"step-{step:06d}"
        temporary = target.with_name(f".{target.name}.glassgpt-new")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(run.last, temporary, copy_function=_link_or_copy)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
    kept = run.numbered()
    for folder in kept[: max(0, len(kept) - keep)]:
        shutil.rmtree(folder)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

"""A run on disk: ``run.toml``, ``metrics.jsonl``, and checkpoints that open in `transformers`.

``last/`` and the numbered ``step-000500/`` have a ``trainer/`` folder to resume from; ``best/`` has only the model, as
have those that ``keep_every`` keeps for good: ``kept/step-000500/``.
There is no random state to save: data, initial weights and dropout are pure functions of (seed, step).
"""

import contextlib
import itertools
import math
import os
import re
import shutil
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from glassgpt.config import RunConfig, TrainConfig, TuneConfig, build, read_toml, write_toml
from glassgpt.errors import CheckpointError, ConfigError, shell_command
from glassgpt.files import atomic_write, exclusive_lock, why_not_writable, writing
from glassgpt.model import GPT
from glassgpt.processes import Processes
from glassgpt.tokenizer.base import Tokenizer
from glassgpt.training.metrics import read_metrics
from glassgpt.training.optim import Optimizers
from glassgpt.transforms.lora import is_lora
from glassgpt.weights.adapter import Base, save_adapter
from glassgpt.weights.folder import (
    find_complete,
    read_checksums,
    read_tensors,
    recover,
    save_model,
    verify,
    write_folder,
    write_json,
)
from glassgpt.weights.sources import read_json

SCHEMA_VERSION = 1
_STEP = re.compile(r"step-\d+")


@dataclass
class TrainState:
    """The position in training, beside the weights and the optimiser."""

    step: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    evaluations_since_best: int = 0
    nonfinite_in_a_row: int = 0
    micro_batch_size: int = 0
    loss_scale: float = 0.0
    growth_tracker: int = 0


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
    def own_base(self) -> Path:
        """The model that a run of ``tune`` began with, if that had to be given a chat template."""
        return self.path / "base"

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
            if missing := [name for name in ("data", "model", "train") if not layer.get(name)]:
                raise ConfigError(f"run.toml is not complete: it has no section [{missing[0]}]")
            return build(preset or "", [layer])
        except ConfigError as error:
            raise CheckpointError(f"{self.path} is not a run that can be read: {error}") from None

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Let no other process train this run while the context lasts. Readers need no lock.

        Raises:
            CheckpointError: if another process trains it; the message names that process.
            OSError: if the folder cannot be written.
        """

        def refuse(holder: str) -> CheckpointError:
            return CheckpointError(f"another process is training {self.path} ({holder}); stop it, or wait for its end")

        return exclusive_lock(self.path / ".lock", refuse)

    def numbered(self) -> list[Path]:
        """The numbered checkpoints, oldest first."""
        return list(_folders_by_step(self.path).values())

    def kept(self) -> dict[int, Path]:
        """The model folders that ``keep_every`` has kept, by step, ascending."""
        return _folders_by_step(self.path / "kept")

    def models_by_step(self) -> dict[int, Path]:
        """Every complete model folder of the run by its step, ascending. Weights are checked when they are loaded.

        Where several are of the same step, that is the kept one, else the numbered, ``last/``, ``best/``.
        """
        found: list[tuple[int, Path]] = []
        for target, file in ((self.best, "validation.json"), (self.last, "trainer/state.json")):
            with contextlib.suppress(CheckpointError):
                folder = find_complete(target) or target
                step = read_json(folder / file).get("step")
                found += [(step, folder)] if isinstance(step, int) else []
        found += [*_folders_by_step(self.path).items(), *self.kept().items()]
        return dict(sorted({step: folder for step, folder in found if _is_complete(folder)}.items()))

    def at_step(self, step: int) -> Path:
        """The model folder of that training step.

        Raises:
            CheckpointError: if there is none; the message names the steps there are.
        """
        if (folder := (found := self.models_by_step()).get(step)) is not None:
            return folder
        there = f"those there are: {', '.join(map(str, found))}" if found else "there is none of any step"
        raise CheckpointError(
            f"{self.path} has no checkpoint of step {step}; {there}. keep_every=N keeps one every N steps"
        )

    def provenance(self) -> dict[str, Any]:
        """The table ``[provenance]`` of run.toml; empty if it cannot be read."""
        try:
            content = tomllib.loads((self.path / "run.toml").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        provenance = content.get("provenance")
        return provenance if isinstance(provenance, dict) else {}

    def base(self, folder: Path) -> Base:
        """The model that a LoRA run began with, as an adapter in this folder of the run names it."""
        if self.own_base.exists():
            saved = read_checksums(self.own_base)  # not computed again for every checkpoint
            sha256 = {name: digest for name, digest in saved.items() if name.endswith(".safetensors")}
            return Base(Path(os.path.relpath(self.own_base, folder)).as_posix(), sha256)
        init = self.provenance()["init"]
        return Base(init["source"], init["sha256"])

    def created(self) -> str:
        """When the run began, as an ISO 8601 time; empty if unknown."""
        return str(self.provenance().get("created", ""))

    def best_loss(self) -> float | None:
        """The validation loss of ``best/``; None if there is none yet, or it is damaged."""
        folder = find_complete(self.best)
        if folder is None:
            return None
        try:
            verify(folder, required=True)
            loss = read_json(folder / "validation.json").get("loss")
        except CheckpointError:
            return None
        return loss if isinstance(loss, float) and math.isfinite(loss) else None

    def best_or_last(self) -> Path:
        """The model folder to use for this run: its best checkpoint, else its newest.

        Raises:
            CheckpointError: if there is neither yet, or it lacks its checksums.
        """
        for path in (self.best, self.last):
            folder = find_complete(path)
            if folder is not None:
                verify(folder, [], required=True)
                return folder
        command = shell_command("train", "--resume", self.path)
        raise CheckpointError(f"{self.path} has no checkpoint yet; resume with: {command}")

    def recover_and_find_latest(self) -> Path | None:
        """Delete the leftovers of a killed process, then find the newest valid checkpoint; None if there is none."""
        recover(self.last)
        recover(self.best)
        for leftover in self.path.glob(".step-*.glassgpt-new"):
            shutil.rmtree(leftover, ignore_errors=True)
        for leftover in (self.path / "kept").glob(".step-*.glassgpt-*"):
            recover(leftover.with_name(leftover.stem.removeprefix(".")))
        return self.latest_valid()

    def latest_valid(self) -> Path | None:
        """The newest valid checkpoint to resume from, or None if there is none; changes nothing.

        Raises:
            CheckpointError: if all are damaged.
        """
        damaged = []
        for folder in (self.last, *reversed(self.numbered())):
            if folder.exists():
                try:
                    verify(folder, required=True)
                    read_state(folder)
                    return folder
                except CheckpointError as error:
                    damaged.append(str(error))
        if damaged:
            raise CheckpointError(f"no checkpoint of {self.path} is valid: {'; '.join(damaged)}")
        return None


def _folders_by_step(parent: Path) -> dict[int, Path]:
    """The folders ``step-000500`` in a folder, by step, ascending."""
    found = {int(path.name.removeprefix("step-")): path for path in parent.glob("step-*") if _STEP.fullmatch(path.name)}
    return dict(sorted(found.items()))


def _is_complete(folder: Path) -> bool:
    with contextlib.suppress(CheckpointError):
        verify(folder, [], required=True)
        return True
    return False


def require_name(name: str) -> None:
    """Refuse a name that a folder cannot have.

    Raises:
        ConfigError: if so.
    """
    if name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise ConfigError(f"--name: {name!r} cannot be the name of a folder")


def require_run_folder(parent: Path, name: str | None) -> None:
    """Refuse, before anything takes long, a name or a folder of runs in which no run can be made.

    Raises:
        ConfigError: if so.
    """
    if name is not None:
        require_name(name)
    if problem := why_not_writable(parent / (name or "run"), parents=True):
        run = "a run" if name is None else f"the run {name!r}"
        raise ConfigError(f"cannot create {run} in {parent}: {problem}; choose another --name or --runs-dir")


def create_run(parent: Path, name: str, config: RunConfig, provenance: dict[str, Any]) -> Run:
    """Make a new run folder; where the name is taken, the next free of NAME-2, NAME-3, ...

    Raises:
        ConfigError: if a folder cannot have that name, or cannot be made.
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
            try:
                write_run_toml(path, config, provenance)
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)
                raise
            return Run(path)
    except OSError as error:
        raise ConfigError(f"cannot create a run in {parent}: {error.strerror}; choose another --runs-dir") from None
    raise AssertionError("itertools.count never ends")


def write_run_toml(path: Path, config: RunConfig, provenance: dict[str, Any]) -> None:
    """Write run.toml atomically."""
    with atomic_write(path / "run.toml") as temporary:
        write_toml(temporary, config, provenance)


class CheckpointWriter:
    """Writes the checkpoints of a run.

    Every process calls the same methods, so that sharded weights can be gathered. Rank 0 writes, and the others wait.

    Args:
        run: to write into.
        model: the model to save.
        optimizers: of it, with its float32 weights.
        tokenizer: to save with it.
        config: of the run.
        processes: that train the model.
        tune: its settings of LoRA, if the model has LoRA: then a checkpoint holds the adapter alone.
    """

    def __init__(
        self, run: Run, model: GPT, optimizers: Optimizers, tokenizer: Tokenizer, config: TrainConfig,
        processes: Processes | None = None, tune: TuneConfig | None = None,
    ):  # fmt: skip
        self.run, self.model, self.optimizers, self.tokenizer = run, model, optimizers, tokenizer
        self.config, self.processes, self.tune = config, processes or Processes(), tune or TuneConfig()

    def save_best(self, state: TrainState) -> None:
        """Write ``best/``: the model, and the validation loss that it was saved for."""
        weights = self.optimizers.weights.state_dict()
        if self.processes.is_main:
            with write_folder(self.run.best) as temporary:
                self._save_model(temporary, weights)
                write_json(temporary / "validation.json", {"step": state.best_step, "loss": state.best_loss})
        self.processes.wait_for_all()

    def save_kept(self, state: TrainState) -> None:
        """Write the model to ``kept/``."""
        weights = self.optimizers.weights.state_dict()
        if self.processes.is_main:
            with write_folder(self.run.path / "kept" / f"step-{state.step:06d}") as temporary:
                self._save_model(temporary, weights)
        self.processes.wait_for_all()

    def delete_kept_after(self, step: int) -> None:
        """Delete what a killed process kept after the step to resume from: those steps are trained again."""
        if self.processes.is_main:
            for folder in (path for kept, path in self.run.kept().items() if kept > step):
                shutil.rmtree(folder)

    def save_last(self, state: TrainState) -> None:
        """Write ``last/``: all that resuming needs, with float32 weights; and its numbered copy if one is due."""
        weights, tensors = self.optimizers.weights.state_dict(), self.optimizers.state_dict()
        if self.processes.is_main:
            with write_folder(self.run.last) as temporary:
                self._save_model(temporary, weights)
                trainer = temporary / "trainer"
                trainer.mkdir()
                tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
                with writing(trainer / "optimizer.safetensors"):
                    save_file(tensors, trainer / "optimizer.safetensors")
                write_json(trainer / "state.json", {"schema_version": SCHEMA_VERSION, **asdict(state)})
            if state.step and (state.step % self.config.save_interval == 0 or state.step == self.config.steps):
                keep_numbered(self.run, state.step, self.config.keep_checkpoints)
        self.processes.wait_for_all()

    def _save_model(self, folder: Path, weights: dict[str, Tensor]) -> None:
        if is_lora(self.model):
            save_adapter(folder, self.model, self.tokenizer, self.tune, self.run.base(folder), state=weights)
            return
        save_model(folder, self.model, self.tokenizer, native=self.config.format == "native", state=weights)


def load_training_state(folder: Path, optimizers: Optimizers) -> TrainState:
    """Restore optimiser and state from a checkpoint; its weights are loaded as any model folder's.

    Raises:
        CheckpointError: if anything is missing, damaged or does not fit.
    """
    state = read_state(folder)
    optimizers.load_state_dict(read_tensors(folder / "trainer" / "optimizer.safetensors"))
    return state


def read_state(folder: Path) -> TrainState:
    """The position in training that a checkpoint was saved at.

    Raises:
        CheckpointError: if it is missing or damaged, or of another version.
    """
    path = folder / "trainer" / "state.json"
    content = read_json(path)
    version = content.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise CheckpointError(f"{folder} has trainer schema {version}; this version reads {SCHEMA_VERSION}")
    if "good_steps" in content:  # its name in older checkpoints
        content["growth_tracker"] = content.pop("good_steps")
    unknown = content.keys() - {field.name for field in fields(TrainState)}
    numbers = all(isinstance(value, int | float | None) for value in content.values())
    if unknown or not numbers or type(content.get("step")) is not int:
        raise CheckpointError(f"{path} is damaged: it is not the state of a training")
    return TrainState(**content)


def keep_numbered(run: Run, step: int, keep: int) -> None:
    """Copy ``last/`` to its numbered folder, and delete all but the newest ``keep`` numbered checkpoints.

    Files are linked, not copied, if the file system can.

    Raises:
        OSError: if a file cannot be written.
    """
    if keep:
        target = run.path / f"step-{step:06d}"
        temporary = target.with_name(f".{target.name}.glassgpt-new")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            shutil.copytree(run.last, temporary, copy_function=_link_or_copy)
        except shutil.Error as error:  # a list of (source, target, reason)
            shutil.rmtree(temporary, ignore_errors=True)
            raise OSError(None, str(error.args[0][0][2]), str(target)) from None
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

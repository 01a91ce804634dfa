"""Where metrics go besides metrics.jsonl, if a run asks for it: TensorBoard, and Weights & Biases."""

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from glassgpt.config import RunConfig, TrainConfig
from glassgpt.errors import ConfigError, first_line, install_extra

#: The settings, and what each needs: a module, and a name in it.
_NEEDED = {"tensorboard": ("torch.utils.tensorboard", "SummaryWriter"), "wandb": ("wandb", "init")}


class Tracker(Protocol):
    """Writes numbers of a run, by name and step, into a folder."""

    folder: Path

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers of one step."""

    def close(self) -> None:
        """Write what is still in memory."""


class TensorBoard:
    """Event files in the run. TensorBoard drops what an earlier process wrote of later steps."""

    def __init__(self, run: Path, step: int):
        self.folder = run / "tensorboard"
        self._writer = _find("tensorboard")(str(self.folder), purge_step=step + 1 if step else 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write each number as a scalar."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the event files."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases: in the run's folder alone (``wandb sync`` sends it), or as WANDB_MODE says.

    A resumed run has the id of the first one. It logs again the steps after its checkpoint, so ``step`` is a value of
    its own: the library does not let its own step go back.
    """

    def __init__(self, run: Path, config: RunConfig):
        init, self.folder = _find("wandb"), run / "wandb"
        earlier = sorted(folder.name for folder in self.folder.glob("*run-*-*"))
        try:
            self._run = init(
                project=None if "WANDB_PROJECT" in os.environ else "glassgpt",
                name=run.name,
                id=earlier[0].rpartition("-")[2] if earlier else None,
                resume="allow",
                dir=str(run),
                config=config.to_dict(),
                mode=None if "WANDB_MODE" in os.environ else "offline",
                settings={"console": "off"},  # what the terminal shows is not for it
            )
        except OSError:
            raise
        except Exception as error:  # no key, no network; versions of the library use different classes
            reason = first_line(error).rstrip(".")
            raise ConfigError(f"train.wandb: {reason}; with WANDB_MODE=offline it writes into the run alone") from None
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """End the library's run."""
        self._run.finish()


def open_trackers(run: Path, config: RunConfig, step: int) -> list[Tracker]:
    """Open the trackers that the configuration asks for.

    Raises:
        ConfigError: if one is not installed or cannot be used.
    """
    trackers: list[Tracker] = [TensorBoard(run, step)] if config.train.tensorboard else []
    return [*trackers, WeightsAndBiases(run, config)] if config.train.wandb else trackers


def require_trackers(train: TrainConfig) -> None:
    """Check that the trackers that are asked for are installed.

    Raises:
        ConfigError: if one is not.
    """
    for name in _NEEDED:
        if getattr(train, name):
            _find(name)


def _find(name: str) -> Any:
    module, attribute = _NEEDED[name]
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):  # a folder `wandb` here is a module, too, without that attribute
        raise ConfigError(
            f"train.{name}: {name} is not installed; {install_extra(name)}, or leave it off: `glassgpt plot RUN` draws "
            "the same curves"
        ) from None

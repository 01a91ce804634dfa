"""Training that goes on from an existing model: ``train.init_from=MODEL``, a run, a folder, a .gguf file or a hub name.

The model's shape and its tokenizer come from there; a request may shorten the context and set dropout, nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from glassgpt.config import ConfigOverrides, ModelConfig, RunConfig, build, presets
from glassgpt.errors import ConfigError
from glassgpt.files import sha256_of
from glassgpt.model import GPT
from glassgpt.tokenizer import Tokenizer
from glassgpt.training import budget
from glassgpt.training.checkpoint import Run
from glassgpt.weights import mapping
from glassgpt.weights.loading import describe, load_into
from glassgpt.weights.resolve import open_weights
from glassgpt.weights.sources import WeightSource

#: What stands in place of a preset's name in the run.toml of such a run; and the preset that leaves the size open.
INIT, AUTO = "init", "auto"
#: A model that knows something is changed gently. Batches are of so many tokens, unless asked otherwise.
GENTLE: dict[str, Any] = {"optimizer": "adamw", "adamw_learning_rate": 1e-4}
BATCH_TOKENS = 16384


@dataclass(frozen=True)
class Continued:
    """The model that training goes on from.

    Attributes:
        name: what finds it again: a path from the root, or the name of an asset or of a model on the hub.
        source: where its weights come from.
        model: its shape.
    """

    name: str
    source: WeightSource
    model: ModelConfig

    def require_same(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer other than the model's own.

        Raises:
            ConfigError: if the ids mean something else.
        """
        own = self.source.tokenizer()
        size = own.vocab_size
        same = tokenizer.vocab_size == size and tokenizer.special_ids() == own.special_ids()
        if not same or any(tokenizer.token_bytes(i) != own.token_bytes(i) for i in range(size)):
            raise ConfigError(
                f"data.tokenizer: its {tokenizer.vocab_size} tokens are not the {size} that {self.name} was trained "
                "with, so their ids would mean something else to it. Leave data.tokenizer out to use the model's own, "
                "or train.init_from to train from scratch"
            )


def begin(preset: str, layers: Sequence[ConfigOverrides]) -> tuple[str, ConfigOverrides, Continued | None]:
    """What a run starts from: the name of its preset, the settings under those asked for, and the model, if any.

    Raises:
        ConfigError: if the request describes another model, with each difference.
        CheckpointError: if there is no such model.
    """
    init = next(
        (layer["train"]["init_from"] for layer in reversed(layers) if layer.get("train", {}).get("init_from")), ""
    )
    if not isinstance(init, str) or not init:
        return preset, budget.smallest_size(layers) if preset == AUTO else presets.get(preset).layer, None
    if preset not in (AUTO, INIT):
        raise ConfigError(
            f"preset={preset} describes a model of its own, and train.init_from={init} another; leave one of them out"
        )
    continued = find(init)
    _require_shape(continued, layers)
    family = describe(continued.source)[1]
    block_size = next((v for layer in reversed(layers) if (v := layer.get("model", {}).get("block_size"))), None)
    length = block_size if isinstance(block_size, int) else continued.model.block_size
    base: ConfigOverrides = {
        "model": {field.name: getattr(continued.model, field.name) for field in fields(ModelConfig)},
        "data": {"tokenizer": str(continued.source.path.absolute())},
        "train": {
            "batch_size": max(1, min(16, BATCH_TOKENS // max(1, length))),
            "format": "native" if family is mapping.NATIVE_FAMILY else "hf",
        },
        "optim": GENTLE,
    }
    return INIT, base, continued


def find(init: str) -> Continued:
    """The model of that name.

    Raises:
        CheckpointError: if there is none.
    """
    path = Path(init)
    folder = _checkpoint_of(path)
    source = open_weights(folder or init)
    local = folder is not None or path.exists()
    return Continued(str((folder or path).resolve()) if local else init, source, describe(source)[0])


def located(layers: Sequence[ConfigOverrides], runs: Path) -> list[ConfigOverrides]:
    """The layers, with the path of a run in place of its name in ``train.init_from``."""
    found: list[ConfigOverrides] = []
    for layer in layers:
        init = layer.get("train", {}).get("init_from")
        if isinstance(init, str) and init and not Path(init).exists() and _checkpoint_of(runs / init):
            layer = {**layer, "train": {**layer["train"], "init_from": str(runs / init)}}
        found.append(layer)
    return found


def _checkpoint_of(path: Path) -> Path | None:
    """The model of a run: its best checkpoint, else its last; None if the path is no run."""
    try:
        if not (path / "run.toml").exists():
            return None
    except (OSError, ValueError):  # too long for a name, or no name at all
        return None
    return Run(path).best_or_last()


def _require_shape(continued: Continued, layers: Sequence[ConfigOverrides]) -> None:
    """Refuse a request for another model: but for dropout and a shorter context, every number stays.

    Raises:
        ConfigError: with each difference.
    """
    asked: dict[str, Any] = {}
    for layer in layers:
        asked |= layer.get("model", {})
    own = {field.name: getattr(continued.model, field.name) for field in fields(ModelConfig)}
    wanted = build("", [{"model": own}, {"model": asked}]).model
    refused = [
        f"model.{name}: {own[name]} in {continued.name}, {getattr(wanted, name)} asked for"
        for name in own
        if getattr(wanted, name) != own[name]
        and name != "dropout"
        and not (name == "block_size" and wanted.block_size < own["block_size"])
    ]
    if refused:
        advice = "a model that is trained further keeps its shape; dropout may be changed, block_size made smaller"
        raise ConfigError([*refused[:-1], f"{refused[-1]} ({advice})"])


def agree(continued: Continued | None, tokenizer: Tokenizer) -> str:
    """Check the tokenizer against the model's own; a sentence on what the run goes on from, "" if from nothing.

    Raises:
        ConfigError: if it is another.
    """
    if continued is None:
        return ""
    continued.require_same(tokenizer)
    gentle = ", ".join(f"{key}={value}" for key, value in GENTLE.items())
    notes = "".join(f"; {note}" for note in continued.source.notes)
    return f"going on from {continued.name}; unless asked otherwise with {gentle}{notes}"


def named(config: RunConfig, continued: Continued | None) -> RunConfig:
    """The configuration with the model under a name that finds it again from anywhere."""
    return config.replace("train", init_from=continued.name) if continued else config


def provenance(config: RunConfig) -> dict[str, Any]:
    """What run.toml keeps of the model that a run goes on from; empty if from nothing."""
    if not config.train.init_from:
        return {}
    continued = find(config.train.init_from)
    files = getattr(continued.source, "files", [continued.source.path])
    return {
        "init": {
            "source": continued.name,
            "model_type": str(continued.source.config.get("model_type")),
            "sha256": {path.name: sha256_of(path) for path in files},
            "block_size": continued.model.block_size,
        }
    }


def load(config: RunConfig, model: GPT) -> None:
    """Fill a model with the weights that the run goes on from; of learned positions, those of its context.

    Raises:
        CheckpointError: if they cannot be had any more.
    """
    load_into(model, _Shortened(find(config.train.init_from).source, config.model.block_size))


class _Shortened:
    """A source whose learned positions, if any, end with a shorter context."""

    def __init__(self, source: WeightSource, block_size: int):
        self.path, self.config, self.stored, self.notes = source.path, source.config, source.stored, source.notes
        self.read, self.tokenizer, self.generation_config = source.read, source.tokenizer, source.generation_config
        config, family = describe(source)
        names = mapping.full_names(source.shapes, family)
        tables = {
            names.get(place.published)
            for place in mapping.placements(config, family)
            if place.ours == "position_embedding.weight"
        }
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: (min(block_size, shape[0]), *shape[1:]) if name in tables else shape
            for name, shape in source.shapes.items()
        }

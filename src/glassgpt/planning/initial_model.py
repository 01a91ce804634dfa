"""Fine-tuning: training that starts from an existing model, ``train.init_from=MODEL``.

MODEL is a run, a folder, a .gguf file or a hub name. The model's shape and its tokenizer come from there; the user may
shorten the context and set dropout, nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from glassgpt.config import ConfigOverrides, ModelConfig, RunConfig, build, presets
from glassgpt.errors import ConfigError, shell_command
from glassgpt.files import path_exists
from glassgpt.model import GPT
from glassgpt.planning.budget import smallest_size
from glassgpt.tokenizer.base import Tokenizer
from glassgpt.training.checkpoint import Run
from glassgpt.weights import mapping
from glassgpt.weights.loading import describe, load_into
from glassgpt.weights.quantized import QuantizedFolderSource
from glassgpt.weights.resolve import open_weights
from glassgpt.weights.sources import WeightSource, file_checksums

#: The preset's name in the run.toml of such a run; and the preset that leaves the size to the machine.
INIT, AUTO = "init", "auto"
#: Settings that change a trained model gently. Batches have so many tokens, unless the user sets them.
FINE_TUNING_DEFAULTS: dict[str, Any] = {"optimizer": "adamw", "adamw_learning_rate": 1e-4}
BATCH_TOKENS = 16384


@dataclass(frozen=True)
class InitialModel:
    """The model that fine-tuning starts from.

    Attributes:
        name: finds it again from anywhere: an absolute path, or the name of an asset or of a model on the hub.
        source: of its weights.
        model: its shape.
    """

    name: str
    source: WeightSource
    model: ModelConfig


def starting_point(
    preset: str, overrides: Sequence[ConfigOverrides]
) -> tuple[str, ConfigOverrides, InitialModel | None]:
    """The preset's name, the settings below the user's, and the initial model, if any.

    Raises:
        ConfigError: if the user's settings describe another model, with each difference.
        CheckpointError: if there is no such model.
    """
    given = [layer["train"]["init_from"] for layer in overrides if layer.get("train", {}).get("init_from")]
    if not given or not isinstance(given[-1], str):
        return preset, smallest_size(overrides) if preset == AUTO else presets.get(preset).layer, None
    if preset not in (AUTO, INIT):
        raise ConfigError(
            f"preset={preset} describes a model of its own, and train.init_from={given[-1]} another; leave one of them "
            "out"
        )
    initial = find_initial_model(given[-1])
    require_trainable(initial)
    require_shape(initial, overrides)
    family = describe(initial.source)[1]
    block_sizes = [layer["model"]["block_size"] for layer in overrides if "block_size" in layer.get("model", {})]
    length = block_sizes[-1] if block_sizes and isinstance(block_sizes[-1], int) else initial.model.block_size
    base: ConfigOverrides = {
        "model": {field.name: getattr(initial.model, field.name) for field in fields(ModelConfig)},
        "data": {"tokenizer": str(initial.source.path.absolute())},
        "train": {
            "batch_size": max(1, min(16, BATCH_TOKENS // max(1, length))),
            "format": "native" if family is mapping.NATIVE_FAMILY else "hf",
        },
        "optim": FINE_TUNING_DEFAULTS,
    }
    return INIT, base, initial


def find_initial_model(init_from: str) -> InitialModel:
    """The model of that name.

    Raises:
        CheckpointError: if there is none.
    """
    path = Path(init_from)
    folder = _checkpoint_of(path)
    source = open_weights(folder or init_from)
    local = folder is not None or path.exists()
    return InitialModel(str((folder or path).resolve()) if local else init_from, source, describe(source)[0])


def require_trainable(initial: InitialModel) -> None:
    """Refuse a folder of quantised weights for training all of them.

    Raises:
        ConfigError: if it is one.
    """
    if isinstance(initial.source, QuantizedFolderSource):
        raise ConfigError(
            f"train.init_from: {initial.name} has quantised weights, which have no gradients. Train the model that it "
            f"was made from, or make it plain: `{shell_command('quantize', initial.name, '--to', 'float32')}`; "
            "`glassgpt tune lora` trains matrices beside the weights"
        )


def with_run_paths(overrides: Sequence[ConfigOverrides], runs: Path) -> list[ConfigOverrides]:
    """The overrides with the path of a run in place of its name in ``train.init_from``."""
    replaced: list[ConfigOverrides] = []
    for layer in overrides:
        name = layer.get("train", {}).get("init_from")
        if isinstance(name, str) and name and not path_exists(name) and _checkpoint_of(runs / name):
            layer = {**layer, "train": {**layer["train"], "init_from": str(runs / name)}}
        replaced.append(layer)
    return replaced


def _checkpoint_of(path: Path) -> Path | None:
    """The model of a run: its best checkpoint, else its last; None if the path is not a run."""
    return Run(path).best_or_last() if path_exists(path / "run.toml") else None


def require_shape(initial: InitialModel, overrides: Sequence[ConfigOverrides]) -> None:
    """Refuse settings of another model: except for dropout and a shorter context, every number stays.

    Raises:
        ConfigError: with each difference.
    """
    user_settings: dict[str, Any] = {}
    for layer in overrides:
        user_settings |= layer.get("model", {})
    own = {field.name: getattr(initial.model, field.name) for field in fields(ModelConfig)}
    wanted = build("", [{"model": own}, {"model": user_settings}]).model
    refused = [
        f"model.{name}: {own[name]} in {initial.name}, {getattr(wanted, name)} asked for"
        for name in own
        if getattr(wanted, name) != own[name]
        and name != "dropout"
        and not (name == "block_size" and wanted.block_size < own["block_size"])
    ]
    if refused:
        advice = "a fine-tuned model keeps its shape; only dropout may change, and block_size may get smaller"
        raise ConfigError([*refused[:-1], f"{refused[-1]} ({advice})"])


def check_tokenizer_matches(initial: InitialModel, tokenizer: Tokenizer) -> str:
    """Refuse a tokenizer other than the initial model's own; otherwise a note on the model and the settings.

    Raises:
        ConfigError: if the ids mean something else.
    """
    own = initial.source.tokenizer()
    size = own.vocab_size
    same = tokenizer.vocab_size == size and tokenizer.special_ids() == own.special_ids()
    if not same or any(tokenizer.token_bytes(i) != own.token_bytes(i) for i in range(size)):
        raise ConfigError(
            f"data.tokenizer: its {tokenizer.vocab_size} tokens are not the {size} that {initial.name} was trained "
            "with, so their ids would mean something else to it. Leave data.tokenizer out to use the model's own, "
            "or train.init_from to train from scratch"
        )
    defaults = ", ".join(f"{key}={value}" for key, value in FINE_TUNING_DEFAULTS.items())
    notes = "".join(f"; {note}" for note in initial.source.notes)
    return f"fine-tuning {initial.name}; by default with {defaults}{notes}"


def provenance(config: RunConfig) -> dict[str, Any]:
    """The entry of run.toml about the initial model; empty if there is none."""
    if not config.train.init_from:
        return {}
    initial = find_initial_model(config.train.init_from)
    return {
        "init": {
            "source": initial.name,
            "model_type": str(initial.source.config.get("model_type")),
            "sha256": file_checksums(initial.source),
            "block_size": initial.model.block_size,
        }
    }


def load_initial_weights(config: RunConfig, model: GPT) -> WeightSource:
    """Fill a model with the initial weights; learned positions are cut to its context. Returns where they come from.

    Raises:
        CheckpointError: if they cannot be read any more.
    """
    source = find_initial_model(config.train.init_from).source
    load_into(model, _ShortenedSource(source, config.model.block_size))
    return source


class _ShortenedSource:
    """A source whose learned positions, if any, end with a shorter context."""

    def __init__(self, source: WeightSource, block_size: int):
        self.path, self.config, self.stored, self.notes = source.path, source.config, source.stored, source.notes
        self.read, self.tokenizer = source.read, source.tokenizer
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

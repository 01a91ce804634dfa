"""Configurations: frozen dataclasses, TOML files, and dotted ``key=value`` overrides.

A run is described by five sections: ``model``, ``data``, ``train``, ``optim`` and ``runtime``. Layers are laid
over each other (preset, TOML file, command line), then everything is checked at once: :class:`ConfigError`
carries every problem found. Zero means "derived" wherever a field's help says so.
"""

import dataclasses
import difflib
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w

from glassgpt.errors import ConfigError
from glassgpt.model_config import ModelConfig as ModelConfig
from glassgpt.options import Section, annotation, option


def parse_duration(text: str) -> float:
    """Seconds in a duration such as ``90s``, ``5m``, ``1h30m`` or ``90`` (seconds).

    Raises:
        ValueError: if the text is no such duration, or is zero.
    """
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
    total = 3600 * hours + 60 * minutes + seconds
    if total <= 0:
        raise ValueError(f"{text!r} is not a duration; write 90s, 5m or 1h30m")
    return total


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{text!r} is not valid Unicode; rename the file") from None


def _check_device(name: str) -> None:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"{name!r} is none of auto, cpu, cuda, cuda:N, mps")


def _check_tokenizer(text: str) -> None:
    _check_unicode(text)
    named = text.partition(":")[0] in ("char", "word", "bpe", "gpt2", "")
    if named and not re.fullmatch(r"char|gpt2|word(:\d{1,7})?|bpe:\d{1,7}", text):
        raise ValueError(f"{text!r} is no tokenizer; write for example char, word, word:8000, bpe:4096 or gpt2")


@dataclass(frozen=True)
class DataConfig(Section):
    """Which text or documents, and how they become tokens and batches."""

    section = "data"

    source: str = option(
        "shakespeare",
        "a file, a folder, a pattern, a corpus (`glassgpt data list`), or what `data prepare` wrote",
        check=_check_unicode,
    )
    tokenizer: str = option(
        "char", "char, word, word:N, bpe:N (N tokens), gpt2, or a tokenizer file or folder", check=_check_tokenizer
    )
    val_fraction: float = option(
        0.1,
        "share kept for validation: the end of a text, or documents chosen by their content",
        least=0.0001,
        most=0.5,
    )
    max_val_tokens: int = option(
        1_000_000,
        "validation text at most, in characters (of documents: bytes); the rest of a long text trains",
        least=2,
    )
    separator: str = option(
        "", "what stands between documents in plain files, for example <|endoftext|>", check=_check_unicode
    )
    text_field: str = option(
        "", "where in a row its text is; empty: text, content, or the only text there is", check=_check_unicode
    )
    duplicates: Literal["keep", "drop"] = option("keep", "drop: leave out documents that repeat an earlier one")
    order: Literal["auto", "random", "sequential"] = option(
        "auto", "random windows; or shard after shard, shuffled nearby (auto: from a gigabyte of tokens on)"
    )
    mask_documents: bool = option(False, "attention and positions begin anew with each document")


@dataclass(frozen=True)
class TrainConfig(Section):
    """How long, in what portions, and what is written down on the way."""

    section = "train"

    init: str = option(
        "", "a model to go on from: a run, a folder, a .gguf file, a hub name; empty: from scratch",
        check=_check_unicode,
    )  # fmt: skip
    steps: int = option(0, "optimiser steps; 0: as many as fit in `time`", least=0)
    time: str = option("5m", "time budget when steps=0, for example 90s, 5m, 1h30m", check=parse_duration)
    batch_size: int = option(16, "sequences per optimiser step, over all micro-batches", least=1)
    micro_batch_size: int = option(0, "sequences per forward pass; 0: as many as fit into memory", least=0)
    activation_checkpointing: bool = option(
        False, "keep only each block's input for the backward pass and compute the rest again: less memory, slower"
    )
    seed: int = option(1337, "seed of the initial weights, the order of the data, and dropout", least=0)
    grad_clip: float = option(1.0, "largest global gradient norm; 0: no clipping", least=0)
    eval_interval: int = option(0, "steps between validations; 0: derived, about 10 in a run", least=0)
    eval_tokens: int = option(
        0, "tokens of the fixed validation subset; 0: 100,000, or less in a short run", least=0, most=100_000
    )
    patience: int = option(0, "stop after this many validations without a better loss; 0: never", least=0)
    save_interval: int = option(0, "steps between checkpoints; 0: eval_interval", least=0)
    keep: int = option(2, "numbered checkpoints to keep beside best and last", least=0)
    log_interval: int = option(0, "steps between lines of metrics.jsonl; 0: derived, about 200 in a run", least=0)
    sample_interval: int = option(0, "steps between samples shown; 0: twice eval_interval", least=0)
    sample_tokens: int = option(160, "tokens in a sample shown during training; 0: no samples", least=0)
    max_nonfinite: int = option(5, "stop after this many non-finite gradients in a row", least=1)
    tensorboard: bool = option(False, "write TensorBoard events into the run, too (needs glassgpt[tensorboard])")
    format: Literal["hf", "native"] = option("hf", "hf: checkpoints open in transformers; native: any ModelConfig")


@dataclass(frozen=True)
class OptimConfig(Section):
    """The optimiser and its schedule."""

    section = "optim"

    optimizer: Literal["muon", "adamw"] = option(
        "muon", "muon: Muon for the hidden matrices, AdamW for the rest; adamw: AdamW for all"
    )
    learning_rate: float = option(5e-3, "peak learning rate of AdamW", least=0)
    muon_learning_rate: float = option(0.015, "peak learning rate of Muon", least=0)
    weight_decay: float = option(0.1, "decoupled weight decay of matrices (never of norms and biases)", least=0)
    beta1: float = option(0.9, "AdamW's first moment decay", least=0, most=0.9999)
    beta2: float = option(0.99, "AdamW's second moment decay", least=0, most=0.99999)
    momentum: float = option(0.95, "Muon's momentum", least=0, most=0.9999)
    warmup_steps: int = option(0, "steps of linear warmup; 0: derived, 5 % of the run, at most 200", least=0)
    schedule: Literal["cosine", "trapezoid"] = option(
        "cosine", "after warmup: half a cosine, or constant and then linearly down (trapezoid)"
    )
    decay_fraction: float = option(0.5, "trapezoid: share of the run spent going down", least=0, most=1)
    min_lr_ratio: float = option(0.1, "final learning rate as a share of the peak", least=0, most=1)


@dataclass(frozen=True)
class RuntimeConfig(Section):
    """Where and how the arithmetic runs. ``auto`` is resolved once and saved with the run."""

    section = "runtime"

    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps", check=_check_device)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "compute type, beside float32 weights; auto: the fastest measured that agrees with float32"
    )
    compile: Literal["auto", "true", "false"] = option(
        "auto", "torch.compile the blocks; auto: where the run is long enough to earn the compile time back"
    )
    threads: int = option(0, "CPU threads; 0: PyTorch's choice", least=0)
    workers: int = option(0, "processes that read batches ahead; 0: they are read between steps", least=0, most=256)

    def __post_init__(self) -> None:
        object.__setattr__(self, "compile", str(self.compile).lower())  # TOML's own true and false will do, too
        super().__post_init__()


@dataclass(frozen=True)
class RunConfig:
    """The whole configuration of a training run."""

    preset: str
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    optim: OptimConfig
    runtime: RuntimeConfig

    def replace(self, section: str, **changes: Any) -> "RunConfig":
        """A copy with fields of one section changed. Derived model fields are kept as they are."""
        part = dataclasses.replace(getattr(self, section), **changes)
        return dataclasses.replace(self, **{section: part})

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values: ``{"preset": ..., "model": {...}, ...}``, as written to run.toml."""
        return dataclasses.asdict(self)


SECTIONS: dict[str, type[Section]] = {
    part.section: part for part in (ModelConfig, DataConfig, TrainConfig, OptimConfig, RuntimeConfig)
}
#: The section of every key; names are unique over all sections, so a bare name is enough on a command line.
SECTION_OF: dict[str, str] = {field.name: name for name, part in SECTIONS.items() for field in dataclasses.fields(part)}
#: What other projects call our keys; only ever suggested, never accepted.
KNOWN_ELSEWHERE_AS: dict[str, str] = {
    "lr": "learning_rate",
    "max_lr": "learning_rate",
    "max_iters": "steps",
    "max_steps": "steps",
    "iters": "steps",
    "batch": "batch_size",
    "bias": "qkv_bias",
    "context": "block_size",
    "context_length": "block_size",
    "depth": "n_layer",
    "num_layers": "n_layer",
    "heads": "n_head",
    "width": "n_embd",
    "hidden_size": "n_embd",
    "wd": "weight_decay",
    "budget": "time",
}
Layer = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class OptionHelp:
    """One configurable key, as listed by ``--help``."""

    key: str
    type: str
    default: str
    help: str


def describe_options() -> Iterator[OptionHelp]:
    """Every configuration key with its type, default and help, in reading order."""
    for name, part in SECTIONS.items():
        for field in dataclasses.fields(part):
            kind = annotation(part, field.name)
            choices = typing.get_args(kind)
            shown = " | ".join(choices) if choices else kind.__name__
            default = str(field.default).lower() if kind is bool else str(field.default)
            yield OptionHelp(f"{name}.{field.name}", shown, default, field.metadata["help"])


def parse_overrides(arguments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Turn ``["steps=100", "model.n_layer=2"]`` into a layer. Keys may be bare or dotted.

    Raises:
        ConfigError: with every argument that is not ``key=value``, has an unknown key, or a value of another type.
    """
    layer: dict[str, dict[str, Any]] = {}
    problems = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            problems.append(f"{argument!r} is not of the form key=value")
            continue
        if argument == "batch=auto":  # how everyone says it
            key = "micro_batch_size"
        try:
            section, name = locate(key)
            layer.setdefault(section, {})[name] = _parse_value(section, name, text)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(problems)
    return layer


def locate(key: str) -> tuple[str, str]:
    """The section and field that a bare (``n_layer``) or dotted (``model.n_layer``) key names.

    Raises:
        ValueError: for an unknown key, with the nearest known ones.
    """
    name = key.rpartition(".")[2]
    section = SECTION_OF.get(name)
    if section and key in (name, f"{section}.{name}"):
        return section, name
    near = [name] if section else difflib.get_close_matches(name, SECTION_OF, n=2, cutoff=0.6)
    near = [KNOWN_ELSEWHERE_AS[name]] if name in KNOWN_ELSEWHERE_AS else near
    suggestions = " or ".join(f"{SECTION_OF[field]}.{field}" for field in near)
    hint = f"did you mean {suggestions}?" if near else "`glassgpt train --help` lists every key"
    raise ValueError(f"unknown key {key!r}; {hint}")


def read_toml(path: Path) -> tuple[str | None, dict[str, dict[str, Any]]]:
    """Read a configuration file: its preset (or None) and its layer. A ``[provenance]`` table is ignored.

    Raises:
        ConfigError: if the file cannot be read or parsed, or has unknown sections or keys.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {error}") from None
    preset = content.pop("preset", None)
    content.pop("provenance", None)
    problems = []
    if preset is not None and not isinstance(preset, str):
        problems.append(f"{path}: preset: expected a name, got {preset!r}")
    for section, values in content.items():
        if section not in SECTIONS or not isinstance(values, dict):
            near = difflib.get_close_matches(section, SECTIONS, n=1)
            hint = f"did you mean [{near[0]}]?" if near else f"sections are {', '.join(SECTIONS)}"
            problems.append(f"{path}: unknown section {section!r}; {hint}")
            continue
        for key in values:
            try:
                locate(f"{section}.{key}")
            except ValueError as error:
                problems.append(f"{path}: {error}")
    if problems:
        raise ConfigError(problems)
    return preset, content


def write_toml(path: Path, config: RunConfig, provenance: Mapping[str, Any]) -> None:
    """Write a resolved configuration, with what is known of its origin under ``[provenance]``."""
    content = config.to_dict() | {"provenance": dict(provenance)}
    path.write_text(tomli_w.dumps(content), encoding="utf-8", newline="\n")


def build(preset: str, layers: Sequence[Layer]) -> RunConfig:
    """Lay the layers over each other, later ones winning, and check the whole.

    Raises:
        ConfigError: with the problems of every section together.
    """
    parts: dict[str, Section] = {}
    problems: list[str] = []
    for name, part in SECTIONS.items():
        values: dict[str, Any] = {}
        for layer in layers:
            values.update(layer.get(name, {}))
        try:
            parts[name] = part(**values)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return RunConfig(preset=preset, **parts)  # type: ignore[arg-type]


def differences(old: Section, new: Section) -> list[str]:
    """One line per differing field: ``model.n_layer: 6 in the run, 8 asked for``."""
    return [
        f"{old.section}.{field.name}: {getattr(old, field.name)} in the run, {getattr(new, field.name)} asked for"
        for field in dataclasses.fields(old)
        if getattr(old, field.name) != getattr(new, field.name)
    ]


def _parse_value(section: str, name: str, text: str) -> Any:
    kind = annotation(SECTIONS[section], name)
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if kind is int:
            if text == "auto" and SECTIONS[section].__dataclass_fields__[name].default == 0:
                return 0
            if re.fullmatch(r"[+-]?[\d_]+", text):
                return int(text)
            number = float(text)  # 1e6 is a whole number too
            if number != int(number):
                raise ValueError
            return int(number)
        return float(text) if kind is float else text
    except (ValueError, KeyError, OverflowError):
        expected = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise ValueError(f"{section}.{name}: expected {expected}, got {text!r}") from None

"""From a preset, TOML files and ``key=value`` arguments to one checked :class:`RunConfig`.

Overrides are merged in order, the last one wins. Then everything is checked at once: :class:`ConfigError` carries
every problem found.
"""

import dataclasses
import difflib
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from glassgpt.config.model import ModelConfig
from glassgpt.config.run import DataConfig, OptimConfig, RunConfig, RuntimeConfig, TrainConfig, TuneConfig
from glassgpt.config.section import Section, annotation
from glassgpt.errors import ConfigError

SECTIONS: dict[str, type[Section]] = {
    part.section: part for part in (ModelConfig, DataConfig, TrainConfig, OptimConfig, RuntimeConfig, TuneConfig)
}
#: The section of every key of the core sections. Their names are unique, so a bare name is enough on a command line;
#: keys of any further section are always written with their section.
SECTION_OF: dict[str, str] = {field.name: name for name, part in SECTIONS.items() for field in dataclasses.fields(part)}
#: Keys that were renamed: files with the old key are still read; on a command line the new one is suggested.
RENAMED: dict[str, str] = {
    "train.init": "init_from",
    "train.keep": "keep_checkpoints",
    "runtime.workers": "num_workers",
    "optim.learning_rate": "adamw_learning_rate",
}
#: What other projects call our keys, and what we called them before; only ever suggested, never accepted.
ALIASES: dict[str, tuple[str, ...]] = {
    "lr": ("adamw_learning_rate", "muon_learning_rate"),
    "learning_rate": ("adamw_learning_rate", "muon_learning_rate"),
    "max_lr": ("adamw_learning_rate", "muon_learning_rate"),
    "min_lr": ("min_lr_ratio",),
    "warmup_iters": ("warmup_steps",),
    "lr_decay_iters": ("steps",),
    "max_iters": ("steps",),
    "max_steps": ("steps",),
    "iters": ("steps",),
    "eval_iters": ("eval_tokens",),
    "always_save_checkpoint": ("save_interval",),
    "decay_lr": ("schedule",),
    "max_norm": ("grad_clip",),
    "batch": ("batch_size",),
    "gradient_accumulation_steps": ("batch_size", "micro_batch_size"),
    "grad_accum": ("batch_size", "micro_batch_size"),
    "dataset": ("source",),
    "init": ("init_from",),
    "resume_from": ("init_from",),
    "keep": ("keep_checkpoints",),
    "save_total_limit": ("keep_checkpoints",),
    "workers": ("num_workers",),
    "bias": ("qkv_bias",),
    "context": ("block_size",),
    "context_length": ("block_size",),
    "depth": ("n_layer",),
    "num_layers": ("n_layer",),
    "heads": ("n_head",),
    "n_query_groups": ("n_kv_head",),
    "width": ("n_embd",),
    "hidden_size": ("n_embd",),
    "wd": ("weight_decay",),
    "budget": ("time",),
    "rank": ("lora_rank",),
    "lora_r": ("lora_rank",),
    "target_modules": ("lora_targets",),
}
ConfigOverrides = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class OptionHelp:
    """One configurable key, as listed by ``--help``."""

    key: str
    type: str
    default: str
    help: str


def describe_options(
    sections: Sequence[str] = ("model", "data", "train", "optim", "runtime"), defaults: ConfigOverrides | None = None
) -> Iterator[OptionHelp]:
    """The configuration keys of these sections with their types, defaults and helps, in reading order.

    ``defaults`` replaces some of the defaults.
    """
    for name in sections:
        part = SECTIONS[name]
        for field in dataclasses.fields(part):
            kind = annotation(part, field.name)
            choices = typing.get_args(kind)
            shown = " | ".join(choices) if choices else kind.__name__
            value = (defaults or {}).get(name, {}).get(field.name, field.default)
            default = str(value).lower() if kind is bool else str(value)
            yield OptionHelp(f"{name}.{field.name}", shown, default, field.metadata["help"])


def parse_overrides(arguments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Parse ``["steps=100", "model.n_layer=2"]`` into overrides. Keys may be bare or dotted.

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
    section, _, name = key.rpartition(".")
    if not section and name in SECTION_OF:
        return SECTION_OF[name], name
    if section in SECTIONS and name in SECTIONS[section].__dataclass_fields__:
        return section, name
    exact = name in SECTION_OF or name in ALIASES
    near = [name] if exact else difflib.get_close_matches(name, [*SECTION_OF, *ALIASES], n=2, cutoff=0.6)
    fields = dict.fromkeys(field for match in near for field in ALIASES.get(match, (match,)))
    suggestions = " or ".join(f"{SECTION_OF[field]}.{field}" for field in fields)
    hint = f"did you mean {suggestions}?" if suggestions else "`glassgpt train --help` lists every key"
    raise ValueError(f"unknown key {key!r}; {hint}")


def read_toml(path: Path) -> tuple[str | None, dict[str, dict[str, Any]]]:
    """Read a configuration file: its preset (or None) and its overrides. A ``[provenance]`` table is ignored.

    Raises:
        ConfigError: if the file cannot be read or parsed, or has unknown sections or keys.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # a plain ValueError: a number of 5,000 digits
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
        for key in [*values]:
            if f"{section}.{key}" in RENAMED:
                values[RENAMED[f"{section}.{key}"]] = values.pop(key)
                continue
            try:
                locate(f"{section}.{key}")
            except ValueError as error:
                problems.append(f"{path}: {error}")
    if problems:
        raise ConfigError(problems)
    return preset, content


def write_toml(path: Path, config: RunConfig, provenance: Mapping[str, Any]) -> None:
    """Write a resolved configuration, and its provenance under ``[provenance]``."""
    content = config.to_dict() | {"provenance": dict(provenance)}
    path.write_text(tomli_w.dumps(content), encoding="utf-8", newline="\n")


def build(preset: str, overrides: Sequence[ConfigOverrides]) -> RunConfig:
    """Merge overrides, the last one wins, and check the result.

    Raises:
        ConfigError: with the problems of every section together.
    """
    parts: dict[str, Section] = {}
    problems: list[str] = []
    for name, part in SECTIONS.items():
        values: dict[str, Any] = {}
        for override in overrides:
            values.update(override.get(name, {}))
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

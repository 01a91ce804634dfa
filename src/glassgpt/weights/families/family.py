"""The table that describes one family of published models."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from glassgpt.config import ModelConfig
from glassgpt.errors import CheckpointError

_KINDS = {str: "a string", int: "a whole number", bool: "true or false", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class Rule:
    """One of our weights and its published names; ``{i}`` stands for the layer.

    With several published names, ours is their concatenation along dimension 0 (q, k, v). ``transpose``: published
    matrices are stored transposed, as (in, out) (GPT-2's Conv1D).
    """

    ours: str
    published: tuple[str, ...]
    transpose: bool = False


@dataclass(frozen=True)
class ParsedConfig:
    """ModelConfig fields read from a config.json, and the features in it that are not implemented."""

    fields: dict[str, Any]
    unsupported: list[str]


@dataclass(frozen=True, eq=False)
class Family:
    """A published architecture: the part of :class:`ModelConfig`'s space that a ``transformers`` class implements."""

    model_type: str
    architecture: str
    keys: Mapping[str, str]  # our field -> key in config.json
    write: Callable[[ModelConfig], dict[str, Any]]  # returns further entries of config.json
    read: Callable[[Mapping[str, Any]], ParsedConfig]  # the inverse
    prefix: str = ""  # of all weights except the head's; base models are published without it
    rules: tuple[Rule, ...] = ()  # empty: one for each weight, under our name
    ignored: tuple[str, ...] = ()  # name endings of constants that old files hold beside the weights
    fixed: Mapping[str, Any] = field(default_factory=dict)  # fields that must have this value
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # fields that must have one of these values
    equal: tuple[tuple[str, str], ...] = ()  # pairs of fields that must be equal
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of fields whose key is missing from config.json
    expected: Mapping[str, Any] = field(default_factory=dict)  # other keys -> the only value that is implemented

    def problems(self, config: ModelConfig) -> list[str]:
        """List why this family cannot express the configuration; empty if it can."""
        allowed = {name: (value,) for name, value in self.fixed.items()} | dict(self.choices)
        found = [
            f"model.{name}={getattr(config, name)} ({self.model_type} has {' or '.join(map(str, values))})"
            for name, values in allowed.items()
            if getattr(config, name) not in values
        ]
        found += [
            f"model.{one}={getattr(config, one)} with {other}={getattr(config, other)} ({self.model_type}: equal)"
            for one, other in self.equal
            if getattr(config, one) != getattr(config, other)
        ]
        if "head_dim" not in self.keys and config.head_dim * config.n_head != config.n_embd:
            found.append(f"model.head_dim={config.head_dim} ({self.model_type} has n_embd / n_head)")
        if "n_kv_head" not in self.keys and config.n_kv_head != config.n_head:
            found.append(f"model.n_kv_head={config.n_kv_head} ({self.model_type} has n_head)")
        return found


def read_entry(content: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """Read an entry of a config.json; ``default`` if it is missing. It may be null (None).

    Entries that become fields of :class:`ModelConfig` without being looked at are checked there.

    Raises:
        CheckpointError: if it is of another type than ``kind``.
    """
    value = content.get(key, default)
    if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise CheckpointError(f"{key}={shortened(value)} is not {_KINDS[kind]}")
    return value


def shortened(value: Any) -> str:
    """Show a value in a message, by at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def weight_and_bias(ours: str, *published: str, transpose: bool = False) -> list[Rule]:
    """Make the rules for a layer's weight and bias; a bias is never transposed."""
    return [
        Rule(f"{ours}.{s}", tuple(f"{name}.{s}" for name in published), transpose and s == "weight")
        for s in ("weight", "bias")
    ]

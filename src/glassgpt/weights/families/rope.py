"""RoPE scaling in config.json: ``rope_scaling`` (the old key) and ``rope_parameters`` (the new one)."""

from collections.abc import Mapping
from typing import Any

from glassgpt.config import ModelConfig
from glassgpt.weights.families.family import ParsedConfig, read_entry, shortened

#: For each kind of scaling: our fields -> keys.
_KEYS: dict[str, dict[str, str]] = {
    "none": {},
    "linear": {"rope_factor": "factor"},
    "dynamic": {"rope_factor": "factor"},
    "llama3": {
        "rope_factor": "factor",
        "rope_original_context": "original_max_position_embeddings",
        "rope_low_freq_factor": "low_freq_factor",
        "rope_high_freq_factor": "high_freq_factor",
    },
    "yarn": {
        "rope_factor": "factor",
        "rope_original_context": "original_max_position_embeddings",
        "rope_low_freq_factor": "beta_slow",
        "rope_high_freq_factor": "beta_fast",
        "rope_attention_factor": "attention_factor",
    },
}
#: Further keys, and the values that are implemented.
_EXPECTED = {"partial_rotary_factor": (None, 1, 1.0), "truncate": (None, True), "mscale": (None,)}


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """Give the RoPE entries of config.json, under both keys."""
    kind = "default" if config.rope_scaling == "none" else config.rope_scaling
    scaling = {"rope_type": kind} | {key: getattr(config, name) for name, key in _KEYS[config.rope_scaling].items()}
    return {
        "rope_scaling": None if kind == "default" else scaling,
        "rope_parameters": scaling | {"rope_theta": config.rope_theta},
        "hidden_act": "silu",
        "attention_dropout": 0.0,
    }


def read_rope(content: Mapping[str, Any]) -> ParsedConfig:
    """Read the RoPE entries of a config.json, from either key."""
    rope: dict[str, Any] = {}
    for key in ("rope_parameters", "rope_scaling"):
        part = read_entry(content, key, dict) or {}
        if any(isinstance(value, dict) for value in part.values()):
            return ParsedConfig({}, [f"{key}={shortened(part)} (one for all layers is implemented)"])
        rope |= part
    kind = read_entry(rope, "rope_type", str, read_entry(rope, "type", str, "default"))
    kind = "none" if kind in ("default", None) else kind
    if kind not in _KEYS:
        supported = ", ".join(name for name in _KEYS if name != "none")
        return ParsedConfig({}, [f"RoPE scaling rope_type={kind!r} ({supported} are implemented)"])
    entries = {"partial_rotary_factor": content.get("partial_rotary_factor")} | rope
    unsupported = [
        f"RoPE scaling {key}={entries[key]!r}"
        for key, values in _EXPECTED.items()
        if key in entries and entries[key] not in values
    ]
    fields = {name: rope[key] for name, key in _KEYS[kind].items() if rope.get(key) is not None}
    if "rope_original_context" in _KEYS[kind]:
        original = content.get("original_max_position_embeddings") or content.get("max_position_embeddings", 0)
        fields = {"rope_original_context": original} | fields
    if kind != "none" and "rope_factor" not in fields:
        unsupported.append(f"RoPE scaling {kind} without a factor")
    if rope.get("rope_theta") is not None:
        fields["rope_theta"] = rope["rope_theta"]
    return ParsedConfig({"rope_scaling": kind, **fields}, unsupported)

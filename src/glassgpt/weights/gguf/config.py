"""Read the metadata of a .gguf file as the config.json that Hugging Face would publish with the model."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from glassgpt.files import parse_json
from glassgpt.gguf_header import Header
from glassgpt.weights.gguf.tables import (
    ARCHITECTURES,
    CONFIG_KEY,
    EXTRAS,
    LLAMA_KEYS,
    ROPE_FACTORS,
    llama3_factors,
    llama3_scaling,
)


@np.errstate(all="ignore")  # numbers that are not finite are refused where they are used
def hf_config(header: Header, matrix_types: set[str], rope_factors: np.ndarray | None) -> dict[str, Any]:
    """Convert the metadata of a file with one of ARCHITECTURES to the content of a config.json.

    Args:
        header: of the file.
        matrix_types: how its matrices are stored, as ggml's names of the types.
        rope_factors: the content of its tensor ``rope_freqs``, ``[head_dim / 2]``; None if it has none.

    Raises:
        KeyError, TypeError, ValueError, ZeroDivisionError: if metadata is missing, damaged or not supported.
    """
    metadata, tensors = header.metadata, header.tensors
    architecture = ARCHITECTURES[metadata["general.architecture"]]
    name = architecture.name
    if metadata.get(f"{name}.expert_count"):
        raise ValueError("it is a mixture of experts, which is not implemented")
    numbers = {ours: metadata.get(f"{name}.{key}") for key, ours in architecture.keys.items()}
    config: dict[str, Any] = {
        "model_type": name,
        "vocab_size": tensors["token_embd.weight"].shape[0],
        **{key: _number(value) for key, value in numbers.items() if value is not None},
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    for role in ("bos", "eos", "padding"):
        if (token := metadata.get(f"tokenizer.ggml.{role}_token_id")) is not None:
            config[f"{role.removesuffix('ding')}_token_id"] = token
    dtypes = {"F16": "float16", "BF16": "bfloat16"}
    config["dtype"] = dtypes.get(next(iter(matrix_types)), "float32") if len(matrix_types) == 1 else "float32"
    if name == "gpt2":
        _require_numbers(config, ("n_positions", "n_embd", "n_layer", "n_head"))
        config["activation_function"] = "gelu_new"
    else:
        config |= _llama_config(header, name, config, rope_factors)
    return config | _own_config(metadata, config, rope_factors)


def _own_config(metadata: Mapping[str, Any], config: Mapping[str, Any], factors: np.ndarray | None) -> dict[str, Any]:
    """Read the config.json entries under glassgpt's own key, if there are any and they agree with the file."""
    if CONFIG_KEY not in metadata:
        return {}
    entries = parse_json(metadata[CONFIG_KEY])
    if not isinstance(entries, dict):
        raise ValueError(f"{CONFIG_KEY} is {entries!r}")
    rope = entries.get("rope_parameters")
    if factors is not None:
        if not isinstance(rope, dict) or rope.get("rope_type") != "llama3":
            raise ValueError(f"the file has {ROPE_FACTORS}, but {CONFIG_KEY} has no Llama 3 scaling")
        expected = llama3_factors(rope, config["rope_theta"], config["head_dim"])
        if len(expected) != len(factors) or not np.allclose(expected, factors, rtol=1e-5):
            raise ValueError(f"{ROPE_FACTORS} and {CONFIG_KEY} disagree")
    return {key: entries[key] for key in EXTRAS if key in entries}


def _llama_config(
    header: Header, name: str, config: Mapping[str, Any], rope_factors: np.ndarray | None
) -> dict[str, Any]:
    """Convert the metadata that only Llama and the Qwen families have."""
    metadata, tensors = header.metadata, header.tensors
    _require_numbers(config, tuple(LLAMA_KEYS[key] for key in LLAMA_KEYS if key != "attention.head_count_kv"))
    heads = config["num_attention_heads"]
    rotary_dim = metadata.get(f"{name}.rope.dimension_count")
    head_dim = metadata.get(f"{name}.attention.key_length") or rotary_dim or config["hidden_size"] // heads
    if rotary_dim not in (None, head_dim):
        raise ValueError(f"RoPE rotates {rotary_dim} of {head_dim} dimensions of each head, which is not implemented")
    kv_heads = config.get("num_key_value_heads", heads)
    entries: dict[str, Any] = {"hidden_act": "silu", "head_dim": head_dim, "num_key_value_heads": kv_heads}
    if name != "qwen2":  # which always has biases on queries, keys and values, and no others
        entries["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if name == "llama":
        entries["mlp_bias"] = "blk.0.ffn_up.bias" in tensors
    if window := metadata.get(f"{name}.attention.sliding_window"):
        entries["sliding_window"] = window
        if name == "llama":
            entries["model_type"] = "mistral"
        else:
            entries |= {"use_sliding_window": True, "max_window_layers": 0}
    rope = _rope_parameters(metadata, f"{name}.rope", head_dim, rope_factors)
    return entries | {"rope_theta": rope["rope_theta"], "rope_parameters": rope}


def _rope_parameters(
    metadata: Mapping[str, Any], prefix: str, head_dim: int, factors: np.ndarray | None
) -> dict[str, Any]:
    """Convert the RoPE settings to `rope_parameters` of config.json."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": _number(metadata.get(f"{prefix}.freq_base", 10000.0))}
    if factors is not None and CONFIG_KEY not in metadata:
        return rope | llama3_scaling(factors, rope["rope_theta"], head_dim)
    factor = _number(metadata.get(f"{prefix}.scaling.factor", metadata.get(f"{prefix}.scale_linear", 0.0)))
    kind = metadata.get(f"{prefix}.scaling.type", "linear" if factor else "none")
    if kind == "none" or factor in (0.0, 1.0):
        return rope
    if kind not in ("linear", "yarn"):
        raise ValueError(f"RoPE scaling of the type {kind!r} is not implemented")
    rope |= {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        if attention_factor := metadata.get(f"{prefix}.scaling.attn_factor"):
            rope["attention_factor"] = float(attention_factor * (0.1 * math.log(factor) + 1.0))  # llama.cpp's own part
        for key, name in {
            "original_context_length": "original_max_position_embeddings",
            "yarn_beta_fast": "beta_fast",
            "yarn_beta_slow": "beta_slow",
        }.items():
            if (value := metadata.get(f"{prefix}.scaling.{key}")) is not None:
                rope[name] = _number(value)
    return rope


def _require_numbers(config: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    """Raise ValueError if a number is missing, or differs between layers."""
    for key in keys:
        if not isinstance(config.get(key), (int, float)):
            raise ValueError(f"{key} is {config.get(key, 'missing')}; one number for all layers is implemented")


def _number(value: Any) -> Any:
    """Restore a number to its decimal form: 1e-05, which the file's float32 turns into 9.999999747378752e-06.

    A list with one number for each layer becomes that number if all are equal.
    """
    if isinstance(value, list) and len(set(value)) == 1:
        value = value[0]
    return float(str(np.float32(value))) if isinstance(value, float) else value

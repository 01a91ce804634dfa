"""llama.cpp's names and layout of Hugging Face's tensors and numbers, used to read and to write .gguf files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Architecture:
    """A family in llama.cpp.

    Attributes:
        name: `general.architecture`, the prefix of the keys of its numbers, and Hugging Face's `model_type`.
        names: of tensors, without `.weight` or `.bias`: llama.cpp's -> Hugging Face's.
        keys: of numbers: llama.cpp's, after the prefix -> those of config.json.
        permuted: tensors whose rows are in llama.cpp's order of RoPE pairs.
        transposed: matrices that Hugging Face stores transposed, as (in, out).
    """

    name: str
    names: Mapping[str, str]
    keys: Mapping[str, str]
    permuted: frozenset[str] = frozenset()
    transposed: frozenset[str] = frozenset()


_LLAMA_LAYER = "model.layers.{i}"
_LLAMA_NAMES = {
    "token_embd": "model.embed_tokens",
    "blk.{i}.attn_norm": f"{_LLAMA_LAYER}.input_layernorm",
    "blk.{i}.attn_q": f"{_LLAMA_LAYER}.self_attn.q_proj",
    "blk.{i}.attn_k": f"{_LLAMA_LAYER}.self_attn.k_proj",
    "blk.{i}.attn_v": f"{_LLAMA_LAYER}.self_attn.v_proj",
    "blk.{i}.attn_output": f"{_LLAMA_LAYER}.self_attn.o_proj",
    "blk.{i}.ffn_norm": f"{_LLAMA_LAYER}.post_attention_layernorm",
    "blk.{i}.ffn_gate": f"{_LLAMA_LAYER}.mlp.gate_proj",
    "blk.{i}.ffn_up": f"{_LLAMA_LAYER}.mlp.up_proj",
    "blk.{i}.ffn_down": f"{_LLAMA_LAYER}.mlp.down_proj",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_QWEN3_NAMES = _LLAMA_NAMES | {
    "blk.{i}.attn_q_norm": f"{_LLAMA_LAYER}.self_attn.q_norm",
    "blk.{i}.attn_k_norm": f"{_LLAMA_LAYER}.self_attn.k_norm",
}
_GPT2_LAYER = "transformer.h.{i}"
_GPT2_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "blk.{i}.attn_norm": f"{_GPT2_LAYER}.ln_1",
    "blk.{i}.attn_qkv": f"{_GPT2_LAYER}.attn.c_attn",
    "blk.{i}.attn_output": f"{_GPT2_LAYER}.attn.c_proj",
    "blk.{i}.ffn_norm": f"{_GPT2_LAYER}.ln_2",
    "blk.{i}.ffn_up": f"{_GPT2_LAYER}.mlp.c_fc",
    "blk.{i}.ffn_down": f"{_GPT2_LAYER}.mlp.c_proj",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
LLAMA_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_GPT2_KEYS = {
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
_TRANSPOSED = frozenset({"blk.{i}.attn_qkv", "blk.{i}.attn_output", "blk.{i}.ffn_up", "blk.{i}.ffn_down"})
ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("gpt2", _GPT2_NAMES, _GPT2_KEYS, transposed=_TRANSPOSED),
        Architecture("llama", _LLAMA_NAMES, LLAMA_KEYS, frozenset({"blk.{i}.attn_q", "blk.{i}.attn_k"})),
        Architecture("qwen2", _LLAMA_NAMES, LLAMA_KEYS),
        Architecture("qwen3", _QWEN3_NAMES, LLAMA_KEYS),
    )
}
#: The tensor with the factors of Llama 3's RoPE scaling; Hugging Face has settings in config.json instead.
ROPE_FACTORS = "rope_freqs.weight"
#: Entries of config.json that llama.cpp has no key for. They are written as JSON under a key of our own.
EXTRAS = ("rope_parameters", "sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "resid_pdrop")
CONFIG_KEY = "glassgpt.config"


def rotated_halves(rows: int, heads: int) -> np.ndarray:
    """Give for each row of queries or keys in Hugging Face's order its row in a GGUF file, ``[rows]``.

    RoPE rotates dimensions i and i + head_dim/2 of a head together in Hugging Face's order, 2i and 2i + 1 in
    llama.cpp's.
    """
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)


def llama3_factors(scaling: Mapping[str, Any], theta: float, head_dim: int) -> np.ndarray:
    """Compute the divisors of the RoPE frequencies in Llama 3's scaling, ``[head_dim / 2]`` of float32.

    ``factor`` for low frequencies, 1 for high ones, and in between an interpolation (as in transformers'
    modeling_rope_utils).
    """
    factor, low, high = (scaling[key] for key in ("factor", "low_freq_factor", "high_freq_factor"))
    waves = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (scaling["original_max_position_embeddings"] / waves - low) / (high - low)
    return (1 / ((1 - smooth.clip(0, 1)) / factor + smooth.clip(0, 1))).astype(np.float32)


def llama3_scaling(factors: np.ndarray, theta: float, head_dim: int) -> dict[str, Any]:
    """Recover the settings of Llama 3's scaling from its factors, the inverse of :func:`llama3_factors`.

    In the range that is interpolated, the weight is linear in the frequency, so two factors determine the line. The
    ends of the line are ratios of two settings each; with ``low_freq_factor`` 1, as in all published models, they
    determine the rest.

    Raises:
        ValueError: if no settings give these factors.
    """
    factor = round(float(factors.max()), 4)
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)
    between = (factors > 1 + 1e-5) & (factors < factor * (1 - 1e-5))
    if len(factors) == head_dim // 2 and factor > 1 and between.sum() >= 2:
        smooth = (1 / factors[between].astype(np.float64) - 1 / factor) / (1 - 1 / factor)
        slope, begin = np.polyfit(frequencies[between], smooth, 1)
        high = round(float(1 - 1 / begin), 3)
        scaling = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": high,
            "original_max_position_embeddings": round(float(slope * (high - 1))),
        }
        if np.allclose(llama3_factors(scaling, theta, head_dim), factors, rtol=1e-5):
            return scaling
    raise ValueError(f"{ROPE_FACTORS} scales the RoPE frequencies in a way that is not Llama 3's")

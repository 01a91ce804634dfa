"""Llama, Mistral, Qwen 2 and Qwen 3: RoPE, RMSNorm, SwiGLU; they differ in biases, windows and q/k norms."""

from collections.abc import Mapping
from typing import Any

from glassgpt.config import ModelConfig
from glassgpt.weights.families.family import Family, ParsedConfig, Rule, read_entry, shortened, weight_and_bias
from glassgpt.weights.families.rope import read_rope, write_rope

_LAYER = "model.layers.{i}"
_RULES = (
    Rule("token_embedding.weight", ("model.embed_tokens.weight",)),
    Rule("blocks.{i}.norm_1.weight", (f"{_LAYER}.input_layernorm.weight",)),
    *weight_and_bias("blocks.{i}.attention.qkv", *(f"{_LAYER}.self_attn.{part}_proj" for part in "qkv")),
    *weight_and_bias("blocks.{i}.attention.out", f"{_LAYER}.self_attn.o_proj"),
    Rule("blocks.{i}.attention.q_norm.weight", (f"{_LAYER}.self_attn.q_norm.weight",)),  # Qwen 3 only
    Rule("blocks.{i}.attention.k_norm.weight", (f"{_LAYER}.self_attn.k_norm.weight",)),
    Rule("blocks.{i}.norm_2.weight", (f"{_LAYER}.post_attention_layernorm.weight",)),
    *weight_and_bias("blocks.{i}.mlp.gate", f"{_LAYER}.mlp.gate_proj"),
    *weight_and_bias("blocks.{i}.mlp.up", f"{_LAYER}.mlp.up_proj"),
    *weight_and_bias("blocks.{i}.mlp.down", f"{_LAYER}.mlp.down_proj"),
    Rule("final_norm.weight", ("model.norm.weight",)),
    Rule("head.weight", ("lm_head.weight",)),
)

_KEYS = {
    "vocab_size": "vocab_size",
    "block_size": "max_position_embeddings",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "head_dim": "head_dim",
    "n_embd": "hidden_size",
    "intermediate_size": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "tie_embeddings": "tie_word_embeddings",
}

_FIXED = {"norm": "rmsnorm", "norm_bias": False, "mlp": "swiglu", "position": "rope", "qk_norm": False}
_NO_BIAS = {"qkv_bias": False, "attention_out_bias": False, "mlp_bias": False}

# The defaults of the `transformers` classes.
_LLAMA_DEFAULTS = {
    "vocab_size": 32000,
    "block_size": 2048,
    "n_layer": 32,
    "n_head": 32,
    "n_embd": 4096,
    "intermediate_size": 11008,
    "norm_eps": 1e-6,
    "tie_embeddings": False,
    "qkv_bias": False,
    "mlp_bias": False,
    "dropout": 0.0,
}
_QWEN_DEFAULTS = _LLAMA_DEFAULTS | {
    "vocab_size": 151936,
    "block_size": 32768,
    "n_kv_head": 32,
    "intermediate_size": 22016,
}


def _read_mistral(content: Mapping[str, Any]) -> ParsedConfig:
    parsed, window = read_rope(content), read_entry(content, "sliding_window", int, 4096)
    types = content.get("layer_types")
    unsupported = [f"layer_types={shortened(types)} (one for all layers is implemented)"] if types else []
    return ParsedConfig(parsed.fields | {"sliding_window": window or 0}, parsed.unsupported + unsupported)


def _write_qwen(config: ModelConfig) -> dict[str, Any]:
    return write_rope(config) | {
        "use_sliding_window": bool(config.sliding_window),
        "sliding_window": config.sliding_window or None,
        "max_window_layers": config.first_window_layer if config.sliding_window else config.n_layer,
        "layer_types": ["sliding_attention" if window else "full_attention" for window in config.windows],
    }


def _read_qwen(content: Mapping[str, Any]) -> ParsedConfig:
    """Read sliding windows: all layers from one on, given as ``max_window_layers`` or as a list of layer types."""
    parsed = read_rope(content)
    window = read_entry(content, "sliding_window", int, 4096)
    window = window if read_entry(content, "use_sliding_window", bool) else 0
    first, layers = read_entry(content, "max_window_layers", int, 28), read_entry(content, "num_hidden_layers", int, 32)
    if (types := read_entry(content, "layer_types", list)) is not None and layers is not None:
        first = types.count("full_attention")
        in_order = types == ["full_attention"] * first + ["sliding_attention"] * (len(types) - first)
        if len(types) != layers or not in_order or (first < layers and not window):
            problem = f"layer_types={shortened(types)} with sliding_window={window}"
            problem += " (full attention first, then windows, is implemented)"
            return ParsedConfig({}, [*parsed.unsupported, problem])
    if not window or first is None or (layers is not None and first >= layers):
        window = first = 0
    return ParsedConfig(parsed.fields | {"sliding_window": window, "first_window_layer": first}, parsed.unsupported)


_COMMON: dict[str, Any] = {
    "prefix": "model.",
    "expected": {"hidden_act": "silu"},
    "rules": _RULES,
    "ignored": (".rotary_emb.inv_freq",),
}
LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    fixed=_FIXED | {"sliding_window": 0, "first_window_layer": 0},
    equal=(("qkv_bias", "attention_out_bias"),),
    keys=_KEYS | {"qkv_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    defaults=_LLAMA_DEFAULTS,
    write=write_rope,
    read=read_rope,
    **_COMMON,
)
MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    fixed=_FIXED | _NO_BIAS | {"first_window_layer": 0},
    keys=_KEYS,
    defaults=_LLAMA_DEFAULTS | {"n_kv_head": 8, "intermediate_size": 14336, "block_size": 131072},
    write=lambda config: write_rope(config) | {"sliding_window": config.sliding_window or None},
    read=_read_mistral,
    **_COMMON,
)
QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    fixed=_FIXED | _NO_BIAS | {"qkv_bias": True},
    keys=_KEYS,
    defaults=_QWEN_DEFAULTS,
    write=_write_qwen,
    read=_read_qwen,
    **_COMMON,
)
QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    fixed=_FIXED | {"qk_norm": True, "mlp_bias": False},
    equal=(("qkv_bias", "attention_out_bias"),),
    keys=_KEYS | {"qkv_bias": "attention_bias"},
    defaults=_QWEN_DEFAULTS | {"head_dim": 128},
    write=_write_qwen,
    read=_read_qwen,
    **_COMMON,
)

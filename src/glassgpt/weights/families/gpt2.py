"""GPT-2: learned positions, LayerNorm, biases everywhere, GELU, and matrices stored transposed."""

from collections.abc import Mapping
from typing import Any

from glassgpt.config import ModelConfig
from glassgpt.weights.families.family import Family, ParsedConfig, Rule, read_entry, weight_and_bias

#: Our names of the activations -> those in config.json.
_ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu"}

_LAYER = "transformer.h.{i}"
_RULES = (
    Rule("token_embedding.weight", ("transformer.wte.weight",)),
    Rule("position_embedding.weight", ("transformer.wpe.weight",)),
    *weight_and_bias("blocks.{i}.norm_1", f"{_LAYER}.ln_1"),
    *weight_and_bias("blocks.{i}.attention.qkv", f"{_LAYER}.attn.c_attn", transpose=True),
    *weight_and_bias("blocks.{i}.attention.out", f"{_LAYER}.attn.c_proj", transpose=True),
    *weight_and_bias("blocks.{i}.norm_2", f"{_LAYER}.ln_2"),
    *weight_and_bias("blocks.{i}.mlp.up", f"{_LAYER}.mlp.c_fc", transpose=True),
    *weight_and_bias("blocks.{i}.mlp.down", f"{_LAYER}.mlp.c_proj", transpose=True),
    *weight_and_bias("final_norm", "transformer.ln_f"),
    Rule("head.weight", ("lm_head.weight",)),
)


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "activation_function": _ACTIVATIONS[config.mlp],
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,
        "n_ctx": config.block_size,
    }


def _read(content: Mapping[str, Any]) -> ParsedConfig:
    names = {theirs: ours for ours, theirs in _ACTIVATIONS.items()} | {"gelu_pytorch_tanh": "gelu_tanh"}
    activation = read_entry(content, "activation_function", str, "gelu_new")
    if activation not in names:
        supported = " or ".join(map(repr, names))
        return ParsedConfig({}, [f"activation_function={activation!r} ({supported} are implemented)"])
    return ParsedConfig({"mlp": names[activation]}, [])


GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    prefix="transformer.",
    fixed={
        "norm": "layernorm",
        "norm_bias": True,
        "position": "learned",
        "rope_scaling": "none",
        "sliding_window": 0,
        "qk_norm": False,
        "qkv_bias": True,
        "attention_out_bias": True,
        "mlp_bias": True,
    },
    choices={"mlp": tuple(_ACTIVATIONS)},
    keys={
        "vocab_size": "vocab_size",
        "block_size": "n_positions",
        "n_layer": "n_layer",
        "n_head": "n_head",
        "n_embd": "n_embd",
        "intermediate_size": "n_inner",
        "norm_eps": "layer_norm_epsilon",
        "dropout": "resid_pdrop",
        "tie_embeddings": "tie_word_embeddings",
    },
    defaults={"vocab_size": 50257, "block_size": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768, "dropout": 0.1},
    expected={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    write=_write,
    read=_read,
    rules=_RULES,
    ignored=(".attn.bias", ".attn.masked_bias"),
)

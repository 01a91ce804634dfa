"""Our names and the published names of each family, in one table that serves loading and saving.

A family is a corner of :class:`ModelConfig`'s space that a ``transformers`` class implements: the fields it fixes,
the fields it stores in config.json and under which keys, and where each weight goes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from glassgpt.config import ModelConfig
from glassgpt.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class Rule:
    """One of our weights and the published ones that hold it; ``{i}`` stands for the layer.

    Several published weights are ours cut along the first dimension (q, k, v). ``transpose`` is for GPT-2's
    Conv1D, which stores matrices as (in, out).
    """

    ours: str
    theirs: tuple[str, ...]
    transpose: bool = False


@dataclass(frozen=True, eq=False)
class Family:
    """A published architecture."""

    model_type: str
    architecture: str
    prefix: str  # of every weight but the head's; base models are published without it
    fixed: Mapping[str, Any]  # fields that must have this value
    choices: Mapping[str, tuple[str, ...]]  # fields that must have one of these
    joint: tuple[tuple[str, str], ...]  # pairs of fields that must be equal
    keys: Mapping[str, str]  # our field -> key in config.json
    defaults: Mapping[str, Any]  # what a key that is left out of config.json means, where it is not our default
    expected: Mapping[str, Any]  # further keys of config.json, and the one value that we implement
    extra: Callable[[ModelConfig], dict[str, Any]]  # further entries of config.json
    rules: tuple[Rule, ...]

    def problems(self, config: ModelConfig) -> list[str]:
        """Why this family cannot express the configuration; empty if it can."""
        found = [
            f"model.{name}={getattr(config, name)} ({self.model_type} has {value})"
            for name, value in self.fixed.items()
            if getattr(config, name) != value
        ]
        found += [
            f"model.{name}={getattr(config, name)} ({self.model_type} has {' or '.join(values)})"
            for name, values in self.choices.items()
            if getattr(config, name) not in values
        ]
        found += [
            f"model.{one}={getattr(config, one)} with {other}={getattr(config, other)} ({self.model_type}: equal)"
            for one, other in self.joint
            if getattr(config, one) != getattr(config, other)
        ]
        if "head_dim" not in self.keys and config.head_dim * config.n_head != config.n_embd:
            found.append(f"model.head_dim={config.head_dim} ({self.model_type} has n_embd / n_head)")
        if self.model_type == "gpt2" and config.n_kv_head != config.n_head:
            found.append(f"model.n_kv_head={config.n_kv_head} (gpt2 has n_head)")
        return found


def _both(suffixes: tuple[str, ...], ours: str, *theirs: str, transpose: bool = False) -> tuple[Rule, ...]:
    """The same rule for the weight and the bias of a layer; a bias is never transposed."""
    return tuple(
        Rule(f"{ours}.{s}", tuple(f"{name}.{s}" for name in theirs), transpose and s == "weight") for s in suffixes
    )


_WB = ("weight", "bias")
_GPT2_BLOCK = "transformer.h.{i}"
_GPT2_RULES = (
    Rule("token_embedding.weight", ("transformer.wte.weight",)),
    Rule("position_embedding.weight", ("transformer.wpe.weight",)),
    *_both(_WB, "blocks.{i}.norm_1", f"{_GPT2_BLOCK}.ln_1"),
    *_both(_WB, "blocks.{i}.attention.qkv", f"{_GPT2_BLOCK}.attn.c_attn", transpose=True),
    *_both(_WB, "blocks.{i}.attention.out", f"{_GPT2_BLOCK}.attn.c_proj", transpose=True),
    *_both(_WB, "blocks.{i}.norm_2", f"{_GPT2_BLOCK}.ln_2"),
    *_both(_WB, "blocks.{i}.mlp.up", f"{_GPT2_BLOCK}.mlp.c_fc", transpose=True),
    *_both(_WB, "blocks.{i}.mlp.down", f"{_GPT2_BLOCK}.mlp.c_proj", transpose=True),
    *_both(_WB, "final_norm", "transformer.ln_f"),
    Rule("head.weight", ("lm_head.weight",)),
)

_LLAMA_BLOCK = "model.layers.{i}"
_QKV = tuple(f"{_LLAMA_BLOCK}.self_attn.{part}_proj" for part in "qkv")
_LLAMA_RULES = (
    Rule("token_embedding.weight", ("model.embed_tokens.weight",)),
    Rule("blocks.{i}.norm_1.weight", (f"{_LLAMA_BLOCK}.input_layernorm.weight",)),
    *_both(_WB, "blocks.{i}.attention.qkv", *_QKV),
    *_both(_WB, "blocks.{i}.attention.out", f"{_LLAMA_BLOCK}.self_attn.o_proj"),
    Rule("blocks.{i}.norm_2.weight", (f"{_LLAMA_BLOCK}.post_attention_layernorm.weight",)),
    *_both(_WB, "blocks.{i}.mlp.gate", f"{_LLAMA_BLOCK}.mlp.gate_proj"),
    *_both(_WB, "blocks.{i}.mlp.up", f"{_LLAMA_BLOCK}.mlp.up_proj"),
    *_both(_WB, "blocks.{i}.mlp.down", f"{_LLAMA_BLOCK}.mlp.down_proj"),
    Rule("final_norm.weight", ("model.norm.weight",)),
    Rule("head.weight", ("lm_head.weight",)),
)
_QWEN3_RULES = (
    *_LLAMA_RULES,
    Rule("blocks.{i}.attention.q_norm.weight", (f"{_LLAMA_BLOCK}.self_attn.q_norm.weight",)),
    Rule("blocks.{i}.attention.k_norm.weight", (f"{_LLAMA_BLOCK}.self_attn.k_norm.weight",)),
)

_GPT2_KEYS = {
    "vocab_size": "vocab_size",
    "block_size": "n_positions",
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "intermediate_size": "n_inner",
    "norm_eps": "layer_norm_epsilon",
    "dropout": "resid_pdrop",
    "tie_embeddings": "tie_word_embeddings",
}
_LLAMA_KEYS = {
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
    "qkv_bias": "attention_bias",
    "tie_embeddings": "tie_word_embeddings",
}
_LLAMA_FIXED = {"norm": "rmsnorm", "norm_bias": False, "mlp": "swiglu", "position": "rope"}
_LLAMA_DEFAULTS = {"norm_eps": 1e-6, "qkv_bias": False, "tie_embeddings": False}
#: GPT-2's activations by the name that config.json gives them.
_GPT2_ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu"}


def _gpt2_extra(config: ModelConfig) -> dict[str, Any]:
    return {
        "activation_function": _GPT2_ACTIVATIONS[config.mlp],
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,
        "n_ctx": config.block_size,
    }


def _llama_extra(config: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
    }


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            model_type="gpt2",
            architecture="GPT2LMHeadModel",
            fixed={
                "norm": "layernorm",
                "norm_bias": True,
                "position": "learned",
                "qk_norm": False,
                "qkv_bias": True,
                "attention_out_bias": True,
                "mlp_bias": True,
            },
            prefix="transformer.",
            choices={"mlp": tuple(_GPT2_ACTIVATIONS)},
            joint=(),
            keys=_GPT2_KEYS,
            defaults={},
            expected={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
            extra=_gpt2_extra,
            rules=_GPT2_RULES,
        ),
        Family(
            model_type="qwen3",
            architecture="Qwen3ForCausalLM",
            fixed=_LLAMA_FIXED | {"qk_norm": True, "mlp_bias": False},
            prefix="model.",
            choices={},
            joint=(("qkv_bias", "attention_out_bias"),),
            keys=_LLAMA_KEYS,
            defaults=_LLAMA_DEFAULTS | {"head_dim": 128},
            expected={"hidden_act": "silu", "use_sliding_window": False},
            extra=lambda config: _llama_extra(config) | {"use_sliding_window": False, "sliding_window": None},
            rules=_QWEN3_RULES,
        ),
        Family(
            model_type="llama",
            architecture="LlamaForCausalLM",
            fixed=_LLAMA_FIXED | {"qk_norm": False},
            prefix="model.",
            choices={},
            joint=(("qkv_bias", "attention_out_bias"),),
            keys=_LLAMA_KEYS | {"mlp_bias": "mlp_bias"},
            defaults=_LLAMA_DEFAULTS | {"mlp_bias": False},
            expected={"hidden_act": "silu"},
            extra=_llama_extra,
            rules=_LLAMA_RULES,
        ),
    )
}


def family_of(config: ModelConfig) -> Family:
    """The family that can express a configuration.

    Raises:
        ConfigError: if none can, naming the fields that stand in the way of the nearest.
    """
    reasons = {family: family.problems(config) for family in FAMILIES.values()}
    nearest = min(reasons, key=lambda family: len(reasons[family]))
    if not reasons[nearest]:
        return nearest
    raise ConfigError(
        f"no published family can express this model: {'; '.join(reasons[nearest])}. "
        "Change it, or keep checkpoints in glassgpt's own format with train.format=native"
    )


def to_hf_config(config: ModelConfig, family: Family) -> dict[str, Any]:
    """The entries of config.json that describe the architecture."""
    entries = {key: getattr(config, name) for name, key in family.keys.items()}
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **entries,
        **family.extra(config),
    }


def from_hf_config(content: Mapping[str, Any]) -> tuple[ModelConfig, Family]:
    """The configuration that a config.json describes, and its family.

    Raises:
        CheckpointError: for a family, or a feature of one, that this version does not implement.
    """
    model_type = content.get("model_type")
    if model_type not in FAMILIES:
        raise CheckpointError(f"model_type {model_type!r} is not one this version reads ({', '.join(FAMILIES)})")
    family = FAMILIES[model_type]
    unsupported = [
        f"{key}={content[key]!r} ({value!r} is implemented)"
        for key, value in family.expected.items()
        if content.get(key, value) != value
    ]
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        unsupported.append(f"rotary scaling {rope!r}")
    if unsupported:
        raise CheckpointError(f"the model uses what this version does not implement: {'; '.join(unsupported)}")
    values: dict[str, Any] = {**family.fixed, **family.defaults}
    values |= {name: content[key] for name, key in family.keys.items() if content.get(key) is not None}
    values |= {other: values[one] for one, other in family.joint}
    if "rope_theta" in rope:
        values["rope_theta"] = rope["rope_theta"]
    if model_type == "gpt2":
        names = {theirs: ours for ours, theirs in _GPT2_ACTIVATIONS.items()}
        activation = content.get("activation_function", "gelu_new")
        if activation not in names:
            raise CheckpointError(
                f"activation_function {activation!r} is not one this version reads ({', '.join(names)})"
            )
        values["mlp"] = names[activation]
    else:
        values["dropout"] = 0.0
    return ModelConfig(**values), family


def native_config(config: ModelConfig) -> dict[str, Any]:
    """config.json of glassgpt's own format, for models that no family expresses."""
    return {"model_type": "glassgpt", "architectures": ["GPT"]} | {
        f.name: getattr(config, f.name) for f in fields(config)
    }


def to_published(state: Mapping[str, Tensor], config: ModelConfig, family: Family) -> dict[str, Tensor]:
    """Our weights under the family's names. A tied head is left out."""
    sizes = config.qkv_sizes
    published: dict[str, Tensor] = {}
    for ours, rule, theirs in _expand(family, config):
        if ours not in state or (ours == "head.weight" and config.tie_embeddings):
            continue
        tensor = state[ours]
        parts = tensor.split(sizes) if len(theirs) > 1 else (tensor,)
        for name, part in zip(theirs, parts, strict=True):
            published[name] = (part.T if rule.transpose else part).contiguous()
    return published


def from_published(published: Mapping[str, Tensor], config: ModelConfig, family: Family) -> dict[str, Tensor]:
    """Published weights under our names; names that no rule knows are passed on, for the strict load to report.

    Raises:
        CheckpointError: if parts of a fused weight do not fit together.
    """
    if not any(name.startswith(family.prefix) for name in published) and _base_embedding(family) in published:
        published = {name if name == "lm_head.weight" else family.prefix + name: t for name, t in published.items()}
    sizes = config.qkv_sizes
    state: dict[str, Tensor] = {}
    used: set[str] = set()
    for ours, rule, theirs in _expand(family, config):
        if not all(name in published for name in theirs):
            continue
        used.update(theirs)
        parts = [published[name].T if rule.transpose else published[name] for name in theirs]
        for name, part, size in zip(theirs, parts, sizes, strict=False):
            if len(parts) > 1 and (part.size(0) != size or part.shape[1:] != parts[0].shape[1:]):
                raise CheckpointError(
                    f"shape of {name} (part of {ours}): {list(part.shape)}, of {size} rows in the model"
                )
        state[ours] = torch.cat(parts) if len(parts) > 1 else parts[0]
    state |= {name: tensor for name, tensor in published.items() if name not in used and not _is_mask(name)}
    if config.tie_embeddings and "token_embedding.weight" in state:
        state["head.weight"] = state["token_embedding.weight"]
    return state


def _base_embedding(family: Family) -> str:
    """What the token embedding is called in a file of the base model, which leaves the prefix out."""
    return family.rules[0].theirs[0].removeprefix(family.prefix)


def _is_mask(name: str) -> bool:
    """Old GPT-2 files carry their causal mask as weights."""
    return name.endswith((".attn.bias", ".attn.masked_bias"))


def _expand(family: Family, config: ModelConfig) -> list[tuple[str, Rule, tuple[str, ...]]]:
    """Every rule for every layer: (our name, rule, published names)."""
    expanded = []
    for rule in family.rules:
        for i in range(config.n_layer) if "{i}" in rule.ours else (0,):
            expanded.append((rule.ours.format(i=i), rule, tuple(name.format(i=i) for name in rule.theirs)))
    return expanded

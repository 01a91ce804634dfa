"""The families of published models: one table each, which serves loading and saving.

A family is a corner of :class:`ModelConfig`'s space that a ``transformers`` class implements: the fields it fixes, the
fields it stores in config.json and under which keys, and where each weight goes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from glassgpt.config import ModelConfig


@dataclass(frozen=True)
class Rule:
    """One of our weights and the published ones that hold it; ``{i}`` stands for the layer.

    Several published weights are ours cut along the first dimension (q, k, v). ``transpose`` is for GPT-2's
    Conv1D, which stores matrices as (in, out).
    """

    ours: str
    theirs: tuple[str, ...]
    transpose: bool = False


@dataclass(frozen=True)
class Found:
    """What a part of config.json says: fields of ours, and what it asks for that is not implemented."""

    fields: dict[str, Any]
    unsupported: list[str]


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
    defaults: Mapping[str, Any]  # what it means when a key is left out of config.json
    expected: Mapping[str, Any]  # further keys of config.json, and the one value that is implemented
    write: Callable[[ModelConfig], dict[str, Any]]  # further entries of config.json
    read: Callable[[Mapping[str, Any]], Found]  # and back
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...]  # ends of the names of what old files hold beside the weights: constants

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
        if "n_kv_head" not in self.keys and config.n_kv_head != config.n_head:
            found.append(f"model.n_kv_head={config.n_kv_head} ({self.model_type} has n_head)")
        return found


# --- where each weight goes


def _both(ours: str, *theirs: str, transpose: bool = False) -> tuple[Rule, ...]:
    """The same rule for the weight and the bias of a layer; a bias is never transposed."""
    return tuple(
        Rule(f"{ours}.{s}", tuple(f"{name}.{s}" for name in theirs), transpose and s == "weight")
        for s in ("weight", "bias")
    )


_H = "transformer.h.{i}"
_GPT2_RULES = (
    Rule("token_embedding.weight", ("transformer.wte.weight",)),
    Rule("position_embedding.weight", ("transformer.wpe.weight",)),
    *_both("blocks.{i}.norm_1", f"{_H}.ln_1"),
    *_both("blocks.{i}.attention.qkv", f"{_H}.attn.c_attn", transpose=True),
    *_both("blocks.{i}.attention.out", f"{_H}.attn.c_proj", transpose=True),
    *_both("blocks.{i}.norm_2", f"{_H}.ln_2"),
    *_both("blocks.{i}.mlp.up", f"{_H}.mlp.c_fc", transpose=True),
    *_both("blocks.{i}.mlp.down", f"{_H}.mlp.c_proj", transpose=True),
    *_both("final_norm", "transformer.ln_f"),
    Rule("head.weight", ("lm_head.weight",)),
)

_L = "model.layers.{i}"
_LLAMA_RULES = (
    Rule("token_embedding.weight", ("model.embed_tokens.weight",)),
    Rule("blocks.{i}.norm_1.weight", (f"{_L}.input_layernorm.weight",)),
    *_both("blocks.{i}.attention.qkv", *(f"{_L}.self_attn.{part}_proj" for part in "qkv")),
    *_both("blocks.{i}.attention.out", f"{_L}.self_attn.o_proj"),
    Rule("blocks.{i}.attention.q_norm.weight", (f"{_L}.self_attn.q_norm.weight",)),  # Qwen-3's alone
    Rule("blocks.{i}.attention.k_norm.weight", (f"{_L}.self_attn.k_norm.weight",)),
    Rule("blocks.{i}.norm_2.weight", (f"{_L}.post_attention_layernorm.weight",)),
    *_both("blocks.{i}.mlp.gate", f"{_L}.mlp.gate_proj"),
    *_both("blocks.{i}.mlp.up", f"{_L}.mlp.up_proj"),
    *_both("blocks.{i}.mlp.down", f"{_L}.mlp.down_proj"),
    Rule("final_norm.weight", ("model.norm.weight",)),
    Rule("head.weight", ("lm_head.weight",)),
)

# --- which key of config.json is which field

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
    "tie_embeddings": "tie_word_embeddings",
}
_BIAS_KEY = {"qkv_bias": "attention_bias"}

# --- what is the same in all models of a family

_GPT2_FIXED = {
    "norm": "layernorm",
    "norm_bias": True,
    "position": "learned",
    "rope_scaling": "none",
    "sliding_window": 0,
    "qk_norm": False,
    "qkv_bias": True,
    "attention_out_bias": True,
    "mlp_bias": True,
}
_LLAMA_FIXED = {"norm": "rmsnorm", "norm_bias": False, "mlp": "swiglu", "position": "rope", "qk_norm": False}
_NO_WINDOW = {"sliding_window": 0, "first_window_layer": 0}
_NO_BIAS = {"qkv_bias": False, "attention_out_bias": False, "mlp_bias": False}

# --- what a key that is left out means: the defaults of the `transformers` classes

_GPT2_DEFAULTS = {
    "vocab_size": 50257,
    "block_size": 1024,
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "dropout": 0.1,
}
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
_MISTRAL_DEFAULTS = _LLAMA_DEFAULTS | {"n_kv_head": 8, "intermediate_size": 14336, "block_size": 131072}
_QWEN_DEFAULTS = _LLAMA_DEFAULTS | {
    "vocab_size": 151936,
    "block_size": 32768,
    "n_kv_head": 32,
    "intermediate_size": 22016,
}

# --- what takes more than a key

#: GPT-2's activations by the name that config.json gives them.
_GPT2_ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu"}


def _gpt2_write(config: ModelConfig) -> dict[str, Any]:
    return {
        "activation_function": _GPT2_ACTIVATIONS[config.mlp],
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,
        "n_ctx": config.block_size,
    }


def _gpt2_read(content: Mapping[str, Any]) -> Found:
    names = {theirs: ours for ours, theirs in _GPT2_ACTIVATIONS.items()} | {"gelu_pytorch_tanh": "gelu_tanh"}
    activation = content.get("activation_function", "gelu_new")
    if activation not in names:
        return Found({}, [f"activation_function={activation!r} ({' or '.join(map(repr, names))} are implemented)"])
    return Found({"mlp": names[activation]}, [])


#: Our fields of rotary scaling and their keys, by the kind of scaling; what else a kind may have, and its one value.
_ROPE_KEYS: dict[str, dict[str, str]] = {
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
_ROPE_EXPECTED = {"partial_rotary_factor": (None, 1, 1.0), "truncate": (None, True), "mscale": (None,)}


def _rope_write(config: ModelConfig) -> dict[str, Any]:
    """The scaling of rotary positions, under its old key and its new one."""
    kind = "default" if config.rope_scaling == "none" else config.rope_scaling
    scaling = {"rope_type": kind} | {
        key: getattr(config, name) for name, key in _ROPE_KEYS[config.rope_scaling].items()
    }
    return {
        "rope_scaling": None if kind == "default" else scaling,
        "rope_parameters": scaling | {"rope_theta": config.rope_theta},
        "hidden_act": "silu",
        "attention_dropout": 0.0,
    }


def _rope_read(content: Mapping[str, Any]) -> Found:
    """The scaling of rotary positions, from either key."""
    rope: dict[str, Any] = {}
    for key in ("rope_parameters", "rope_scaling"):
        part = content.get(key) or {}
        if not isinstance(part, dict) or any(isinstance(value, dict) for value in part.values()):
            return Found({}, [f"{key}={part!r} (one for all layers is implemented)"])
        rope |= part
    kind = rope.get("rope_type", rope.get("type", "default"))
    kind = "none" if kind in ("default", None) else kind
    if kind not in _ROPE_KEYS:
        known = ", ".join(name for name in _ROPE_KEYS if name != "none")
        return Found({}, [f"rotary scaling rope_type={kind!r} ({known} are implemented)"])
    whole = {"partial_rotary_factor": content.get("partial_rotary_factor")} | rope
    unsupported = [
        f"rotary scaling {key}={whole[key]!r}"
        for key, values in _ROPE_EXPECTED.items()
        if key in whole and whole[key] not in values
    ]
    fields = {name: rope[key] for name, key in _ROPE_KEYS[kind].items() if rope.get(key) is not None}
    if "rope_original_context" in _ROPE_KEYS[kind]:
        longest = content.get("original_max_position_embeddings") or content.get("max_position_embeddings")
        fields = {"rope_original_context": longest} | fields
    if kind != "none" and "rope_factor" not in fields:
        unsupported.append(f"rotary scaling {kind} without a factor")
    if rope.get("rope_theta") is not None:
        fields["rope_theta"] = rope["rope_theta"]
    return Found({"rope_scaling": kind, **fields}, unsupported)


def _mistral_read(content: Mapping[str, Any]) -> Found:
    found, window = _rope_read(content), content.get("sliding_window", 4096)
    types = content.get("layer_types")
    unsupported = [f"layer_types={types!r} (one for all layers is implemented)"] if types else []
    return Found(found.fields | {"sliding_window": window or 0}, found.unsupported + unsupported)


def _qwen_write(config: ModelConfig) -> dict[str, Any]:
    kinds = ["sliding_attention" if window else "full_attention" for window in config.windows]
    return _rope_write(config) | {
        "use_sliding_window": bool(config.sliding_window),
        "sliding_window": config.sliding_window or None,
        "max_window_layers": config.first_window_layer if config.sliding_window else config.n_layer,
        "layer_types": kinds,
    }


def _qwen_read(content: Mapping[str, Any]) -> Found:
    """Windows from a layer on, as ``max_window_layers`` or as a list says."""
    found = _rope_read(content)
    window = content.get("sliding_window", 4096) if content.get("use_sliding_window") else 0
    first, layers = content.get("max_window_layers", 28), content.get("num_hidden_layers", 32)
    layers = layers if isinstance(layers, int) else 0  # ModelConfig says what is wrong with it
    if (types := content.get("layer_types")) is not None:
        first = types.count("full_attention") if isinstance(types, list) else 0
        expected = ["full_attention"] * first + ["sliding_attention"] * (layers - first)
        if types != expected or (first < layers and not window):
            refusal = f"layer_types={types!r} with sliding_window={content.get('sliding_window')!r}"
            return Found({}, [*found.unsupported, f"{refusal} (whole attention first, then windows, is implemented)"])
    if not window or (isinstance(first, int) and first >= layers):
        window = first = 0
    return Found(found.fields | {"sliding_window": window, "first_window_layer": first}, found.unsupported)


_LLAMA_LIKE: dict[str, Any] = {
    "prefix": "model.",
    "choices": {},
    "rules": _LLAMA_RULES,
    "ignored": (".rotary_emb.inv_freq",),
}
_SILU = {"hidden_act": "silu"}

#: By model_type, in the order in which they are tried for saving.
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            model_type="gpt2",
            architecture="GPT2LMHeadModel",
            prefix="transformer.",
            fixed=_GPT2_FIXED,
            choices={"mlp": tuple(_GPT2_ACTIVATIONS)},
            joint=(),
            keys=_GPT2_KEYS,
            defaults=_GPT2_DEFAULTS,
            expected={
                "scale_attn_weights": True,
                "scale_attn_by_inverse_layer_idx": False,
                "add_cross_attention": False,
            },
            write=_gpt2_write,
            read=_gpt2_read,
            rules=_GPT2_RULES,
            ignored=(".attn.bias", ".attn.masked_bias"),
        ),
        Family(
            model_type="qwen3",
            architecture="Qwen3ForCausalLM",
            fixed=_LLAMA_FIXED | {"qk_norm": True, "mlp_bias": False},
            joint=(("qkv_bias", "attention_out_bias"),),
            keys=_LLAMA_KEYS | _BIAS_KEY,
            defaults=_QWEN_DEFAULTS | {"head_dim": 128},
            expected=_SILU,
            write=_qwen_write,
            read=_qwen_read,
            **_LLAMA_LIKE,
        ),
        Family(
            model_type="llama",
            architecture="LlamaForCausalLM",
            fixed=_LLAMA_FIXED | _NO_WINDOW,
            joint=(("qkv_bias", "attention_out_bias"),),
            keys=_LLAMA_KEYS | _BIAS_KEY | {"mlp_bias": "mlp_bias"},
            defaults=_LLAMA_DEFAULTS,
            expected=_SILU,
            write=_rope_write,
            read=_rope_read,
            **_LLAMA_LIKE,
        ),
        Family(
            model_type="mistral",
            architecture="MistralForCausalLM",
            fixed=_LLAMA_FIXED | _NO_BIAS | {"first_window_layer": 0},
            joint=(),
            keys=_LLAMA_KEYS,
            defaults=_MISTRAL_DEFAULTS,
            expected=_SILU,
            write=lambda config: _rope_write(config) | {"sliding_window": config.sliding_window or None},
            read=_mistral_read,
            **_LLAMA_LIKE,
        ),
        Family(
            model_type="qwen2",
            architecture="Qwen2ForCausalLM",
            fixed=_LLAMA_FIXED | _NO_BIAS | {"qkv_bias": True},
            joint=(),
            keys=_LLAMA_KEYS,
            defaults=_QWEN_DEFAULTS,
            expected=_SILU,
            write=_qwen_write,
            read=_qwen_read,
            **_LLAMA_LIKE,
        ),
    )
}

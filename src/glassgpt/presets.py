"""Named shapes: ``presets.get("small").model`` is a :class:`ModelConfig`, and ``.layer`` what a run starts from.

The character-level shapes count their parameters at 65 tokens, the vocabulary of tinyshakespeare; in training
the vocabulary is the tokenizer's. GPT-2 and GPT-3 are given in their published sizes.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glassgpt.config import Layer, ModelConfig
from glassgpt.errors import ConfigError

#: Qwen-3's choices: RMSNorm, rotary positions, SwiGLU, normalised queries and keys, no biases.
MODERN: dict[str, Any] = {
    "norm": "rmsnorm",
    "norm_eps": 1e-6,
    "norm_bias": False,
    "mlp": "swiglu",
    "mlp_bias": False,
    "position": "rope",
    "qk_norm": True,
    "qkv_bias": False,
    "attention_out_bias": False,
    "tie_embeddings": False,
}


@dataclass(frozen=True)
class Preset:
    """A named starting point for a run."""

    name: str
    description: str
    layer: Layer

    @property
    def model(self) -> ModelConfig:
        """The model's configuration, validated."""
        return ModelConfig(**self.layer.get("model", {}))


def _preset(name: str, description: str, model: Mapping[str, Any], **sections: Mapping[str, Any]) -> Preset:
    return Preset(name, description, {"model": model, **sections})


def _gpt2(n_layer: int, n_head: int, n_embd: int) -> dict[str, Any]:
    return {
        "vocab_size": 50257,
        "block_size": 1024,
        "n_layer": n_layer,
        "n_head": n_head,
        "n_embd": n_embd,
    }


_TINY = {"block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 64}
_SMALL = {"block_size": 256, "n_layer": 6, "n_head": 4, "n_embd": 128}
_MEDIUM = {"block_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 384}
_TINY_RUN: dict[str, dict[str, Any]] = {"train": {"batch_size": 32}}
_SMALL_RUN: dict[str, dict[str, Any]] = {"train": {"batch_size": 16}}
_MEDIUM_RUN: dict[str, dict[str, Any]] = {"train": {"batch_size": 64}, "optim": {"learning_rate": 1e-3}}
_LARGE_RUN: dict[str, dict[str, Any]] = {
    "train": {"batch_size": 512, "micro_batch_size": 4},
    "optim": {"learning_rate": 6e-4, "beta2": 0.95},
}

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _preset("tiny", "classic GPT-2 blocks, seconds on a laptop", _TINY, **_TINY_RUN),
        _preset("small", "classic, minutes on a laptop", _SMALL, **_SMALL_RUN),
        _preset("medium", "classic, the usual Shakespeare model for a GPU", _MEDIUM, **_MEDIUM_RUN),
        _preset("tiny-modern", "tiny with Qwen-3's blocks", _TINY | MODERN, **_TINY_RUN),
        _preset("small-modern", "small with Qwen-3's blocks", _SMALL | MODERN, **_SMALL_RUN),
        _preset("medium-modern", "medium with Qwen-3's blocks", _MEDIUM | MODERN, **_MEDIUM_RUN),
        _preset("gpt2", "GPT-2 small", _gpt2(12, 12, 768), **_LARGE_RUN),
        _preset("gpt2-medium", "GPT-2 medium", _gpt2(24, 16, 1024), **_LARGE_RUN),
        _preset("gpt2-large", "GPT-2 large", _gpt2(36, 20, 1280), **_LARGE_RUN),
        _preset("gpt2-xl", "GPT-2 XL", _gpt2(48, 25, 1600), **_LARGE_RUN),
        _preset(
            "gpt3",
            "GPT-3's shape, for arithmetic on the meta device",
            _gpt2(96, 96, 12288) | {"block_size": 2048},
        ),
    )
}


def get(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ConfigError: for an unknown name, with the nearest known one.
    """
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"presets are {', '.join(PRESETS)}"
    raise ConfigError(f"unknown preset {name!r}; {hint}")


def names() -> list[str]:
    """Every preset's name, smallest family first."""
    return list(PRESETS)

"""Named shapes: ``presets.get("small").model`` is a :class:`ModelConfig`, and ``.layer`` what a run starts from.

The character-level shapes count their parameters at 65 tokens, the vocabulary of tinyshakespeare; in training
the vocabulary is the tokenizer's. GPT-2 and GPT-3 are given in their published sizes.

A recipe is a preset that says everything about a run, and comes with the curve it was measured to have
(``curves/NAME.json``), so that a run of it can be held against that.
"""

import dataclasses
import difflib
import functools
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from glassgpt.config.layers import ConfigOverrides, build
from glassgpt.config.model import ModelConfig
from glassgpt.config.run import RunConfig
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
    layer: ConfigOverrides

    @property
    def model(self) -> ModelConfig:
        """The model's configuration, validated."""
        return ModelConfig(**self.layer.get("model", {}))


@dataclass(frozen=True)
class Curve:
    """Validation losses that a recipe was measured to have.

    Attributes:
        command: what was run.
        machine: where.
        dtype: the compute dtype there.
        text_sha256: on which text.
        losses: nats per token by step, one number per seed.
        final: over the whole validation split at the end, one per seed.
        seconds: wall time of the whole process, one per seed.
    """

    command: str
    machine: str
    dtype: str
    text_sha256: str
    losses: dict[int, tuple[float, ...]]
    final: tuple[float, ...]
    seconds: tuple[float, ...]

    def band(self, step: int) -> tuple[float, float] | None:
        """Where the loss at a step should lie: three standard deviations of the seeds around their mean, at least 1 %.

        None for a step that was not measured.
        """
        if step not in self.losses:
            return None
        mean = statistics.fmean(self.losses[step])
        spread = statistics.stdev(self.losses[step]) if len(self.losses[step]) > 1 else 0.0
        width = max(3 * spread, 0.01 * mean)
        return mean - width, mean + width


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
_MEDIUM_RUN: dict[str, dict[str, Any]] = {"train": {"batch_size": 64}, "optim": {"adamw_learning_rate": 1e-3}}
_LARGE_RUN: dict[str, dict[str, Any]] = {
    "train": {"batch_size": 512, "micro_batch_size": 4},
    "optim": {"adamw_learning_rate": 6e-4, "beta2": 0.95},
}

#: A schedule for short runs: the learning rates go down for most of the run, to almost nothing.
_MOSTLY_DOWN: dict[str, Any] = {"schedule": "trapezoid", "decay_fraction": 0.8, "min_lr_ratio": 0.02}
#: The optimiser of a run of a few hundred steps on a text that is not read twice: that schedule, from high rates.
SHORT_RUN: dict[str, Any] = _MOSTLY_DOWN | {"adamw_learning_rate": 1e-2, "muon_learning_rate": 0.02}

#: The recipes are the modern shape and Muon; what differs is how much of them there is time for.
_CHAR_FAST: dict[str, Any] = {
    "model": MODERN | {"block_size": 128, "n_layer": 4, "n_head": 2, "n_embd": 128},
    "train": {"steps": 350, "batch_size": 16, "eval_interval": 70, "eval_tokens": 10_000, "save_interval": 350}
    | {"sample_interval": 175, "keep_checkpoints": 0},
    "optim": _MOSTLY_DOWN | {"adamw_learning_rate": 6e-3, "muon_learning_rate": 0.012, "warmup_steps": 10},
}
_CHAR_A100: dict[str, Any] = {
    "model": MODERN | {"block_size": 256, "n_layer": 5, "n_head": 2, "n_embd": 160},
    "train": {"steps": 1050, "batch_size": 8, "eval_interval": 350, "eval_tokens": 30_000, "save_interval": 350}
    | {"sample_interval": 350, "keep_checkpoints": 0},
    "optim": _MOSTLY_DOWN | {"adamw_learning_rate": 3e-3, "muon_learning_rate": 0.012, "warmup_steps": 20},
}
_CHAR_BEST: dict[str, Any] = {
    "model": MODERN | {"block_size": 256, "n_layer": 6, "n_head": 3, "n_embd": 192, "dropout": 0.05},
    "train": {"steps": 2000, "batch_size": 8, "eval_interval": 200, "eval_tokens": 30_000, "save_interval": 1000}
    | {"sample_interval": 500, "keep_checkpoints": 0},
    "optim": {"warmup_steps": 100, "min_lr_ratio": 0.02},
}
#: GPT-2 small on some 10 billion tokens: about half a million tokens a step, as in GPT-3's table 2.1.
_GPT2_124M: dict[str, Any] = {
    "model": _gpt2(12, 12, 768),
    "data": {"tokenizer": "gpt2"},
    "train": {"steps": 19_073, "batch_size": 512, "eval_interval": 250, "save_interval": 1000, "sample_interval": 1000},
    "optim": {"optimizer": "adamw", "adamw_learning_rate": 6e-4, "beta2": 0.95, "warmup_steps": 715},
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
            "shakespeare-char-fast",
            "recipe: the lowest loss on tinyshakespeare within a minute on two cores with bfloat16",
            **_CHAR_FAST,
        ),
        _preset(
            "shakespeare-char-a100",
            "recipe: the lowest loss on tinyshakespeare in three minutes on two cores with bfloat16",
            **_CHAR_A100,
        ),
        _preset(
            "shakespeare-char-best",
            "recipe: the lowest loss on tinyshakespeare, in some 8 minutes on two cores with bfloat16",
            **_CHAR_BEST,
        ),
        _preset(
            "gpt2-124m",
            "recipe: GPT-2 small on 10 billion tokens, one GPU or eight (not run here)",
            **_GPT2_124M,
        ),
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


@functools.cache
def measured_curve(name: str) -> Curve | None:
    """The curve that comes with a recipe; None for a preset that has none."""
    file = resources.files("glassgpt.config") / "curves" / f"{name}.json"
    if not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    losses = {int(step): tuple(values) for step, values in content.pop("losses").items()}
    return Curve(
        losses=losses, final=tuple(content.pop("final")), seconds=tuple(content.pop("seconds")), **content
    )  # fmt: skip


def expected_curve(config: RunConfig, text_sha256: str) -> Curve | None:
    """The measured curve of the recipe that a run follows: the same model, steps and optimiser on the same text.

    The seed, and all that decides how fast it runs, may differ.
    """
    curve = measured_curve(config.preset)
    if curve is None or curve.text_sha256 != text_sha256:
        return None
    recipe = build(config.preset, [PRESETS[config.preset].layer, {"model": {"vocab_size": config.model.vocab_size}}])
    deciding = ("steps", "batch_size", "grad_clip", "eval_tokens")
    same_length = all(getattr(config.train, name) == getattr(recipe.train, name) for name in deciding)
    same_text = dataclasses.replace(config.data, source=recipe.data.source) == recipe.data
    same = same_text and config.model == recipe.model and config.optim == recipe.optim
    return curve if same and same_length else None


def names() -> list[str]:
    """Every preset's name, smallest family first."""
    return list(PRESETS)

"""The presets have the published shapes, exactly as many parameters, and a published family each."""

import pytest
import torch

from glassgpt.config import ModelConfig, build, presets
from glassgpt.errors import ConfigError
from glassgpt.model import GPT
from glassgpt.weights.mapping import family_of

GPT2_COUNTS = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt2-124m": 124_439_808,
}
#: layers, heads, width, context, vocabulary
SHAPES = {
    "tiny": (4, 4, 64, 64, 65),
    "small": (6, 4, 128, 256, 65),
    "medium": (6, 6, 384, 256, 65),
    "gpt2": (12, 12, 768, 1024, 50257),
    "gpt2-medium": (24, 16, 1024, 1024, 50257),
    "gpt2-large": (36, 20, 1280, 1024, 50257),
    "gpt2-xl": (48, 25, 1600, 1024, 50257),
    "gpt2-124m": (12, 12, 768, 1024, 50257),
    "gpt3": (96, 96, 12288, 2048, 50257),
}
MODERN = ("tiny-modern", "small-modern", "medium-modern")
RECIPES = ("shakespeare-char-fast", "shakespeare-char-a100", "shakespeare-char-best")


def parameters(config: ModelConfig) -> int:
    with torch.device("meta"):
        return GPT(config).num_parameters()


def classic_formula(L: int, C: int, T: int, V: int) -> int:
    """Per block: 12 C^2 weights, and 13 C of biases (3 + 1 + 4 + 1) and norms (4); a tied head."""
    return V * C + T * C + L * (12 * C * C + 13 * C) + 2 * C


def modern_formula(L: int, C: int, D: int, V: int) -> int:
    """No biases, no positions, an untied head, three MLP matrices, and a norm of q and of k per block."""
    hidden = -(-8 * C // (3 * 64)) * 64
    return 2 * V * C + L * (4 * C * C + 3 * C * hidden + 2 * C + 2 * D) + C


@pytest.mark.parametrize("name", SHAPES)
def test_classic_shapes_and_counts(name: str) -> None:
    model = presets.get(name).model
    L, H, C, T, V = SHAPES[name]
    assert (model.n_layer, model.n_head, model.n_embd, model.block_size, model.vocab_size) == (L, H, C, T, V)
    assert (model.n_kv_head, model.head_dim, model.intermediate_size) == (H, C // H, 4 * C)
    assert parameters(model) == classic_formula(L, C, T, V)
    if name in GPT2_COUNTS:
        assert parameters(model) == GPT2_COUNTS[name]
    assert family_of(model).model_type == "gpt2"


def test_gpt3_has_175_billion() -> None:
    assert round(parameters(presets.get("gpt3").model) / 1e9) == 175


@pytest.mark.parametrize("name", MODERN)
def test_modern_shapes_and_counts(name: str) -> None:
    model, classic = presets.get(name).model, presets.get(name.removesuffix("-modern"))
    L, H, C, T, V = SHAPES[classic.name]
    assert (model.n_layer, model.n_head, model.n_embd, model.block_size, model.vocab_size) == (L, H, C, T, V)
    assert parameters(model) == modern_formula(L, C, C // H, V)
    assert presets.get(name).layer["train"] == classic.layer["train"]
    assert family_of(model).model_type == "qwen3"


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_for_characters_are_modern_and_small_enough_for_a_laptop(name: str) -> None:
    """What a recipe's numbers are is measured, not given; that they are those of a published shape is."""
    model = presets.get(name).model
    assert {field: getattr(model, field) for field in presets.MODERN} == presets.MODERN
    assert parameters(model) == modern_formula(model.n_layer, model.n_embd, model.n_embd // model.n_head, 65)
    assert parameters(model) < parameters(presets.get("medium-modern").model)
    assert family_of(model).model_type == "qwen3"


def test_the_recipe_for_gpt2_is_gpt2() -> None:
    recipe = build("gpt2-124m", [presets.get("gpt2-124m").layer])
    assert recipe.model == presets.get("gpt2").model
    tokens = recipe.train.steps * recipe.train.batch_size * recipe.model.block_size
    assert round(tokens / 1e9) == 10


def test_every_preset_is_covered_described_and_builds_a_run() -> None:
    assert sorted(presets.names()) == sorted([*SHAPES, *MODERN, *RECIPES])
    for name in presets.names():
        preset = presets.get(name)
        assert preset.name == name and preset.description
        config = build(name, [preset.layer])
        assert config.model == preset.model
        micro = config.train.micro_batch_size or config.train.batch_size
        assert config.train.batch_size % micro == 0
        if config.model.vocab_size == 65:  # toys do not accumulate unless asked to
            assert micro == config.train.batch_size


@pytest.mark.parametrize(("wrong", "meant"), [("smal", "small"), ("gpt-2", "gpt2"), ("tiny_modern", "tiny-modern")])
def test_an_unknown_preset_suggests(wrong: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{meant}'") as caught:
        presets.get(wrong)
    assert repr(wrong) in str(caught.value)


def test_a_preset_far_from_all_lists_them() -> None:
    with pytest.raises(ConfigError) as caught:
        presets.get("zzzz")
    assert all(name in str(caught.value) for name in presets.names())

"""Attention weights are those of `transformers`; prompts that repeat; comparisons that are refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from glassgpt import inside
from glassgpt.config import ModelConfig
from glassgpt.errors import ConfigError, GenerationError
from glassgpt.glass.inside.heads import attention_maps, head_statistics, require_comparable
from glassgpt.model import GPT, FusedAttention
from glassgpt.tokenizer import CharTokenizer
from published_models import FAMILIES, TOKENIZER, make

TEXT = "to be, or not to be"
CONFIG = ModelConfig(vocab_size=TOKENIZER.vocab_size, block_size=32, n_layer=2, n_head=4, n_embd=24)


def build(**changes: int) -> GPT:
    model = GPT(dataclasses.replace(CONFIG, **changes))
    model.init_weights(1)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_weights_equal_those_of_transformers(family: str, tmp_path: Path) -> None:
    theirs, ours = make(family, tmp_path)
    maps = inside.attention(ours, TOKENIZER, TEXT)
    with torch.no_grad():
        expected = theirs(torch.tensor([maps.prompt.ids]), output_attentions=True).attentions
    assert maps.weights.shape == (3, 4, len(TEXT), len(TEXT)) and maps.weights.dtype == np.float32
    assert np.abs(maps.weights - torch.cat(expected).numpy()).max() < 1e-5
    assert np.abs(maps.weights.sum(-1) - 1).max() < 1e-6
    assert maps.prompt.tokens == list(TEXT)
    statistics = head_statistics(torch.cat(expected), maps.prompt.ids)
    for name, values in maps.statistics.items():
        assert values == pytest.approx(statistics[name], abs=1e-5) and values.shape == (3, 4)


def test_the_model_is_left_as_it_was() -> None:
    model = build(dropout=0.5).train()
    maps = [inside.attention(model, TOKENIZER, TEXT) for _ in range(2)]
    assert np.array_equal(maps[0].weights, maps[1].weights)  # without dropout
    assert model.training and all(isinstance(block.attention.attend, FusedAttention) for block in model.blocks)


def test_models_that_cannot_be_compared_are_refused() -> None:
    maps = inside.attention(build(), TOKENIZER, TEXT)
    other = CharTokenizer.train("xyz" + "".join(dict.fromkeys(TEXT)))
    with pytest.raises(ConfigError, match="different tokens"):
        require_comparable(maps, inside.attention(build(), other, TEXT))
    with pytest.raises(ConfigError, match="2 layers of 4 heads and 2 layers of 2 heads"):
        require_comparable(maps, inside.attention(build(n_head=2, n_kv_head=2, head_dim=6), TOKENIZER, TEXT))


def test_the_weights_of_chosen_layers_are_those_of_all() -> None:
    model = build(n_layer=3)
    every = inside.attention(model, TOKENIZER, TEXT)
    some = attention_maps(model, every.prompt, [2, 0])
    assert np.array_equal(some.weights, every.weights[[2, 0]])
    assert all(np.array_equal(some.statistics[name], values) for name, values in every.statistics.items())


@pytest.mark.parametrize("at_most", [1, 5, 18, 19, 96])
def test_pooled_weights_are_the_largest_of_each_square(at_most: int) -> None:
    every = inside.attention(model := build(), TOKENIZER, TEXT)
    pooled, T = attention_maps(model, every.prompt, at_most=at_most), len(TEXT)
    square = -(-T // at_most)
    places = range(0, T, square)
    expected = [[every.weights[..., t : t + square, s : s + square].max((-2, -1)) for s in places] for t in places]
    assert np.array_equal(pooled.weights, np.moveaxis(np.array(expected), (0, 1), (2, 3)))
    assert len(places) <= at_most


def test_weights_that_are_not_numbers_are_said() -> None:
    model = build()
    model.get_parameter("blocks.1.norm_1.weight").data[0] = float("nan")
    with pytest.raises(GenerationError, match="layer 1 are not numbers"):
        inside.attention(model, TOKENIZER, TEXT)

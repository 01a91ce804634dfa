"""Reach by gradients equals brute force: swap a token, and see which hidden states change."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glassgpt.config import ModelConfig
from glassgpt.errors import ConfigError, GenerationError
from glassgpt.glass.inside import reach
from glassgpt.glass.inside.reach import expected_reach
from glassgpt.model import GPT
from glassgpt.model.attention import causal_mask
from published_models import FAMILIES, TOKENIZER, make

T = 16


@torch.no_grad()
def swapped(model: GPT, ids: list[int]) -> np.ndarray:
    """Row t, column s: whether the hidden state at t changes, by a bit or more, when the token at s does."""
    deep, idx = copy.deepcopy(model).double(), torch.tensor([ids])
    plain, columns = deep(idx, apply_head=False)[0], []
    for s in range(len(ids)):
        other = idx.clone()
        other[0, s] = (idx[0, s] + 1) % model.config.vocab_size
        columns.append((deep(other, apply_head=False)[0] != plain).any(dim=-1))
    return torch.stack(columns, dim=1).numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reaches_what_swapped_tokens_change(family: str, tmp_path: Path) -> None:
    model = make(family, tmp_path)[1]
    for found in (reach(model, TOKENIZER, "Sixteen letters."), reach(model, TOKENIZER, length=T)):
        assert found.correct and not list(found.findings())
        assert np.array_equal(found.depends, swapped(model, found.prompt.ids))
    assert found.band == (13 if family == "Mistral" else 0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.dtype == torch.float32 and model.token_embedding.weight.requires_grad


def model_with(n_layer: int, attend: Callable[[], nn.Module] | None = None, **settings: int) -> GPT:
    config = ModelConfig(
        vocab_size=TOKENIZER.vocab_size, block_size=64, n_layer=n_layer, n_head=2, n_embd=16, position="rope",
        **settings,
    )  # fmt: skip
    model = GPT(config)
    model.init_weights(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    for block in model.blocks:
        block.attention.attend = attend() if attend else block.attention.attend
    return model


@pytest.mark.parametrize(("window", "first"), [(1, 0), (2, 0), (4, 0), (3, 1)])
def test_windows_reach_a_band(window: int, first: int) -> None:
    model = model_with(3, sliding_window=window, first_window_layer=first)
    found = reach(model, TOKENIZER, length=T)
    assert found.correct
    assert np.array_equal(found.depends, swapped(model, found.prompt.ids))
    assert found.band == (0 if first else 3 * (window - 1) + 1)
    here = np.arange(T)
    past = here[None] <= here[:, None]
    assert np.array_equal(found.expected, past & (here[None] > here[:, None] - found.band) if found.band else past)


class Masked(nn.Module):
    """Attention with another mask than the model's."""

    def __init__(self, mask: Callable[[Tensor], Tensor]):
        super().__init__()
        self.mask = mask

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, None]:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask(torch.arange(q.size(2)))), None


def without_the_first(here: Tensor) -> Tensor:
    mask = causal_mask(here, here)
    mask[1:, 0] = False
    return mask


BROKEN: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, int, str], int]] = {
    "no mask": (lambda here: causal_mask(here, here) | True, (0, 1, "sees its future"), T * (T - 1) // 2),
    "one too far": (lambda here: causal_mask(here + 1, here), (0, 1, "sees its future"), T - 1),
    "not the first": (without_the_first, (1, 0, "does not see its past"), T - 1),
    "a window": (lambda here: causal_mask(here, here, 5), (5, 0, "does not see its past"), 66),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_attention_is_found_as_swapped_tokens_find_it(name: str) -> None:
    mask, first, count = BROKEN[name]
    model = model_with(1, lambda: Masked(mask))
    found = reach(model, TOKENIZER, length=T)
    assert np.array_equal(found.depends, swapped(model, found.prompt.ids))
    assert not found.correct
    findings = list(found.findings())
    assert (findings[0].position, findings[0].other, findings[0].problem) == first
    assert len(findings) == count == (found.depends != found.expected).sum()


def test_one_broken_layer_of_three_leaks_and_a_window_too_wide_is_found() -> None:
    model = model_with(3)
    model.blocks[1].attention.attend = Masked(lambda here: causal_mask(here + 1, here))
    found = reach(model, TOKENIZER, length=T)
    assert [(pair.position, pair.other) for pair in found.findings()] == [(t, t + 1) for t in range(T - 1)]
    assert np.array_equal(found.depends, swapped(model, found.prompt.ids))
    model = model_with(1, lambda: Masked(lambda here: causal_mask(here, here, 4)), sliding_window=3)
    findings = [(pair.position, pair.other, pair.problem) for pair in reach(model, TOKENIZER, length=T).findings()]
    assert findings == [(t, t - 3, "sees beyond its window") for t in range(3, T)]


@pytest.mark.parametrize("settings", [{}, {"sliding_window": 2}])
def test_attention_so_sharp_that_its_weights_round_to_zero_is_still_seen(settings: dict[str, int]) -> None:
    """Without scaled scores, most weights of this model are exactly 0 in float64, and so are their gradients."""
    model = model_with(8, **settings)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight[:32] *= 1e3
    assert swapped(model, TOKENIZER.encode("Sixteen letters.")).sum() < expected_reach(model.config.windows, T).sum()
    assert reach(model, TOKENIZER, "Sixteen letters.").correct


def test_a_model_that_depends_on_nothing_is_a_finding() -> None:
    model = model_with(2)
    torch.nn.init.zeros_(model.final_norm.weight)
    found = reach(model, TOKENIZER, length=3)
    assert not found.depends.any()
    assert [pair.problem for pair in found.findings()] == ["does not see its past"] * 6


def test_one_token_and_mistakes() -> None:
    model = model_with(1)
    assert len(reach(model, TOKENIZER).depends) == 32
    assert reach(model, TOKENIZER, length=1).depends.tolist() == [[True]]
    for length in (-1, 65):
        with pytest.raises(ConfigError, match=f"--length {length}: the model reads 1 to 64 tokens"):
            reach(model, TOKENIZER, length=length)
    with pytest.raises(ConfigError, match="not both"):
        reach(model, TOKENIZER, "x", length=3)
    torch.nn.init.constant_(model.blocks[0].mlp.up.bias, torch.inf)
    with pytest.raises(GenerationError, match="not all finite"):
        reach(model, TOKENIZER)

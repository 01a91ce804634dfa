"""Dropout by packed random numbers: the right share, unbiased, independent, repeatable, with the right gradient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glassgpt.model.dropout import Dropout, dropout_mask


@settings(max_examples=60, deadline=None)
@given(
    p=st.floats(0.001, 0.999), seed=st.integers(0, 2**32), odd=st.integers(0, 7),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)  # fmt: skip
def test_values_are_zeroed_with_the_right_probability_and_the_mean_stays(
    p: float, seed: int, odd: int, dtype: torch.dtype
) -> None:
    x = torch.ones(5, 4000 + odd, dtype=dtype)
    torch.manual_seed(seed)
    mask = dropout_mask(x, p)
    assert (mask.shape, mask.dtype) == (x.shape, dtype)
    n, share = x.numel(), (mask == 0).double().mean().item()
    assert abs(share - p) < 6 * math.sqrt(p * (1 - p) / n) + 2**-16
    kept = mask[mask > 0].double()
    assert len(kept.unique()) <= 1
    if len(kept):
        assert kept[0].item() * (1 - round(p * 2**16) / 2**16) == pytest.approx(1, rel=torch.finfo(dtype).eps)
    torch.manual_seed(seed)
    assert torch.equal(dropout_mask(x, p), mask), "a function of the generator's state"
    assert not torch.equal(dropout_mask(x, p), mask) or p > 0.99 or p < 0.01


def test_every_value_is_dropped_equally_often_and_on_its_own() -> None:
    """Each of the four parts of a random number, and each pair of neighbours; also over rows."""
    torch.manual_seed(0)
    masks = torch.stack([dropout_mask(torch.ones(8, 8), 0.3) == 0 for _ in range(4000)]).double()  # [4000, 8, 8]
    flat = masks.flatten(1)
    spread = math.sqrt(0.3 * 0.7 / len(flat))
    assert (flat.mean(0) - 0.3).abs().max() < 5 * spread
    correlations = torch.corrcoef(flat.T) - torch.eye(64, dtype=torch.float64)
    assert correlations.abs().max() < 5.5 / math.sqrt(len(flat))


def test_the_gradient_passes_where_the_value_did() -> None:
    x = torch.randn(3, 50, requires_grad=True)
    layer = Dropout(0.4)
    y = layer(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad == 0, y == 0)
    torch.testing.assert_close(x.grad[y != 0], torch.full_like(x.grad[y != 0], 1 / 0.6), rtol=1e-4, atol=0)
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_compiled_masks_differ_between_calls_and_agree_with_their_gradient() -> None:
    layer = Dropout(0.5)

    def twice(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = layer(x).sin()
        return x, layer(x)

    x = torch.full((4, 64), 0.3, requires_grad=True)
    torch.manual_seed(1)
    one, other = torch.compile(twice)(x)
    assert not torch.equal(one == 0, other == 0)
    one.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad == 0, one == 0)
    torch.manual_seed(1)
    assert torch.equal(torch.compile(twice)(x)[0], one)
    torch.manual_seed(1)
    torch.testing.assert_close(twice(x)[0], one)

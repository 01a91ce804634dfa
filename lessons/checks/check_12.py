"""The exercises of lesson 12."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from glassgpt.learn.exercises import Exercise, Wrong

#: T, S, C, D, E; with one token, and with all sizes different.
SHAPES = ((1, 1, 3, 2, 2), (5, 4, 6, 2, 3), (4, 7, 8, 16, 16), (3, 3, 5, 9, 4))


def _case(T: int, S: int, C: int, D: int, E: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T)
    shapes = ((T, C), (S, C), (C, D), (C, D), (C, E))
    x, memory, W_q, W_k, W_v = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, memory, W_q, W_k, W_v


def _compare(call: str, found: object, right: Tensor) -> None:
    if not isinstance(found, Tensor) or found.shape != right.shape:
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise Wrong(f"{call} should be a tensor of shape {list(right.shape)}, and is {shape}")
    difference = (found - right).abs()
    if not difference.max() < 1e-4 * max(1.0, float(right.abs().max())):
        row = int(difference.amax(dim=-1).argmax())
        expected, came = ([round(number, 4) for number in tensor[row].tolist()] for tensor in (right, found))
        raise Wrong(f"{call}: row {row} should be {expected}, and is {came}")


def check_attention(answer: Callable[..., Tensor]) -> None:
    """Compare with torch."""
    for T, S, C, D, E in SHAPES:
        x, _, W_q, W_k, W_v = _case(T, S, C, D, E)
        right = F.scaled_dot_product_attention((x @ W_q)[None], (x @ W_k)[None], (x @ W_v)[None])[0]
        _compare(f"attention, T={T}, C={C}, D={D}, E={E}", answer(x, W_q, W_k, W_v), right)


def check_cross_attention(answer: Callable[..., Tensor]) -> None:
    """Compare with torch."""
    for T, S, C, D, E in SHAPES:
        x, memory, W_q, W_k, W_v = _case(T, S, C, D, E)
        right = F.scaled_dot_product_attention((x @ W_q)[None], (memory @ W_k)[None], (memory @ W_v)[None])[0]
        _compare(f"cross_attention, T={T}, S={S}, D={D}, E={E}", answer(x, memory, W_q, W_k, W_v), right)


EXERCISES = (
    Exercise("attention", "Attention with three matrices, without a mask.", check_attention,
             "Write the shape beside each line. Which size does the scale use: that of the keys, or of the values?"),
    Exercise("cross_attention", "Tokens of x look at tokens of a memory.", check_cross_attention,
             "Who asks, and who answers? The scores have one row for each token that asks."),
)  # fmt: skip

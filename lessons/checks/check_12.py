"""The exercises of lesson 12."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from glassgpt.learn.compare import compare
from glassgpt.learn.exercises import Exercise

#: T, S, C, D, E; with one token, and with all sizes different.
SHAPES = ((1, 1, 3, 2, 2), (5, 4, 6, 2, 3), (4, 7, 8, 16, 16), (3, 3, 5, 9, 4))


def _case(T: int, S: int, C: int, D: int, E: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T)
    shapes = ((T, C), (S, C), (C, D), (C, D), (C, E))
    x, memory, W_q, W_k, W_v = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, memory, W_q, W_k, W_v


def check_attention(answer: Callable[..., Tensor]) -> None:
    """Compare with torch."""
    for T, S, C, D, E in SHAPES:
        x, _, W_q, W_k, W_v = _case(T, S, C, D, E)
        right = F.scaled_dot_product_attention((x @ W_q)[None], (x @ W_k)[None], (x @ W_v)[None])[0]
        compare(f"attention with T={T}, C={C}, D={D}, E={E}", answer(x, W_q, W_k, W_v), right, tolerance=1e-4)


def check_cross_attention(answer: Callable[..., Tensor]) -> None:
    """Compare with torch."""
    for T, S, C, D, E in SHAPES:
        x, memory, W_q, W_k, W_v = _case(T, S, C, D, E)
        right = F.scaled_dot_product_attention((x @ W_q)[None], (memory @ W_k)[None], (memory @ W_v)[None])[0]
        found = answer(x, memory, W_q, W_k, W_v)
        compare(f"cross_attention with T={T}, S={S}, D={D}, E={E}", found, right, tolerance=1e-4)


EXERCISES = (
    Exercise("attention", "Attention with three matrices, without a mask.", check_attention,
             "Write the shape beside each line. Which size does the scale use: that of the keys, or of the values?"),
    Exercise("cross_attention", "Tokens of x look at tokens of a memory.", check_cross_attention,
             "Which text do the queries come from, and which the keys? The scores have one row for each query."),
)  # fmt: skip

"""The exercises of lesson 10."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from glassgpt.learn.compare import compare
from glassgpt.learn.exercises import Exercise


def check_embed(answer: Callable[[Tensor, Tensor, Tensor, int], Tensor]) -> None:
    """Compare token by token."""
    generator = torch.Generator().manual_seed(0)
    tokens, positions = torch.randn(30, 6, generator=generator), torch.randn(9, 6, generator=generator)
    for B, T, start in ((1, 1, 0), (2, 5, 0), (3, 3, 0), (2, 9, 0), (2, 4, 5), (4, 1, 8)):
        ids = torch.randint(30, (B, T), generator=generator)
        found, where = answer(ids, tokens.clone(), positions.clone(), start), f"ids of shape [{B}, {T}], start {start}"
        right = torch.stack([tokens[row] + positions[start : start + T] for row in ids])
        compare(f"embed of {where}", found, right)


def check_sinusoids(answer: Callable[[int, int], Tensor]) -> None:
    """Compare with the formula, number by number."""
    for T, C in ((1, 2), (5, 4), (4, 6), (50, 16)):
        angles = [[t / 10000 ** (2 * (c // 2) / C) for c in range(C)] for t in range(T)]
        right = torch.tensor([[math.cos(a) if c % 2 else math.sin(a) for c, a in enumerate(row)] for row in angles])
        compare(f"sinusoids({T}, {C})", answer(T, C), right, tolerance=1e-4)


EXERCISES = (
    Exercise("embed", "Token rows plus position rows, from a given first position.", check_embed,
             "The rows of positions are a slice; where does it begin, where does it end?"),
    Exercise("sinusoids", "The table of sines and cosines of the first Transformer.", check_sinusoids,
             "Both columns of a pair have the same angle. A slice with a step, [:, 0::2], fills every second column."),
)  # fmt: skip

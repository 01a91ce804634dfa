"""The exercises of lesson 10."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from glassgpt.learn.exercises import Exercise, Wrong


def check_embed(answer: Callable[[Tensor, Tensor, Tensor, int], Tensor]) -> None:
    """Compare token by token."""
    generator = torch.Generator().manual_seed(0)
    tokens, positions = torch.randn(30, 6, generator=generator), torch.randn(9, 6, generator=generator)
    for B, T, start in ((1, 1, 0), (2, 5, 0), (3, 3, 0), (2, 9, 0), (2, 4, 5), (4, 1, 8)):
        ids = torch.randint(30, (B, T), generator=generator)
        found, where = answer(ids, tokens.clone(), positions.clone(), start), f"ids of shape [{B}, {T}], start {start}"
        if not isinstance(found, Tensor) or found.shape != (B, T, 6):
            shape = list(found.shape) if isinstance(found, Tensor) else found
            raise Wrong(f"{where}: the result should have the shape [{B}, {T}, 6], and has {shape!r}")
        for b in range(B):
            for t in range(T):
                if not torch.allclose(found[b, t], tokens[ids[b, t]] + positions[start + t]):
                    raise Wrong(
                        f"{where}: row {b}, token {t} should be the row {int(ids[b, t])} of tokens plus the row "
                        f"{start + t} of positions, and is not"
                    )


def check_sinusoids(answer: Callable[[int, int], Tensor]) -> None:
    """Compare with the formula, number by number."""
    for T, C in ((1, 2), (5, 4), (4, 6), (50, 16)):
        found = answer(T, C)
        if not isinstance(found, Tensor) or found.shape != (T, C):
            shape = list(found.shape) if isinstance(found, Tensor) else found
            raise Wrong(f"sinusoids({T}, {C}) should have the shape [{T}, {C}], and has {shape!r}")
        for t in range(T):
            for c in range(C):
                angle = t / 10000 ** (2 * (c // 2) / C)
                right = math.cos(angle) if c % 2 else math.sin(angle)
                if abs(float(found[t, c]) - right) > 1e-4:
                    raise Wrong(
                        f"sinusoids({T}, {C}): position {t}, column {c} should be {right:.4f}, and is "
                        f"{float(found[t, c]):.4f}"
                    )


EXERCISES = (
    Exercise("embed", "Token rows plus position rows, from a given first position.", check_embed,
             "The rows of positions are a slice; where does it begin, where does it end?"),
    Exercise("sinusoids", "The table of sines and cosines of the first Transformer.", check_sinusoids,
             "Both columns of a pair have the same angle. A slice with a step, [:, 0::2], fills every second column."),
)  # fmt: skip

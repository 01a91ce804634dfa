"""The exercises of lesson 9."""

from collections.abc import Callable

import torch
from torch import Tensor

from glassgpt.learn.compare import compare
from glassgpt.learn.exercises import Exercise, Wrong


def check_count_windows(answer: Callable[[int, int, int], int]) -> None:
    """Compare with counting: a window fits if its last target is a token."""
    for tokens, length, stride in (
        (1001, 100, 100), (1000, 100, 100), (1002, 100, 100), (101, 8, 3), (50, 8, 20), (9, 8, 8), (8, 8, 8),
        (5, 8, 1), (0, 1, 1), (2, 1, 1), (30, 4, 1),
    ):  # fmt: skip
        right = sum(start + length + 1 <= tokens for start in range(0, tokens, stride))
        if (found := answer(tokens, length, stride)) != right:
            raise Wrong(
                f"{tokens} tokens, length {length}, stride {stride}: {right} windows fit, and the answer is {found!r}"
            )


def check_batch(answer: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]) -> None:
    """Compare with slices."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1000, (50,), generator=generator)
    for starts, length in (([0], 4), ([0, 4, 8], 4), ([7, 7, 3], 5), ([45, 10], 4), ([0], 49)):
        where = f"starts {starts}, length {length}, of {len(tokens)} tokens"
        found = answer(tokens.clone(), torch.tensor(starts), length)
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise Wrong(f"{where}: it should return two tensors (inputs, targets), and returns {type(found).__name__}")
        for name, part, shift in zip(("inputs", "targets"), found, (0, 1), strict=True):
            right = torch.stack([tokens[start + shift : start + shift + length] for start in starts])
            compare(f"{name} for {where}", part, right)


EXERCISES = (
    Exercise("count_windows", "How many windows with targets fit into a number of tokens.", check_count_windows,
             "How many tokens does one window need, with its last target? How often does the stride still fit?"),
    Exercise("batch", "Inputs and targets of several windows.", check_batch,
             "A matrix of positions can be an index. How do you make [B, length] from [B] and arange(length)?"),
)  # fmt: skip

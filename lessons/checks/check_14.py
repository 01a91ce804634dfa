"""The exercises of lesson 14."""

from collections.abc import Callable

import torch
from torch import Tensor

from glassgpt.learn.compare import compare
from glassgpt.learn.exercises import Exercise, Wrong
from glassgpt.model.attention import causal_mask


def check_window_mask(answer: Callable[[int, int], Tensor]) -> None:
    """Compare with the package's mask."""
    for T, window in ((1, 1), (4, 2), (6, 3), (5, 9)):
        positions = torch.arange(T)
        right = causal_mask(positions, positions, window)
        compare(f"window_mask({T}, {window})", answer(T, window), right)


def check_leaks(answer: Callable[[Callable[[Tensor, Tensor, Tensor], Tensor]], bool]) -> None:
    """Try it on attentions with and without a leak."""

    def attention(kind: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            T = len(q)
            mask = torch.ones(T, T, dtype=torch.bool).tril(1 if kind == "sees the next token" else 0)
            scores = q @ k.T / q.size(1) ** 0.5
            if kind == "masked after the softmax":
                return (scores.softmax(-1) * mask) @ v
            if kind == "no mask":
                return scores.softmax(-1) @ v
            if kind == "keys are scaled by their mean over all tokens":
                scores = q @ (k * k.mean(dim=0)).T
            if kind == "values are centred over all tokens":
                v = v - v.mean(dim=0)
            return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v

        return run

    for kind in (
        "no mask", "sees the next token", "masked after the softmax", "keys are scaled by their mean over all tokens",
        "values are centred over all tokens",
    ):  # fmt: skip
        if not answer(attention(kind)):
            raise Wrong(f"it says False for an attention that leaks ({kind})")
    if answer(attention("causal")):
        raise Wrong("it says True for a causal attention without a leak")


EXERCISES = (
    Exercise("window_mask", "A causal mask that sees the last `window` tokens.", check_window_mask,
             "Compare positions: subtract the position of the key from that of the query."),
    Exercise("leaks", "Whether an output depends on a later key or value.", check_leaks,
             "The lesson changed one key, and compared earlier rows. Is a key enough? Which rows may change?"),
)  # fmt: skip

"""The exercises of lesson 18."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from glassgpt.learn.exercises import Exercise, Wrong
from glassgpt.loss import counting_baselines


def check_unigram_loss(answer: Callable[[np.ndarray, np.ndarray, int], float]) -> None:
    """Compare with the package's baseline; also with tokens that do not occur in training."""
    random = np.random.default_rng(0)
    for case, train, val, V in (
        ("three tokens", np.array([0, 0, 1]), np.array([0, 1, 2]), 3),
        ("a validation token that training does not have", np.zeros(50, dtype=np.int64), np.array([4, 4, 0]), 5),
        ("1,000 random tokens", random.integers(20, size=1000) ** 2 // 20, random.integers(20, size=300), 25),
    ):
        right = counting_baselines(train, val, V).unigram
        found = float(answer(train, val, V))
        if not math.isclose(found, right, rel_tol=1e-6):
            raise Wrong(f"{case}: the loss should be {right:.5f}, and is {found:.5f}")


def _stop_at(losses: Sequence[float], patience: int) -> int:
    best = 0
    for place, loss in enumerate(losses):
        if loss < losses[best]:
            best = place
        elif place - best >= patience:
            break
    return best


def check_stop_at(answer: Callable[[list[float], int], int]) -> None:
    """Try curves that fall, rise, wait, and get better after the end."""
    for losses, patience in (
        ([3.0, 2.0, 1.0], 2),
        ([1.0, 2.0, 3.0, 4.0], 2),
        ([3.0, 2.0, 2.5, 1.5, 1.6, 1.7], 2),  # waits once, and goes on
        ([3.0, 2.0, 2.5, 2.6, 1.0], 2),  # the 1.0 is never reached
        ([2.0, 2.0, 2.0, 1.0], 3),  # equal is not better
        ([2.0, 1.0, 1.5, 0.5], 1),
        ([5.0], 1),
    ):
        right, found = _stop_at(losses, patience), answer(list(losses), patience)
        if found != right:
            raise Wrong(f"stop_at({losses}, patience={patience}) should be {right}, and is {found}")


EXERCISES = (
    Exercise("unigram_loss", "The loss of a model that knows only frequencies.", check_unigram_loss,
             "Count every token of the vocabulary, not only those that occur; the mean is over the validation tokens."),
    Exercise("stop_at", "The best checkpoint at which training with patience ends.", check_stop_at,
             "Go through the losses in order, and remember the best one and how many have come since."),
)  # fmt: skip

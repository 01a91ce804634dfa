"""The exercises of lesson 23."""

import math
from collections.abc import Callable

from glassgpt.learn.exercises import Exercise, Wrong


def check_bits_per_byte(answer: Callable[[list[float], str], float]) -> None:
    """Compare with the definition, on texts with characters of one to four bytes."""
    for losses, text in (
        ([math.log(2)] * 8, "a"),
        ([1.0, 2.0, 0.5], "abc"),
        ([3.0, 1.0], "Grüße"),
        ([2.5], "日本語"),
        ([0.7] * 4, "😀 ok"),
    ):
        right = sum(losses) / math.log(2) / len(text.encode("utf-8"))
        found = answer(list(losses), text)
        if not abs(found - right) < 1e-6:
            raise Wrong(f"bits_per_byte({losses}, {text!r}) should be {right:.4f}, and is {found:.4f}")


def check_better(answer: Callable[[tuple[float, int], tuple[float, int]], str]) -> None:
    """Compare with the sums."""
    for a, b, right in (
        ((1.5, 1000), (3.0, 400), "b"),
        ((1.5, 1000), (4.0, 400), "a"),
        ((2.0, 300), (3.0, 200), "equal"),
        ((1.0, 100), (0.9, 100), "b"),
        ((4.0, 250), (1.1, 1000), "a"),
    ):
        if (found := answer(a, b)) != right:
            raise Wrong(f"better({a}, {b}) should be {right!r}, and is {found!r}")


EXERCISES = (
    Exercise("bits_per_byte", "Bits per byte from the losses of all tokens.", check_bits_per_byte,
             "A nat is more than a bit. And a character may have more than one byte: how does Python count bytes?"),
    Exercise("better", "Which of two models predicts the same text better.", check_better,
             "How many nats does each model need for the whole text?"),
)  # fmt: skip

"""The exercises of lesson 20."""

import math
from collections.abc import Callable

from glassgpt.config import OptimConfig
from glassgpt.learn.exercises import Exercise, Wrong
from glassgpt.training.optim import lr_multiplier


def check_cosine(answer: Callable[[int, int, int, float], float]) -> None:
    """Compare with the package, at every step and beyond the end."""
    for steps, warmup, low in ((10, 3, 0.1), (100, 10, 0.0), (20, 1, 0.5), (8, 0, 0.1)):
        config = OptimConfig(warmup_steps=warmup, min_lr_ratio=low, schedule="cosine")
        for step in range(steps + 5):
            right, found = lr_multiplier(step, steps, config), answer(step, steps, warmup, low)
            if not math.isclose(found, right, abs_tol=1e-6):
                raise Wrong(
                    f"cosine(step={step}, steps={steps}, warmup={warmup}, low={low}) should be {right:.4f}, "
                    f"and is {found:.4f}"
                )


def check_stable(answer: Callable[[int, int, int, int], float]) -> None:
    """Compare with the package, at every step."""
    for steps, warmup, decay in ((10, 3, 4), (100, 10, 20), (20, 0, 5), (12, 4, 8), (9, 1, 1)):
        config = OptimConfig(
            warmup_steps=warmup, min_lr_ratio=0.0, schedule="trapezoid", decay_fraction=decay / steps
        )  # fmt: skip
        for step in range(steps):
            right, found = lr_multiplier(step, steps, config), answer(step, steps, warmup, decay)
            if not math.isclose(found, right, abs_tol=1e-6):
                raise Wrong(
                    f"stable(step={step}, steps={steps}, warmup={warmup}, decay={decay}) should be {right:.4f}, "
                    f"and is {found:.4f}"
                )


EXERCISES = (
    Exercise("cosine", "Linear warmup, then half a cosine down to low.", check_cosine,
             "Look at four steps alone: the first, the last of the warmup, the one after it, and the end."),
    Exercise("stable", "Warmup, a constant part, and a straight line down.", check_stable,
             "Which step is the first that falls? How many steps are left until the end, there and after it?"),
)  # fmt: skip

"""The exercises of lesson 31."""

from collections.abc import Callable

import torch
from torch import Tensor

from glassgpt.learn.exercises import Exercise, Wrong


def _shown(vector: Tensor) -> str:
    return "[" + ", ".join(f"{number:.3f}" for number in vector.tolist()) + "]"


def check_average(answer: Callable[[list[Tensor], list[int]], Tensor]) -> None:
    """Compare with the gradient of the whole batch, by autograd."""
    generator = torch.Generator().manual_seed(0)
    for counts in ([4, 4], [1, 7], [3, 0, 5], [6]):
        weight = torch.randn(3, generator=generator, requires_grad=True)
        tokens = [torch.randn(count, 3, generator=generator) for count in counts]
        gradients = [
            torch.autograd.grad((rows @ weight).square().mean(), weight)[0] if len(rows) else torch.zeros(3)
            for rows in tokens
        ]
        right = torch.autograd.grad((torch.cat(tokens) @ weight).square().mean(), weight)[0]
        found = answer([one.clone() for one in gradients], list(counts))
        if not isinstance(found, Tensor) or found.shape != (3,):
            raise Wrong(f"counts {counts}: the result should be a tensor [3], and is {found!r}")
        if not torch.allclose(found, right, atol=1e-5):
            factor = float(found @ right / right.square().sum())
            raise Wrong(f"counts {counts}: the gradient should be {_shown(right)}, and is {_shown(found)} "
                        f"(about {factor:.2f} times as long)")  # fmt: skip


def check_training_bytes(answer: Callable[[int, int, str], float]) -> None:
    """2 + 2 bytes in bfloat16, and 4 + 4 + 4 in float32, for each parameter."""
    for parameters, processes in ((1000, 1), (135_000_000, 4), (8_000_000_000, 64)):
        for kind in ("ddp", "fsdp"):
            right = 16 * parameters / (processes if kind == "fsdp" else 1)
            found = answer(parameters, processes, kind)
            if abs(found - right) > 1:
                raise Wrong(
                    f"training_bytes({parameters}, {processes}, {kind!r}) should be {right:,.0f}, and is {found:,}"
                )


EXERCISES = (
    Exercise("average", "The gradient of all processes.", check_average,
             "A process with twice as many trained tokens should count twice as much."),
    Exercise("training_bytes", "Memory of a training process, without activations.", check_training_bytes,
             "Write down five numbers that are kept for each parameter, and the bytes of each."),
)  # fmt: skip

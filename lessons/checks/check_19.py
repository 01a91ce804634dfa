"""The exercises of lesson 19."""

from collections.abc import Callable

import torch
from torch import Tensor

from glassgpt import sampling
from glassgpt.learn.exercises import Exercise, Wrong

LOGITS = (
    torch.tensor([1.0, 3.0, 2.0, 0.0]),
    torch.tensor([0.0, 8.0, -3.0]),
    torch.tensor([-900.0, 900.0, 899.0]),
    torch.linspace(-2, 2, 40)[torch.arange(40) * 7 % 40],
)


def _compare(call: str, found: object, right: Tensor) -> None:
    if not isinstance(found, Tensor) or found.shape != right.shape:
        raise Wrong(f"{call} should be a tensor of shape {list(right.shape)}, and is {found!r}")
    if not torch.allclose(found.double(), right, atol=1e-6):
        kept, expected = int((found > 0).sum()), int((right > 0).sum())
        if kept != expected:
            raise Wrong(f"{call} keeps {kept} tokens instead of {expected}")
        token = int((found.double() - right).abs().argmax())
        raise Wrong(f"{call}: the probability of token {token} should be {right[token]:.4f}, and is {found[token]:.4f}")


def check_apply(answer: Callable[[Tensor, float, int, float], Tensor]) -> None:
    """Compare with the package, each step alone and all together."""
    settings = ((1.0, 0, 1.0), (0.5, 0, 1.0), (1.0, 2, 1.0), (1.0, 0, 0.8), (2.0, 3, 0.7), (1.5, 0, 0.8), (0.0, 0, 1.0),
                (0.0, 2, 0.5), (1.0, 100, 1.0), (0.7, 1, 0.01))  # fmt: skip
    for logits in LOGITS:
        for temperature, k, p in settings:
            right = sampling.probabilities(logits, sampling.SamplingConfig(temperature, k, p))
            found = answer(logits.clone(), temperature, k, p)
            _compare(f"apply(logits of {len(logits)} tokens, temperature={temperature}, k={k}, p={p})", found, right)


def check_min_p(answer: Callable[[Tensor, float], Tensor]) -> None:
    """Compare with the package."""
    for logits in LOGITS:
        for p in (0.0, 0.05, 0.3, 0.7, 1.0):
            right = sampling.keep_min_p(logits.double(), p).softmax(-1)
            _compare(f"min_p(logits of {len(logits)} tokens, p={p})", answer(logits.clone(), p), right)


EXERCISES = (
    Exercise("apply", "Temperature, top-k and top-p, in this order.", check_apply,
             "Change logits in every step, and take one softmax at the end. Look at each setting that does nothing."),
    Exercise("min_p", "Drop tokens that are far less likely than the best.", check_min_p,
             "The limit is not p itself: it depends on the largest probability."),
)  # fmt: skip

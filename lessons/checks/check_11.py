"""The exercises of lesson 11."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from glassgpt.learn.compare import compare
from glassgpt.learn.exercises import Exercise, Wrong


def check_softmax(answer: Callable[[Tensor], Tensor]) -> None:
    """Compare with torch, also for huge scores and for several dimensions."""
    generator = torch.Generator().manual_seed(0)
    for name, scores in (
        ("[1, 2, 3]", torch.tensor([1.0, 2.0, 3.0])),
        ("random scores of shape [3, 4]", torch.randn(3, 4, generator=generator)),
        ("random scores of shape [2, 3, 5]", torch.randn(2, 3, 5, generator=generator)),
        ("[[1000, 1001], [0, 5]]", torch.tensor([[1000.0, 1001.0], [0.0, 5.0]])),
        ("[-1000, -1001]", torch.tensor([-1000.0, -1001.0])),
        ("[0, 0, 0, 1000]", torch.tensor([0.0, 0.0, 0.0, 1000.0])),
        ("one score", torch.tensor([[7.0]])),
    ):
        before, right = scores.clone(), scores.softmax(dim=-1)
        found = answer(scores)
        compare(f"softmax of {name}", found, right, tolerance=1e-3)
        if not torch.equal(scores, before):
            raise Wrong(f"softmax changed the scores that it was given ({name})")


def check_context(answer: Callable[[Tensor, int], Tensor]) -> None:
    """Compare with torch, for every token."""
    generator = torch.Generator().manual_seed(1)
    for T, C in ((1, 3), (4, 4), (5, 2), (3, 8)):
        x = torch.randn(T, C, generator=generator)
        right = F.scaled_dot_product_attention(x[None], x[None], x[None], scale=1.0)[0]
        for t in range(T):
            compare(f"context(x, {t}) for x of shape [{T}, {C}]", answer(x, t), right[t])


EXERCISES = (
    Exercise("softmax", "The softmax along the last dimension, safe for huge scores.", check_softmax,
             "A softmax does not change if you subtract the same number from all scores of a row. Which number helps?"),
    Exercise("context", "The context vector of token t, without weights.", check_context,
             "Three steps: one score for each token, weights that sum to 1, and a sum of T vectors."),
)  # fmt: skip

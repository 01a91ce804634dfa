"""The exercises of lesson 17."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from glassgpt.config import ModelConfig
from glassgpt.estimate import count_parameters
from glassgpt.learn.exercises import Exercise, Wrong


def check_parameters(answer: Callable[[int, int, int, int, bool], int]) -> None:
    """Compare with the package's count."""
    for V, T, L, C in ((65, 64, 4, 64), (50257, 1024, 12, 768), (10, 7, 1, 8)):
        for tied in (True, False):
            config = ModelConfig(
                vocab_size=V, block_size=T, n_layer=L, n_head=4, n_embd=C, tie_embeddings=tied
            )  # fmt: skip
            right, found = sum(count_parameters(config).values()), answer(V, T, L, C, tied)
            if found != right:
                raise Wrong(
                    f"parameters(V={V}, T={T}, L={L}, C={C}, tied={tied}) should be {right:,}, and is {found}; "
                    f"the difference is {found - right:+,}"
                )


def check_loss(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Compare with torch, on small, unequal and huge logits."""
    generator = torch.Generator().manual_seed(0)
    for name, (B, T, V), size in (
        ("logits of 0", (1, 3, 7), 0.0),
        ("logits of size 1", (3, 5, 11), 1.0),
        ("a single token", (1, 1, 4), 2.0),
        ("logits of size 1,000", (2, 4, 6), 1000.0),
    ):
        logits = torch.randn(B, T, V, generator=generator) * size
        targets = torch.randint(V, (B, T), generator=generator)
        right = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        found = answer(logits, targets)
        if not isinstance(found, Tensor) or found.numel() != 1:
            raise Wrong(f"loss should be a tensor with one number, and is {found!r}")
        if not torch.allclose(found.float().squeeze(), right, rtol=1e-4, atol=1e-4):
            raise Wrong(f"{name}, shape [{B}, {T}, {V}]: the loss should be {right:.5f}, and is {float(found):.5f}")


EXERCISES = (
    Exercise("parameters", "How many parameters a GPT of this shape has.", check_parameters,
             "Count one block first. Compare what is missing with the sizes of biases, norms, positions and head."),
    Exercise("loss", "The mean cross-entropy of logits, safe for huge ones.", check_loss,
             "The logarithm of a softmax is a logit minus one number per position, which torch can compute safely."),
)  # fmt: skip

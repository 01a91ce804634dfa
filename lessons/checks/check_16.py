"""The exercises of lesson 16."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from glassgpt.learn.exercises import Exercise, Wrong


def check_rms_norm(answer: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """Compare with torch; with means far from 0, tiny vectors, and a zero vector."""
    generator = torch.Generator().manual_seed(0)
    for case, shape, size, mean, eps in (
        ("[2, 3, 8], size 1", (2, 3, 8), 1.0, 0.0, 1e-5),
        ("[4, 5], mean 10", (4, 5), 1.0, 10.0, 1e-5),
        ("[2, 6], size 0.001 and eps 1e-5", (2, 6), 1e-3, 0.0, 1e-5),
        ("[1, 4], all zeros", (1, 4), 0.0, 0.0, 1e-6),
        ("[7]", (7,), 3.0, 1.0, 1e-6),
    ):
        x = torch.randn(shape, generator=generator) * size + mean
        weight = torch.randn(shape[-1], generator=generator)
        right, found = F.rms_norm(x, (shape[-1],), weight, eps), answer(x, weight, eps)
        if not isinstance(found, Tensor) or found.shape != right.shape:
            raise Wrong(f"rms_norm of x {case} should have the shape {list(shape)}, and is {found!r}")
        if not torch.allclose(found, right, atol=1e-5, rtol=1e-4):
            raise Wrong(f"rms_norm of x {case}: it differs by up to {(found - right).abs().max():.3g}")


def check_block(answer: Callable[..., Tensor]) -> None:
    """Compare with the two formulas, for functions of which none can stand for another."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, generator=generator)
    A, M, a, b = torch.randn(4, 4, 4, generator=generator)

    def attention(x: Tensor) -> Tensor:
        return torch.tanh(x @ A).cumsum(dim=1)

    def mlp(x: Tensor) -> Tensor:
        return torch.tanh(x @ M)

    def norm_1(x: Tensor) -> Tensor:
        return F.layer_norm(x, (4,), a[0], a[1])

    def norm_2(x: Tensor) -> Tensor:
        return F.layer_norm(x, (4,), b[0], b[1])

    for before in (True, False):
        if before:
            half = x + attention(norm_1(x))
            right = half + mlp(norm_2(half))
        else:
            half = norm_1(x + attention(x))
            right = norm_2(half + mlp(half))
        given = x.clone()
        found = answer(given, attention, mlp, norm_1, norm_2, before)
        if not isinstance(found, Tensor) or found.shape != x.shape:
            raise Wrong(f"block with before={before} should have the shape {list(x.shape)}, and is {found!r}")
        if not torch.allclose(found, right, atol=1e-5):
            raise Wrong(
                f"block with before={before} differs from the right result by {(found - right).abs().max():.3g}"
            )
        if not torch.equal(given, x):
            raise Wrong(f"block with before={before} changed its input (is there a += ?)")


EXERCISES = (
    Exercise("rms_norm", "Divide by the root of the mean square.", check_rms_norm,
             "It is a layer norm without two of its steps. Where does eps go: under the root, or behind it?"),
    Exercise("block", "A block with the norm before or after.", check_block,
             "Write one half (attention) for both orders, and print both results; the other half is the same again."),
)  # fmt: skip

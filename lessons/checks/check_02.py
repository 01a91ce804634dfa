"""The exercises of lesson 2."""

from collections.abc import Callable

import torch
from torch import Tensor

from glassgpt.learn.exercises import Exercise, Wrong


def check_numerical_gradient(answer: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> None:
    """Compare with autograd."""
    generator = torch.Generator().manual_seed(0)
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "(w * w).sum()": lambda w: (w * w).sum(),
        "(w ** 3).sum()": lambda w: (w**3).sum(),
        "w.sin().prod()": lambda w: w.sin().prod(),
        "w.flatten()[0] * w.sum()": lambda w: w.flatten()[0] * w.sum(),
    }
    for name, f in functions.items():
        for shape in ((1,), (4,), (2, 3)):
            w = torch.randn(shape, generator=generator, dtype=torch.float64)
            before, leaf = w.clone(), w.clone().requires_grad_()
            f(leaf).backward()
            assert leaf.grad is not None
            found, where = answer(f, w), f"for f(w) = {name} with w of shape {list(shape)}"
            if not torch.equal(w, before):
                raise Wrong(f"{where}: w was changed and not put back")
            if not isinstance(found, Tensor) or found.shape != w.shape:
                size = list(found.shape) if isinstance(found, Tensor) else found
                raise Wrong(f"{where}: the gradient should have the shape {list(shape)}, and has {size!r}")
            if (worst := float((found - leaf.grad).abs().max())) > 1e-5:
                raise Wrong(f"{where}: it should be {leaf.grad.tolist()}, and is {found.tolist()} (off by {worst:.2g})")


def check_logit_gradient(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Compare with autograd."""
    generator = torch.Generator().manual_seed(0)
    for N, V, size in ((1, 2, 1.0), (4, 5, 1.0), (3, 7, 10.0), (2, 3, 200.0)):
        logits = torch.randn(N, V, generator=generator) * size
        targets = torch.randint(V, (N,), generator=generator)
        leaf = logits.clone().requires_grad_()
        torch.nn.functional.cross_entropy(leaf, targets).backward()
        assert leaf.grad is not None
        found, where = (
            answer(logits.clone(), targets),
            f"for logits of shape [{N}, {V}], up to {logits.abs().max():.0f}",
        )
        if not isinstance(found, Tensor) or found.shape != logits.shape:
            shape = list(found.shape) if isinstance(found, Tensor) else found
            raise Wrong(f"{where}: the gradient should have the shape [{N}, {V}], and has {shape!r}")
        if found.isnan().any():
            raise Wrong(f"{where}: the gradient has NaN")
        for n in range(N):
            if not torch.allclose(found[n], leaf.grad[n], atol=1e-5):
                raise Wrong(f"{where}: row {n} should be {leaf.grad[n].tolist()}, and is {found[n].tolist()}")


EXERCISES = (
    Exercise("numerical_gradient", "The gradient by differences, without autograd.", check_numerical_gradient,
             "One element at a time: clone w, change one element of the clone, call f. Let h be about 1e-5."),
    Exercise("logit_gradient", "The gradient of cross-entropy by the logits, by formula.", check_logit_gradient,
             "For two classes it was p - y. What is p for V classes, what is y? And the loss is a mean over N rows."),
)  # fmt: skip

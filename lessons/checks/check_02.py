"""The exercises of lesson 2."""

from collections.abc import Callable

import torch
from torch import Tensor

from glassgpt.learn.compare import compare
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
            where = f"the gradient of f(w) = {name} for w of shape {list(shape)}"

            def without_autograd(tensor: Tensor, f: Callable[[Tensor], Tensor] = f, where: str = where) -> Tensor:
                if tensor.requires_grad:
                    raise Wrong(f"{where}: w was given requires_grad; do it without autograd")
                return f(tensor)

            found = answer(without_autograd, w)
            if not torch.allclose(w, before, rtol=0, atol=1e-10):
                raise Wrong(f"{where}: w was changed and not put back")
            compare(where, found, leaf.grad)


def check_logit_gradient(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Compare with autograd."""
    generator = torch.Generator().manual_seed(0)
    for N, V, size in ((1, 2, 1.0), (4, 5, 1.0), (3, 7, 10.0), (2, 3, 200.0)):
        logits = torch.randn(N, V, generator=generator) * size
        targets = torch.randint(V, (N,), generator=generator)
        leaf = logits.clone().requires_grad_()
        torch.nn.functional.cross_entropy(leaf, targets).backward()
        assert leaf.grad is not None
        with torch.inference_mode():  # autograd does not work here
            found = answer(logits.clone(), targets)
        compare(f"the gradient for logits of shape [{N}, {V}], up to {logits.abs().max():.0f}", found, leaf.grad)


EXERCISES = (
    Exercise("numerical_gradient", "The gradient by differences, without autograd.", check_numerical_gradient,
             "One element at a time: clone w, change one element of the clone, call f. Let h be about 1e-5."),
    Exercise("logit_gradient", "The gradient of cross-entropy by the logits, by formula.", check_logit_gradient,
             "For two classes it was p - y. What is p for V classes, what is y? And the loss is a mean over N rows."),
)  # fmt: skip

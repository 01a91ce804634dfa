"""The exercises of lesson 21."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from glassgpt.learn.exercises import Exercise, Wrong


def check_dropout(answer: Callable[[Tensor, float, Tensor, bool], Tensor]) -> None:
    """Compare element by element; with p = 0 and 1, with negative numbers and NaN-free results."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((6,), (3, 4), (2, 3, 5)):
        x, numbers = torch.randn(shape, generator=generator), torch.rand(shape, generator=generator)
        for p in (0.0, 0.2, 0.5, 1.0):
            for training in (True, False):
                right = x
                if training:
                    right = torch.where(numbers < p, 0.0, x / max(1 - p, 1e-9))
                given = x.clone()
                found = answer(given, p, numbers, training)
                call = f"dropout(x of shape {list(shape)}, p={p}, numbers, training={training})"
                if not isinstance(found, Tensor) or found.shape != x.shape:
                    raise Wrong(f"{call} should be a tensor of shape {list(shape)}, and is {found!r}")
                if not torch.allclose(found, right):
                    place = tuple((~torch.isclose(found, right)).nonzero()[0].tolist())
                    raise Wrong(
                        f"{call}: x is {x[place]:.3f} and its number {numbers[place]:.3f}; "
                        f"the result should be {right[place]:.3f}, and is {found[place]:.3f}"
                    )
                if not torch.equal(given, x):
                    raise Wrong(f"{call} changed x")


def check_measure(answer: Callable[[nn.Module, Tensor], Tensor]) -> None:
    """Try models in training mode, in evaluation mode, and in both."""
    x = torch.ones(4, 8)
    for case in ("in training mode", "in evaluation mode", "with one part in evaluation mode"):
        frozen = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
        model = nn.Sequential(frozen, nn.Linear(8, 8), nn.Dropout(0.5))
        model.train(case != "in evaluation mode")
        frozen.train(case == "in training mode")
        before = [module.training for module in model.modules()]
        right = model[1](frozen[0](x)).detach()
        found = answer(model, x)
        if not isinstance(found, Tensor) or not torch.allclose(found, right, atol=1e-6):
            raise Wrong(f"a model {case}: the result is not that without dropout")
        if found.requires_grad:
            raise Wrong(f"a model {case}: the result has a gradient")
        after = [module.training for module in model.modules()]
        if after != before:
            raise Wrong(f"a model {case}: {sum(a != b for a, b in zip(after, before, strict=True))} of its "
                        f"{len(before)} modules are in another mode after it")  # fmt: skip
        if not torch.is_grad_enabled():
            torch.set_grad_enabled(True)
            raise Wrong("gradients are still switched off after it")


EXERCISES = (
    Exercise("dropout", "Dropout with given random numbers.", check_dropout,
             "What happens to the elements that are kept, so that the mean stays the same? And if none is kept?"),
    Exercise("measure", "Run a model without dropout, and leave its modes as they were.", check_measure,
             "Each module has its own mode. Note them all before you change any: model.modules() lists them."),
)  # fmt: skip

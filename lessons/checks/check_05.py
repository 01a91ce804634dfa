"""The exercises of lesson 5."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from glassgpt.learn.exercises import Exercise, Wrong

Pairs = list[tuple[Tensor, Tensor]]


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 4))


def _batches(*sizes: int) -> Pairs:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 3, generator=generator), torch.randint(4, (size,), generator=generator)) for size in sizes
    ]


def check_train_steps(answer: Callable[[nn.Module, torch.optim.Optimizer, Iterable[Any]], list[float]]) -> None:
    """Compare losses and weights with the loop, from the same random state."""
    for name, kind, rate in (("SGD", torch.optim.SGD, 0.1), ("AdamW", torch.optim.AdamW, 0.01)):
        mine = _model()
        theirs, batches = copy.deepcopy(mine), _batches(8, 8, 5)
        mine.eval()  # the loop has to choose the mode itself
        cross_entropy(mine(batches[0][0]), batches[0][1]).backward()  # old gradients
        torch.manual_seed(2)
        losses, optimizer = [], kind(theirs.parameters(), lr=rate)
        for x, y in batches:
            loss = cross_entropy(theirs(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        torch.manual_seed(2)
        found = answer(mine, kind(mine.parameters(), lr=rate), list(batches))
        if not isinstance(found, list | tuple) or not all(isinstance(loss, float) for loss in found):
            raise Wrong(f"it should return a list of floats, and returns {found!r}")
        if len(found) != len(losses):
            raise Wrong(f"for {len(losses)} batches it should return {len(losses)} losses, and returns {len(found)}")
        moved = max(
            float((a - b).detach().abs().max()) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True)
        )
        for step, (loss, right) in enumerate(zip(found, losses, strict=True)):
            if abs(loss - right) > 1e-4:
                raise Wrong(f"with {name}, the loss of step {step} should be {right:.4f}, and is {loss:.4f}")
        if moved > 1e-5:
            raise Wrong(f"with {name}, the losses are right, but a weight after the last step differs by {moved:.2g}")


def check_validate(answer: Callable[[nn.Module, Iterable[Any]], float]) -> None:
    """Compare with the loss of all examples at once; look at what is left behind."""
    for sizes in ((6,), (8, 8), (8, 8, 1), (1, 2, 20)):
        for training in (True, False):
            model, batches = _model().train(training), _batches(*sizes)
            weights = [parameter.clone() for parameter in model.parameters()]
            graphs: list[bool] = []
            model.register_forward_hook(lambda _, __, y, graphs=graphs: graphs.append(y.requires_grad))
            found = answer(model, list(batches))
            where = f"batches of {sizes} examples, in {'training' if training else 'evaluation'} mode"
            if model.training != training or any(part.training != training for part in model.modules()):
                raise Wrong(f"{where}: the model was left in another mode")
            if any(graphs) or any(parameter.grad is not None for parameter in model.parameters()):
                raise Wrong(f"{where}: it built a graph for gradients")
            if not all(map(torch.equal, weights, model.parameters())):
                raise Wrong(f"{where}: it changed the weights")
            if not isinstance(found, float):
                raise Wrong(f"{where}: it should return a float, and returns {found!r}")
            model.eval()
            with torch.no_grad():
                x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
                right = cross_entropy(model(x), y).item()
            if abs(found - right) > 1e-5:
                raise Wrong(f"{where}: the loss should be {right:.4f}, and is {found:.4f}")


EXERCISES = (
    Exercise("train_steps", "One optimizer step for each batch.", check_train_steps,
             "Which mode must a model have while it is trained? Which gradients may be in .grad when backward begins?"),
    Exercise("validate", "The mean loss over all examples, with nothing changed.", check_validate,
             "Remember model.training first. Add up sums, not means, and divide once at the end."),
)  # fmt: skip

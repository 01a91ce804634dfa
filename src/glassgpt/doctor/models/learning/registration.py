"""Weights that forward uses and parameters() does not list."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from glassgpt.doctor.models.learning.constants import constant_weights
from glassgpt.doctor.models.learning.gradients import training_loss
from glassgpt.doctor.report import Check, Result, failed, passed
from glassgpt.doctor.subject import Subject, fixed_random_state


def _leaves(*tensors: Tensor) -> Iterator[Tensor]:
    """The tensors that the graph of autograd ends in."""
    todo = [t.grad_fn for t in tensors if t.grad_fn is not None]
    done = set()
    while todo:
        node = todo.pop()
        if node is None or node in done:
            continue
        done.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            yield variable
        todo += [before for before, _ in node.next_functions if before is not None]


def hidden_tensors(module: nn.Module) -> dict[int, str]:
    """Tensors that modules hold in plain attributes, lists and dicts: id of the tensor -> where."""
    found: dict[int, str] = {}

    def look(value: Any, name: str, depth: int) -> None:
        if isinstance(value, Tensor):
            found.setdefault(id(value), name)
        elif isinstance(value, nn.Module):
            for key, parameter in value.named_parameters():
                found.setdefault(id(parameter), f"{name}.{key}")
        elif depth and isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                look(item, f"{name}[{index}]", depth - 1)
        elif depth and isinstance(value, dict):
            for key, item in value.items():
                look(item, f"{name}[{key!r}]", depth - 1)

    for path, part in module.named_modules():
        for key, value in vars(part).items():
            if key not in ("_parameters", "_buffers", "_modules"):
                look(value, f"{path}.{key}" if path else key, 4)
    return found


def unregistered_parameters(subject: Subject) -> Result:
    """Every weight that forward uses is in parameters() or is a buffer."""
    with fixed_random_state():
        module = subject.copy(train=True)
        idx = subject.ids()
        loss, output = training_loss(subject, module, idx, subject.ids(seed=1))
        registered = {id(p) for p in (*module.parameters(), *module.buffers())}
        B, T = idx.shape
        strangers = [
            leaf for leaf in _leaves(loss, output.logits)
            if id(leaf) not in registered and leaf.shape[:2] not in ((B, T), (T, B)) and leaf.shape[:1] != (B * T,)
        ]  # fmt: skip
        names = hidden_tensors(module)
        found = [(names.get(id(leaf), "made inside forward, or outside of the model"), leaf) for leaf in strangers]
        found += constant_weights(subject, subject.copy())
    if not found:
        return passed(f"every weight that forward uses is one of its {len(registered)} parameters and buffers")
    total = sum(leaf.numel() for _, leaf in found)
    places = list(dict.fromkeys(place for place, _ in found))
    return failed(
        "unregistered parameters",
        f"forward uses {len(found)} weights with {total:,} numbers that parameters() does not list: "
        f"{', '.join(places[:4])}{' ...' if len(places) > 4 else ''}",
        tensors=[f"{place} {list(leaf.shape)}" for place, leaf in found[:50]], numbers=total,
    )  # fmt: skip


REGISTRATION_CHECKS: tuple[Check[Subject], ...] = (
    Check(
        "unregistered parameters",
        "Follows the graph of autograd to its ends, and looks for weights that parameters() does not list.",
        "1 pass with gradients and 1 without",
        "any tensor that requires a gradient; any matrix without structure that multiplies the hidden state",
        ("unregistered parameters",),
        unregistered_parameters,
    ),
)

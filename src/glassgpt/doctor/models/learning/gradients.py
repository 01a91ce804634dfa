"""The loss that a training would minimise, its gradient, and whether that is the slope of the loss."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from glassgpt.doctor.models.learning.constants import trace_forward
from glassgpt.doctor.models.probing import working_length
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed
from glassgpt.doctor.subject import Output, Subject, cross_entropy, fixed_random_state

#: Operations whose slope is zero, or that choose: programs that use them define a gradient of their own.
STEPS = ("round", "floor", "ceil", "sign", "argmax", "topk", "sort", "trunc", "heaviside", "bernoulli", "multinomial")


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a training would change, by name.

    Raises:
        NotRun: if there are none.
    """
    found = {name: p for name, p in module.named_parameters() if p.requires_grad and p.is_floating_point()}
    if not found:
        raise NotRun("no parameter requires a gradient: the model is frozen")
    return found


def probe_size(subject: Subject) -> tuple[int, int]:
    """Batch and length for a pass with gradients: the whole context where that is cheap."""
    size = sum(p.numel() for p in subject.module.parameters())
    tokens = int(min(768, max(48, 3e10 // max(size, 1))))
    length = working_length(subject, min(subject.context, 256, tokens))
    return max(2, min(tokens // length, 64)), length


def training_loss(subject: Subject, module: nn.Module, idx: Tensor, targets: Tensor) -> tuple[Tensor, Output]:
    """The scalar that a training minimises: the module's own loss, or cross entropy; with auxiliary losses."""
    if subject.outputs < subject.vocab:
        raise NotRun(f"the output has {subject.outputs} columns for {subject.vocab} token ids")
    idx, targets = idx.clone(), targets.clone()  # some programs change them
    output = subject.forward(module, idx, targets if subject.computes_loss else None)
    loss = cross_entropy(output.logits, targets) if output.loss is None else output.loss.float().mean()
    return sum(auxiliary_losses(subject, module, output), loss), output


def auxiliary_losses(subject: Subject, module: nn.Module, output: Output) -> list[Tensor]:
    """Scalars, and the mean square of other logits, that forward returned or left on its modules."""
    raw = output.raw if isinstance(output.raw, (Tensor, Mapping, tuple, list)) else vars(output.raw)
    returned = list(raw.values()) if isinstance(raw, Mapping) else raw
    held = [value for part in module.modules() for value in vars(part).values() if isinstance(value, (Tensor, list))]
    found = []
    graph = torch.is_grad_enabled()  # without it, constants count, too; they change no difference of losses
    for extra in tree_leaves([returned, held]):
        if not isinstance(extra, Tensor) or not extra.is_floating_point() or extra is output.loss:
            continue
        if extra.grad_fn is not None or not graph:
            if extra.numel() == 1:
                found.append(extra.float().sum())
            elif output.loss is None and extra.size(-1) == subject.outputs and not same_memory(extra, output.logits):
                found.append(extra.float().square().mean())
    return found


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are on the same memory."""
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def slope(subject: Subject) -> Result:
    """The gradient is the slope of the loss: a small step along it changes the loss by what it promises.

    It does not where a part of the path is cut (``x.detach() + f(x)``) although every parameter has some gradient.
    """
    size = sum(p.numel() for p in subject.module.parameters())
    if size > 3e7:
        raise NotRun(f"{size:,} parameters are too many to move")
    idx, targets = subject.ids(), subject.ids(seed=1)
    with fixed_random_state():
        module = subject.copy()
        jumps = {op.name for op in trace_forward(subject, module, idx).ops if any(step in op.name for step in STEPS)}
        if jumps:
            raise NotRun(f"the model rounds or chooses ({', '.join(sorted(jumps))}): its loss has no slope everywhere")
        named = trainable(module)
        loss, _ = training_loss(subject, module, idx, targets)
        if not loss.requires_grad:
            raise NotRun("the loss does not depend on the parameters")
        if not torch.equal(loss, training_loss(subject, module, idx, targets)[0]):
            raise NotRun("two passes over the same text give two losses")
        gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        groups: dict[str, list[tuple[Tensor, Tensor, float]]] = {}
        for (name, parameter), gradient in zip(named.items(), gradients, strict=True):
            norm = 0.0 if gradient is None else float(gradient.double().norm())
            if gradient is not None and 0 < norm < math.inf:
                length = max(float(parameter.detach().norm()), 0.02 * math.sqrt(parameter.numel()))
                way = (parameter, gradient * (length / norm), length * norm)
                groups.setdefault(_group(name), []).append(way)
        wrong, right = {}, 0
        for group, ways in list(groups.items())[:12]:
            ratio = _ratio(lambda: float(training_loss(subject, module, idx, targets)[0]), ways)
            if ratio is not None and not 0.67 < ratio < 1.5:
                wrong[group] = round(ratio, 4)
            right += ratio is not None
    if not right:
        raise NotRun("the loss is too flat or too rough here to measure its slope")
    if wrong:
        name, ratio = next(iter(wrong.items()))
        return failed(
            "dead parameters", f"along the gradient of {name} the loss changes by {ratio:.2f} times of what it "
            "says: a part of the path is cut (detach, no_grad, .data)", name, ratios=wrong,
        )  # fmt: skip
    return passed(f"the gradient is the slope of the loss in {right} groups of parameters")


def _group(name: str) -> str:
    """The layer or the part that a parameter belongs to: its name up to the first number."""
    parts = name.split(".")[:-1]
    digit = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return ".".join(parts if digit is None else parts[: digit + 1]) or name


def _ratio(loss: Callable[[], float], ways: list[tuple[Tensor, Tensor, float]]) -> float | None:
    """Measure how the loss changes along ways, divided by what the gradient promises; None if it cannot be measured."""
    promised = sum(promise for _, _, promise in ways)
    start = [parameter.detach().clone() for parameter, _, _ in ways]

    def measured(step: float) -> float:
        ends = []
        for sign in (step, -step, 0.0):
            with torch.no_grad():
                for (parameter, way, _), old in zip(ways, start, strict=True):
                    parameter.copy_(old + sign * way)
                if sign:
                    ends.append(loss())
        return (ends[0] - ends[1]) / (2 * step * promised)

    step = min(0.2, 0.02 / promised)
    if step * promised < 3e-5:  # too close to what float32 rounds away
        return None
    ratio = measured(step)
    if not 0.67 < ratio < 1.5 and abs(measured(step / 3) - ratio) > 0.1 * max(1.0, abs(ratio)):
        return None
    return ratio if math.isfinite(ratio) else None


GRADIENTS_CHECKS: tuple[Check[Subject], ...] = (
    Check(
        "gradient",
        "Moves the parameters of a layer along their gradient, and compares the change of the loss with that promise.",
        "1 pass with gradients, and 2 without for each layer",
        "a half more or a third less, at two step sizes that agree: bfloat16 inside a model gives a tenth",
        ("dead parameters",),
        slope,
    ),
)

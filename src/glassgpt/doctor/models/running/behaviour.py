"""What a pass may not do: draw random numbers in evaluation, remember the pass before, change what it was given."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from glassgpt.doctor.models.probing import (
    are_finite,
    difference,
    first_difference,
    opened,
    quiet_logits,
    record,
    size_of,
)
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed, warned
from glassgpt.doctor.subject import Subject, cross_entropy, fixed_random_state
from glassgpt.doctor.trace import trace
from glassgpt.errors import first_line

#: Of the largest logit: two equal passes on a CPU give equal bits.
EQUAL = 1e-6
RANDOM = ("bernoulli", "dropout", "rand", "uniform", "normal", "multinomial", "exponential", "poisson", "geometric")


def _relative(one: Tensor, other: Tensor) -> float:
    return float(difference(one, other).max()) / max(size_of(one), 1e-30)


def _seeded(subject: Subject, module: nn.Module, idx: Tensor, seed: int) -> Tensor:
    """Logits of a pass as it is, dropout and all."""
    with fixed_random_state(seed), torch.no_grad():
        return subject.logits(module, idx).float()


class _Dropouts(TorchFunctionMode):
    """The calls of dropout functions with p > 0, and whether each of them was switched on."""

    def __init__(self) -> None:
        super().__init__()
        self.switched_on: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if "dropout" in getattr(func, "__name__", "") and args and isinstance(args[0], Tensor):
            p = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
            on = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True))
            if isinstance(p, float) and p > 0:
                self.switched_on.append(bool(on))
        return func(*args, **kwargs)


def _draws_in(subject: Subject, module: nn.Module, idx: Tensor) -> str | None:
    """The module in which random numbers are drawn first."""
    try:
        with fixed_random_state():
            ops = trace(module, idx).ops
    except Exception:
        return None
    return next((op.module for op in ops if any(word in op.name.split(".")[-1] for word in RANDOM)), None)


def check_modes(subject: Subject) -> Result:
    """Evaluation is repeatable, dropout works in training, and no pass changes the mode."""
    idx = subject.ids()
    for train in (False, True):
        module = subject.copy(train)
        flags = {name: part.training for name, part in module.named_modules()}
        _seeded(subject, module, idx, 0)
        changed = [name for name, part in module.named_modules() if flags.get(name, part.training) != part.training]
        if changed:
            was = "training" if train else "evaluation"
            message = f"a pass in {was} mode changes the mode of {len(changed)} modules"
            return failed("mode", message, changed[0] or None)
    module = opened(subject.copy())
    one, same, other = (_seeded(subject, module, idx, seed) for seed in (1, 1, 2))
    apart = _relative(one, other)
    if apart > EQUAL and _relative(one, same) <= EQUAL:
        where = _draws_in(subject, module, idx)
        message = f"two passes in evaluation mode differ by {apart:.1e} of the largest logit: random numbers are drawn"
        return failed("mode", message, where or None, relative=apart, threshold=EQUAL)
    return _dropout_in_training(subject, idx)


def _dropout_in_training(subject: Subject, idx: Tensor) -> Result:
    module = opened(subject.copy(train=True))
    with _Dropouts() as calls:
        one = _seeded(subject, module, idx, 1)
    other = _seeded(subject, module, idx, 2)
    apart = _relative(one, other)
    if calls.switched_on and not any(calls.switched_on):
        frozen = [name for name, part in module.named_modules() if not part.training]
        message = "dropout with p > 0 is called, but switched off, in training mode"
        if frozen:
            return warned("mode", f"{message}: {frozen[0]} stays in evaluation mode", frozen[0])
        return failed("mode", message, calls=len(calls.switched_on))
    if any(calls.switched_on) and apart <= EQUAL and are_finite(one):
        return failed("mode", "dropout is called in training mode, but two passes give the same logits", relative=apart)
    unused = [name for name, part in module.named_modules() if "Dropout" in type(part).__name__ and _p(part) > 0]
    note = "" if calls.switched_on or not unused else f"; {unused[0]} is not used, though its p is over 0"
    what = f"two in training mode differ by {apart:.1e}" if apart > EQUAL else "so do two in training mode: no dropout"
    return passed(f"two passes in evaluation mode agree; {what}{note}", training=apart)


def _p(part: nn.Module) -> float:
    p = getattr(part, "p", 0.0)
    return float(p) if isinstance(p, (int, float)) else 0.0


def _seeds_generator(subject: Subject) -> bool:
    """Whether the random numbers after a pass in training are the same, whatever the seed before it was."""
    module, idx, after = subject.copy(train=True), subject.ids(), []
    for seed in (1, 2):
        with fixed_random_state(seed), torch.no_grad():
            subject.logits(module, idx)
            after.append(torch.rand(4))
    return torch.equal(*after)


def check_state(subject: Subject) -> Result:
    """A pass does not depend on the passes before, nor does it set the global random state."""
    if _seeds_generator(subject):
        message = "a pass seeds the global random generator: dropout and the order of the data repeat after each"
        return failed("state", message)
    T, B = subject.length, subject.batch
    short = max(1, T // 2)
    plain = [subject.ids(), subject.ids(seed=5), subject.ids()]
    shapes = [subject.ids(B, short), subject.ids(1, T, seed=3), subject.ids(B + 1, T), subject.ids(B, T)]
    for before, inputs in (("other tokens", plain), ("another length or number of rows", shapes)):
        used = subject.copy()
        for number, idx in enumerate(inputs):
            fresh = subject.copy()
            try:
                expected = quiet_logits(subject, fresh, idx)
            except Exception:  # this shape does not work in a new model, either
                continue
            try:
                found = quiet_logits(subject, used, idx)
            except Exception as error:
                message = f"ids {list(idx.shape)} fail after {before}, though they work in a new copy"
                return failed("state", f"{message}: {type(error).__name__}: {first_line(error)}", shape=list(idx.shape))
            apart = _relative(expected, found)
            if number and apart > EQUAL:
                if not all(map(torch.equal, fresh.parameters(), used.parameters())):
                    raise NotRun("a pass changes parameters (see the check of unchanged inputs)")
                where = _first_with_state(subject, inputs[:number], idx)
                message = f"the logits of the same tokens differ by {apart:.1e} of the largest after {before}"
                return failed("state", message, where, relative=apart, shape=list(idx.shape), threshold=EQUAL)
    return _two_backward_passes(subject) or passed("a pass does not depend on those before it")


def _first_with_state(subject: Subject, before: list[Tensor], idx: Tensor) -> str | None:
    used = subject.copy()
    for earlier in before:
        quiet_logits(subject, used, earlier)
    return first_difference(record(subject, subject.copy(), idx), record(subject, used, idx), EQUAL)


def _two_backward_passes(subject: Subject) -> Result | None:
    """What a pass keeps of the graph of the one before makes the second backward pass fail."""
    module, idx = subject.copy(train=True), subject.ids()
    with fixed_random_state():
        for number in range(2):
            try:
                loss = cross_entropy(subject.logits(module, idx), idx % subject.outputs)
                loss.backward()
            except RuntimeError as error:
                if number and "second time" in str(error):
                    message = "the second training step fails: its graph reaches into the first (detach the state)"
                    return failed("state", message)
                return None
    return None


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """Parameters and buffers, with whether it is a parameter."""
    yield from ((name, tensor, True) for name, tensor in module.named_parameters())
    yield from ((name, tensor, False) for name, tensor in module.named_buffers())


def _kept_by_design(module: nn.Module, name: str, tensor: Tensor) -> bool:
    """Whether a buffer may change in a pass: caches, counters, statistics, what is not saved."""
    words = ("cache", "key", "value", "kv", "state", "mem", "past", "hidden", "count", "usage", "running")
    return tensor.dim() < 2 or name not in module.state_dict() or any(word in name.lower() for word in words)


def check_inputs_unchanged(subject: Subject) -> Result:
    """A pass changes neither ids, nor targets, nor weights, nor tables."""
    idx = subject.ids()
    idx[0, -1] = 0
    targets = subject.ids(seed=2)
    targets[0, 0], targets[-1, -1] = 0, -100
    notes = []
    for train in (False, True):
        module = subject.copy(train)
        before = [(name, tensor, tensor.detach().clone(), own) for name, tensor, own in _tensors(module)]
        for given_targets in (False, True) if subject.targets is not None else (False,):
            ids, goal = idx.clone(), targets.clone()
            # Targets of -100 may not be understood, nor a call without targets.
            with fixed_random_state(), torch.no_grad(), suppress(Exception):
                subject.call(module, ids, goal if given_targets else None)
            for what, given, now in (("token ids", idx, ids), ("targets", targets, goal)):
                if not torch.equal(given, now):
                    count = int((given != now).sum())
                    return failed("in-place", f"a pass changes {count} of the {what} that it was given", count=count)
        for name, tensor, old, own in before:
            if torch.equal(tensor.detach().nan_to_num(), old.nan_to_num()):
                continue
            part = module.get_submodule(name.rpartition(".")[0])
            if own and getattr(part, "max_norm", None) is not None:
                notes.append(f"{name} is renormalised by its max_norm")
            elif own or (not train and not _kept_by_design(module, name, tensor)):
                what = "parameter" if own else "buffer"
                owner = name.rpartition(".")[0] or None
                return failed("in-place", f"a pass changes the {what} {name} in place", owner, name=name)
            elif not train:
                notes.append(f"the buffer {name} changes")
    return passed("; ".join(["ids, targets and weights are as they were", *dict.fromkeys(notes)]))


BEHAVIOUR_CHECKS: tuple[Check[Subject], ...] = (
    Check(
        "modes",
        "Runs the same tokens twice in evaluation and in training mode, and compares the modes before and after.",
        "7 passes",
        f"{EQUAL} of the largest logit: equal passes give equal bits on a CPU",
        ("mode",),
        check_modes,
    ),
    Check(
        "state",
        "Runs tokens after other tokens, lengths and numbers of rows, and compares with a new copy.",
        "about 14 passes",
        f"{EQUAL} of the largest logit: equal passes give equal bits on a CPU",
        ("state",),
        check_state,
    ),
    Check(
        "inputs unchanged",
        "Compares ids, targets, parameters and buffers before and after a pass.",
        "4 passes",
        "any change",
        ("in-place",),
        check_inputs_unchanged,
    ),
)

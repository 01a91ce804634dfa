"""What the checks by experiment share: passes without dropout, differences between passes, the module that made one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glassgpt.doctor.dropout import DropoutSwitch
from glassgpt.doctor.subject import Subject, fixed_random_state

Measured = TypeVar("Measured")
#: Floating-point operations that one pass at the full context may cost: some seconds on two cores.
AFFORDABLE = 1.5e11
#: Longest text of one pass: attention weights of 2048 x 2048 are 16 MB per head.
LONGEST = 2048


def once_per_subject(measure: Callable[[Subject], Measured]) -> Callable[[Subject], Measured]:
    """Measure a subject once; several checks use what was measured."""
    known: WeakKeyDictionary[Subject, Measured] = WeakKeyDictionary()

    @wraps(measure)
    def remembered(subject: Subject) -> Measured:
        if subject not in known:
            known[subject] = measure(subject)
        return known[subject]

    return remembered


@contextmanager
def quiet() -> Iterator[None]:
    """Inside: no dropout, the same random numbers in every pass, no gradients."""
    with fixed_random_state(), torch.no_grad(), DropoutSwitch():
        yield


def quiet_logits(subject: Subject, module: nn.Module, idx: Tensor) -> Tensor:
    """Logits ``[B, T, V]`` of a pass without dropout, with fixed random numbers; in training mode as in training."""
    with quiet(), torch.set_grad_enabled(module.training):  # recomputed blocks, say, are another path
        return subject.logits(module, idx.clone()).float().detach()


def difference(one: Tensor, other: Tensor) -> Tensor:
    """The largest difference at each position, ``[B, T, V] -> [B, T]``; NaN and infinity that agree do not differ."""
    equal = (one == other) | (one.isnan() & other.isnan())
    gap = torch.where(equal, torch.zeros_like(one), (one - other).abs())
    return gap.nan_to_num(nan=torch.inf).amax(-1)


def size_of(logits: Tensor) -> float:
    """The largest finite logit, that differences are compared with."""
    finite = logits[logits.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def are_finite(logits: Tensor) -> bool:
    """Whether there is neither NaN nor infinity; whole columns of minus infinity are ids that do not exist."""
    real = ~(logits == -torch.inf).flatten(0, 1).all(0)
    return bool(logits[..., real].isfinite().all())


class _Precision(TorchDispatchMode):
    """The coarsest floating-point type that occurs in a pass."""

    eps = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 1:
                self.eps = max(self.eps, torch.finfo(leaf.dtype).eps)
        return out


@once_per_subject
def draws_in_eval(subject: Subject) -> bool:
    """Whether evaluation draws random numbers other than dropout: then only passes of one shape can be compared."""
    module, idx, passes = subject.copy(), subject.ids(1), []
    for seed in (1, 2):
        with fixed_random_state(seed), torch.no_grad(), DropoutSwitch():
            passes.append(subject.logits(module, idx.clone()).float())
    return not torch.equal(passes[0].nan_to_num(), passes[1].nan_to_num())


@once_per_subject
def rounding(subject: Subject) -> float:
    """How much two ways to compute the same logits may differ, relative to the largest: 1e-4 in float32.

    A program may compute in bfloat16 inside although its weights are float32.
    """
    with quiet(), _Precision() as seen:
        subject.logits(subject.copy(), subject.ids(1, subject.few))
    return 1e-4 if seen.eps < 1e-5 else 16 * seen.eps


def affordable_length(subject: Subject, length: int) -> bool:
    """Whether a pass over so many tokens takes seconds, not minutes."""
    weights = sum(p.numel() for p in subject.module.parameters())
    return length <= LONGEST and 2.0 * weights * length <= AFFORDABLE and length * subject.vocab <= 5e7


def working_length(subject: Subject, wanted: int) -> int:
    """The longest input up to ``wanted`` tokens that works, for what examines something else than the context."""
    module, low, high = subject.copy(), 0, wanted + 1
    length = wanted
    while high - low > 1:
        try:
            quiet_logits(subject, module, subject.ids(1, length))
            low = length
        except Exception:
            high = length
        length = (low + high) // 2
    return max(low, 1)


def other_tokens(subject: Subject, tokens: Tensor) -> Tensor:
    """Other ids in place of these, none of them 0 where that can be helped."""
    low = 1 if subject.vocab > 3 else 0
    span = subject.vocab - low
    return low + (tokens - low + max(1, span // 2)) % span


def swapped(subject: Subject, idx: Tensor, position: int, row: int = 0) -> Tensor:
    """The same ids with one other token."""
    twin = idx.clone()
    twin[row, position] = other_tokens(subject, twin[row, position])
    return twin


def opened(module: nn.Module) -> nn.Module:
    """Change a copy so that every path of it is open, and return it.

    What is constant (zeros, gains, gates) gets noise; large matrices, whose softmaxes saturate, become small ones.
    """
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.is_floating_point():
                continue
            first = parameter.flatten()[:1].clone()
            constant = bool((parameter == first).all())
            if constant or (parameter.dim() >= 2 and float(parameter.float().std()) > 0.2):
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.1
                parameter.copy_(parameter + noise * (first if float(first) != 0 else 1.0) if constant else noise)
    return module


def sharpened(module: nn.Module, subject: Subject) -> nn.Module:
    """Change a copy of a fresh model so that attention and positions matter, and return it.

    Fresh attention is almost flat: what goes wrong in it changes the logits less than rounding. Matrices get the size
    that keeps the variance of what they multiply.
    """
    if subject.fresh:
        with torch.no_grad():
            for parameter in opened(module).parameters():
                if parameter.is_floating_point() and parameter.dim() == 2:
                    wanted = min(parameter.shape) ** -0.5
                    parameter.mul_(max(1.0, wanted / max(float(parameter.float().std()), 1e-6)))
    return module


Part = Callable[[Tensor], Tensor | None]


def parts_of(value: Any, select: Part) -> list[Tensor]:
    """The selected parts of all floating-point tensors in whatever a module received or returned."""
    try:
        leaves = tree_leaves(value)
    except Exception:
        return []
    chosen = [select(leaf.detach()) for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return [part.float().clone() for part in chosen if part is not None]


Seen = list[tuple[str, list[Tensor], list[Tensor]]]


def record(subject: Subject, module: nn.Module, idx: Tensor, select: Part = lambda tensor: tensor) -> Seen:
    """Run a copy; for each module that ran: its name, and the selected parts of what it received and returned."""
    seen: Seen = []

    def note(name: str) -> Any:
        return lambda _, args, kwargs, out: seen.append((name, parts_of((args, kwargs), select), parts_of(out, select)))

    hooks = [part.register_forward_hook(note(name), with_kwargs=True) for name, part in module.named_modules() if name]
    try:
        quiet_logits(subject, module, idx)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def first_difference(one: Seen, other: Seen, tolerance: float) -> str | None:
    """The first module whose output differs between two passes although its input does not.

    Args:
        one, other: of :func:`record`. tolerance: relative to the largest value of a tensor.

    Returns:
        Its dotted name; None if it is the code of the model itself, or unknown.
    """
    for (name, before, made), (same, before_2, made_2) in zip(one, other, strict=False):
        if name != same:
            return None
        if _differ(made, made_2, tolerance) and not _differ(before, before_2, tolerance):
            return name
    return None


def first_module_that_differs(
    subject: Subject, module: nn.Module, idx: Tensor, other: Tensor, select: Part, tolerance: float
) -> str | None:
    """Run two inputs; find the first module whose output differs in the selected part although its input does not."""
    one, two = (record(subject, module, tokens, select) for tokens in (idx, other))
    return first_difference(one, two, tolerance)


def _differ(ones: list[Tensor], others: list[Tensor], tolerance: float) -> bool:
    return any(
        a.shape == b.shape and a.numel() > 0 and float(difference(a.reshape(1, 1, -1), b.reshape(1, 1, -1)))
        > tolerance * max(size_of(a), 1e-12)
        for a, b in zip(ones, others, strict=False)
    )  # fmt: skip


def positions_before(B: int, T: int, position: int, row: int = 0) -> Part:
    """Select what a tensor holds of one row's positions before ``position``."""

    def select(tensor: Tensor) -> Tensor | None:
        if tensor.dim() >= 3 and tensor.shape[:2] == (B, T):
            return tensor[row, :position]
        if tensor.dim() >= 3 and tensor.shape[:2] == (T, B):
            return tensor[:position, row]
        if tensor.dim() == 2 and len(tensor) == B * T:
            return tensor.view(B, T, -1)[row, :position]
        return None

    return select


def other_rows(B: int, T: int, row: int = 0) -> Part:
    """Select what a tensor holds of all rows but one."""
    keep = [r for r in range(B) if r != row]

    def select(tensor: Tensor) -> Tensor | None:
        if tensor.dim() >= 3 and tensor.shape[:2] == (B, T):
            return tensor[keep]
        if tensor.dim() >= 3 and tensor.shape[:2] == (T, B):
            return tensor[:, keep]
        if tensor.dim() == 2 and len(tensor) == B * T:
            return tensor.view(B, T, -1)[keep]
        if tensor.dim() >= 3 and len(tensor) == B:
            return tensor[keep]
        return None

    return select

"""How much each token changes each logit: measured by swapping tokens and by gradients.

Each misses what the other sees: gradients are blind to paths through argmax or detach, swaps to differences below
rounding. Where zero weights or saturated ones close a path, a copy with small random weights tells whether it is there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glassgpt.doctor.dropout import DropoutSwitch
from glassgpt.doctor.models.probing import (
    are_finite,
    difference,
    once_per_subject,
    opened,
    quiet_logits,
    size_of,
    swapped,
)
from glassgpt.doctor.report import NotRun
from glassgpt.doctor.subject import InputGradient, Subject, fixed_random_state

#: Of the largest logit: unrelated positions of passes of one shape are bit for bit equal, but for experts, whose
#: matrix products get other shapes. The weakest leak measured was 1.6e-3.
LEAK = 1e-5
#: Of the largest gradient: unrelated tokens have a gradient of exactly zero.
GRADIENT_LEAK = 1e-6

#: Parameters above which three positions stand for all.
LARGE = 2e7


@dataclass
class Dependence:
    """What changed when a token of row 0 changed.

    Attributes:
        idx: the tokens ``[B, T]``.
        effect: ``[T, T]``: the largest change of the logits at t (rows) when token s (columns) changes.
        others: ``[T]``: the largest change in any other row when token s of row 0 changes.
        size: the largest logit.
        gradient: ``[T, T]``: |d logits[t] / d token s|, or None where tokens are looked up in a way not known.
        gradient_others: the largest gradient into another row.
    """

    idx: Tensor
    effect: Tensor
    others: Tensor
    size: float
    gradient: Tensor | None = None
    gradient_others: float = 0.0


def measure(subject: Subject, module: nn.Module, idx: Tensor, positions: list[int] | None = None) -> Dependence:
    """Swap tokens of row 0, one at a time.

    Raises:
        NotRun: if a pass depends on the passes before, so that nothing can be concluded from two of them.
    """
    T = idx.size(1)
    base = quiet_logits(subject, module, idx)
    if not are_finite(base):
        raise NotRun("the logits are not finite")
    if positions is None:
        positions = sorted({0, T // 2, T - 1}) if is_large(subject) else list(range(T))
    effect, others = torch.full((T, T), torch.nan), torch.zeros(T)
    trials = [(s, swapped(subject, idx, s)) for s in positions]
    trials += [(s, _repeated(idx, s)) for s in positions if s in (T // 2, T - 1)]
    for s, other in trials:
        change = difference(base, quiet_logits(subject, module, other))
        effect[:, s] = change[0].fmax(effect[:, s])
        others[s] = change[1:].max().maximum(others[s]) if len(idx) > 1 else 0.0
    size = size_of(base)
    again = quiet_logits(subject, module, idx)
    if float(difference(base, again).max()) > LEAK * size:
        raise NotRun("two passes over the same tokens differ, because of a pass between them (see the check of state)")
    return Dependence(idx, effect, others, size)


def _repeated(idx: Tensor, position: int) -> Tensor:
    """The same ids with an earlier token once more: a program may look for equal ones."""
    twin = idx.clone()
    twin[0, position] = idx[0, position // 2]
    return twin


def add_gradients(subject: Subject, module: nn.Module, found: Dependence, few: bool) -> None:
    """Measure d (r . logits[0, t]) / d token for every t (or a few), where the module can be differentiated."""
    idx, T = found.idx, found.idx.size(1)
    try:
        with fixed_random_state(), torch.enable_grad(), DropoutSwitch(), InputGradient(idx) as tokens:
            logits = subject.logits(module, idx).float()
            r = torch.randn(logits.size(-1), generator=torch.Generator().manual_seed(1))
            if not tokens.leaves or subject.last_only:
                return
            wanted = {0, T // 2, T - 1} if few else set(range(T))
            rows = [
                tokens.gradient((logits[0, t].nan_to_num(neginf=0.0) * r).sum())
                if t in wanted
                else torch.zeros(idx.shape)
                for t in range(T)
            ]
    except Exception:  # a model without a backward pass
        return
    found.gradient = torch.stack([row[0] for row in rows])
    found.gradient_others = max((float(row[1:].max()) for row in rows), default=0.0) if len(idx) > 1 else 0.0


def is_large(subject: Subject) -> bool:
    """Whether a pass takes a tenth of a second or more: then three positions are examined instead of all."""
    return sum(p.numel() for p in subject.module.parameters()) > LARGE


@once_per_subject
def dependence_in_eval(subject: Subject) -> Dependence:
    """Swaps and gradients at the probing length, in evaluation mode."""
    module = subject.copy()
    found = measure(subject, module, subject.ids())
    add_gradients(subject, module, found, few=is_large(subject))
    return found


@once_per_subject
def dependence_when_open(subject: Subject) -> Dependence:
    """The same of a copy with small random weights: which paths the code has."""
    if is_large(subject) and not subject.fresh:
        return dependence_in_eval(subject)
    module = opened(subject.copy())
    try:
        found = measure(subject, module, subject.ids())
    except NotRun:
        return dependence_in_eval(subject)
    add_gradients(subject, module, found, few=True)
    return found


@once_per_subject
def dependence_in_train(subject: Subject) -> Dependence:
    """Swaps in training mode, without dropout, of a copy with open paths."""
    return measure(subject, opened(subject.copy(train=True)), subject.ids())

"""Past and future: each position depends on all of its past and on nothing else, in every mode and at every length."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glassgpt.doctor.models.probing import (
    affordable_length,
    are_finite,
    difference,
    draws_in_eval,
    first_module_that_differs,
    opened,
    positions_before,
    quiet_logits,
    rounding,
    sharpened,
    size_of,
    swapped,
)
from glassgpt.doctor.models.wiring.influence import (
    GRADIENT_LEAK,
    LEAK,
    Dependence,
    dependence_in_eval,
    dependence_in_train,
    dependence_when_open,
    measure,
)
from glassgpt.doctor.models.wiring.rows import ROW_CHECKS
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed
from glassgpt.doctor.subject import Subject

#: Influence, relative to the largest, below which the next position may fall out of float32 (recurrent models forget).
FADING = 1e-5
#: Of the largest logit: rounding, under which influence cannot be followed.
ROUNDED = 1e-6
#: Where positions leak, too, this fraction of pairs without influence is a finding of its own: scrambled positions miss
#: a few pairs by chance.
SCRAMBLED = 0.3


@dataclass
class _Leak:
    where: str
    t: int
    s: int
    size: float
    module: str | None = None


def find_leak(found: Dependence, where: str) -> _Leak | None:
    """The worst dependence of a position on a later token."""
    T = found.idx.size(1)
    upper = torch.ones(T, T, dtype=torch.bool).triu(1)
    change = torch.where(upper, found.effect, torch.zeros(T, T)).nan_to_num(0.0, posinf=torch.inf)
    if T > 1 and float(change.max()) > LEAK * found.size:
        t, s = divmod(int(change.argmax()), T)
        return _Leak(where, t, s, float(change[t, s]) / max(found.size, 1e-30))
    if found.gradient is not None and T > 1:
        ahead = torch.where(upper, found.gradient, torch.zeros(T, T))
        largest = float(found.gradient[found.gradient.isfinite()].max()) if found.gradient.isfinite().any() else 0.0
        if float(ahead.max()) > GRADIENT_LEAK * largest > 0:
            t, s = divmod(int(ahead.argmax()), T)
            return _Leak(f"{where}, by gradient", t, s, float(ahead[t, s]) / largest)
    return None


def reached(found: Dependence) -> Tensor:
    """Which token s has an influence on which logits t, ``[T, T]``."""
    reach = found.effect.nan_to_num(0.0, posinf=1.0) > 0
    return reach if found.gradient is None else reach | (found.gradient > 0)


def missing_pairs(subject: Subject, measured: list[Dependence]) -> list[tuple[int, int]]:
    """The pairs (t, s), s <= t and within the window, without any influence; those that merely faded away are left out.

    Influence that ends at a hard edge is missing; influence that got smaller and smaller, until float32 could not hold
    it, is not.
    """
    T = measured[0].idx.size(1)
    distance = torch.arange(T)[:, None] - torch.arange(T)
    wanted = (distance >= 0) & (distance < (subject.window or T)) & ~measured[0].effect.isnan()
    holes = wanted.clone()
    for found in measured:
        strength = found.effect.nan_to_num(0.0, posinf=1.0) / max(found.size, 1e-30)
        strength = strength if found.gradient is None else torch.maximum(strength, found.gradient)
        largest = max(float(strength.max()), 1e-30)
        for t, s in holes.nonzero().tolist():
            if bool(reached(found)[t, s]):
                holes[t, s] = False
                continue
            nearer = strength[s:t, s][strength[s:t, s] > 0]  # the same token, seen from earlier positions
            if len(nearer) > 1 and float(nearer[-1]) < max(FADING * largest, ROUNDED):
                holes[t, s] = False
    return [(t, s) for t, s in holes.nonzero().tolist()]


def _locate(subject: Subject, module: nn.Module, idx: Tensor, s: int) -> str | None:
    select = positions_before(idx.size(0), idx.size(1), s)
    return first_module_that_differs(subject, module, idx, swapped(subject, idx, s), select, LEAK)


def check_past_and_future(subject: Subject) -> list[Result]:
    """Leaks at every length and in both modes, then reach."""
    found = dependence_in_eval(subject)
    leak = find_leak(found, "evaluation mode")
    if leak:
        leak.module = _locate(subject, subject.copy(), found.idx, leak.s)
    leak = leak or _leak_when_open(subject) or _leak_at_other_lengths(subject)
    results = [] if leak is None else [_leak_result(leak, found)]
    reach = _reach_result(subject, found)
    if reach and (leak is None or reach.evidence["missing"] > SCRAMBLED):
        results.append(reach)
    elif leak is None and float(found.others.max()) <= LEAK * found.size and not draws_in_eval(subject):
        results += _prefix_results(subject)
    T = found.idx.size(1)
    how = "swaps" if found.gradient is None else "swaps and gradients"
    return results or [
        passed(
            f"each of {T} positions depends on its whole past and on nothing else, by {how}, in both modes",
            triangle=_triangle(found),
        )
    ]


def _leak_when_open(subject: Subject) -> _Leak | None:
    """A leak that zero weights hide, or one in training mode only."""
    found = dependence_when_open(subject)
    leak = find_leak(found, "evaluation mode, with open paths")
    if leak:
        leak.module = _locate(subject, opened(subject.copy()), found.idx, leak.s)
        return leak
    try:
        found = dependence_in_train(subject)
    except NotRun:
        return None
    leak = find_leak(found, "training mode")
    if leak is None or float(found.others.max()) > LEAK * found.size:
        return None  # rows mix: the check of rows names it
    leak.module = _locate(subject, opened(subject.copy(train=True)), found.idx, leak.s)
    return leak


def _leak_at_other_lengths(subject: Subject) -> _Leak | None:
    """Lengths other than the probing one: 2, half of it, and the full context at three positions."""
    T = subject.length
    lengths = {2, T // 2 + 1, subject.context} - {T}
    for length in sorted(n for n in lengths if 2 <= n <= subject.context and affordable_length(subject, n)):
        module, idx = opened(subject.copy()), subject.ids(1, length, seed=length)
        positions = sorted({length - 1, length // 2, 1}) if length > T else list(range(1, length))
        try:
            found = measure(subject, module, idx, positions)
        except Exception:  # the check of the longest input reports what fails
            continue
        leak = find_leak(found, f"{length} tokens")
        if leak:
            leak.module = _locate(subject, module, idx, leak.s)
            return leak
    return None


def _triangle(found: Dependence) -> list[list[float]]:
    values = found.gradient if found.gradient is not None and bool(found.gradient.isfinite().all()) else found.effect
    return [[float(f"{v:.3g}") for v in row] for row in values.nan_to_num(0.0).tolist()]


def _leak_result(leak: _Leak, found: Dependence) -> Result:
    return failed(
        "leak",
        f"the logits at position {leak.t} change with the later token {leak.s}, by {leak.size:.1e} of the largest "
        f"({leak.where})",
        leak.module,
        position=leak.t, token=leak.s, relative=leak.size, where=leak.where, threshold=LEAK, triangle=_triangle(found),
    )  # fmt: skip


def _reach_result(subject: Subject, found: Dependence) -> Result | None:
    if float(found.others.max()) > LEAK * found.size:
        return None  # what is missing in one row went to others: the check of rows names it
    measured = [found]
    if missing_pairs(subject, measured):
        measured.append(dependence_when_open(subject))
    missing, length = missing_pairs(subject, measured), found.idx.size(1)
    if not missing and affordable_length(subject, subject.context) and subject.context > length:
        module, idx = opened(subject.copy()), subject.ids(2, subject.context)
        try:
            long = measure(subject, module, idx, sorted({0, subject.context // 2}))
        except Exception:
            return None
        missing, length = missing_pairs(subject, [long]), subject.context
    if not missing:
        return None
    columns = {s for _, s in missing} if length > found.idx.size(1) else set(range(length))
    wanted = {(t, s) for s in columns for t in range(s, min(length, s + (subject.window or length)))}
    t, s = max(missing, key=lambda pair: pair[0] - pair[1])
    nearest = min(t - s for t, s in missing)
    banded = nearest > 0 and set(missing) == {(t, s) for t, s in wanted if t - s >= nearest}
    hint = f". If a limited view is meant, declare it: --window {nearest}" if banded else ""
    return failed(
        "reach",
        f"{len(missing)} of {len(wanted)} pairs have no influence: the logits at position {t} do not depend on "
        f"token {s}, at {length} tokens{hint}",
        missing=len(missing) / len(wanted), pairs=len(wanted), examples=[list(p) for p in missing[:8]],
        triangle=_triangle(found),
    )  # fmt: skip


def _prefix_results(subject: Subject) -> list[Result]:
    """A prefix must give the same logits as the whole text."""
    if subject.last_only and not subject._needs_targets:
        return []
    module, idx, T = sharpened(subject.copy(), subject), subject.ids(), subject.length
    full, worst = quiet_logits(subject, module, idx), (0.0, 0, 0)
    short_differs = False
    for n in sorted({1, 2, T // 2 + 1}):
        if n >= T:
            continue
        try:
            part = quiet_logits(subject, module, idx[:, :n].contiguous())
        except Exception:  # some programs demand two tokens, or more; what fails is no silent bug
            continue
        if not are_finite(part) or not are_finite(full):
            continue
        change = difference(part, full[:, :n])
        short_differs |= float(change[:, 0].max()) > rounding(subject) * size_of(full)
        worst = max(worst, (float(change.max()) / max(size_of(full), 1e-30), n, int(change.amax(0).argmax())))
    size, n, t = worst
    if size <= rounding(subject):
        return []
    # One token alone attends to itself with weight 1, however scores are scaled; positions from the end move it, too.
    finding = "position" if short_differs else "scale"
    why = "positions are not counted from the start" if short_differs else "something is scaled by the length"
    return [
        failed(
            finding,
            f"the first {n} tokens alone give other logits than within {T} tokens, by {size:.1e} of the largest at "
            f"position {t}, though no later token changes them: {why}",
            relative=size, length=n, position=t, threshold=rounding(subject),
        )
    ]  # fmt: skip


DEPENDENCE_CHECKS: tuple[Check[Subject], ...] = (
    Check(
        "past and future",
        "Changes each token, and differentiates by it: logits before it must stay, logits at and after it must change.",
        "about 4 T forward and T backward passes",
        f"a leak is more than {LEAK} of the largest logit, or {GRADIENT_LEAK} of the largest gradient: without a leak "
        "both are exactly 0; influence that is exactly 0 is missing, unless it faded away over the distance",
        ("leak", "reach", "position", "scale"),
        check_past_and_future,
    ),
    *ROW_CHECKS,
)

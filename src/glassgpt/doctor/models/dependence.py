"""What each logit depends on: all of its past and nothing else, whatever the mode, the length and the other rows.

By swapping tokens and by gradients, because each misses what the other sees: gradients are blind to paths through
argmax or detach, swaps to differences below rounding. Where zero weights or saturated ones close a path, a copy with
small random weights tells whether the path is there.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from glassgpt.doctor.models.probing import (
    NoDropout,
    affordable_length,
    are_finite,
    difference,
    draws_in_eval,
    first_module_that_differs,
    once_per_subject,
    opened,
    other_rows,
    positions_before,
    quiet,
    quiet_logits,
    rounding,
    sharpened,
    size_of,
    swapped,
)
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed, warned
from glassgpt.doctor.subject import InputGradient, Subject, fixed_random_state
from glassgpt.errors import first_line

#: Of the largest logit: unrelated positions of passes of one shape are bit for bit equal, but for experts, whose
#: matrix products get other shapes. The weakest leak measured was 1.6e-3.
LEAK = 1e-5
#: Of the largest gradient: unrelated tokens have a gradient of exactly zero.
GRADIENT_LEAK = 1e-6
#: Influence, relative to the largest, below which the next position may fall out of float32 (recurrent models forget).
FADING = 1e-5
#: Where positions leak, too, this fraction of pairs without influence is a finding of its own: scrambled positions miss
#: a few pairs by chance.
SCRAMBLED = 0.3


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
    positions = list(range(T)) if positions is None else positions
    effect, others = torch.full((T, T), torch.nan), torch.zeros(T)
    for s in positions:
        change = difference(base, quiet_logits(subject, module, swapped(subject, idx, s)))
        effect[:, s], others[s] = change[0], change[1:].max() if len(idx) > 1 else 0.0
    size = size_of(base)
    again = quiet_logits(subject, module, idx)
    if float(difference(base, again).max()) > LEAK * size:
        raise NotRun("two passes over the same tokens differ, because of a pass between them (see the check of state)")
    return Dependence(idx, effect, others, size)


def add_gradients(subject: Subject, module: nn.Module, found: Dependence) -> None:
    """Measure d (r . logits[0, t]) / d token for every t, where the module can be differentiated."""
    idx, T = found.idx, found.idx.size(1)
    try:
        with fixed_random_state(), torch.enable_grad(), NoDropout(), InputGradient(idx) as tokens:
            logits = subject.logits(module, idx).float()
            r = torch.randn(logits.size(-1), generator=torch.Generator().manual_seed(1))
            if not tokens.leaves or subject.last_only:
                return
            rows = [tokens.gradient((logits[0, t].nan_to_num(neginf=0.0) * r).sum()) for t in range(T)]
    except Exception:  # a model without a backward pass
        return
    found.gradient = torch.stack([row[0] for row in rows])
    found.gradient_others = max((float(row[1:].max()) for row in rows), default=0.0) if len(idx) > 1 else 0.0


@once_per_subject
def dependence_in_eval(subject: Subject) -> Dependence:
    """Swaps and gradients at the probing length, in evaluation mode."""
    module = subject.copy()
    found = measure(subject, module, subject.ids())
    add_gradients(subject, module, found)
    return found


@once_per_subject
def dependence_when_open(subject: Subject) -> Dependence:
    """The same of a copy with small random weights: which paths the code has."""
    module = opened(subject.copy(), subject)
    try:
        found = measure(subject, module, subject.ids())
    except NotRun:
        return dependence_in_eval(subject)
    add_gradients(subject, module, found)
    return found


@once_per_subject
def dependence_in_train(subject: Subject) -> Dependence:
    """Swaps in training mode, without dropout, of a copy with open paths."""
    return measure(subject, opened(subject.copy(train=True), subject), subject.ids())


@dataclass
class _Leak:
    where: str
    t: int
    s: int
    size: float
    module: str | None = None
    evidence: dict[str, float] = field(default_factory=dict)


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
            nearer = strength[s : t, s][strength[s : t, s] > 0]  # the same token, seen from earlier positions
            if len(nearer) > 1 and 0 < float(nearer[-1]) < FADING * largest:
                holes[t, s] = False
    return [(t, s) for t, s in holes.nonzero().tolist()]


def _locate(subject: Subject, module: nn.Module, idx: Tensor, s: int) -> str | None:
    select = positions_before(*idx.shape, s)
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
        leak.module = _locate(subject, opened(subject.copy(), subject), found.idx, leak.s)
        return leak
    try:
        found = dependence_in_train(subject)
    except NotRun:
        return None
    leak = find_leak(found, "training mode")
    if leak is None or float(found.others.max()) > LEAK * found.size:
        return None  # rows mix: the check of rows names it
    leak.module = _locate(subject, opened(subject.copy(train=True), subject), found.idx, leak.s)
    return leak


def _leak_at_other_lengths(subject: Subject) -> _Leak | None:
    """Lengths other than the probing one: 2, half of it, and the full context at three positions."""
    T = subject.length
    lengths = {2, T // 2 + 1, subject.context} - {T}
    for length in sorted(n for n in lengths if 2 <= n <= subject.context and affordable_length(subject, n)):
        module, idx = opened(subject.copy(), subject), subject.ids(1, length, seed=length)
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
        module, idx = opened(subject.copy(), subject), subject.ids(2, subject.context)
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
        f"{len(missing)} of {len(wanted)} pairs have no influence: the logits at position {t} do not depend on token {s}, "
        f"at {length} tokens{hint}",
        missing=len(missing) / len(wanted), pairs=len(wanted), examples=[list(p) for p in missing[:8]], triangle=_triangle(found),
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


def check_rows(subject: Subject) -> Result:
    """A row does not depend on the other rows, nor on its place among them."""
    found = dependence_in_eval(subject)
    shape = found.idx.shape
    trials = [("evaluation mode", found, False)]
    trials += [("evaluation mode, with open paths", dependence_when_open(subject), False)]
    try:
        trials.append(("training mode", dependence_in_train(subject), True))
    except NotRun:
        pass
    for where, seen, train in trials:
        size = float(seen.others.max()) / max(seen.size, 1e-30)
        s = int(seen.others.argmax())
        if size > LEAK:
            module = opened(subject.copy(train), subject)
            other = swapped(subject, seen.idx, s)
            name = first_module_that_differs(subject, module, seen.idx, other, other_rows(*shape), LEAK)
            message = f"a token of row 0 changes the logits of other rows, by {size:.1e} of the largest ({where})"
            verdict = warned if train and _limits_experts(module) else failed
            return verdict("batch mixing", message, name, relative=size, token=s, where=where, threshold=LEAK)
    if found.gradient is not None:
        largest = float(found.gradient.max())
        if found.gradient_others > GRADIENT_LEAK * largest > 0:
            size = found.gradient_others / largest
            message = f"the gradient of row 0 reaches tokens of other rows, {size:.1e} of the largest"
            return failed("batch mixing", message, relative=size, threshold=GRADIENT_LEAK)
    if draws_in_eval(subject):
        return passed("no row changes another one (their order was not examined: evaluation draws random numbers)")
    return _place_among_rows(subject, found.idx)


def _place_among_rows(subject: Subject, idx: Tensor) -> Result:
    module = opened(subject.copy(), subject)
    full, allowed = quiet_logits(subject, module, idx), rounding(subject)
    size = max(size_of(full), 1e-30)
    same = quiet_logits(subject, module, idx[:1].expand_as(idx).contiguous())
    trials = {
        "rows in another order give other logits": (quiet_logits(subject, module, idx.flip(0)).flip(0), full),
        "equal rows give different logits": (same, same[:1].expand_as(same)),
    }
    try:
        trials["a row alone gives other logits than among others"] = quiet_logits(subject, module, idx[:1]), full[:1]
    except Exception as error:
        return failed("batch mixing", f"a single row fails, though {len(idx)} rows work: {first_line(error)}")
    for message, (one, other) in trials.items():
        relative = float(difference(one, other).max()) / size
        if relative > allowed:
            text = f"{message}, by {relative:.1e} of the largest"
            return failed("batch mixing", text, relative=relative, threshold=allowed)
    return passed(f"each of {len(idx)} rows is computed by itself, in both modes")


def _limits_experts(module: nn.Module) -> bool:
    """Whether experts take a limited number of tokens each: then rows compete, which is known and accepted."""
    return any("capacity" in key for part in module.modules() for key in vars(part))


def check_targets_unseen(subject: Subject) -> Result:
    """Logits do not depend on the targets."""
    if subject.targets is None:
        raise NotRun("forward takes no targets")
    idx, worst = subject.ids(), 0.0
    for train in (False, True):
        one, other = (_logits_given(subject, train, idx, subject.ids(seed=seed)) for seed in (1, 2))
        pairs = [(one, other)]
        if not subject.last_only:
            pairs.append((one, quiet_logits(subject, opened(subject.copy(train), subject), idx)))
        for a, b in pairs:
            if a.shape == b.shape:
                worst = max(worst, float(difference(a, b).max()) / max(size_of(a), 1e-30))
    if worst > rounding(subject):
        message = f"the logits change with the targets, by {worst:.1e} of the largest"
        return failed("leak", message, relative=worst, threshold=rounding(subject))
    return passed("the logits are the same whatever the targets")


def _logits_given(subject: Subject, train: bool, idx: Tensor, targets: Tensor) -> Tensor:
    module = opened(subject.copy(train), subject)
    with quiet():
        return subject.forward(module, idx.clone(), targets).logits.float()


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
    Check(
        "rows of a batch",
        "Changes a token of one row, reorders rows, runs a row alone: no row may change another one.",
        "a few passes, with those of past and future",
        f"{LEAK} of the largest logit where shapes are equal (exactly 0 without mixing), else rounding",
        ("batch mixing",),
        check_rows,
    ),
    Check(
        "targets and logits",
        "Gives different targets with the same tokens: the logits must not change.",
        "6 passes",
        "rounding: 1e-4 of the largest logit in float32",
        ("leak",),
        check_targets_unseen,
    ),
)

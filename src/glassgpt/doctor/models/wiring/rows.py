"""Rows of a batch and targets: neither may change the logits of a row."""

from contextlib import suppress

import torch
from torch import Tensor, nn

from glassgpt.doctor.models.probing import (
    difference,
    draws_in_eval,
    first_module_that_differs,
    opened,
    other_rows,
    quiet,
    quiet_logits,
    rounding,
    size_of,
    swapped,
)
from glassgpt.doctor.models.wiring.influence import (
    GRADIENT_LEAK,
    LEAK,
    dependence_in_eval,
    dependence_in_train,
    dependence_when_open,
    is_large,
)
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed, warned
from glassgpt.doctor.subject import Subject
from glassgpt.errors import first_line


def check_rows(subject: Subject) -> Result:
    """A row does not depend on the other rows, nor on its place among them."""
    found = dependence_in_eval(subject)
    shape = found.idx.shape
    trials = [("evaluation mode", found, False)]
    trials += [("evaluation mode, with open paths", dependence_when_open(subject), False)]
    with suppress(NotRun):
        trials.append(("training mode", dependence_in_train(subject), True))
    for where, seen, train in trials:
        size = float(seen.others.max()) / max(seen.size, 1e-30)
        s = int(seen.others.argmax())
        if size > LEAK:
            module = opened(subject.copy(train))
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
    module = opened(subject.copy())
    if not is_large(subject):
        idx = torch.cat([idx, subject.ids(seed=1)])  # more rows: more ways to compete
    full, allowed = quiet_logits(subject, module, idx), rounding(subject)
    size = max(size_of(full), 1e-30)
    same = quiet_logits(subject, module, idx[:1].expand_as(idx).contiguous())
    trials = {
        "rows in another order give other logits": (quiet_logits(subject, module, idx.flip(0)).flip(0), full),
        "equal rows give different logits": (same, same[:1].expand_as(same)),
    }
    try:
        alone = torch.cat([quiet_logits(subject, module, row[None]) for row in idx])
        trials["a row alone gives other logits than among others"] = alone, full
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
            pairs.append((one, quiet_logits(subject, opened(subject.copy(train)), idx)))
        for a, b in pairs:
            if a.shape == b.shape:
                worst = max(worst, float(difference(a, b).max()) / max(size_of(a), 1e-30))
    if worst > rounding(subject):
        message = f"the logits change with the targets, by {worst:.1e} of the largest"
        return failed("leak", message, relative=worst, threshold=rounding(subject))
    return passed("the logits are the same whatever the targets")


def _logits_given(subject: Subject, train: bool, idx: Tensor, targets: Tensor) -> Tensor:
    module = opened(subject.copy(train))
    with quiet():
        return subject.forward(module, idx.clone(), targets).logits.float()


ROW_CHECKS: tuple[Check[Subject], ...] = (
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

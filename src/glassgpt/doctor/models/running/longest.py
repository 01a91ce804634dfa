"""The longest input: the context that a model claims works, and one token more is refused or computed honestly."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from glassgpt.doctor.models.probing import (
    affordable_length,
    are_finite,
    difference,
    draws_in_eval,
    quiet,
    quiet_logits,
    rounding,
    size_of,
)
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed
from glassgpt.doctor.subject import Subject, read_output
from glassgpt.errors import first_line


class _Lookups(TorchDispatchMode):
    """The positions that are looked up in tables: index tensors with one entry per token, and the rows of the table."""

    def __init__(self, length: int):
        super().__init__()
        self.length = length
        self.found: list[tuple[Tensor, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if name.startswith(("aten.embedding.", "aten.index.", "aten.index_select.")):
            listed = isinstance(args[1], (list, tuple))
            for place, index in enumerate(args[1] if listed else args[1:]):
                if not isinstance(index, Tensor) or index.is_floating_point() or index.dtype == torch.bool:
                    continue
                if index.numel() == self.length:
                    rows = args[0].size(place if listed else args[1] if name.startswith("aten.index_select.") else 0)
                    self.found.append((index.detach().flatten().clone(), rows))
        return func(*args, **(kwargs or {}))


def _positions(subject: Subject, idx: Tensor) -> list[tuple[Tensor, int]]:
    """The lookups of a pass over one row that are not lookups of its tokens, each with the rows of its table."""
    with quiet(), _Lookups(idx.size(1)) as seen:
        subject.call(subject.copy(), idx.clone())
    return [(index, rows) for index, rows in seen.found if not torch.equal(index, idx.flatten())]


def _repeats_within(subject: Subject, n: int) -> int | None:
    """The number of rows after which positions clamp or wrap within n tokens, though the table has a row for each."""
    seen = [_positions(subject, subject.ids(1, n, seed)) for seed in (0, 1)]
    for (index, rows), (same, _) in zip(*seen, strict=False):
        counted, used = index - index[0], len(index.unique())
        t = torch.arange(n, device=index.device)
        repeats = any(torch.equal(counted, places) for places in (t % used, t.clamp(max=used - 1)))
        if repeats and torch.equal(index, same) and rows >= n and 1 < used < n:
            return used
    return None


def check_longest_input(subject: Subject) -> Result:
    """The context works; one token more fails, or is computed with a position of its own."""
    n = subject.context
    if not subject.context_known:
        raise NotRun("the longest input is not known; give it with --context")
    if not affordable_length(subject, n * (n if subject.last_only else 1)) and not affordable_length(subject, n):
        raise NotRun(f"a pass over the {n} tokens of the context takes too long here")
    idx = subject.ids(1, n + 1)
    try:
        logits = _raw_logits(subject, idx[:, :n].contiguous())
    except Exception as error:
        longest = _longest_that_works(subject, idx)
        message = f"the context is {n}, but no more than {longest} tokens work: {first_line(error)}"
        return failed("max length", message, context=n, works=longest)
    if (found := logits.size(1)) not in (1, n):
        return failed("max length", f"{n} tokens give logits of {found} positions only", context=n, positions=found)
    if n > 2 and (used := _repeats_within(subject, n)) is not None:
        message = f"{n} tokens get only {used} positions: they clamp or wrap, though the table has {n} rows or more"
        return failed("max length", message, context=n, positions=used)
    return _one_more(subject, idx, logits)


def _raw_logits(subject: Subject, idx: Tensor) -> Tensor:
    """Logits as one call gives them: of all positions, or of the last."""
    targets = idx if subject._needs_targets else None
    with quiet():
        raw = subject.call(subject.copy(), idx.clone(), targets)
        return read_output(raw, len(idx), idx.size(1), subject.vocab)[0].float()


def _longest_that_works(subject: Subject, idx: Tensor) -> int:
    low, high = 1, idx.size(1) - 1
    while high - low > 1:
        middle = (low + high) // 2
        try:
            _raw_logits(subject, idx[:, :middle].contiguous())
            low = middle
        except Exception:
            high = middle
    return low


def _one_more(subject: Subject, idx: Tensor, logits: Tensor) -> Result:
    n = idx.size(1) - 1
    try:
        with quiet():
            raw = subject.call(subject.copy(), idx.clone(), idx if subject._needs_targets else None)
    except Exception as error:
        return passed(f"{n} tokens work, {n + 1} are refused: {type(error).__name__}", context=n)
    try:
        more = read_output(raw, 1, n + 1, subject.vocab)[0].float()
    except NotRun:
        message = f"{n + 1} tokens give the logits of fewer positions: the text is cut without a word"
        return failed("max length", message, context=n)
    if more.size(1) == 1:
        return passed(f"{n} tokens work; of {n + 1} only the last position's logits are returned", context=n)
    if not are_finite(more) and are_finite(logits):
        return failed("max length", f"{n + 1} tokens give logits that are not finite", context=n)
    repeated = _repeated_position(subject, idx)
    if repeated is not None:
        message = f"token {n} gets the position of token {repeated}: beyond the context, positions clamp or wrap"
        return failed("max length", message, context=n, position=repeated)
    if draws_in_eval(subject):
        return passed(f"{n} tokens work, and so do {n + 1}", context=n)
    apart = float(difference(more[:, :n], logits[:, :n]).max()) / max(size_of(logits), 1e-30)
    if apart > rounding(subject):
        shorter = _prefix_difference(subject, idx, logits)
        if shorter <= rounding(subject):  # else prefixes never agree: past and future says so
            message = f"with one token more than the context, {n}, the logits before it change by {apart:.1e}"
            return failed("max length", message, context=n, relative=apart)
    return passed(f"{n} tokens work; {n + 1} do, too, and change nothing before", context=n)


def _repeated_position(subject: Subject, idx: Tensor) -> int | None:
    """The earlier token that the token after the context shares its looked-up position with."""
    n = idx.size(1) - 1
    within = _positions(subject, idx[:, :n].contiguous())
    if not any(len(index.unique()) == n for index, _ in within):
        return None  # positions are not looked up, or are buckets that repeat by design
    for index, _ in _positions(subject, idx):
        same = (index[:n] == index[n]).nonzero()
        if len(same) == 1 and len(index[:n].unique()) == n:
            return int(same[0])
    return None


def _prefix_difference(subject: Subject, idx: Tensor, logits: Tensor) -> float:
    n = idx.size(1) - 1
    shorter = quiet_logits(subject, subject.copy(), idx[:, : n - 1].contiguous())
    return float(difference(shorter, logits[:, : n - 1]).max()) / max(size_of(logits), 1e-30)


LENGTH_CHECKS: tuple[Check[Subject], ...] = (
    Check(
        "longest input",
        "Runs the whole context, and one token more: it must be refused, or get a position of its own.",
        "4 passes over the context",
        "rounding: 1e-4 of the largest logit in float32",
        ("max length",),
        check_longest_input,
    ),
)

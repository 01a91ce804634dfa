"""Validation text in the training data: by the variables behind get_batch, by its draws, by what evaluate reads."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glassgpt.doctor.loops.loop import Loop, Program, attempt
from glassgpt.doctor.loops.quiet import seed_all
from glassgpt.doctor.loops.randomness import variables
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed, warned
from glassgpt.doctor.texts.corpus_checks import hashes_of_runs

PIECE = 48  # tokens: natural text hardly repeats that many
SECONDS = 1.0  # for drawing windows
WINDOWS = 4000
MOST = 2_000_000  # ids of a split that are compared

Ids = np.ndarray[Any, np.dtype[np.int64]]


def leaks(loop: Loop) -> Iterable[Result]:
    """Look for validation windows in the training data."""
    with loop.open() as program:
        program.need("get_batch")
        yield from _evaluated(program)
        train, val = _named(program, "train"), _named(program, "val")
        if train is not None and val is not None:
            yield attempt(partial(_compare_data, train, val))
            return
        rows = [_windows(program, split, seed) for split, seed in (("train", 1), ("val", 2))]
        widths = {len(row) for part in rows for row in part}
        if len(widths) == 1:
            yield attempt(partial(_compare_draws, *(np.stack(part) for part in rows)))
        else:
            yield attempt(partial(_compare_rows, *rows))


def _named(program: Program, kind: str) -> Ids | None:
    """The longest run of ids that the loop, or a variable that get_batch uses, holds under the name of a split."""
    places = variables(program)
    for value in list(places.values()):  # data = {"train": ..., "val": ...}
        places |= value if isinstance(value, dict) and all(isinstance(key, str) for key in value) else {}
    words = ("val", "test") if kind == "val" else ("train",)
    found = [
        _as_ids(v) for name, v in places.items() if any(w in name.lower() for w in words) and not isinstance(v, dict)
    ]
    window = program.draw(kind)[0][0].cpu().numpy()
    return max((ids for ids in found if ids is not None and _contains(ids, window)), key=len, default=None)


def _contains(ids: Ids, window: Ids) -> bool:
    """Whether a window that was drawn is a part of these ids: other arrays have such names, too."""
    starts = np.flatnonzero(ids[: len(ids) - len(window) + 1] == window[0])
    return any(bool((ids[i : i + len(window)] == window).all()) for i in starts)


def _as_ids(value: Any) -> Ids | None:
    if hasattr(value, "__getitem__") and hasattr(value, "__dict__") and not isinstance(value, Tensor | np.ndarray):
        inner = [_as_ids(v) for v in vars(value).values() if isinstance(v, Tensor | np.ndarray | list)]
        if any(ids is not None for ids in inner):
            return max((ids for ids in inner if ids is not None), key=len)
    if isinstance(value, Tensor) and value.dim() == 1 and not value.is_floating_point():
        value = value.cpu().numpy()
    elif isinstance(value, list) and len(value) > PIECE and isinstance(value[0], int):
        value = np.array(value)
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iu" and len(value) > PIECE:
        return np.asarray(value[:MOST], dtype=np.int64)
    return None


def _compare_data(train: Ids, val: Ids) -> Result:
    known, counts = np.unique(hashes_of_runs(train, PIECE), return_counts=True)
    natural = float((counts > 1).mean())
    share = float(np.isin(hashes_of_runs(val, PIECE), known).mean())
    evidence: dict[str, Any] = {
        "share of validation pieces in train": share,
        "share of train pieces that repeat": natural,
        "piece": PIECE,
    }
    if natural > 0.2:
        raise NotRun(f"the training data repeats itself: {natural:.0%} of its pieces of {PIECE} tokens occur again")
    if share > max(0.01, 3 * natural):
        return failed(
            "data leak", f"{share:.0%} of the validation data is in the training data, word for word", **evidence
        )
    return passed(
        f"{share:.1%} of the pieces of {PIECE} tokens of the validation data are in the training data", **evidence
    )


def _windows(program: Program, split: str, seed: int) -> list[Ids]:
    """Draw different windows; what stands after the last change of token (padding) is cut off where widths differ."""
    seed_all(seed)
    drawn: list[Ids] = []
    start = time.perf_counter()
    for _ in range(WINDOWS):
        try:
            x, y = (t.cpu().numpy().astype(np.int64) for t in program.draw(split))
        except Exception:  # of anybody's code: its data is used up
            if len(drawn) < 8:
                raise
            break
        for row, target in zip(x, y, strict=True):
            trained = np.flatnonzero(target >= 0)
            drawn.append(row[: trained[-1] + 1] if len(trained) and (target < 0).any() else row)
        if len(drawn) >= WINDOWS or (len(drawn) >= 8 and time.perf_counter() - start > SECONDS):
            break
    return list({row.tobytes(): row for row in drawn}.values())


def _compare_rows(train: list[Ids], val: list[Ids]) -> Result:
    """Rows of different lengths are whole examples: count those that are in both splits."""
    known = {row.tobytes() for row in train}
    rows = [row for row in val if len(row) >= 12]
    if len(rows) < 8:
        raise NotRun("fewer than 8 different validation rows of at least 12 tokens were drawn")
    share = sum(row.tobytes() in known for row in rows) / len(rows)
    text = f"{share:.0%} of {len(rows)} validation rows are rows of the training split, too"
    evidence: dict[str, Any] = {"share": share, "validation rows": len(rows), "training rows": len(train)}
    if share > 0.5:  # short examples made by a rule meet by chance
        return failed("data leak", text, **evidence)
    return warned("data leak", text, **evidence) if share > 0.25 else passed(text, **evidence)


def _compare_draws(train: Ids, val: Ids) -> Result:
    """Find validation windows that lie over training windows and agree as far as both go."""
    width = train.shape[1]
    if width < 16:
        raise NotRun(f"windows of {width} tokens are too short to tell a leak from natural repetition")
    if _predictable(train):
        raise NotRun("the data is periodic or made by a rule: equal windows say nothing")
    n = min(width // 2, 24)
    index: dict[bytes, list[tuple[int, int]]] = defaultdict(list)
    for row, window in enumerate(train):
        for at in range(0, width - n + 1):
            if len(places := index[window[at : at + n].tobytes()]) < 8:
                places.append((row, at))
    inside = ended = 0
    for window in val:
        agree = [
            _overlap_agrees(window, train[row], at, there)
            for at in range(0, width - n + 1, 4)
            for row, there in index.get(window[at : at + n].tobytes(), ())
            if min(at, there) + width - max(at, there) >= n + width // 4
        ]
        inside += any(agree)
        ended += bool(agree) and not any(agree)
    share = inside / len(val)
    evidence: dict[str, Any] = {
        "validation windows": len(val),
        "in train": inside,
        "only in part": ended,
        "training windows": len(train),
    }
    if inside >= 3 and share > 0.01 and ended <= inside / 2:
        return failed("data leak", f"{inside} of {len(val)} validation windows lie in training windows", **evidence)
    return passed(f"{inside} of {len(val)} validation windows lie in {len(train)} training windows", **evidence)


def _overlap_agrees(a: Ids, b: Ids, at: int, there: int) -> bool:
    shift = there - at
    if shift >= 0:  # b's text begins earlier
        return bool((a[: len(a) - shift] == b[shift:]).all())
    return bool((a[-shift:] == b[: len(b) + shift]).all())


def _predictable(windows: Ids) -> bool:
    """Whether the token before determines the next one, where it is seen often enough to say."""
    after: dict[int, Counter[int]] = defaultdict(Counter)
    for window in windows[:500]:
        for a, b in zip(window[:-1].tolist(), window[1:].tolist(), strict=True):
            after[a][b] += 1
    often = [c for c in after.values() if sum(c.values()) >= 8]
    total = sum(sum(c.values()) for c in often)
    return total > 0 and sum(max(c.values()) for c in often) / total > 0.95


def _evaluated(program: Program) -> Iterable[Result]:
    """Compare what evaluate() and train_step read with the draws of each split from the same random state."""
    for name, wrong in (("evaluate", "train"), ("train_step", "val")):
        if program.get(name) is None or program.model is None:
            continue
        read = _inputs(program, name)
        right = "val" if wrong == "train" else "train"
        draws = {split: _draws(program, split, len(read)) for split in ("train", "val")}
        if not read or _same(draws["train"], draws["val"]):
            continue
        if _same(read, draws[wrong]) and not _same(read, draws[right]):
            yield failed("data leak", f"{name}() reads the batches of get_batch({wrong!r})", batches=len(read))
        if name == "train_step" and _same(read, _inputs(program, name, 6)) and not _same(read, draws["train"]):
            other = _draws(program, "train", len(read), 6)
            if not _same(draws["train"], other):
                yield failed("state", "each training step reads the same batches: a generator is seeded inside it")
    train, val = _draws(program, "train", 3), _draws(program, "val", 3)
    if _same(train, val) and not _uniform(train):
        yield warned("data leak", "get_batch gives the same windows for 'train' and 'val' from the same random state")


def _inputs(program: Program, name: str, seed: int = 5) -> list[Tensor]:
    assert program.model is not None
    read: list[Tensor] = []

    def look(module: object, args: Any, kwargs: Any) -> None:
        ids = next((a for a in [*args, *kwargs.values()] if isinstance(a, Tensor) and not a.is_floating_point()), None)
        if ids is not None and len(read) < 64:
            read.append(ids.clone())

    handle = program.model.register_forward_pre_hook(look, with_kwargs=True)
    seed_all(seed)
    program.get(name)()
    handle.remove()
    return read


def _draws(program: Program, split: str, count: int, seed: int = 5) -> list[Tensor]:
    seed_all(seed)
    return [program.draw(split)[0] for _ in range(count)]


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _uniform(batches: list[Tensor]) -> bool:
    """Whether the tokens are random numbers: nothing can leak then."""
    counts = torch.cat([b.reshape(-1) for b in batches]).bincount().float()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log()).sum()) > 0.95 * math.log(max(len(shares), 2))


LEAK_CHECKS: tuple[Check[Loop], ...] = (
    Check(
        "validation data",
        "looks for validation windows in the training data, and for an evaluation that reads training batches",
        "1 s of drawing batches",
        "1 % of the pieces of 48 tokens, and 3 times the data's own repetition; or 1 % of the windows, at least 3",
        ("data leak", "state"),
        leaks,
    ),
)

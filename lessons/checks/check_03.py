"""The exercises of lesson 3."""

from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice

import torch
from torch import Tensor

from glassgpt.learn.exercises import Exercise, Wrong


def check_collate(answer: Callable[[list[Tensor], int], tuple[Tensor, Tensor]]) -> None:
    """Compare row by row."""
    cases = (
        ([[5, 3, 9], [1, 1, 4, 8, 2], [7, 6]], 0),
        ([[1, 2], [3, 4]], 0),
        ([[4, 5, 6]], 9),
        ([[1, 0, 0, 2], [3, 9]], 9),
    )
    for lists, pad in cases:
        T, where = max(map(len, lists)) - 1, f"for the texts {lists} and pad {pad}"
        found = answer([torch.tensor(ids) for ids in lists], pad)
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise Wrong(f"{where}: it should return two tensors (inputs, targets), and returns {type(found).__name__}")
        for name, part, fill, cut in zip(
            ("inputs", "targets"), found, (pad, -100), (slice(None, -1), slice(1, None)), strict=True
        ):
            if not isinstance(part, Tensor) or part.shape != (len(lists), T):
                shape = list(part.shape) if isinstance(part, Tensor) else part
                raise Wrong(f"{where}: {name} should have the shape [{len(lists)}, {T}], and have {shape!r}")
            if part.dtype != torch.int64:
                raise Wrong(f"{where}: {name} should be int64, and are {part.dtype}")
            for row, ids in enumerate(lists):
                right = [fill] * (T + 1 - len(ids)) + ids[cut]
                if part[row].tolist() != right:
                    raise Wrong(f"{where}: row {row} of {name} should be {right}, and is {part[row].tolist()}")


def check_share(answer: Callable[[Iterator[int], int, int], Iterable[int]]) -> None:
    """Look at all workers together, on streams that end and one that does not."""
    for items in (12, 2):
        for workers in (1, 2, 3):
            shares = [answer(iter(range(items)), worker, workers) for worker in range(workers)]
            if not all(isinstance(share, Iterable) for share in shares):
                raise Wrong(f"it should yield items (or return an iterator), and returns {shares[0]!r}")
            lists = [list(share) for share in shares]
            where = f"a stream of {items} items and {workers} workers"
            together = sorted(item for part in lists for item in part)
            if together != list(range(items)):
                raise Wrong(f"{where}: together they should yield 0 to {items - 1} once each, and yield {together}")
            if max(map(len, lists)) - min(map(len, lists)) > 1:
                raise Wrong(f"{where}: they should yield equally many, and yield {[len(part) for part in lists]}")
    looked_at = 0

    def endless() -> Iterator[int]:
        nonlocal looked_at
        for item in count():
            looked_at += 1
            if looked_at > 1000:
                raise Wrong("of an endless stream, it should yield items at once, and it reads on and on")
            yield item

    first = [list(islice(answer(endless(), worker, 3), 4)) for worker in range(3)]
    if sorted(item for part in first for item in part) != list(range(12)):
        raise Wrong(
            f"of an endless stream, 3 workers should yield 0 to 11 as their first 4 items each, and yield {first}"
        )


EXERCISES = (
    Exercise("collate", "Inputs and targets of texts of different lengths, filled up on the left.", check_collate,
             "As in the lesson, but the slice of a row counts from its end: row[-n:]. Can n be 0 here?"),
    Exercise("share", "The items of a stream that belong to one worker.", check_share,
             "Go through the stream with enumerate; which remainder has the place of an item of this worker?"),
)  # fmt: skip

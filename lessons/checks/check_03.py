"""The exercises of lesson 3."""

from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor

from glassgpt.learn.compare import compare
from glassgpt.learn.exercises import Exercise, Wrong


def check_collate(answer: Callable[[list[Tensor], int], tuple[Tensor, Tensor]]) -> None:
    """Compare row by row."""
    cases = (
        ([[5, 3, 9], [1, 1, 4, 8, 2], [7, 6]], 0),
        ([[1, 2], [3, 4]], 0),
        ([[4, 5, 6]], 9),
        ([[1, 0, 0, 2], [3, 9]], 9),
        ([[1, 9, 9, 2], [3, 9, 4]], 9),
    )
    for lists, pad in cases:
        T, where = max(map(len, lists)) - 1, f"for the texts {lists} and pad {pad}"
        found = answer([torch.tensor(ids) for ids in lists], pad)
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise Wrong(f"{where}: it should return two tensors (inputs, targets), and returns {type(found).__name__}")
        for name, part, fill, cut in zip(
            ("inputs", "targets"), found, (pad, -100), (slice(None, -1), slice(1, None)), strict=True
        ):
            right = [[fill] * (T + 1 - len(ids)) + ids[cut] for ids in lists]
            compare(f"{name} {where}", part, torch.tensor(right))


def check_share(answer: Callable[[Iterator[Any], int, int], Iterable[Any]]) -> None:
    """Look at all workers together, on streams that end and one that does not."""
    for names in ("the items of this stream", "of", "aaaa", ""):
        for workers in (1, 2, 3):
            shares = [answer(enumerate(names), worker, workers) for worker in range(workers)]
            if not all(isinstance(share, Iterable) for share in shares):
                raise Wrong(f"it should yield items (or return an iterator), and returns {shares[0]!r}")
            lists = [list(share) for share in shares]
            where = f"for the stream enumerate({names!r}) and {workers} workers"
            together = sorted(item for part in lists for item in part)
            if together != list(enumerate(names)):
                raise Wrong(f"{where}, together they should yield every item once, and yield {together}")
            if max(map(len, lists)) - min(map(len, lists)) > 1:
                raise Wrong(f"{where}, they should yield equally many, and yield {[len(part) for part in lists]}")
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
        raise Wrong(f"of 0, 1, 2, ... without end, the first 4 items of 3 workers should be 0 to 11, and are {first}")


EXERCISES = (
    Exercise("collate", "Inputs and targets of texts of different lengths, filled up on the left.", check_collate,
             "As in the lesson, but the slice of a row counts from its end: row[-n:]. Can n be 0 here?"),
    Exercise("share", "The items of a stream that belong to one worker.", check_share,
             "Count the items, as enumerate does. Which places belong to worker 0 of 3, and which to worker 1?"),
)  # fmt: skip

"""Documents that repeat an earlier one, word for word or nearly so.

The signatures of :mod:`glassgpt.data.audit.signatures` say how similar two documents are. Only documents are compared
that agree in all numbers of at least one of several bands of their sketches (Leskovec, Rajaraman and Ullman, "Mining of
Massive Datasets", chapter 3).

Signing (:func:`sign`) is a matter of single documents and can be divided between processes; finding (:func:`find_duplicates`)
takes one process, disk, and memory that depends neither on the number of documents nor on how much they repeat each
other.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from math import ceil
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from glassgpt.data.audit.signatures import NO_WORDS, PERMUTATIONS, SignatureFile, Signatures, numbers, sign
from glassgpt.data.audit.sorting import Sorter
from glassgpt.data.audit.words import mixed
from glassgpt.errors import DataError

__all__ = ["Duplicates", "Kind", "Pair", "Signatures", "bands", "find_duplicates", "missed", "sign"]

#: Pairs that are listed at most, of each kind.
LISTED = 5000
#: The names of the files that hold a result.
RESULT, DROPPED = "duplicates.json", "dropped.bin"

Kind = Literal["train", "validation", "across"]

_BLOCK = 8192  # documents, or pairs, that are looked at together
_SMALL = 32  # all documents of a group up to this size are compared with each other
_LEADERS = 64  # in larger ones, each with so many at most
_TRAIN = np.uint64(1 << 63)  # a document's key: whether it trains, 31 bits of its task, 32 of its row


@dataclass(frozen=True)
class Pair:
    """A document that resembles an earlier one.

    Attributes:
        first: task and row of the earliest document that it resembles.
        second: its own task and row.
        similarity: the estimate.
        exact: whether the two texts are the same, character by character.
        kind: whether both train, both are validated with, or the first is validated with and the second trains.
        dropped: whether it is to be dropped; else all that it resembles are.
    """

    first: tuple[int, int]
    second: tuple[int, int]
    similarity: float
    exact: bool
    kind: Kind
    dropped: bool


@dataclass(frozen=True)
class Duplicates:
    """What :func:`find_duplicates` found.

    Attributes:
        folder: where it is kept: other processes can :meth:`open` it.
        documents: how many there are, of each task.
        kinds: documents that resemble an earlier one, by the kind of the pair (see :class:`Pair`).
        exact: documents to drop whose text is that of an earlier one, character by character.
        near: the other documents to drop.
        pairs: the first :data:`LISTED` of each kind, in the order of the second document: validation before training,
            then by task and row.
    """

    folder: Path
    documents: list[int]
    kinds: dict[Kind, int]
    exact: int
    near: int
    pairs: list[Pair]

    def dropped(self, task: int) -> np.ndarray:
        """The rows of a task's documents that are to be dropped, ascending, int64."""
        with (self.folder / DROPPED).open("rb") as stream:
            stream.seek(int(self._offsets[task]))
            return np.flatnonzero(np.frombuffer(stream.read(self.documents[task]), dtype=np.uint8))

    @cached_property
    def _offsets(self) -> np.ndarray:
        return np.cumsum([0, *self.documents])

    @classmethod
    def open(cls, folder: Path) -> "Duplicates":
        """Read the result that :func:`find_duplicates` left in a folder.

        Raises:
            DataError: if there is none.
        """
        try:
            content = json.loads((folder / RESULT).read_text(encoding="utf-8"))
            pairs = [
                Pair(**{**pair, "first": tuple(pair["first"]), "second": tuple(pair["second"])})
                for pair in content.pop("pairs")
            ]
            found = cls(folder=folder, pairs=pairs, **content)
            if (folder / DROPPED).stat().st_size != sum(found.documents):
                raise ValueError(f"{DROPPED} is of another size")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{folder} holds no list of duplicates: {error}") from None
        return found


def find_duplicates(paths: Sequence[Path], scratch: Path, threshold: float = 0.8) -> Duplicates:
    """Find the documents that resemble an earlier one, and say which to drop.

    Documents are in order: validation before training, then by task and row. Going through them in that order, a
    document is dropped if it resembles an earlier one that is not dropped itself. (So if b resembles a, and c
    resembles b but not a, then b is dropped and c stays.) "Resembles" means that the texts are the same, or that the
    two sketches agree in at least ``threshold`` of their numbers and in all numbers of a band. Documents without any
    word resemble only those with the same text. The result depends on the texts and their order alone, not on how
    they are divided into tasks.

    At the threshold of 0.8 there are 21 bands of 6 numbers. A pair that is 0.8 similar is found about as often as not
    (its estimate falls on either side, by 0.035 as the standard deviation); of pairs that are 0.85 similar 6.4 % are
    missed, at 0.9 0.036 %, at 1.0 none. Of pairs that are 0.7 similar 0.5 % are taken for duplicates, at 0.6 less than
    one in a million. (:func:`missed` computes these.)

    Where more than 32 documents agree in a band, each is compared only with up to 64 leaders, the first of these
    documents that resemble no earlier leader: else pages from one mould, by the thousand, would take time and disk
    by the square of their number.

    Args:
        paths: the file of signatures of each task, in order.
        scratch: a folder for the result and, while this works, for about 350 bytes a document.
        threshold: the similarity from which on a document counts as a duplicate; above 0, up to 1.

    Raises:
        DataError: if a file of signatures cannot be read.
        ValueError: if the threshold is out of its range.
    """
    needed = _needed(threshold)
    scratch.mkdir(parents=True, exist_ok=True)
    shelf = _Shelf(paths)
    with tempfile.TemporaryDirectory(prefix="duplicates-", dir=scratch) as folder:
        groups, candidates = Sorter(Path(folder) / "groups"), Sorter(Path(folder) / "candidates")
        for task in range(len(paths)):
            for part in _groups(shelf, task, *bands(threshold)):
                groups.add(part)
        for pairs in _candidates(groups.sorted(), shelf, needed):
            candidates.add(pairs)
        flags = Path(folder) / DROPPED
        with flags.open("w+b", buffering=0) as stream:
            stream.truncate(sum(shelf.counts))
            decision = _Decision(stream, shelf.counts)
            for edges in _verified(candidates.sorted(), shelf, needed):
                decision.take(*edges)
            decision.finish()
        (scratch / RESULT).unlink(missing_ok=True)
        os.replace(flags, scratch / DROPPED)
        found = Duplicates(scratch, shelf.counts, decision.kinds, decision.exact, decision.near, decision.pairs)
        content = {name: value for name, value in asdict(found).items() if name != "folder"}
        (Path(folder) / RESULT).write_text(json.dumps(content), encoding="utf-8")
        os.replace(Path(folder) / RESULT, scratch / RESULT)
    return found


class _Shelf:
    """The signatures of all tasks, by the documents' keys."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths
        self.file = lru_cache(maxsize=1024)(self._file)
        self.counts = [SignatureFile(path).documents for path in paths]

    def _file(self, task: int) -> SignatureFile:
        return SignatureFile(self.paths[task])

    def rows(self, name: str, keys: np.ndarray) -> np.ndarray:
        """The rows of documents, in the order of ``keys`` (``[n]`` uint64)."""
        places, back = np.unique(keys & ~_TRAIN, return_inverse=True)
        tasks = places >> np.uint64(32)
        rows = (places & np.uint64(0xFFFFFFFF)).astype(np.int64)
        begins = np.flatnonzero(np.append(True, np.diff(places) != 1))  # of runs of neighbours
        ends = np.append(begins[1:], len(places)) - 1
        runs = zip(tasks[begins].tolist(), rows[begins].tolist(), (rows[ends] + 1).tolist(), strict=True)
        found = [
            self.file(task).picked(name, [(begin, end) for _, begin, end in part])
            for task, part in groupby(runs, key=itemgetter(0))
        ]
        return np.concatenate(found)[back]


def bands(threshold: float) -> tuple[int, int]:
    """How many bands of how many numbers: the widest that miss at most 1 % of the pairs at the threshold."""
    for rows in range(PERMUTATIONS, 1, -1):
        number = PERMUTATIONS // rows
        if (1 - threshold**rows) ** number <= 0.01:
            return number, rows
    return PERMUTATIONS, 1


def missed(similarity: float, threshold: float = 0.8) -> float:
    """The probability that a pair of documents of that similarity is not found, by chance of the hash functions."""
    number, rows = bands(threshold)
    needed = _needed(threshold)

    def agreeing(count: int) -> np.ndarray:
        """The probabilities that 0, 1, ... of so many numbers agree."""
        chances = np.ones(1)
        for _ in range(count):
            chances = np.convolve(chances, [1 - similarity, similarity])
        return chances

    without = agreeing(PERMUTATIONS - number * rows)  # of those in no band, then with one band after the other
    for _ in range(number):
        without = np.convolve(without, agreeing(rows)[:-1])  # where not all of its numbers agree
    return float(1 - agreeing(PERMUTATIONS)[needed:].sum() + without[needed:].sum())


def _needed(threshold: float) -> int:
    """How many numbers have to agree."""
    if not 0 < threshold <= 1:
        raise ValueError(f"the threshold is {threshold}; it has to be above 0 and at most 1")
    return ceil(threshold * PERMUTATIONS - 1e-9)


def _entries(shelf: _Shelf, task: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The keys, digests and sketches of a task's documents, some at a time."""
    file = shelf.file(task)
    for begin in range(0, file.documents, _BLOCK):
        end = min(begin + _BLOCK, file.documents)
        keys = np.arange(begin, end, dtype=np.uint64) | np.uint64(task << 32)
        keys[~file.rows("validation", begin, end)] |= _TRAIN
        yield keys, file.rows("digest", begin, end), file.rows("sketches", begin, end)


def _groups(shelf: _Shelf, task: int, number: int, rows: int) -> Iterator[np.ndarray]:
    """For each group that a document is in, the group's hash and the document's key, ``[n, 2]`` uint64 at a time.

    There is a group for each text, and for each band in which the sketches of documents with words agree.
    """
    factors, terms = np.split(numbers(rows + number), [rows])
    for keys, digests, sketches in _entries(shelf, task):
        yield np.stack([mixed(np.ascontiguousarray(digests[:, :8]).view("<u8")[:, 0]), keys], axis=1)
        has_words = ~(sketches == NO_WORDS).all(axis=1)
        parts = sketches[has_words, : number * rows].reshape(-1, number, rows).astype(np.uint64)
        hashes = mixed((parts * factors).sum(axis=2) + terms)
        yield np.stack([hashes.ravel(), np.repeat(keys[has_words], number)], axis=1)


def _candidates(groups: Iterator[np.ndarray], shelf: _Shelf, needed: int) -> Iterator[np.ndarray]:
    """Pairs to compare, the later document first, ``[n, 2]`` uint64 at a time, from groups in order."""
    carry, leaders = np.empty((0, 2), dtype=np.uint64), None
    for block in groups:
        block = np.concatenate([carry, block])
        borders = np.flatnonzero(block[1:, 0] != block[:-1, 0]) + 1
        borders = np.concatenate([[0], borders, [len(block)]])
        small = np.diff(borders) <= _SMALL
        if leaders and leaders.group == block[0, 0]:
            small[0] = False
        carry = block[borders[-2] :] if small[-1] else block[:0]  # may go on in the next block
        for begin, end in np.stack([borders[:-1], borders[1:]], axis=1)[~small].tolist():
            if not leaders or leaders.group != block[begin, 0]:
                leaders = _Leaders(block[begin, 0], shelf, needed)
            yield from leaders.take(block[begin:end, 1])
        small[-1] = False
        yield from _all_pairs(block[np.repeat(small, np.diff(borders))])
    yield from _all_pairs(carry)


def _all_pairs(entries: np.ndarray) -> Iterator[np.ndarray]:
    """All pairs of documents of each group."""
    first = np.arange(len(entries))
    for distance in range(1, _SMALL):
        first = first[first + distance < len(entries)]
        first = first[entries[first, 0] == entries[first + distance, 0]]
        if not len(first):
            return
        yield np.stack([entries[first + distance, 1], entries[first, 1]], axis=1)


class _Leaders:
    """The documents of a large group that stand for the others."""

    def __init__(self, group: np.uint64, shelf: _Shelf, needed: int):
        self.group = group
        self.shelf = shelf
        self.needed = needed
        self.keys: list[np.uint64] = []
        self.sketches: list[np.ndarray] = []

    def take(self, keys: np.ndarray) -> Iterator[np.ndarray]:
        """Compare the next documents of the group, in order, with the leaders; some become leaders."""
        for begin in range(0, len(keys), _BLOCK):
            part = keys[begin : begin + _BLOCK]
            sketches = self.shelf.rows("sketches", part)
            alone = np.ones(len(part), dtype=bool)
            for number in range(_LEADERS):
                if number < len(self.keys):
                    after = 0
                elif alone.any():
                    after = int(np.argmax(alone)) + 1
                    self.keys.append(part[after - 1])
                    self.sketches.append(sketches[after - 1].copy())
                    alone[after - 1] = False
                else:
                    break
                similar = after + np.flatnonzero(_agreeing(sketches[after:], self.sketches[number]) >= self.needed)
                alone[similar] = False
                yield np.stack([part[similar], np.full(len(similar), self.keys[number])], axis=1)


def _agreeing(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.count_nonzero(one == other, axis=1)


#: Later and earlier documents (keys), how many numbers agree, and whether the texts are the same; ``[n]`` each.
_Edges = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _verified(candidates: Iterator[np.ndarray], shelf: _Shelf, needed: int) -> Iterator[_Edges]:
    """The pairs that resemble each other, in order."""
    for pairs in candidates:
        for begin in range(0, len(pairs), _BLOCK):
            late, early = pairs[begin : begin + _BLOCK].T
            agreeing = _agreeing(shelf.rows("sketches", late), shelf.rows("sketches", early))
            same = np.flatnonzero(agreeing == PERMUTATIONS)
            exact = np.zeros(len(late), dtype=bool)
            if len(same):
                exact[same] = (shelf.rows("digest", late[same]) == shelf.rows("digest", early[same])).all(axis=1)
            found = agreeing >= needed  # documents without words come here only if their texts are the same
            yield late[found], early[found], agreeing[found], exact[found]


class _Decision:
    """Goes through the pairs in order and decides which documents to drop.

    Args:
        stream: a file of one byte for each document, 0; becomes 1 for those to drop.
        counts: the documents of each task.
    """

    def __init__(self, stream: BinaryIO, counts: Sequence[int]):
        self.stream = stream
        self.offsets = np.cumsum([0, *counts]).tolist()
        self.kinds: dict[Kind, int] = {"train": 0, "validation": 0, "across": 0}
        self.exact = self.near = 0
        self.pairs: list[Pair] = []
        self.document: int | None = None  # the one that is being decided, and what is known of it so far
        self.earliest, self.agreeing, self.is_same = 0, 0, False  # of the first pair
        self.drop = self.is_copy = False

    def take(self, late: np.ndarray, early: np.ndarray, agreeing: np.ndarray, exact: np.ndarray) -> None:
        """The next pairs, in the order of the later document and then of the earlier one."""
        columns = (late.tolist(), early.tolist(), agreeing.tolist(), exact.tolist())
        for document, earlier, count, same in zip(*columns, strict=True):
            if document != self.document:
                self.finish()
                self.document, self.drop, self.is_copy = document, False, False
                self.earliest, self.agreeing, self.is_same = earlier, count, same
            self.is_copy = self.is_copy or same
            self.drop = self.drop or not self._is_dropped(earlier)

    def finish(self) -> None:
        """Decide on the document whose pairs were the last."""
        if self.document is None:
            return
        if self.drop:
            self.stream.seek(self._place(self.document))
            self.stream.write(b"\1")
            self.exact += self.is_copy
            self.near += not self.is_copy
        trains = [bool(key >> 63) for key in (self.earliest, self.document)]
        kind: Kind = "across" if trains[0] != trains[1] else "train" if trains[0] else "validation"
        self.kinds[kind] += 1
        if self.kinds[kind] <= LISTED:
            first, second = _place(self.earliest), _place(self.document)
            similarity = self.agreeing / PERMUTATIONS
            self.pairs.append(Pair(first, second, similarity, self.is_same, kind, self.drop))
        self.document = None

    def _is_dropped(self, key: int) -> bool:
        self.stream.seek(self._place(key))
        return self.stream.read(1) == b"\1"

    def _place(self, key: int) -> int:
        task, row = _place(key)
        return int(self.offsets[task] + row)


def _place(key: int) -> tuple[int, int]:
    """Task and row of a document."""
    return key >> 32 & 0x7FFFFFFF, key & 0xFFFFFFFF

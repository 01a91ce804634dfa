"""Find pairs of similar documents by their signatures, with locality-sensitive hashing.

Two documents are compared only if their sketches agree in all numbers of at least one of several bands (Leskovec,
Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3). A document's key is a uint64: 1 bit for the training
split, 31 bits for its task, 32 for its row. So the order of keys is: validation before training, then by task and row.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from math import ceil
from operator import itemgetter
from pathlib import Path

import numpy as np

from glassgpt.data.audit.signatures import NO_WORDS, PERMUTATIONS, SignatureFile, numbers
from glassgpt.data.audit.sorting import Sorter
from glassgpt.data.hashing import splitmix64

#: Keys of the later and the earlier documents, how many numbers agree, whether the texts are equal; ``[n]`` each.
SimilarPairs = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

_BLOCK = 8192  # documents, or pairs, that are compared at a time
_SMALL = 32  # all documents of a group up to this size are compared with each other
_LEADERS = 64  # in larger groups, each is compared with at most so many
_TRAIN = np.uint64(1 << 63)  # the first bit of a key


class SignatureStore:
    """Reads the signatures of all tasks by the documents' keys."""

    def __init__(self, paths: Sequence[Path]):
        self.file = lru_cache(maxsize=1024)(lambda task: SignatureFile(paths[task]))
        self.counts = [SignatureFile(path).documents for path in paths]

    def rows(self, name: str, keys: np.ndarray) -> np.ndarray:
        """Read the rows of documents, in the order of ``keys`` (``[n]`` uint64)."""
        places, inverse = np.unique(keys & ~_TRAIN, return_inverse=True)
        tasks = places >> np.uint64(32)
        rows = (places & np.uint64(0xFFFFFFFF)).astype(np.int64)
        begins = np.flatnonzero(np.append(True, np.diff(places) != 1))  # of runs of consecutive rows
        ends = np.append(begins[1:], len(places)) - 1
        runs = zip(tasks[begins].tolist(), rows[begins].tolist(), (rows[ends] + 1).tolist(), strict=True)
        found = [
            self.file(task).read_runs(name, [(begin, end) for _, begin, end in part])
            for task, part in groupby(runs, key=itemgetter(0))
        ]
        return np.concatenate(found)[inverse]


def bands(threshold: float) -> tuple[int, int]:
    """Choose (bands, numbers in a band): the widest bands that miss at most 1 % of the pairs at the threshold."""
    for rows in range(PERMUTATIONS, 1, -1):
        number = PERMUTATIONS // rows
        if (1 - threshold**rows) ** number <= 0.01:
            return number, rows
    return PERMUTATIONS, 1


def missed(similarity: float, threshold: float = 0.8) -> float:
    """Compute the probability that a pair of documents of that similarity is not found."""
    number, rows = bands(threshold)
    needed = min_agreeing(threshold)

    def agreeing(count: int) -> np.ndarray:
        """The probabilities that 0, 1, ... of so many numbers agree."""
        chances = np.ones(1)
        for _ in range(count):
            chances = np.convolve(chances, [1 - similarity, similarity])
        return chances

    no_band = agreeing(PERMUTATIONS - number * rows)  # the numbers in no band, then one band after the other
    for _ in range(number):
        no_band = np.convolve(no_band, agreeing(rows)[:-1])  # not all numbers of the band agree
    return float(1 - agreeing(PERMUTATIONS)[needed:].sum() + no_band[needed:].sum())


def min_agreeing(threshold: float) -> int:
    """Give the number of sketch numbers that must agree.

    Raises:
        ValueError: if the threshold is out of range.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"the threshold is {threshold}; it must be above 0 and at most 1")
    return ceil(threshold * PERMUTATIONS - 1e-9)


def similar_pairs(store: SignatureStore, folder: Path, threshold: float) -> Iterator[SimilarPairs]:
    """Find all pairs, in the order of the later and then the earlier document; ``folder`` is for temporary files."""
    needed = min_agreeing(threshold)
    groups, candidates = Sorter(folder / "groups"), Sorter(folder / "candidates")
    for task in range(len(store.counts)):
        for entries in _groups(store, task, *bands(threshold)):
            groups.add(entries)
    for pairs in _candidates(groups.sorted(), store, needed):
        candidates.add(pairs)
    for block in candidates.sorted():
        for begin in range(0, len(block), _BLOCK):
            late, early = block[begin : begin + _BLOCK].T
            agreeing = _agreeing(store.rows("sketches", late), store.rows("sketches", early))
            same = np.flatnonzero(agreeing == PERMUTATIONS)
            exact = np.zeros(len(late), dtype=bool)
            if len(same):
                exact[same] = (store.rows("digest", late[same]) == store.rows("digest", early[same])).all(axis=1)
            similar = agreeing >= needed  # documents without words are candidates only if their texts are equal
            yield late[similar], early[similar], agreeing[similar], exact[similar]


def _agreeing(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.count_nonzero(one == other, axis=1)


def _groups(store: SignatureStore, task: int, number: int, rows: int) -> Iterator[np.ndarray]:
    """For each group of each document, give the group's hash and the document's key, ``[n, 2]`` uint64 at a time.

    There is a group for each text, and for each band in which the sketches of documents with words agree.
    """
    factors, terms = np.split(numbers(rows + number), [rows])
    file = store.file(task)
    for begin in range(0, file.documents, _BLOCK):
        end = min(begin + _BLOCK, file.documents)
        keys = np.arange(begin, end, dtype=np.uint64) | np.uint64(task << 32)
        keys[~file.rows("validation", begin, end)] |= _TRAIN
        digests, sketches = file.rows("digest", begin, end), file.rows("sketches", begin, end)
        yield np.stack([splitmix64(np.ascontiguousarray(digests[:, :8]).view("<u8")[:, 0]), keys], axis=1)
        has_words = ~(sketches == NO_WORDS).all(axis=1)
        parts = sketches[has_words, : number * rows].reshape(-1, number, rows).astype(np.uint64)
        hashes = splitmix64((parts * factors).sum(axis=2) + terms)
        yield np.stack([hashes.ravel(), np.repeat(keys[has_words], number)], axis=1)


def _candidates(groups: Iterator[np.ndarray], store: SignatureStore, needed: int) -> Iterator[np.ndarray]:
    """Give the pairs to compare, the later document first, ``[n, 2]`` uint64 at a time, from sorted groups."""
    carry, leaders = np.empty((0, 2), dtype=np.uint64), None
    for block in groups:
        block = np.concatenate([carry, block])
        borders = np.flatnonzero(block[1:, 0] != block[:-1, 0]) + 1
        borders = np.concatenate([[0], borders, [len(block)]])
        small = np.diff(borders) <= _SMALL
        if leaders and leaders.group == block[0, 0]:
            small[0] = False
        carry = block[borders[-2] :] if small[-1] else block[:0]  # may continue in the next block
        for begin, end in np.stack([borders[:-1], borders[1:]], axis=1)[~small].tolist():
            if not leaders or leaders.group != block[begin, 0]:
                leaders = _Leaders(block[begin, 0], store, needed)
            yield from leaders.compare(block[begin:end, 1])
        small[-1] = False
        yield from _all_pairs(block[np.repeat(small, np.diff(borders))])
    yield from _all_pairs(carry)


def _all_pairs(entries: np.ndarray) -> Iterator[np.ndarray]:
    """Give all pairs of documents of each group."""
    first = np.arange(len(entries))
    for distance in range(1, _SMALL):
        first = first[first + distance < len(entries)]
        first = first[entries[first, 0] == entries[first + distance, 0]]
        if not len(first):
            return
        yield np.stack([entries[first + distance, 1], entries[first, 1]], axis=1)


class _Leaders:
    """The documents of a large group that stand for the others."""

    def __init__(self, group: np.uint64, store: SignatureStore, needed: int):
        self.group, self.store, self.needed = group, store, needed
        self.keys: list[np.uint64] = []
        self.sketches: list[np.ndarray] = []

    def compare(self, keys: np.ndarray) -> Iterator[np.ndarray]:
        """Compare the next documents of the group, in order, with the leaders; some become leaders."""
        for begin in range(0, len(keys), _BLOCK):
            part = keys[begin : begin + _BLOCK]
            sketches = self.store.rows("sketches", part)
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

"""Find documents that repeat an earlier one, exactly or nearly, and decide which to drop.

Texts that are equal are found by their hash, near duplicates by MinHash with the library datasketch. Two documents are
compared by their sets of shingles, the runs of five consecutive words (see :mod:`glassgpt.data.audit.words`); a
document of fewer words has one shingle, all of its words. Their similarity is Jaccard's: shingles in both, divided by
shingles in either. A sketch has :data:`PERMUTATIONS` numbers, of which about that fraction agrees between two
documents.

Each document is signed alone, in any number of processes (:func:`sign`). Then :func:`find_duplicates` looks at them one
after the other, with an index in memory of the documents that stay: about 9 KB for each, so 9 GB for a million. Beyond
that, use datatrove, and prepare its result.
"""

import hashlib
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from glassgpt.data.audit.words import blocks, runs, words
from glassgpt.errors import MissingExtraError

#: Numbers in a sketch.
PERMUTATIONS = 128
#: Words in a shingle.
SHINGLE = 5
#: Bands of the index, and numbers in a band. Documents are compared if they agree in all numbers of a band.
BANDS = (21, 6)
#: The least fraction of numbers that agree between near duplicates.
THRESHOLD = 0.8
#: Most pairs that are listed, of each kind.
LISTED = 5000

#: A row of the array that :func:`sign` gives.
SIGNATURE = np.dtype([("digest", "V16"), ("validation", "?"), ("has_words", "?"), ("sketch", "<u4", PERMUTATIONS)])
_SHINGLES = 1 << 10  # at a time: the numbers of so many fit into the cache

Kind = Literal["train", "validation", "across"]
Place: TypeAlias = tuple[int, int]  # task and row of a document


@dataclass(frozen=True)
class Pair:
    """A document that is dropped, and the earlier one that it is similar to."""

    first: Place  # the first document with the same text, or else the first similar one
    second: Place
    similarity: float  # the estimate
    exact: bool  # whether the two texts are equal, character by character
    kind: Kind  # the split of both; "across": first validation, second training


@dataclass
class Duplicates:
    """The result of :func:`find_duplicates`.

    ``pairs`` has the first :data:`LISTED` of each kind, in the order of the second document: validation before
    training, then by task and row.
    """

    dropped: list[np.ndarray]  # of each task: whether each document is dropped, bool
    kinds: dict[Kind, int] = field(default_factory=lambda: {"train": 0, "validation": 0, "across": 0})  # how many
    exact: int = 0  # documents to drop whose text equals that of an earlier one, character by character
    near: int = 0  # the other documents to drop
    pairs: list[Pair] = field(default_factory=list)

    def add(self, pair: Pair) -> None:
        """Drop the second document of a pair."""
        task, row = pair.second
        self.dropped[task][row] = True
        self.exact += pair.exact
        self.near += not pair.exact
        self.kinds[pair.kind] += 1
        if self.kinds[pair.kind] <= LISTED:
            self.pairs.append(pair)


def load_datasketch() -> Any:
    """Import datasketch.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import datasketch
    except ImportError:
        raise MissingExtraError("datasketch", "data", "finding duplicates") from None
    return datasketch


def sign(texts: Iterable[str], validation: Iterable[bool]) -> np.ndarray:
    """Sign documents, ``[D]`` of :data:`SIGNATURE`; the same on every machine.

    Args:
        texts: the documents; one is in memory at a time.
        validation: whether each is in the validation split; read after its text.

    Raises:
        ValueError: if their numbers are not equal.
    """
    empty = load_datasketch().MinHash(PERMUTATIONS, hashfunc=operator.index)  # words are hashed already
    signatures = []
    for text, is_validation in zip(texts, validation, strict=True):
        digest, sketch, has_words = hashlib.blake2b(digest_size=16), empty.copy(), False
        for block, offset in blocks(text, SHINGLE):
            hashes, _ = words(block)
            shingles = runs(hashes, min(SHINGLE, len(hashes)) if offset == 0 else SHINGLE) >> np.uint64(32)
            has_words = has_words or len(hashes) > 0
            for begin in range(0, len(shingles) if has_words else 0, _SHINGLES):
                sketch.update_batch(shingles[begin : begin + _SHINGLES].tolist())
        for begin in range(0, len(text), 1 << 20):
            digest.update(text[begin : begin + (1 << 20)].encode("utf-8", "surrogatepass"))
        signatures.append((digest.digest(), is_validation, has_words, sketch.hashvalues))
    return np.array(signatures, dtype=SIGNATURE)


def find_duplicates(paths: Sequence[Path]) -> Duplicates:
    """Find the documents that are similar to an earlier one that stays; all of these are dropped.

    Documents are in order: validation before training, then by task and row. In this order, a document is dropped if it
    is similar to an earlier one that is not dropped itself. (So if b is similar to a, and c is similar to b but not to
    a, then b is dropped and c stays.) Two documents are similar if their texts are equal, or if their sketches agree in
    at least :data:`THRESHOLD` of their numbers and in all numbers of a band. Documents without any word are similar
    only if their texts are equal. The result depends only on the texts and their order, not on how they are divided
    into tasks.

    With 21 bands of 6 numbers, a pair that is 0.8 similar is found about half of the time (the standard deviation of
    its estimate is 0.035); of pairs that are 0.85 similar 6.4 % are missed, at 0.9 0.036 %, at 1.0 none. Of pairs that
    are 0.7 similar 0.5 % are taken for duplicates, at 0.6 less than one in a million.

    Args:
        paths: the signatures of each task, in order, as ``np.save`` wrote them.
    """
    tasks = [np.load(path, mmap_mode="r") for path in paths]
    index = _Index(tasks)
    same: dict[bytes, Place] = {}  # the first document with each text
    found = Duplicates([np.zeros(len(task), dtype=bool) for task in tasks])
    for place in _in_order(tasks):
        signature, similarity = tasks[place[0]][place[1]], 1.0
        first = same.setdefault(signature["digest"].tobytes(), place)
        exact = first != place
        if not exact and signature["has_words"]:
            first, similarity = index.find_or_add(place)
        if first != place:
            splits = [bool(tasks[task]["validation"][row]) for task, row in (first, place)]
            kind: Kind = "across" if splits[0] != splits[1] else "validation" if splits[0] else "train"
            found.add(Pair(first, place, similarity, exact, kind))
    return found


def _in_order(tasks: Sequence[np.ndarray]) -> Iterator[Place]:
    for is_validation in (True, False):
        for number, task in enumerate(tasks):
            for row in np.flatnonzero(task["validation"] == is_validation).tolist():
                yield number, row


class _Index:
    """The documents that stay, by the bands of their sketches."""

    def __init__(self, tasks: Sequence[np.ndarray]):
        self.datasketch = load_datasketch()
        self.lsh = self.datasketch.MinHashLSH(num_perm=PERMUTATIONS, params=BANDS)
        self.tasks = tasks
        self.places: list[Place] = []  # of the documents, by their keys in the index

    def find_or_add(self, place: Place) -> tuple[Place, float]:
        """Find the first document that is similar to one, and their similarity; add the document if there is none."""
        sketch = np.array(self.tasks[place[0]]["sketch"][place[1]])
        hashed = self.datasketch.LeanMinHash(seed=1, hashvalues=sketch, scheme="affine32")
        for key in sorted(self.lsh.query(hashed)):
            task, row = self.places[key]
            similarity = float(np.mean(self.tasks[task]["sketch"][row] == sketch))
            if similarity >= THRESHOLD:
                return (task, row), similarity
        self.lsh.insert(len(self.places), hashed)
        self.places.append(place)
        return place, 1.0

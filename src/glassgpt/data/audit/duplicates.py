"""Find documents that repeat an earlier one, exactly or nearly, and decide which to drop.

Each document is signed alone (:func:`glassgpt.data.audit.signatures.sign`), in any number of processes. Then
:func:`find_duplicates` works in one process, with disk, and with memory that depends neither on the number of documents
nor on the number of repetitions.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from glassgpt.data.audit.pairs import SignatureStore, SimilarPairs, min_agreeing, similar_pairs
from glassgpt.data.audit.signatures import PERMUTATIONS
from glassgpt.files import atomic_write

#: Most pairs that are listed, of each kind.
LISTED = 5000
#: The file with one byte for each document: 1 for a dropped one, else 0.
DROPPED = "dropped.bin"

Kind = Literal["train", "validation", "across"]


@dataclass(frozen=True)
class Pair:
    """A document that is similar to an earlier one."""

    first: tuple[int, int]  # task and row of the earliest document that is similar to it
    second: tuple[int, int]  # its own task and row
    similarity: float  # the estimate
    exact: bool  # whether the two texts are equal, character by character
    kind: Kind  # the split of both; "across": first validation, second training
    dropped: bool  # whether the second document is dropped. If not, all documents that it is similar to are dropped


@dataclass(frozen=True)
class Duplicates:
    """The result of :func:`find_duplicates`.

    ``pairs`` has the first :data:`LISTED` of each kind, in the order of the second document: validation before
    training, then by task and row.
    """

    folder: Path  # of the file DROPPED
    documents: list[int]  # how many there are in each task
    kinds: dict[Kind, int]  # how many documents are similar to an earlier one, by the kind of the pair
    exact: int  # documents to drop whose text equals that of an earlier one, character by character
    near: int  # the other documents to drop
    pairs: list[Pair]

    def dropped(self, task: int) -> np.ndarray:
        """Give the rows of a task's documents that are dropped, ascending, int64 ``[n]``."""
        offset, count = sum(self.documents[:task]), self.documents[task]
        return np.flatnonzero(np.fromfile(self.folder / DROPPED, dtype=np.uint8, count=count, offset=offset))


def find_duplicates(paths: Sequence[Path], scratch: Path, threshold: float = 0.8) -> Duplicates:
    """Find the documents that are similar to an earlier one, and decide which to drop.

    Documents are in order: validation before training, then by task and row. In this order, a document is dropped if it
    is similar to an earlier one that is not dropped itself. (So if b is similar to a, and c is similar to b but not to
    a, then b is dropped and c stays.) Two documents are similar if their texts are equal, or if their sketches agree in
    at least ``threshold`` of their numbers and in all numbers of a band. Documents without any word are similar only if
    their texts are equal. The result depends only on the texts and their order, not on how they are divided into tasks.

    At the threshold of 0.8 there are 21 bands of 6 numbers. A pair that is 0.8 similar is found about half of the time
    (the standard deviation of its estimate is 0.035); of pairs that are 0.85 similar 6.4 % are missed, at 0.9 0.036 %,
    at 1.0 none. Of pairs that are 0.7 similar 0.5 % are taken for duplicates, at 0.6 less than one in a million.
    (:func:`glassgpt.data.audit.pairs.missed` computes these.)

    If more than 32 documents agree in a band, each is compared only with up to 64 leaders, the first of these documents
    that are not similar to an earlier leader. Otherwise thousands of pages from one template would take time and disk
    space that grow with the square of their number.

    Args:
        paths: the file of signatures of each task, in order.
        scratch: a folder for the result and, meanwhile, for about 350 bytes per document.
        threshold: the least similarity of duplicates; above 0, up to 1.

    Raises:
        DataError: if a file of signatures cannot be read.
        ValueError: if the threshold is out of range.
    """
    min_agreeing(threshold)
    scratch.mkdir(parents=True, exist_ok=True)
    store = SignatureStore(paths)
    with (
        tempfile.TemporaryDirectory(prefix="duplicates-", dir=scratch) as folder,
        atomic_write(scratch / DROPPED) as file,
        file.open("w+b", buffering=0) as stream,
    ):
        stream.truncate(sum(store.counts))
        decision = _Decision(stream, store.counts)
        for pairs in similar_pairs(store, Path(folder), threshold):
            decision.add(pairs)
        decision.finish()
    return Duplicates(scratch, store.counts, decision.kinds, decision.exact, decision.near, decision.pairs)


class _Decision:
    """Goes through the pairs in order, and writes a 1 to ``stream`` for each document to drop."""

    def __init__(self, stream: BinaryIO, counts: Sequence[int]):
        self.stream = stream
        self.offsets = np.cumsum([0, *counts]).tolist()
        self.kinds: dict[Kind, int] = {"train": 0, "validation": 0, "across": 0}
        self.exact = self.near = 0
        self.pairs: list[Pair] = []
        self.document: int | None = None  # the current document: a key
        self.earliest, self.agreeing, self.is_same = 0, 0, False  # its first pair
        self.drop = self.is_copy = False

    def add(self, pairs: SimilarPairs) -> None:
        """Add the next pairs, in the order of the later document and then of the earlier one."""
        for document, earlier, count, same in zip(*(column.tolist() for column in pairs), strict=True):
            if document != self.document:
                self.finish()
                self.document, self.drop, self.is_copy = document, False, False
                self.earliest, self.agreeing, self.is_same = earlier, count, same
            self.is_copy = self.is_copy or same
            self.drop = self.drop or not self._is_dropped(earlier)

    def finish(self) -> None:
        """Decide on the current document."""
        if self.document is None:
            return
        if self.drop:
            self.stream.seek(self._offset(self.document))
            self.stream.write(b"\1")
            self.exact += self.is_copy
            self.near += not self.is_copy
        in_training = [bool(key >> 63) for key in (self.earliest, self.document)]
        kind: Kind = "across" if in_training[0] != in_training[1] else "train" if in_training[0] else "validation"
        self.kinds[kind] += 1
        if self.kinds[kind] <= LISTED:
            first, second = _task_and_row(self.earliest), _task_and_row(self.document)
            similarity = self.agreeing / PERMUTATIONS
            self.pairs.append(Pair(first, second, similarity, self.is_same, kind, self.drop))
        self.document = None

    def _is_dropped(self, key: int) -> bool:
        self.stream.seek(self._offset(key))
        return self.stream.read(1) == b"\1"

    def _offset(self, key: int) -> int:
        task, row = _task_and_row(key)
        return int(self.offsets[task] + row)


def _task_and_row(key: int) -> tuple[int, int]:
    return key >> 32 & 0x7FFFFFFF, key & 0xFFFFFFFF

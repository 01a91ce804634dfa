"""Which tokens make batch k: a pure function of (seed, k, global batch size), and of nothing else.

The stream is cut into windows of block_size tokens. Every epoch visits each window once, in an order of its own, with
the cuts moved by an offset of its own. The order is a permutation that is computed, not stored (a small Feistel
network), so neither memory nor start-up grows with the corpus, and any batch can be had at once: resuming is asking for
the next k. Ranks, workers and micro-batches take rows of the same global batch.

The order is one of two. *Random*: any window after any other. *Sequential*, for corpora that are larger than memory:
shard after shard, the shards shuffled every epoch, and within a shard windows shuffled among their :data:`NEARBY`
neighbours, so that a disk reads on instead of jumping.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from glassgpt.data.corpus.shards import Ids, Tokens
from glassgpt.errors import DataError

#: Windows among which one is shuffled in the sequential order.
NEARBY = 1024
#: Samples whose places are computed together, at most (one by one takes a hundred times as long), and at least.
TOGETHER, LEAST_TOGETHER = 4096, 16
#: Bytes of ids from which "auto" means the sequential order.
LARGE = 1 << 30


@dataclass(frozen=True)
class Batches:
    """Batches of inputs and targets from a token stream.

    Args:
        tokens: the ids, ``[N]``: an array, or those of a prepared corpus.
        block_size: tokens in a row, T.
        batch_size: rows in the global batch.
        seed: of the order.
        order: "random", "sequential", or "auto": sequential for more than a gigabyte of ids.

    Raises:
        DataError: if the stream is shorter than one row and its targets.
    """

    tokens: Ids
    block_size: int
    batch_size: int
    seed: int
    order: Literal["auto", "random", "sequential"] = "random"

    def __post_init__(self) -> None:
        if len(self.tokens) < self.block_size + 1:
            raise DataError(
                f"the training text has {len(self.tokens)} tokens; a context of {self.block_size} needs at least "
                f"{self.block_size + 1}. Use a longer text, or block_size={max(1, len(self.tokens) - 1)} or less"
            )
        if self.windows == 0:  # many small shards, sequentially
            raise DataError(
                f"no shard has {self.block_size + 1} tokens in a row; use order=random or a shorter context"
            )

    @cached_property
    def sequential(self) -> bool:
        """Whether shards are taken one after another."""
        large = self.order == "auto" and len(self.tokens) * self.tokens.dtype.itemsize > LARGE
        return isinstance(self.tokens, Tokens) and (large or self.order == "sequential")

    @cached_property
    def _pieces(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What windows do not cross, shards or the whole: first token, windows, offsets, each ``[pieces]``."""
        first, lengths = np.array([0]), np.array([len(self.tokens)])
        if self.sequential:
            assert isinstance(self.tokens, Tokens)
            first, lengths = self.tokens.begins, self.tokens.ends - self.tokens.begins
        whole = np.maximum(lengths - 1, 0) // self.block_size
        spare = np.maximum(lengths - 1, 0) % self.block_size
        # A moving offset needs room for block_size - 1 tokens; with a single window only what is spare can move.
        windows = np.where((whole <= 1) | (spare == self.block_size - 1), whole, whole - 1)
        return first, windows, np.minimum(self.block_size, lengths - windows * self.block_size)

    @cached_property
    def windows(self) -> int:
        """Rows in an epoch, the same in every epoch."""
        return int(self._pieces[1].sum())

    @property
    def offsets(self) -> int:
        """How many places the first cut of an epoch may have (in the sequential order: of the first shard)."""
        return int(self._pieces[2][0])

    def starts(self, k: int, rows: slice = slice(None)) -> np.ndarray:
        """Where each row of batch k begins in the stream: int64 ``[rows]``."""
        samples = k * self.batch_size + np.arange(self.batch_size, dtype=np.int64)[rows]
        starts = np.empty_like(samples)
        block = samples // self._together
        for b in np.unique(block):
            here = block == b
            starts[here] = self._block(int(b))[samples[here] % self._together]
        return starts

    def _block(self, b: int) -> np.ndarray:
        """Where the samples of the b-th so many begin; kept, as the next batches want the same."""
        if b not in self._blocks:
            while len(self._blocks) > 1:
                self._blocks.pop(next(iter(self._blocks)))
            samples = b * self._together + np.arange(self._together, dtype=np.int64)
            epoch, place = np.divmod(samples, self.windows)
            starts = np.empty_like(samples)
            for e in np.unique(epoch):
                here = epoch == e
                starts[here] = self._in_epoch(place[here], int(e))
            self._blocks[b] = starts
        return self._blocks[b]

    @cached_property
    def _together(self) -> int:
        """Samples in such a block: of few epochs, as each is computed by itself."""
        return min(TOGETHER, max(LEAST_TOGETHER, 4 * self.windows))

    @cached_property
    def _blocks(self) -> dict[int, np.ndarray]:
        """The last two that were asked for."""
        return {}

    def _in_epoch(self, place: np.ndarray, epoch: int) -> np.ndarray:
        """Where the windows that come at some places of an epoch begin."""
        if not self.sequential:
            return _permute(place, self.windows, self.seed, epoch) * self.block_size + self._offset(0, epoch)
        firsts, windows, _ = self._pieces
        order = _permute(np.arange(len(windows)), len(windows), self.seed + 1, epoch)  # of the shards
        ends = np.cumsum(windows[order])
        turn = np.searchsorted(ends, place, side="right")
        starts = np.empty_like(place)
        for t in np.unique(turn):
            here, shard = turn == t, int(order[t])
            count = int(windows[shard])
            inside = place[here] - (ends[t] - count)
            for block in np.unique(inside // NEARBY):
                among = inside // NEARBY == block
                size = min(NEARBY, count - int(block) * NEARBY)
                key = int(_mix(np.array([self.seed, shard]), int(block))[1] >> np.uint64(1))
                moved = _permute(inside[among] - block * NEARBY, size, key, epoch)
                inside[among] = block * NEARBY + moved
            starts[here] = firsts[shard] + inside * self.block_size + self._offset(shard, epoch)
        return starts

    def _offset(self, piece: int, epoch: int) -> int:
        """By how much the cuts of a piece are moved in an epoch."""
        room = np.uint64(self._pieces[2][piece])
        return int(_mix(np.array([self.seed + piece, 0x0FF5E7]), epoch)[0] % room)

    def get(self, k: int, rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Batch k: inputs and targets, int64 ``[rows, block_size]`` each; targets are one token further on."""
        index = self.starts(k, rows)[:, None] + np.arange(self.block_size + 1)  # [rows, T + 1]
        window = self.tokens[index].astype(np.int64)
        return window[:, :-1], window[:, 1:]

    def documents(self, k: int, rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """For batch k: which document each input belongs to, and its position, both int64 ``[rows, block_size]``."""
        return document_positions(self.tokens, self.starts(k, rows), self.block_size)


def document_positions(tokens: Ids, starts: Sequence[int] | np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Of windows of a stream: the document of each token, and its position, both int64 ``[windows, length]``.

    Positions count from the beginning of the document, or of the window where the document began before it.

    Args:
        tokens: the stream; an array without documents is one document.
        starts: where the windows begin, ``[windows]``.
        length: tokens in a window.
    """
    index = np.asarray(starts)[:, None] + np.arange(length)  # [windows, T]
    if not isinstance(tokens, Tokens):
        return np.zeros(index.shape, dtype=np.int64), np.broadcast_to(np.arange(length), index.shape).copy()
    ids = tokens.document_of(index)
    begins = np.zeros(index.shape, dtype=np.int64)
    begins[:, 1:] = np.where(ids[:, 1:] != ids[:, :-1], np.arange(1, length), 0)
    return ids, np.arange(length) - np.maximum.accumulate(begins, axis=1)


def _mix(values: np.ndarray, key: int) -> np.ndarray:
    """Scramble 64-bit integers with a key (the finaliser of splitmix64, Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        z = values.astype(np.uint64) + np.uint64(key % 2**63) * np.uint64(0x9E3779B97F4A7C15)
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _permute(place: np.ndarray, size: int, seed: int, epoch: int, rounds: int = 6) -> np.ndarray:
    """A permutation of range(size), keyed by (seed, epoch), applied to some of its members.

    A balanced Feistel network permutes the next even power of two; members that land outside are sent round again
    until they land inside (cycle walking, Black and Rogaway, 2002).
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = np.uint64(2**half - 1)
    key = int(_mix(np.array([seed]), epoch)[0])
    result = place.astype(np.uint64)
    outside = np.ones(result.shape, dtype=bool)
    while outside.any():
        left, right = result[outside] >> np.uint64(half), result[outside] & low
        for i in range(rounds):
            left, right = right, left ^ (_mix(right, key + i) & low)
        result[outside] = (left << np.uint64(half)) | right
        outside[outside] = result[outside] >= size
    return result.astype(np.int64)

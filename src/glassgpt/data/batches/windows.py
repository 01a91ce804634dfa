"""Choose the tokens of batch k: a pure function of (seed, k, global batch size).

The stream is cut into windows of block_size tokens. Every epoch visits each window once, in a new order, and shifts all
cuts by a new offset. In as many epochs as there are offsets at which the windows fit, each offset occurs once. So every
token but the first becomes a target. The order is a permutation that is computed, not stored (a small Feistel network).
So memory and start-up time do not grow with the corpus, any batch can be read at once, and resuming means reading the
next k. Ranks, workers and micro-batches take rows of the same global batch.

There are two orders. *Random*: a permutation of all windows. *Sequential*, for corpora larger than memory: the shards
are shuffled every epoch and read one after another, and within a shard windows are shuffled only among their
:data:`NEARBY` neighbours, so that a disk reads ahead instead of seeking.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from glassgpt.data.corpus.shards import Ids, Tokens
from glassgpt.data.hashing import splitmix64
from glassgpt.errors import DataError

#: In the sequential order, a window is shuffled within a group of this many.
NEARBY = 1024
#: Window starts are computed in chunks of at most, and at least, so many: one by one takes a hundred times as long.
CHUNK, MIN_CHUNK = 4096, 16
#: order="auto" is sequential for more than this many bytes of ids.
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
        all_offsets: False gives the batches of older runs, whose offsets were less than block_size: up to
            block_size - 1 tokens at the end never became targets.

    Raises:
        DataError: if the stream is shorter than one row and its targets.
    """

    tokens: Ids
    block_size: int
    batch_size: int
    seed: int
    order: Literal["auto", "random", "sequential"] = "random"
    all_offsets: bool = True

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
        """Whether shards are read one after another."""
        large = self.order == "auto" and len(self.tokens) * self.tokens.dtype.itemsize > LARGE
        return isinstance(self.tokens, Tokens) and (large or self.order == "sequential")

    @cached_property
    def _segments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Segments that no window crosses (shards, or the full stream): first token, windows, offsets, ``[S]`` each."""
        first, lengths = np.array([0]), np.array([len(self.tokens)])
        if self.sequential:
            assert isinstance(self.tokens, Tokens)
            first, lengths = self.tokens.begins, self.tokens.ends - self.tokens.begins
        full = np.maximum(lengths - 1, 0) // self.block_size
        spare = np.maximum(lengths - 1, 0) % self.block_size
        # block_size offsets need block_size - 1 spare tokens: one window is given up, unless it is the only one
        windows = np.where((full <= 1) | (spare == self.block_size - 1), full, full - 1)
        offsets = lengths - windows * self.block_size
        return first, windows, offsets if self.all_offsets else np.minimum(self.block_size, offsets)

    @cached_property
    def windows(self) -> int:
        """Rows in an epoch; the same in every epoch."""
        return int(self._segments[1].sum())

    def get(self, k: int, rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Read batch k: (idx, targets), int64 ``[rows, T]`` each; targets are shifted by one token."""
        places = self.starts(k, rows)[:, None] + np.arange(self.block_size + 1)  # [rows, T + 1]
        window = self.tokens[places].astype(np.int64)
        idx, targets = window[:, :-1], window[:, 1:]
        return idx, targets

    def documents(self, k: int, rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Give (document_ids, position_ids) of the inputs of batch k, int64 ``[rows, T]`` each."""
        return document_positions(self.tokens, self.starts(k, rows), self.block_size)

    def starts(self, k: int, rows: slice = slice(None)) -> np.ndarray:
        """Give the first token of each row of batch k: int64 ``[rows]``."""
        samples = k * self.batch_size + np.arange(self.batch_size, dtype=np.int64)[rows]
        starts = np.empty_like(samples)
        chunks = samples // self._chunk_size
        for chunk in np.unique(chunks):
            here = chunks == chunk
            starts[here] = self._cached_starts(int(chunk))[samples[here] % self._chunk_size]
        return starts

    def _cached_starts(self, chunk: int) -> np.ndarray:
        """Window starts of one chunk of samples. The last two chunks are kept, for the next batches."""
        if chunk not in self._cache:
            while len(self._cache) > 1:
                self._cache.pop(next(iter(self._cache)))
            samples = chunk * self._chunk_size + np.arange(self._chunk_size, dtype=np.int64)
            epochs, places = np.divmod(samples, self.windows)
            starts = np.empty_like(samples)
            for epoch in np.unique(epochs):
                here = epochs == epoch
                starts[here] = self._starts_in_epoch(places[here], int(epoch))
            self._cache[chunk] = starts
        return self._cache[chunk]

    @cached_property
    def _chunk_size(self) -> int:
        """Samples in a chunk; few epochs, as each epoch in it is computed separately."""
        return min(CHUNK, max(MIN_CHUNK, 4 * self.windows))

    @cached_property
    def _cache(self) -> dict[int, np.ndarray]:
        return {}

    def _starts_in_epoch(self, places: np.ndarray, epoch: int) -> np.ndarray:
        """Window starts at the given places in the order of an epoch."""
        if not self.sequential:
            return permute(places, self.windows, self.seed, epoch) * self.block_size + self._offset(0, epoch)
        firsts, windows, _ = self._segments
        shards = permute(np.arange(len(windows)), len(windows), self.seed + 1, epoch)
        ends = np.cumsum(windows[shards])
        turns = np.searchsorted(ends, places, side="right")
        starts = np.empty_like(places)
        for turn in np.unique(turns):
            here, shard = turns == turn, int(shards[turn])
            count = int(windows[shard])
            inside = places[here] - (ends[turn] - count)
            groups = inside // NEARBY
            for group in np.unique(groups).tolist():
                first, size = group * NEARBY, min(NEARBY, count - group * NEARBY)
                key = int(_mix(np.array([self.seed, shard]), group)[1] >> np.uint64(1))
                inside[groups == group] = first + permute(inside[groups == group] - first, size, key, epoch)
            starts[here] = firsts[shard] + inside * self.block_size + self._offset(shard, epoch)
        return starts

    def _offset(self, segment: int, epoch: int) -> int:
        """By how many tokens the cuts of a segment are shifted in an epoch: by each offset once in so many epochs."""
        offsets, seed = int(self._segments[2][segment]), self.seed + segment
        if not self.all_offsets:
            return int(_mix(np.array([seed, 0x0FF5E7]), epoch)[0] % np.uint64(offsets))
        cycle, place = divmod(epoch, offsets)
        return int(permute(np.array([place]), offsets, seed + 0x0FF5E7, cycle)[0])


def document_positions(tokens: Ids, starts: Sequence[int] | np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Give (document_ids, position_ids) of windows of a stream, int64 ``[windows, length]`` each.

    Positions count from the first token of the document, or of the window if the document began before it.

    Args:
        tokens: the stream; an array without documents is one document.
        starts: the first token of each window, ``[windows]``.
        length: tokens in a window.
    """
    places = np.asarray(starts)[:, None] + np.arange(length)  # [windows, T]
    if not isinstance(tokens, Tokens):
        return np.zeros(places.shape, dtype=np.int64), np.broadcast_to(np.arange(length), places.shape).copy()
    document_ids = tokens.document_of(places)
    begins = np.zeros(places.shape, dtype=np.int64)
    begins[:, 1:] = np.where(document_ids[:, 1:] != document_ids[:, :-1], np.arange(1, length), 0)
    position_ids = np.arange(length) - np.maximum.accumulate(begins, axis=1)
    return document_ids, position_ids


def _mix(values: np.ndarray, key: int) -> np.ndarray:
    """Scramble 64-bit integers with a key."""
    with np.errstate(over="ignore"):
        return splitmix64(values.astype(np.uint64) + np.uint64(key % 2**63) * np.uint64(0x9E3779B97F4A7C15))


def permute(places: np.ndarray, size: int, seed: int, epoch: int, rounds: int = 6) -> np.ndarray:
    """Apply a permutation of range(size), keyed by (seed, epoch), to some of its members ``[n]``: int64 ``[n]``.

    A balanced Feistel network permutes the next even power of two; members that land outside are permuted again until
    they land inside (cycle walking, Black and Rogaway, 2002). Ours, because the permutations of NumPy and torch
    are stored: 8 bytes for each window.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = np.uint64(2**half - 1)
    key = int(_mix(np.array([seed]), epoch)[0])
    result = places.astype(np.uint64)
    outside = np.ones(result.shape, dtype=bool)
    while outside.any():
        left, right = result[outside] >> np.uint64(half), result[outside] & low
        for i in range(rounds):
            left, right = right, left ^ (_mix(right, key + i) & low)
        result[outside] = (left << np.uint64(half)) | right
        outside[outside] = result[outside] >= size
    return result.astype(np.int64)

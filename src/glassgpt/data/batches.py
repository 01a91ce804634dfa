"""Which tokens make batch k: a pure function of (seed, k, global batch size), and of nothing else.

The stream is cut into windows of block_size tokens. Every epoch visits each window once, in an order of its own,
with the cuts moved by an offset of its own. The order is a permutation that is computed, not stored (a small
Feistel network), so neither memory nor start-up grows with the corpus, and any batch can be had at once: resuming
is asking for the next k. Ranks and micro-batches take rows of the same global batch.
"""

from dataclasses import dataclass

import numpy as np

from glassgpt.errors import DataError

#: Target value of positions that do not count in the loss.
IGNORE_INDEX = -100


@dataclass(frozen=True)
class Batches:
    """Batches of inputs and targets from a token stream.

    Args:
        tokens: the ids, ``[N]``.
        block_size: tokens in a row, T.
        batch_size: rows in the global batch.
        seed: of the order.

    Raises:
        DataError: if the stream is shorter than one row and its targets.
    """

    tokens: np.ndarray
    block_size: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.tokens) < self.block_size + 1:
            raise DataError(
                f"the training text has {len(self.tokens)} tokens; a context of {self.block_size} needs at least "
                f"{self.block_size + 1}. Use a longer text, or block_size={max(1, len(self.tokens) - 1)} or less"
            )

    @property
    def windows(self) -> int:
        """Rows in an epoch, the same in every epoch."""
        spare = (len(self.tokens) - 1) % self.block_size
        whole = (len(self.tokens) - 1) // self.block_size
        # A moving offset needs room for block_size - 1 tokens; with a single window only what is spare can move.
        return whole if whole == 1 or spare == self.block_size - 1 else whole - 1

    @property
    def offsets(self) -> int:
        """How many places the first cut of an epoch may have."""
        return min(self.block_size, len(self.tokens) - self.windows * self.block_size)

    def starts(self, k: int, rows: slice = slice(None)) -> np.ndarray:
        """Where each row of batch k begins in the stream: int64 ``[rows]``."""
        sample = k * self.batch_size + np.arange(self.batch_size, dtype=np.int64)[rows]
        epoch, place = np.divmod(sample, self.windows)
        starts = np.empty_like(sample)
        for e in np.unique(epoch):
            here = epoch == e
            offset = int(_mix(np.array([self.seed, 0x0FF5E7]), int(e))[0] % np.uint64(self.offsets))
            starts[here] = _permute(place[here], self.windows, self.seed, int(e)) * self.block_size + offset
        return starts

    def get(self, k: int, rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Batch k: inputs and targets, int64 ``[rows, block_size]`` each; targets are one token further on."""
        index = self.starts(k, rows)[:, None] + np.arange(self.block_size + 1)  # [rows, T + 1]
        window = self.tokens[index].astype(np.int64)
        return window[:, :-1], window[:, 1:]


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

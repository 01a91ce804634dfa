"""Choose the conversations of batch k: a pure function of (seed, k, global batch size)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from glassgpt.data.batch import IGNORE_INDEX, Batch
from glassgpt.data.batches.windows import permute
from glassgpt.data.conversations.encoding import Row
from glassgpt.data.conversations.packing import pack


@dataclass(frozen=True, eq=False)
class ChatBatches:
    """Batches of encoded conversations. Every epoch visits each row of the batches once, in a new order.

    Inputs are a conversation without its last token, targets are the conversation shifted by one token; targets that
    are not trained are IGNORE_INDEX. Shorter rows are padded on the right to the longest row of the global batch, so
    all ranks and micro-batches have the same length.

    With packing, a row of a batch holds several conversations, always the same ones: attention stays inside each of
    them (``document_ids``), and ``position_ids`` restart. So a conversation has the loss that it has alone.

    Args:
        rows: at least one conversation, none with more than block_size + 1 tokens.
        block_size: tokens in a row of a batch at most.
        batch_size: rows in the global batch.
        seed: of the order.
        packing: whether to pack conversations.
    """

    rows: Sequence[Row]
    block_size: int
    batch_size: int
    seed: int
    packing: bool

    def __post_init__(self) -> None:
        assert self.rows and max(self._lengths) <= self.block_size, "no rows, or longer ones than the context"

    @cached_property
    def _lengths(self) -> list[int]:
        """Positions that each conversation takes: its tokens less one."""
        return [len(row.ids) - 1 for row in self.rows]

    @cached_property
    def packs(self) -> list[list[int]]:
        """The conversations in each row of the batches, by their places in ``rows``."""
        return pack(self._lengths, self.block_size) if self.packing else [[i] for i in range(len(self.rows))]

    @property
    def num_rows(self) -> int:
        """Rows of batches in an epoch: packs, or conversations."""
        return len(self.packs)

    @property
    def num_tokens(self) -> int:
        """Input tokens in an epoch, without padding."""
        return sum(self._lengths)

    @property
    def tokens_per_batch(self) -> int:
        """Input tokens in a batch on average, without padding."""
        return round(self.num_tokens / self.num_rows * self.batch_size)

    @cached_property
    def num_trained(self) -> int:
        """Targets that count, in an epoch."""
        return sum(int(row.trained[1:].sum()) for row in self.rows)

    @cached_property
    def num_padding(self) -> int:
        """Padding tokens of the first epoch's rows, each padded to the longest of its global batch."""
        count = -(-self.num_rows // self.batch_size) * self.batch_size  # with the rest of the last batch
        sizes = self._pack_lengths[self._order(np.arange(count))].reshape(-1, self.batch_size)
        return int((sizes.max(axis=1, keepdims=True) - sizes).ravel()[: self.num_rows].sum())

    def get(self, k: int, rows: slice = slice(None)) -> Batch:
        """Make batch k: ``rows`` of its ``batch_size`` rows."""
        order = self._order(np.arange(k * self.batch_size, (k + 1) * self.batch_size))
        width = int(self._pack_lengths[order].max())
        packs = [self.packs[i] for i in order[rows].tolist()]
        idx = np.zeros((len(packs), width), dtype=np.int64)
        targets = np.full_like(idx, IGNORE_INDEX)
        document_ids = np.zeros_like(idx)
        position_ids = np.zeros_like(idx)
        for row, members in enumerate(packs):
            begin = 0
            for number, member in enumerate(members):
                ids, trained = self.rows[member].ids, self.rows[member].trained
                part = slice(begin, begin := begin + len(ids) - 1)
                idx[row, part] = ids[:-1]
                targets[row, part] = np.where(trained[1:], ids[1:], IGNORE_INDEX)
                document_ids[row, part] = number
                position_ids[row, part] = np.arange(len(ids) - 1)
            document_ids[row, begin:] = len(members)  # padding is a document of its own
            position_ids[row, begin:] = np.arange(width - begin)
        parts = (idx, targets, document_ids, position_ids) if self.packing else (idx, targets)
        return Batch(*map(torch.from_numpy, parts))

    @cached_property
    def _pack_lengths(self) -> np.ndarray:
        return np.array([sum(self._lengths[i] for i in members) for members in self.packs])

    def _order(self, samples: np.ndarray) -> np.ndarray:
        """The rows of batches at these places of the endless order of epochs."""
        epochs, places = np.divmod(samples, self.num_rows)
        order = np.empty_like(samples)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            order[here] = permute(places[here], self.num_rows, self.seed, epoch)
        return order


def split_rows(rows: Sequence[Row], val_fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split conversations into training and validation by the hash of their tokens.

    So equal conversations are in the same split, and further conversations move none. Validation gets at least the
    conversation with the smallest hash; but nothing if all conversations are equal, or if the fraction is zero.

    Args:
        rows: the conversations.
        val_fraction: share of the conversations that validates, about.
        seed: of the hash.
    """
    shares = np.array([_share(row, seed) for row in rows])
    limit = max(val_fraction, np.nextafter(shares.min(), 1)) if len(rows) and val_fraction > 0 else 0.0
    validates = shares < limit
    if validates.all():
        validates = shares < (shares.max() if len(rows) else 0)  # something is left to train on
    train = [row for row, val in zip(rows, validates, strict=True) if not val]
    return train, [row for row, val in zip(rows, validates, strict=True) if val]


def choose_rows(rows: Sequence[Row], max_tokens: int, seed: int) -> list[Row]:
    """Choose rows by chance until the next has no room in max_tokens; at least one, always the same ones."""
    order = permute(np.arange(len(rows)), len(rows), seed, 0)
    ends = np.cumsum([len(rows[i].ids) for i in order])
    return [rows[i] for i in sorted(order[: max(1, int((ends <= max_tokens).sum()))].tolist())]


def _share(row: Row, seed: int) -> float:
    """Map a conversation to [0, 1), evenly."""
    digest = hashlib.blake2b(row.ids.tobytes(), digest_size=8, key=seed.to_bytes(16, "little")).digest()
    return int.from_bytes(digest[:6], "little") / 2**48

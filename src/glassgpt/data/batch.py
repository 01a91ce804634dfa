"""A batch of tokens, as the loader gives it to the model."""

from typing import NamedTuple

import torch
from torch import Tensor

#: Target value of positions that do not count in the loss.
IGNORE_INDEX = -100


class Batch(NamedTuple):
    """Rows to train on.

    Attributes:
        idx: input token ids, int64 ``[B, T]``.
        targets: token ids to predict, int64 ``[B, T]``; IGNORE_INDEX where a position does not count.
        document_ids: the document of each token, ``[B, T]``; attention stays inside a document. None: one document.
        position_ids: the position of each token in its document, ``[B, T]``. None: 0 to T - 1.
    """

    idx: Tensor
    targets: Tensor
    document_ids: Tensor | None = None
    position_ids: Tensor | None = None

    def micro_batch(self, start: int, stop: int, device: torch.device) -> "Batch":
        """Copy rows ``start`` to ``stop`` to a device; from pinned memory to a GPU asynchronously."""
        parts = (None if part is None else part[start:stop].to(device, non_blocking=True) for part in self)
        return Batch._make(parts)

    def num_loss_tokens(self) -> int:
        """Count the targets that are not IGNORE_INDEX."""
        return int((self.targets != IGNORE_INDEX).sum())


def random_batch(vocab_size: int, rows: int, block_size: int) -> Batch:
    """A batch of random tokens for timing, always the same."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab_size, (rows, block_size + 1), generator=generator)
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())

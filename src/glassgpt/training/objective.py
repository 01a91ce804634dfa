"""Objectives: what training makes small. A function from a model and a batch to a sum of losses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glassgpt.data import IGNORE_INDEX
from glassgpt.model import GPT
from glassgpt.plan import CHUNKED_LOSS_VOCABULARY
from glassgpt.training.cross_entropy import summed_cross_entropy

#: From this vocabulary on, all logits of a micro-batch are never held at once.
LARGE_VOCABULARY = CHUNKED_LOSS_VOCABULARY


@dataclass(frozen=True)
class Batch:
    """Inputs ``idx [B, T]`` and ``targets [B, T]``; targets of IGNORE_INDEX do not count.

    With ``document_ids`` and ``positions``, both ``[B, T]``, tokens see only those of their own document.
    """

    idx: Tensor
    targets: Tensor
    document_ids: Tensor | None = None
    positions: Tensor | None = None

    def rows(self, start: int, stop: int, device: torch.device) -> "Batch":
        """Some rows of it, on a device; to a GPU, pinned ones are copied while it computes."""
        parts: list[Any] = [self.idx, self.targets, self.document_ids, self.positions]
        parts = [part if part is None else part[start:stop].to(device, non_blocking=True) for part in parts]
        return Batch(*parts)

    def counted(self) -> int:
        """How many targets count in the loss. The loss is their mean, however the batch is cut for accumulation."""
        return int((self.targets != IGNORE_INDEX).sum())


#: The summed loss of the targets that count, a scalar in nats. Training divides by their number in the whole batch.
Objective = Callable[[GPT, Batch], Tensor]


def next_token_loss(model: GPT, batch: Batch) -> Tensor:
    """Cross-entropy of the next token, summed, in nats."""
    targets = batch.targets.flatten()  # [B T]
    features = model.features(batch.idx, positions=batch.positions, document_ids=batch.document_ids)
    features = features.flatten(0, 1)  # [B T, C]
    if model.config.vocab_size >= LARGE_VOCABULARY:
        return summed_cross_entropy(features, model.head.weight, targets, IGNORE_INDEX)
    logits = model.head(features).float()  # [B T, V]
    return F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")


class Objected(nn.Module):
    """A model and its objective as one module: batch in, summed loss out. What DistributedDataParallel wraps."""

    def __init__(self, model: GPT, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> Tensor:
        """The summed loss, a scalar."""
        return self.objective(self.model, batch)

"""Objectives: what training makes small. A function from a model and a batch to the loss of each token."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glassgpt.data import IGNORE_INDEX


@dataclass(frozen=True)
class Batch:
    """Inputs ``idx [B, T]`` and ``targets [B, T]``; targets of IGNORE_INDEX do not count."""

    idx: Tensor
    targets: Tensor

    def rows(self, start: int, stop: int, device: torch.device) -> "Batch":
        """Some rows of it, on a device."""
        return Batch(self.idx[start:stop].to(device), self.targets[start:stop].to(device))

    def counted(self) -> int:
        """How many targets count in the loss. The loss is their mean, however the batch is cut for accumulation."""
        return int((self.targets != IGNORE_INDEX).sum())


#: Loss of every token, ``[B, T]``, zero where the target does not count.
Objective = Callable[[nn.Module, Batch], Tensor]


def next_token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the next token, in nats: ``[B, T]``."""
    logits = model(batch.idx)  # [B, T, V]
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return losses.view_as(batch.targets)

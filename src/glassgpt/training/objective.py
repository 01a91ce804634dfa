"""Objectives: what training makes small. A function from a model and a batch to a sum of losses."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from glassgpt.data.batch import IGNORE_INDEX, Batch
from glassgpt.estimate import LARGE_VOCABULARY
from glassgpt.model import GPT
from glassgpt.training.cross_entropy import summed_cross_entropy

#: The summed loss of the targets that count, a scalar in nats. Training divides by their number in the whole batch.
LossFn = Callable[[GPT, Batch], Tensor]


def next_token_loss(model: GPT, batch: Batch) -> Tensor:
    """Cross-entropy of the next token, summed, in nats."""
    targets = batch.targets.flatten()  # [B T]
    hidden_states = model(
        batch.idx, position_ids=batch.position_ids, document_ids=batch.document_ids, apply_head=False
    ).flatten(0, 1)  # [B T, C]
    if model.config.vocab_size >= LARGE_VOCABULARY:
        return summed_cross_entropy(hidden_states, model.head.weight, targets, IGNORE_INDEX)
    logits = model.head(hidden_states).float()  # [B T, V]
    return F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")


class ModelWithLoss(nn.Module):
    """A model and its objective as one module: batch in, summed loss out. What DistributedDataParallel wraps."""

    def __init__(self, model: GPT, objective: LossFn):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> Tensor:
        """The summed loss, a scalar."""
        return self.objective(self.model, batch)

"""Objectives: the quantity that training minimises, as a sum over tokens.

Of a large vocabulary, only the logits of a few tokens exist at a time. With V = 50,257 the logits of 8,192 tokens take
1.6 GB in float32, and autograd would keep them twice. Here the logits of each chunk become their own gradient in place,
at once, so the backward pass has nothing left to compute.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from glassgpt.data.batch import IGNORE_INDEX, Batch
from glassgpt.estimate import LARGE_VOCABULARY, LOGITS_AT_A_TIME
from glassgpt.model import GPT

#: The summed loss of the targets that count, a scalar in nats. Training divides by their number in the global batch.
LossFn = Callable[[GPT, Batch], Tensor]


def next_token_loss(model: GPT, batch: Batch) -> Tensor:
    """Cross-entropy of the next token, summed, in nats."""
    return _cross_entropy(model, _hidden_states(model, batch), batch.targets.flatten())


def answer_loss(model: GPT, batch: Batch) -> Tensor:
    """As :func:`next_token_loss`, for batches in which few targets count: only their logits are computed.

    If none counts, the loss and all gradients are zero (not missing: DDP waits for every one).
    """
    targets = batch.targets.flatten()  # [B T]
    counts = targets != IGNORE_INDEX
    return _cross_entropy(model, _hidden_states(model, batch)[counts], targets[counts])


def _hidden_states(model: GPT, batch: Batch) -> Tensor:
    """Compute what the head reads: ``[B T, C]``."""
    hidden_states = model(
        batch.idx, position_ids=batch.position_ids, document_ids=batch.document_ids, apply_head=False
    )  # [B, T, C]
    return hidden_states.flatten(0, 1)


def _cross_entropy(model: GPT, hidden_states: Tensor, targets: Tensor) -> Tensor:
    """Apply the head to ``[N, C]`` and sum the losses of the targets ``[N]`` that count."""
    if model.config.vocab_size >= LARGE_VOCABULARY:
        return summed_cross_entropy(hidden_states, model.head.weight, targets, IGNORE_INDEX)
    logits = model.head(hidden_states).float()  # [N, V]
    return F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")


class ModelWithLoss(nn.Module):
    """A model and its objective as one module: a batch in, the summed loss out. DDP wraps it."""

    def __init__(self, model: GPT, objective: LossFn):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> Tensor:
        """The summed loss, a scalar."""
        return self.objective(self.model, batch)


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_states: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, needs_grad: bool
    ) -> Tensor:
        total = torch.zeros((), device=hidden_states.device)
        d_hidden = torch.empty_like(hidden_states) if needs_grad else None  # [N, C]
        with_weight = needs_grad and weight.requires_grad  # a frozen head has no gradient
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if with_weight else None  # [V, C]
        rows = max(1, LOGITS_AT_A_TIME // weight.size(0))
        for start in range(0, len(targets), rows):
            h, target = hidden_states[start : start + rows], targets[start : start + rows]  # [n, C], [n]
            log_p = (h @ weight.T).float().log_softmax(dim=-1)  # [n, V]
            total += F.nll_loss(log_p, target, ignore_index=ignore_index, reduction="sum")
            if d_hidden is None:
                continue
            # The gradient of a token's loss by its logits is p - onehot(target), and 0 where it does not count.
            counts = (target != ignore_index).unsqueeze(1)  # [n, 1]
            p = log_p.exp_()
            p.scatter_add_(1, target.unsqueeze(1) * counts, torch.full_like(counts, -1.0, dtype=p.dtype))
            d_logits = p.mul_(counts).to(h.dtype)  # [n, V]
            torch.mm(d_logits, weight, out=d_hidden[start : start + rows])
            if d_weight is None:
                pass
            elif weight.dtype == torch.float32:
                d_weight.addmm_(d_logits.T, h)
            else:
                d_weight += d_logits.T @ h
            del log_p, p, d_logits  # before the next chunk, not after
        ctx.gradients = d_hidden, d_weight
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("backward() can be called only once on this loss")
        d_hidden, d_weight = ctx.gradients
        ctx.gradients = None
        return d_hidden.mul_(grad), None if d_weight is None else d_weight.mul_(grad), None, None, None


def summed_cross_entropy(hidden_states: Tensor, weight: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    """Sum of ``-log softmax(hidden_states @ weight.T)[target]`` over the targets that count: a float32 scalar, in nats.

    Args:
        hidden_states: ``[N, C]``, what the head reads.
        weight: ``[V, C]``, the head.
        targets: ``[N]``, int64.
        ignore_index: targets of this value do not count.
    """
    return _SummedCrossEntropy.apply(hidden_states, weight, targets, ignore_index, torch.is_grad_enabled())

"""Objectives: the quantity that training minimises, as a sum over tokens.

Of a large vocabulary, only the logits of a few tokens exist at a time. With V = 50,257 the logits of 8,192 tokens take
1.6 GB in float32, and autograd would keep them twice. Here the logits of each chunk become their own gradient in place,
at once, so the backward pass has nothing left to compute. (torch 2.13's ``F.linear_cross_entropy`` does the same, as
fast with the same chunks and a third as fast with its own, see benchmarks/against_torch.py. Ours is short enough to
read, runs on earlier versions, and its chunks can be compiled.)
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from glassgpt.data.batch import IGNORE_INDEX, Batch
from glassgpt.estimate import LARGE_VOCABULARY, LOGITS_AT_A_TIME, LOGITS_AT_A_TIME_ON_GPU
from glassgpt.model import GPT
from glassgpt.transforms.blocks import is_compiled

#: The summed loss of the targets that count, a scalar in nats. Training divides by their number in the global batch.
LossFn = Callable[[GPT, Batch], Tensor]


def next_token_loss(model: GPT, batch: Batch) -> Tensor:
    """Sum the cross-entropy of the next token over a batch ``[B, T]``: a float32 scalar, in nats."""
    fused = model.device.type == "cuda" and is_compiled(model)
    return _cross_entropy(model, _hidden_states(model, batch), batch.targets.flatten(), fused)


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


def _cross_entropy(model: GPT, hidden_states: Tensor, targets: Tensor, fused: bool = False) -> Tensor:
    """Apply the head to ``[N, C]`` and sum the losses of the targets ``[N]`` that count."""
    if model.config.vocab_size >= LARGE_VOCABULARY:
        return summed_cross_entropy(hidden_states, model.head.weight, targets, IGNORE_INDEX, fused)
    logits = model.head(hidden_states).float()  # [N, V]
    return F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")


class ModelWithLoss(nn.Module):
    """A model and its objective as one module: a batch in, the summed loss out. DDP wraps it."""

    def __init__(self, model: GPT, objective: LossFn):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> Tensor:
        """The summed loss of the rows, a scalar ``[]`` in nats."""
        return self.objective(self.model, batch)


def _chunk(h: Tensor, weight: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The summed loss of a chunk ``h [n, C]``, and its gradient by the logits ``[n, V]``: the logits' own memory."""
    log_p = (h @ weight.T).float().log_softmax(dim=-1)  # [n, V]
    loss = F.nll_loss(log_p, target, ignore_index=ignore_index, reduction="sum")
    # The gradient of a token's loss by its logits is p - onehot(target), and 0 where it does not count.
    counts = (target != ignore_index).unsqueeze(1)  # [n, 1]
    p = log_p.exp_()
    p.scatter_add_(1, target.unsqueeze(1) * counts, torch.full_like(counts, -1.0, dtype=p.dtype))
    return loss, p.mul_(counts).to(h.dtype)


def _pointwise_chunk(h: Tensor, weight: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """As :func:`_chunk`, without writes in place: compiled, it reads the logits three times and writes them once."""
    logits = (h @ weight.T).float()  # [n, V]
    counts = (target != ignore_index).unsqueeze(1)  # [n, 1]
    here = target.unsqueeze(1) * counts  # [n, 1]
    log_sum = logits.logsumexp(dim=-1, keepdim=True)  # [n, 1]
    loss = ((log_sum - logits.gather(1, here)) * counts).sum()
    onehot = torch.arange(weight.size(0), device=h.device) == here  # [n, V]
    return loss, (((logits - log_sum).exp() - onehot.float()) * counts).to(h.dtype)


@cache
def _fused_chunk() -> Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]:
    return torch.compile(_pointwise_chunk, dynamic=False)  # here, for importing the compiler takes seconds


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: Tensor,
        weight: Tensor,
        targets: Tensor,
        ignore_index: int,
        fused: bool,
        needs_grad: bool,
    ) -> Tensor:
        chunk = _fused_chunk() if fused and needs_grad else _chunk
        total = torch.zeros((), device=hidden_states.device)
        d_hidden = torch.empty_like(hidden_states) if needs_grad else None  # [N, C]
        with_weight = needs_grad and weight.requires_grad  # a frozen head has no gradient
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if with_weight else None  # [V, C]
        for part in _parts(len(targets), weight):
            h, target = hidden_states[part], targets[part]  # [n, C], [n]
            loss, d_logits = chunk(h, weight, target, ignore_index)
            total += loss
            if d_hidden is not None:
                torch.mm(d_logits, weight, out=d_hidden[part])
            if d_weight is None:
                pass
            elif weight.dtype == torch.float32:
                d_weight.addmm_(d_logits.T, h)
            else:
                d_weight += d_logits.T @ h
            del d_logits  # before the next chunk, not after
        ctx.gradients = d_hidden, d_weight
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("backward() can be called only once on this loss")
        d_hidden, d_weight = ctx.gradients
        ctx.gradients = None
        return d_hidden.mul_(grad), None if d_weight is None else d_weight.mul_(grad), None, None, None, None


def _parts(N: int, weight: Tensor) -> list[slice]:
    """Slices of N tokens, as equal as can be: each shape is compiled for itself."""
    logits = LOGITS_AT_A_TIME_ON_GPU if weight.is_cuda else LOGITS_AT_A_TIME
    rows = min(N, max(1, logits // weight.size(0)))
    rows = math.ceil(N / math.ceil(N / rows)) if N else 1
    return [slice(start, start + rows) for start in range(0, N, rows)]


def summed_cross_entropy(
    hidden_states: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, fused: bool = False
) -> Tensor:
    """Sum of ``-log softmax(hidden_states @ weight.T)[target]`` over the targets that count: a float32 scalar, in nats.

    Args:
        hidden_states: ``[N, C]``, what the head reads.
        weight: ``[V, C]``, the head.
        targets: ``[N]``, int64.
        ignore_index: targets of this value do not count.
        fused: compile what is done to the logits; for a number of tokens N that stays the same.
    """
    return _SummedCrossEntropy.apply(hidden_states, weight, targets, ignore_index, fused, torch.is_grad_enabled())

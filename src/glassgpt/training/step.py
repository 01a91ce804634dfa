"""One optimiser step. Everything that trains or times training calls :func:`train_step`.

Read it from top to bottom: forward and backward over micro-batches, unscale, measure, clip, update.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from glassgpt.data.batch import Batch
from glassgpt.processes import Processes
from glassgpt.training.optim import Optimizers
from glassgpt.training.precision import LossScale, full_tensor


@dataclass(frozen=True)
class StepResult:
    """The mean loss of the global batch in nats, and the norm of its gradient before clipping."""

    loss: float
    grad_norm: float

    @property
    def is_finite(self) -> bool:
        """Whether the gradient was finite. Where it was not, the weights are unchanged."""
        return math.isfinite(self.grad_norm)


def train_step(
    loss_module: nn.Module,
    optimizers: Optimizers,
    batch: Batch,
    count: int,
    *,
    micro_batch_size: int,
    lr_multiplier: float,
    grad_clip: float,
    device: torch.device,
    loss_scale: LossScale | None = None,
    processes: Processes | None = None,
    mark: Callable[[], None] = lambda: None,
    while_computing: Callable[[], None] = lambda: None,
) -> StepResult:
    """Take one optimiser step on this process's rows of a global batch. The gradients stay until the next step.

    The loss is the mean over the trained tokens of the global batch, however it is cut. A gradient that is not finite
    updates nothing and is not clipped, so that the bad tensor can be found.

    Args:
        loss_module: a batch in, its summed loss out; wrapped in DDP if there are several processes.
        optimizers: of the model in it.
        batch: this process's rows, on the CPU.
        count: the number of tokens (or pairs) in the summed loss of these rows.
        micro_batch_size: rows per forward pass.
        lr_multiplier: share of the peak learning rates.
        grad_clip: largest norm of the gradient; 0: no clipping.
        device: where to compute.
        loss_scale, processes: for float16; that share the global batch.
        mark: called after each forward pass, each backward pass, and the update.
        while_computing: called after the last backward pass is queued, before waiting for results.
    """
    weights, loss_scale, processes = optimizers.weights, loss_scale or LossScale(), processes or Processes()
    weights.zero_grad()
    count = int(processes.sum(torch.tensor(count)))
    weight = loss_scale.value * processes.world_size / count  # DDP averages over ranks; times world_size: their sum
    total = torch.zeros((), device=device)
    for start in (starts := range(0, len(batch.idx), micro_batch_size)):
        with _gradient_sync(loss_module, optimizers, now=start == starts[-1]):
            loss = loss_module(batch.micro_batch(start, start + micro_batch_size, device))
            mark()
            (loss * weight).backward()
        weights.accumulate_into_master_grads()
        mark()
        total += loss.detach()
    while_computing()
    gradients = weights.gradients()
    if loss_scale.active:
        for gradient in gradients:
            gradient.mul_(1 / loss_scale.value)
    norm = full_tensor(torch.nn.utils.get_total_norm(gradients))
    mean_loss = float(processes.sum(total)) / count  # the first wait for a GPU: by now, the norm is queued, too
    if (result := StepResult(mean_loss, float(norm))).is_finite:
        if grad_clip:
            torch.nn.utils.clip_grads_with_norm_(weights.named.values(), grad_clip, norm)
        optimizers.step(lr_multiplier)
    mark()
    return result


def _gradient_sync(
    loss_module: nn.Module, optimizers: Optimizers, now: bool
) -> contextlib.AbstractContextManager[None]:
    """Average gradients over ranks in this backward pass (the last of a step), or only accumulate them."""
    if not isinstance(loss_module, DistributedDataParallel):
        return contextlib.nullcontext()
    if not now:
        return loss_module.no_sync()
    optimizers.weights.master_grads_to_model()
    return contextlib.nullcontext()

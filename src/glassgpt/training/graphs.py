"""Forward and backward passes as CUDA graphs: their kernels are recorded once, and launched all at once after that.

A small model on a GPU waits for a thousand launches per pass, not for arithmetic. The kernels are the same, and so are
the numbers. Source: torch.cuda.make_graphed_callables.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from glassgpt.config import RunConfig
from glassgpt.data.batch import Batch
from glassgpt.errors import first_line, is_out_of_memory
from glassgpt.runtime import Runtime
from glassgpt.training import guard
from glassgpt.training.objective import ModelWithLoss, next_token_loss

#: Forms of batches that are recorded; each keeps memory. A step has two at most: its last micro-batch may be smaller.
MAX_FORMS = 2


def with_graphs(loss_module: nn.Module, config: RunConfig, runtime: Runtime, note: Callable[[str], None]) -> nn.Module:
    """Wrap the module if its passes can be recorded: one process, 16 bits on a GPU, and every token counts.

    In float32, autograd would add the next gradient to the recorded one, in the same memory. With answers, the number
    of tokens that count changes the shapes. Activation checkpointing reads random states, which no recording can.
    """
    on_gpu = runtime.device.type == "cuda" and runtime.dtype.itemsize == 2
    if not on_gpu or config.train.activation_checkpointing or not isinstance(loss_module, ModelWithLoss):
        return loss_module
    return GraphedLoss(loss_module, note) if loss_module.objective is next_token_loss else loss_module


class GraphedLoss(nn.Module):
    """As the module in it: a batch in, the summed loss out. Each form of batch is recorded when it comes first.

    A form that cannot be recorded, and every form after the first ``MAX_FORMS``, runs without a graph.

    Args:
        loss_module: what to record.
        note: receives the reason, if it cannot be recorded.
    """

    def __init__(self, loss_module: ModelWithLoss, note: Callable[[str], None]):
        super().__init__()
        self.loss_module, self.note = loss_module, note
        self._recorded: dict[tuple[torch.Size | None, ...], nn.Module | None] = {}

    def forward(self, batch: Batch) -> Tensor:
        """The summed loss, a scalar. Its gradients lie in memory that the next pass overwrites."""
        form = tuple(None if part is None else part.shape for part in batch)
        if form not in self._recorded and len(self._recorded) < MAX_FORMS:
            self._recorded[form] = self._record(batch)
        recorded = self._recorded.get(form)
        loss: Tensor = self.loss_module(batch) if recorded is None else recorded(*filter(_is_given, batch))
        return loss

    def _record(self, batch: Batch) -> nn.Module | None:
        """Record the passes. What that draws from the random numbers is put back."""
        passes = _OfTensors(self.loss_module, [_is_given(part) for part in batch])
        tensors = tuple(part.clone() for part in batch if part is not None)  # which become part of the recording
        try:
            with torch.random.fork_rng([batch.idx.device]):
                torch.cuda.make_graphed_callables(passes, tensors)  # replaces its forward
        except RuntimeError as error:
            if is_out_of_memory(error) or guard.is_compile_failure(error):
                raise
            self.note(f"training without a CUDA graph: it could not be recorded ({first_line(error)})")
            return None
        return passes


def _is_given(part: Tensor | None) -> bool:
    return part is not None


class _OfTensors(nn.Module):
    """The loss of a batch that comes as its tensors, as a recording needs it."""

    def __init__(self, loss_module: ModelWithLoss, given: list[bool]):
        super().__init__()
        self.loss_module, self.given = loss_module, given

    def forward(self, *tensors: Tensor) -> Any:
        left = iter(tensors)
        return self.loss_module(Batch._make(next(left) if given else None for given in self.given))

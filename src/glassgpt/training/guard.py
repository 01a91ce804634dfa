"""Keeps a run from being lost: signals, memory that runs out, a compiler that fails, non-finite gradients."""

import math
import signal
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import TypeVar

import torch
from torch import Tensor

from glassgpt.errors import TrainingStopped, first_line, is_out_of_memory, shell_command
from glassgpt.model import GPT
from glassgpt.processes import Processes
from glassgpt.training.checkpoint import TrainState
from glassgpt.training.metrics import MetricsLog, Reporter
from glassgpt.training.optim import Optimizers
from glassgpt.training.precision import LossScale
from glassgpt.transforms.blocks import stop_compiling

T = TypeVar("T")
_REMEDY = "Try a third of the learning rates, a longer warmup_steps, or dtype=float32"


class Interrupts:
    """While active, Ctrl-C and SIGTERM only set ``received``; a second one interrupts at once.

    Signals can only be caught in the main thread; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def first_nonfinite(tensors: Mapping[str, Tensor], processes: Processes) -> str | None:
    """The name of the first tensor that has an inf or a NaN in any process; all call this."""
    local = [getattr(tensor, "to_local", lambda whole=tensor: whole)() for tensor in tensors.values()]
    counts = processes.sum(torch.tensor([int(not torch.isfinite(part).all()) for part in local]))
    return next((name for name, count in zip(tensors, counts.tolist(), strict=True) if count), None)


def is_compile_failure(error: RuntimeError) -> bool:
    """Whether an error comes from torch.compile rather than from what was compiled."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


class Recovery:
    """Continues a run after a failure, if that is possible, and reports it."""

    def __init__(
        self,
        model: GPT,
        optimizers: Optimizers,
        state: TrainState,
        loss_scale: LossScale,
        rows_together: int,
        processes: Processes,
        reporter: Reporter,
        metrics: MetricsLog,
    ):
        self.model, self.optimizers, self.state, self.loss_scale = model, optimizers, state, loss_scale
        self.rows_together, self.processes = rows_together, processes
        self.reporter, self.metrics = reporter, metrics
        self.compiler_failed = False

    @property
    def micro_batch_size(self) -> int:
        """Rows per forward pass: a multiple of the rows that stay together."""
        return max(self.rows_together, self.state.micro_batch_size // self.rows_together * self.rows_together)

    def retry(self, work: Callable[[], T]) -> T:
        """Run ``work``; out of memory, halve the micro-batch and retry; if the compiler fails, retry without it.

        Without dropout, a retry changes nothing but rounding.
        """
        while True:
            updates = self.optimizers.updates
            try:
                return work()
            except RuntimeError as error:
                recover = self._recovery_from(error)
                if recover is None or self.optimizers.updates > updates:  # an update that has begun is not repeated
                    raise
            recover()  # here, where the error no longer keeps the activations alive

    def _recovery_from(self, error: RuntimeError) -> Callable[[], None] | None:
        """The function to call before a retry; None if a retry would not help."""
        if is_compile_failure(error) and not self.compiler_failed:
            return partial(self._stop_compiling, first_line(error))
        # With several processes, the others would wait for gradients that never come.
        can_halve = self.micro_batch_size > self.rows_together and self.processes.world_size == 1
        return self._halve_micro_batch if is_out_of_memory(error) and can_halve else None

    def _stop_compiling(self, reason: str) -> None:
        self.compiler_failed = True
        stop_compiling(self.model)
        self.reporter.warn(f"torch.compile does not work here ({reason}); continuing without it")

    def _halve_micro_batch(self) -> None:
        self.optimizers.zero_grad()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        self.state.micro_batch_size = (self.micro_batch_size + 1) // 2
        message = f"out of memory: the micro-batch is now {self.micro_batch_size}; the batch stays the same"
        self.reporter.warn(message)
        self.metrics.append(self.state.step, {"event": message})

    def skip_nonfinite(self, limit: int, last: Path) -> None:
        """Report a step whose gradient was not finite, and which updated nothing.

        Raises:
            TrainingStopped: after ``limit`` such steps in a row; ``last`` is the newest checkpoint.
        """
        if self.loss_scale.can_decrease:
            return  # float16 overflowed; the scale is halved
        state = self.state
        parameters = self.optimizers.weights.named
        gradients = {name: weight.grad for name, weight in parameters.items() if weight.grad is not None}
        name = first_nonfinite(gradients, self.processes)
        name = name or "none: all gradients are finite, but the global norm overflows"
        state.nonfinite_in_a_row += 1
        message = f"step {state.step + 1}: the gradient is not finite (first bad tensor: {name}); step skipped"
        self.reporter.warn(message)
        self.metrics.append(state.step + 1, {"event": message})
        if state.nonfinite_in_a_row >= limit:
            raise TrainingStopped(
                f"the gradient was not finite {limit} times in a row; at step {state.step + 1}, first in {name}; "
                f"{describe_kept(last)}. {_REMEDY}"
            )

    def require_finite(self, last: Path, loss: float = 0.0) -> None:
        """Stop, before anything is saved, if a validation loss or a weight is not finite; all processes call this.

        Raises:
            TrainingStopped: if so; ``last`` is the newest checkpoint, which is from before.
        """
        name = first_nonfinite(self.optimizers.weights.named, self.processes)
        if name is None and math.isfinite(loss):
            return
        found = "a weight is not finite" if math.isfinite(loss) else f"the validation loss is {loss}"
        dtype = str(self.model.dtype).removeprefix("torch.")
        cause = f"first bad weight: {name}" if name else f"the weights are finite; activations overflow in {dtype}"
        raise TrainingStopped(f"step {self.state.step}: {found} ({cause}); {describe_kept(last)}. {_REMEDY}")


def describe_kept(last: Path) -> str:
    """What a run that has to stop leaves behind: its newest checkpoint ``last``, if there is one."""
    if not last.exists():
        return "no checkpoint was due yet"
    return f"{last} is from before: resume with `{shell_command('train', '--resume', last.parent)}`"

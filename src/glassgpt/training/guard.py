"""What keeps a run from being lost: signals, non-finite gradients, memory that runs out."""

import signal
import threading
from collections.abc import Mapping
from types import FrameType, TracebackType

import torch
from torch import Tensor


class Interrupts:
    """While active, Ctrl-C and SIGTERM only set ``received``; a second one interrupts at once.

    Signals can be caught in the main thread alone; elsewhere this does nothing.
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


def first_nonfinite(named: Mapping[str, Tensor]) -> str | None:
    """The first parameter, in the model's order, whose gradient has an inf or a NaN."""
    for name, parameter in named.items():
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            return name
    return None


def is_compile_failure(error: RuntimeError) -> bool:
    """Whether an error comes from torch.compile rather than from what was compiled."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)

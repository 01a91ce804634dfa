"""Device, compute type, threads. Nothing happens at import; torch is imported when first needed."""

import contextlib
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from glassgpt.config import RuntimeConfig
from glassgpt.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Runtime:
    """A resolved place to compute: what ``auto`` turned out to be, and why."""

    device: "torch.device"
    dtype: "torch.dtype"
    threads: int
    compile: bool
    reason: str
    attention: str = "fused"  # in training: fused or unfused

    def resolved(self) -> dict[str, Any]:
        """The choices as configuration values, to be saved with a run and reused on resume."""
        return {
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": self.threads,
            "compile": str(self.compile).lower(),
            "attention": self.attention,
        }

    def eager(self) -> contextlib.AbstractContextManager[Any]:
        """Run without compiled code. Where nothing is compiled, torch's compiler is not imported: it takes a second."""
        import torch

        return torch.compiler.set_stance("force_eager") if self.compile else contextlib.nullcontext()


def resolve(config: RuntimeConfig, local_rank: int | None = None) -> Runtime:
    """Choose the device, and set the number of CPU threads for this process.

    An ``auto`` compute type is float32 here, ``auto`` attention fused, and an ``auto`` compile off; training measures
    which to use.

    Args:
        config: the user's settings.
        local_rank: this process's place on this machine, where several share the work: each takes its own GPU.

    Raises:
        ConfigError: if the device is not there, or cannot compute in that dtype.
    """
    import torch

    device = torch.device(_best_device() if config.device == "auto" else config.device)
    if device.type == "cuda" and local_rank is not None:
        device = torch.device("cuda", local_rank)
    _require(device)
    if config.threads:
        torch.set_num_threads(config.threads)
    dtype = torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype)
    reason = "the default" if config.dtype == "auto" else "user setting"
    compile = config.compile == "true" and compiler_found(device)
    if config.compile == "true" and not compile:
        reason += "; not compiled: no C++ compiler was found"
    attention = "fused" if config.attention == "auto" else config.attention
    return Runtime(device, dtype, torch.get_num_threads(), compile, reason, attention)


def _best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _require(device: "torch.device") -> None:
    import torch

    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ConfigError(
                f"runtime.device: {device} was asked for, and torch finds {count} CUDA devices here; use device=cpu"
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("runtime.device: mps was asked for, and this machine has no Apple GPU; use device=cpu")


def compiler_found(device: "torch.device") -> bool:
    """Whether torch.compile has what it needs: on a CPU, a C++ compiler."""
    if device.type != "cpu":
        return True
    return any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))


def synchronise(device: "torch.device") -> None:
    """Wait until the device has finished its work, so that a clock measures it."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def versions() -> dict[str, str]:
    """Versions and machine, for the provenance of a run."""
    import numpy
    import torch

    from glassgpt import __version__

    return {
        "glassgpt": __version__,
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
    }


def is_steady(seconds: Sequence[float]) -> bool:
    """Whether repeated timings agree: the middle half of at least three differs by at most a quarter of the median.

    They do not while other programs take turns on the same cores.
    """
    if len(seconds) < 3:
        return False
    low, middle, high = statistics.quantiles(seconds, n=4)
    return high - low <= 0.25 * middle


def repeated(time_once: Callable[[], float], seconds: float) -> list[float]:
    """Timings that are repeated for so many seconds: up to five times as long until they agree.

    The shortest counts: of a long one, the machine may have spent the most on another program.
    """
    found = [time_once(), time_once()]
    while (spent := len(found) * min(found)) < seconds or (not is_steady(found) and spent < 5 * seconds):
        found.append(time_once())
    return found


class Stopwatch:
    """Times the parts of a step without slowing it down: on CUDA by events in the stream, which nobody waits for."""

    def __init__(self, device: "torch.device"):
        self.device = device
        self._events: list[Any] = []
        self._times: list[float] = []

    def mark(self) -> None:
        """End one part and begin the next."""
        import torch

        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            self._events.append(event)
            return
        synchronise(self.device)
        self._times.append(time.perf_counter())

    def laps(self) -> list[float]:
        """Seconds between the marks."""
        synchronise(self.device)
        if self._events:
            return [begin.elapsed_time(end) / 1000 for begin, end in pairwise(self._events)]
        return [end - begin for begin, end in pairwise(self._times)]

"""Peak memory of this process, and of a command with the processes that it starts.

On Linux, peaks and children are read from /proc: psutil has no peaks there, and lists children 30 times as slowly.
"""

import contextlib
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

#: Seconds between two readings of the memory of running processes.
_INTERVAL = 0.02


def peak_resident() -> int | None:
    """The peak resident memory of this process so far, in bytes; None if the system does not report it.

    On Linux it is read from the kernel's status file: ``getrusage`` there starts from the peak of the parent process.
    """
    if platform.system() == "Linux":
        return _peak_of("self")
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return getattr(psutil.Process().memory_info(), "peak_wset", None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else 1024 * peak  # bytes on macOS, kilobytes elsewhere


def _peak_of(pid: str) -> int | None:
    """The line ``VmHWM:   123 kB`` of a process, in bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)


def _children(pid: str) -> list[str]:
    """The ids of the child processes of a process; empty once it has ended."""
    children: list[str] = []
    with contextlib.suppress(OSError):
        for file in Path(f"/proc/{pid}/task").glob("*/children"):
            children += file.read_text(encoding="ascii").split()
    return children


class ProcessTree:
    """Peak memory of a process and of all its descendants. Linux only; elsewhere it stays empty.

    Attributes:
        peaks: process id -> bytes, at the last :meth:`update`. Processes that have ended keep their entry.
    """

    def __init__(self, pid: int):
        self._pid = str(pid)
        self.peaks: dict[str, int] = {}

    def update(self) -> None:
        """Read the peaks of the processes that run now."""
        waiting = [self._pid]
        while waiting:
            pid = waiting.pop()
            waiting += _children(pid)
            peak = _peak_of(pid)
            if peak is not None:
                self.peaks[pid] = peak  # the newest counts: between fork and exec a child has its parent's peak


class ProcessResult(NamedTuple):
    """A command that has ended: standard output and error, exit code, wall time, the peak memory of each process."""

    output: str
    error: str
    exit_code: int
    seconds: float
    peaks: list[int]

    @property
    def memory(self) -> int | None:
        """The sum of the peaks, so at least the memory used at any one time; None if the system does not report it."""
        return sum(self.peaks) or None


def run_and_measure(command: Sequence[str], environment: Mapping[str, str] | None = None) -> ProcessResult:
    """Run a command to its end, and read the memory of its processes fifty times a second."""
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True, encoding="utf-8"
    ) as process:
        tree = ProcessTree(process.pid)
        try:
            while True:
                try:
                    output, error = process.communicate(timeout=_INTERVAL)
                    break
                except subprocess.TimeoutExpired:
                    tree.update()
        finally:
            process.kill()
    return ProcessResult(output, error, process.returncode, time.perf_counter() - start, list(tree.peaks.values()))

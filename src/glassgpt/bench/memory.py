"""How much memory this process has taken, and those it has started."""

import contextlib
import platform
from collections.abc import Iterator
from pathlib import Path


def peak_resident() -> int | None:
    """Bytes of main memory that this process has occupied at its peak; it never falls. None where none can tell.

    On Linux from the kernel's status file: ``getrusage`` there starts from the peak of the process that started us.
    """
    if platform.system() == "Linux":
        return _kilobytes(Path("/proc/self/status"), "VmHWM")
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else 1024 * peak  # bytes on macOS, kilobytes elsewhere


def _kilobytes(file: Path, name: str) -> int | None:
    """Bytes of a line such as ``VmHWM:   123 kB``."""
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    found = next((line.split()[1] for line in lines if line.startswith(f"{name}:")), None)
    return 1024 * int(found) if found else None


class Descendants:
    """Peak memory of the processes that a process has started, and that those have started. Linux only.

    They are looked at whenever the caller asks; what one takes after the last look is not known.

    Args:
        pid: of the process; what it takes itself is not counted.
    """

    def __init__(self, pid: int):
        self._pid = pid
        self._peaks: dict[str, int] = {}

    def look(self) -> None:
        """Note the peaks of those that run now."""
        waiting = [str(self._pid)]
        while waiting:
            for child in _children(waiting.pop()):
                waiting.append(child)
                peak = _kilobytes(Path(f"/proc/{child}/status"), "VmHWM")
                if peak is not None:
                    self._peaks[child] = peak  # the newest counts: until it runs its own program it has its parent's

    def total(self) -> int | None:
        """Sum of the peaks in bytes: no less than all took at one time. None where this system does not tell."""
        return sum(self._peaks.values()) if any(_task_files("self")) else None


def _task_files(pid: str) -> Iterator[Path]:
    """Of each thread of a process, the file that names the processes it has started."""
    return Path(f"/proc/{pid}/task").glob("*/children")


def _children(pid: str) -> list[str]:
    """Ids of the processes that a process has started; none once it has ended."""
    found: list[str] = []
    with contextlib.suppress(OSError):
        for file in _task_files(pid):
            found += file.read_text(encoding="ascii").split()
    return found

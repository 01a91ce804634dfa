"""How much memory this process has taken."""

import platform
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

"""Let one process at a time write a file, while others wait."""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from glassgpt.files import Progress

PAUSE = 0.1  # seconds between two attempts to take the lock

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _try_lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def exclusive_lock(path: Path, progress: Progress | None = None) -> Iterator[Path]:
    """Wait until no other process writes ``path``, and yield the ``.part`` file to write it to.

    The system releases the lock when a process ends in any way. On a file system without locks, the ``.part`` file is
    in a temporary folder, so that processes cannot mix their output. ``progress`` is called during the wait, with the
    bytes that the other process has written.
    """
    part = path.with_name(path.name + ".part")
    lock = path.with_name(f".{path.name}.lock")
    while True:
        with lock.open("ab") as file:
            try:
                _try_lock(file.fileno())
            except (BlockingIOError, PermissionError):  # locked by another process: POSIX and Windows
                if progress:
                    progress(f"{path.name}, by another process", part.stat().st_size if part.exists() else 0, 0)
                time.sleep(PAUSE)
                continue
            except OSError:
                with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
                    yield Path(folder) / part.name
                return
            if not _is_same(file.fileno(), lock):
                continue  # the previous holder has just removed this file, so that its lock excludes nobody
            try:
                yield part
            finally:
                with contextlib.suppress(OSError):  # Windows does not remove open files
                    lock.unlink()
            return


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False

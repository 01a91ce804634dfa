"""One process at a time writes a file; the others wait."""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PAUSE = 0.1  # seconds between two looks whether the other is done

if sys.platform == "win32":
    import msvcrt

    def _try_lock(number: int) -> None:
        msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _try_lock(number: int) -> None:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def alone(place: Path, waiting: Callable[[str, int, int], None] | None = None) -> Iterator[Path]:
    """Within the block this process alone writes ``place``; the file to write it to is yielded.

    The system gives the lock back when a process ends, however it ends. Where a file system has no locks, the file
    to write to is in a folder of its own, so that processes cannot mix what they write.

    Args:
        waiting: told who is waited for and how many bytes that one has, as ``Progress``.
    """
    part = place.with_name(place.name + ".part")
    lock = place.with_name(f".{place.name}.lock")
    while True:
        with lock.open("ab") as held:
            try:
                _try_lock(held.fileno())
            except (BlockingIOError, PermissionError):  # taken: POSIX and Windows
                if waiting:
                    waiting(f"{place.name}, by another process", part.stat().st_size if part.exists() else 0, 0)
                time.sleep(PAUSE)
                continue
            except OSError:
                with tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent) as own:
                    yield Path(own) / part.name
                return
            if not _is_at(held.fileno(), lock):
                continue  # the one before has just removed it, and this lock holds nobody off
            try:
                yield part
            finally:
                with contextlib.suppress(OSError):  # Windows keeps a file that is open
                    lock.unlink()
            return


def _is_at(number: int, lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(number), lock.stat())
    except FileNotFoundError:
        return False

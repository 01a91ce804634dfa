"""Files: atomic writing, locks, checksums, and the one progress callback."""

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, get_args, get_origin

#: Called with what is being done, how much of it is done, and how much there is in all (0: unknown).
Progress = Callable[[str, int, int], None]


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make every failure to write (disk full, read-only, quota) an OSError that names a file.

    The system's error for a write does not name the file, and safetensors has an error class of its own.

    Args:
        path: named if the error names no file.
    """
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    except Exception as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, then flush that file to disk and move it to ``path``.

    If anything fails, ``path`` is what it was before and the temporary file is deleted.

    Raises:
        OSError: if it cannot be written; see :func:`writing`.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        with writing(path):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # no file, or a folder that is read-only
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8, with ``\\n`` as the line end."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


@contextlib.contextmanager
def exclusive_lock(path: Path, refuse: Callable[[str], Exception]) -> Iterator[None]:
    """Hold a lock file while no other process does. The system releases it when this process ends in any way.

    While it is locked, a file beside it tells who holds it. Both are deleted at the end. On a file system without locks
    others are not excluded.

    Args:
        path: the lock file, in an existing folder.
        refuse: makes the error to raise if another process holds the lock, from a description of that process.

    Raises:
        OSError: if the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    lock, holder = FileLock(path), path.with_name(path.name + ".holder")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise refuse(_read_holder(holder)) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
    try:
        with contextlib.suppress(OSError):
            since = datetime.now().astimezone().isoformat(" ", "seconds")
            holder.write_text(f"process {os.getpid()} on {platform.node()}, since {since}", encoding="utf-8")
        yield
    finally:
        for file in (holder, path):
            with contextlib.suppress(OSError):  # Windows does not delete open files
                file.unlink()
        lock.release()


def _read_holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "it has just begun, or has left no name"


def sync_to_disk(path: Path) -> None:
    """Flush a file or folder to disk. Some systems cannot open folders; there this does nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None), errno.EIO):  # what was written is lost
            raise
    finally:
        os.close(descriptor)


def sha256_of(path: Path, progress: Progress | None = None) -> str:
    """The SHA-256 of a file's content, in hexadecimal.

    Args:
        path: the file.
        progress: called with the bytes that are read.
    """
    digest, done, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
            done += len(chunk)
            if progress:
                progress(f"checking {path.name}", done, size)
    return digest.hexdigest()


def parse_json(content: str | bytes, constant: Callable[[str], Any] | None = None) -> Any:
    """Parse JSON; NaN and Infinity, which it does not have, become what ``constant`` returns (by default, floats).

    Raises:
        ValueError: if it is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(content, parse_constant=constant)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def read_json_object(path: Path, constant: Callable[[str], Any] | None = None) -> dict[str, Any]:
    """Read a JSON file with an object, whose texts are valid Unicode; ``constant`` as for :func:`parse_json`.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is damaged.
    """
    text = path.read_text(encoding="utf-8")
    content = parse_json(text, constant)
    if "\\u" in text:
        json.dumps(content, ensure_ascii=False).encode("utf-8")  # raises if there is a lone surrogate
    if not isinstance(content, dict):
        raise ValueError(f"it contains {type(content).__name__}, not an object")
    return content


def has_type(value: Any, kind: Any) -> bool:
    """Whether a value of JSON has a type: str (Unicode), bool, int (a count or size), Any; dict or list of these."""
    parts = get_args(kind)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(
            has_type(key, parts[0]) and has_type(item, parts[1]) for key, item in value.items()
        )
    if get_origin(kind) is list:
        return isinstance(value, list) and all(has_type(item, parts[0]) for item in value)
    if kind is int:
        return type(value) is int and 0 <= value < 2**53
    if kind is str:
        return isinstance(value, str) and is_unicode(value)
    return kind is Any or type(value) is kind


def is_unicode(text: str) -> bool:
    """Whether a text is valid Unicode; lone surrogates are not, which stand for the bytes of odd file names."""
    return text.encode("utf-8", "ignore").decode("utf-8") == text


def why_not_writable(path: Path, *, parents: bool = False) -> str:
    """Say why ``path`` cannot be made, or changed if it exists; empty if it can. Nothing is left there.

    Args:
        path: of a file or folder.
        parents: whether missing parent folders will be made, too.
    """
    if path.name in ("", ".."):
        return "name a new file or folder"
    if not is_unicode(str(path)):
        return "its name is not valid Unicode"
    try:
        folder, missing = path, list[str]()
        while not folder.exists():
            missing.append(folder.name)
            folder = folder.parent
        if not folder.is_dir():
            if missing:
                return f"{folder} is a file, not a folder"
            folder = folder.parent
        if len(missing) > 1 and not parents:
            return f"there is no folder {path.parent}; create it first"
        for name in missing:
            with contextlib.suppress(FileNotFoundError):
                (folder / name).lstat()  # raises if the name is too long
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)


def path_exists(name: str | Path) -> bool:
    """Whether there is a file or folder of that name; False for a text that cannot be a file name (too long, say)."""
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return False

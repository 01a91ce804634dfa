"""The cache: write files atomically, and check them against their pinned or recorded SHA-256."""

import os
import re
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from glassgpt.assets.asset import AssetFile, AssetUnavailable, describe_mismatch
from glassgpt.errors import AssetError
from glassgpt.files import Progress, atomic_write, sha256_of, write_text


def cache_dir() -> Path:
    """Give the folder of cached files: ``GLASSGPT_CACHE``, or the platform's own; it need not exist yet."""
    if folder := setting("GLASSGPT_CACHE"):
        return Path(folder).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "glassgpt"
    if sys.platform == "win32":
        return Path(setting("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "glassgpt"
    return Path(setting("XDG_CACHE_HOME") or Path.home() / ".cache") / "glassgpt"


def setting(name: str) -> str:
    """Read an environment variable; empty if it is not set."""
    return os.environ.get(name, "").strip()


def offline_switch() -> str:
    """Name the environment variable that forbids the network; empty if it is allowed."""
    switches = ("GLASSGPT_OFFLINE", "HF_HUB_OFFLINE")
    return next((name for name in switches if setting(name).lower() in ("1", "true", "yes", "on")), "")


def store(file: AssetFile, chunks: Iterable[bytes]) -> Path:
    """Write a file to the cache atomically, after checking it.

    Raises:
        AssetUnavailable: if it is empty, or does not match its pin.
    """
    path = cache_dir() / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        with temporary.open("xb") as out:
            out.writelines(chunks)
        if file.sha256 and (problem := find_problem(temporary, file)):
            raise AssetUnavailable(problem)
        if not temporary.stat().st_size:
            raise AssetUnavailable("it is empty")
    return path


def chunks_of(stream: IO[bytes]) -> Iterator[bytes]:
    """Read a stream in chunks of 1 MiB."""
    return iter(partial(stream.read, 1 << 20), b"")


def find_problem(path: Path, file: AssetFile, progress: Progress | None = None) -> str:
    """Check a file; describe the problem, or return "". A file that is not pinned is recorded on its first check.

    Raises:
        AssetError: if a recorded file has changed.
    """
    size = path.stat().st_size
    if file.from_interpreter:
        return "" if size else "it is empty"
    digest = sha256_of(path, progress)
    if file.sha256:
        return "" if digest == file.sha256 else describe_mismatch(file.sha256, file.size, digest, size)
    if not (recorded := recorded_sha256(file)):
        record_sha256(file, digest)
    elif digest != recorded:
        raise AssetError(
            f"{path} has changed since it was first fetched: its SHA-256 was {recorded} (recorded in "
            f"{record_path(file)}) and is {digest}. Delete both files to have it fetched again; if you changed it "
            f"yourself, delete only {record_path(file).name}."
        )
    return "" if size else "it is empty"


def record_path(file: AssetFile) -> Path:
    """Name the file with the recorded SHA-256 of a file that is not pinned."""
    return cache_dir() / f"{file.name}.sha256"


def recorded_sha256(file: AssetFile) -> str:
    """Read the SHA-256 that a file had when it was first fetched; empty if it is not recorded."""
    path = record_path(file)
    if not path.is_file():
        return ""
    line = path.read_text(encoding="utf-8", errors="replace")
    if match := re.match(r"[0-9a-f]{64}\b", line):
        return match[0]
    raise AssetError(f"{path} should begin with a SHA-256 and begins with {line[:20]!r}: delete it")


def record_sha256(file: AssetFile, digest: str) -> None:
    """Record a file's SHA-256, in the format of ``sha256sum``."""
    path = record_path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, f"{digest}  {file.name}\n")

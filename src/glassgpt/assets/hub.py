"""Download files of data sets from the Hugging Face hub, into the cache that all its tools share.

The `huggingface_hub` library does the work: mirrors, tokens, Xet, locks, and resuming after a broken connection.
"""

import shutil
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from glassgpt.assets.asset import AssetFile, AssetUnavailable, HubFile
from glassgpt.errors import MissingExtraError, first_line
from glassgpt.files import Progress

_MIN_FREE_DISK = 64 << 20  # bytes that should stay free


def find_cached(source: HubFile) -> Path | None:
    """Find a file in the shared cache, without a connection."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    path = try_to_load_from_cache(source.repo, source.path, revision=source.revision, repo_type="dataset")
    return Path(path) if isinstance(path, str) else None


def download(file: AssetFile, source: HubFile, progress: Progress | None, damaged: Path | None = None) -> Path:
    """Download a file into the shared cache; its content is not checked here.

    Args:
        file: the file.
        source: where it is on the hub.
        progress: called with the bytes that have come.
        damaged: the file in the shared cache that is to be replaced.

    Raises:
        AssetUnavailable: if the library is not installed, the disk is too full, or the hub fails.
    """
    try:
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    except ImportError:
        raise AssetUnavailable(str(MissingExtraError("huggingface_hub", "hf", f"downloading {source.url}"))) from None
    _check_disk_space(Path(constants.HF_HUB_CACHE), file.size or 0)
    settings: Any = {"repo_type": "dataset", "revision": source.revision}
    try:
        # Fails at once if the hub cannot be reached; the other call would retry for almost a minute.
        get_hf_file_metadata(hf_hub_url(source.repo, source.path, **settings))
        if damaged:
            damaged.unlink()  # a link; the library would leave it where it leads
        settings |= {"force_download": damaged is not None, "tqdm_class": _progress_bar(file, progress)}
        return Path(hf_hub_download(source.repo, source.path, **settings))
    except Exception as error:
        if not is_hub_error(error):
            raise
        raise AssetUnavailable(f"{source.url}: {first_line(error)}") from None


def is_hub_error(error: Exception) -> bool:
    """Whether the disk, the connection or the hub failed.

    Versions of huggingface_hub use different HTTP libraries, and Xet raises RuntimeError.
    """
    libraries = ("httpx", "httpx2", "httpcore", "requests", "urllib3", "huggingface_hub")
    return isinstance(error, OSError | RuntimeError) or type(error).__module__.split(".")[0] in libraries


def _check_disk_space(folder: Path, needed: int) -> None:
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed + _MIN_FREE_DISK:
        raise AssetUnavailable(
            f"{decimal(needed)} are needed in {folder}, where {decimal(free)} are free. Make room, or name a "
            "folder on another disk in HF_HOME"
        )


def _progress_bar(file: AssetFile, progress: Progress | None) -> Any:
    """Make a class of progress bars that only calls ``progress``. With Xet the library uses two of them at once."""
    from tqdm import tqdm

    most = 0

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **settings: Any):
            super().__init__(*arguments, **settings | {"disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal most
            self.n += n or 0
            if progress and self.n > most:
                most = int(self.n)
                progress(file.name, most, file.size or 0)

    return Bar

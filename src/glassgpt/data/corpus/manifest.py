"""A prepared corpus: a folder of token shards, its tokenizer, and ``manifest.json``, which is checked before use."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from glassgpt import assets
from glassgpt.data.corpus.shards import FORMAT_VERSION, SPLITS, Shard, Tokens, open_shard
from glassgpt.errors import DataError, GlassError
from glassgpt.files import sha256_of
from glassgpt.tokenizer import Tokenizer, load
from glassgpt.tokenizer.base import FILES

MANIFEST = "manifest.json"
#: Stands in a folder until its preparation is finished.
PLAN = "plan.json"
#: Bytes of ids from which a shard that has not changed since it was last checked is not read again.
_LARGE = 1 << 30


@dataclass(frozen=True)
class ShardEntry:
    """What the manifest says of a shard. ``bytes`` are UTF-8 bytes of text."""

    file: str
    split: str
    tokens: int
    documents: int
    bytes: int
    sha256: str  # of the whole file


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says."""

    format_version: int
    text_sha256: str  # of the text; of several files, of their SHA-256
    tokenizer: str  # its identity
    vocab_size: int
    split: str  # "position" or "documents"
    settings: dict[str, Any]  # of the preparation, as in the configuration's section `data`
    lossless: bool  # whether the validation ids decode to the text: with <|unk|> among them they do not
    tokenizer_sha256: dict[str, str]  # of the tokenizer's files
    shards: list[ShardEntry]
    duplicates: dict[str, int] = field(default_factory=dict)  # dropped: "exact", "near"

    @property
    def data_sha256(self) -> str:
        """What tells two prepared corpora apart: a hash of their shards', tokenizer's, and how much validates."""
        parts = [entry.sha256 for entry in self.shards] + sorted(self.tokenizer_sha256.values())
        parts.append(str(self.settings["max_val_tokens"]))
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def total(self, name: str) -> dict[str, int]:
        """The sum of a number over the shards of each split: "tokens", "documents" or "bytes"."""
        return {split: sum(getattr(entry, name) for entry in self.shards if entry.split == split) for split in SPLITS}


@dataclass(frozen=True)
class StreamInfo:
    """A token stream in numbers; see :class:`Manifest`."""

    text_sha256: str
    data_sha256: str
    tokenizer: str
    vocab_size: int
    dtype: str
    tokens: dict[str, int]  # per split
    bytes: dict[str, int]  # UTF-8 bytes of text, per split
    documents: dict[str, int]  # per split
    lossless: bool


@dataclass(frozen=True)
class TokenStream:
    """A prepared corpus. The ids are memory-mapped, so their number costs no memory.

    Validation documents beyond ``max_val_tokens`` bytes of text are not part of the stream (nor of the training
    part), so that validating the whole split ends.
    """

    folder: Path
    manifest: Manifest

    @cached_property
    def train(self) -> Tokens:
        """Training ids, ``[tokens]``, read-only."""
        return Tokens(self._shards("train"))

    @cached_property
    def val(self) -> Tokens:
        """Validation ids, ``[tokens]``, read-only: none of their text is in ``train``."""
        return Tokens(self._shards("val"), self._validation[0])

    @cached_property
    def info(self) -> StreamInfo:
        """The numbers of it."""
        manifest, (tokens, size, documents) = self.manifest, self._validation
        return StreamInfo(
            text_sha256=manifest.text_sha256,
            data_sha256=manifest.data_sha256,
            tokenizer=manifest.tokenizer,
            vocab_size=manifest.vocab_size,
            dtype=self.train.shards[0].dtype,
            tokens=manifest.total("tokens") | {"val": tokens},
            bytes=manifest.total("bytes") | {"val": size},
            documents=manifest.total("documents") | {"val": documents},
            lossless=manifest.lossless,
        )

    @property
    def tokens_per_byte(self) -> float | None:
        """Validation tokens per byte of their text; None where they do not hold that text."""
        return self.info.tokens["val"] / self.info.bytes["val"] if self.info.lossless else None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids."""
        return load(self.folder)

    def _shards(self, split: str) -> list[Shard]:
        return [open_shard(self.folder / entry.file) for entry in self._entries(split)]

    def _entries(self, split: str) -> list[ShardEntry]:
        return [entry for entry in self.manifest.shards if entry.split == split]

    @cached_property
    def _validation(self) -> tuple[int, int, int]:
        """Tokens, bytes of text, and documents of the validation split that count."""
        totals = [self.manifest.total(name)["val"] for name in ("tokens", "bytes", "documents")]
        most = self.manifest.settings["max_val_tokens"]
        if self.manifest.split == "position" or totals[1] <= most:
            return totals[0], totals[1], totals[2]
        tokens = size = documents = 0
        for shard, entry in zip(self._shards("val"), self._entries("val"), strict=True):
            here = np.asarray(shard.bytes)
            size += entry.bytes - int(here.sum())  # of a document that began in an earlier shard
            count = int(np.searchsorted(size + np.cumsum(here), most, side="right"))
            if count < len(here):
                count += documents + count == 0  # one document at least
                left = int(shard.starts[count]) if count < len(here) else len(shard)
                return tokens + left, size + int(here[:count].sum()), documents + count
            tokens, size, documents = tokens + len(shard), size + int(here.sum()), documents + len(here)
        return tokens, size, documents


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``, whole or not at all."""
    temporary = folder / f".{MANIFEST}.tmp"
    temporary.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8", newline="\n")
    os.replace(temporary, folder / MANIFEST)


def hashes(paths: Iterable[Path]) -> dict[str, str]:
    """The SHA-256 of files, by their names."""
    return {path.name: sha256_of(path) for path in paths}


def open_stream(folder: Path) -> TokenStream:
    """Open a prepared corpus, checking that its files are what its manifest says.

    Every byte is read, unless the shards are more than 1 GiB: then only of those that were changed since they were
    last checked on this machine.

    Raises:
        DataError: if it is not there, was cut short or changed, or holds an id beyond its vocabulary; the message
            names the file.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest.tokenizer_sha256.items():
        file = folder / name
        found = sha256_of(file) if file.exists() else "no file"
        if found != expected:
            raise DataError(f"{file} is not what {MANIFEST} describes: SHA-256 {expected} expected, found {found}")
    _check_shards(folder, manifest)
    stream = TokenStream(folder, manifest)
    try:
        vocab_size = stream.tokenizer.vocab_size
    except GlassError as error:
        raise DataError(f"{folder} has a tokenizer that cannot be read: {error}") from None
    if vocab_size != manifest.vocab_size:
        raise DataError(f"{folder / MANIFEST}: vocab_size {manifest.vocab_size}, and {vocab_size} in the tokenizer")
    return stream


def read_manifest(folder: Path) -> Manifest:
    """What a prepared corpus says of itself; its files are not looked at.

    Raises:
        DataError: if there is no manifest, or none of this version.
    """
    try:
        return _parse(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise DataError(f"{folder} holds no prepared corpus that can be read: {error}") from None


def plan_in(folder: Path) -> str | None:
    """What the unfinished preparation in a folder is known by, or None if there is none."""
    try:
        content = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(content["key"]) if isinstance(content, dict) and content.keys() == {"key"} else None


def _parse(content: Mapping[str, Any]) -> Manifest:
    """Refuse a manifest that was written by hand or damaged (a ValueError that says where)."""
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"{MANIFEST} has format version {version}, and this version reads {FORMAT_VERSION}")
    manifest = Manifest(**{**content, "shards": [ShardEntry(**entry) for entry in content["shards"]]})
    numbers = [manifest.vocab_size, manifest.settings["max_val_tokens"]]
    for entry in manifest.shards:
        numbers += [entry.tokens, entry.documents, entry.bytes]
        if entry.split not in SPLITS or Path(entry.file).name != entry.file:
            raise ValueError(f"{MANIFEST} has a shard {entry.file!r} of {entry.split!r}")
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError(f"{MANIFEST} has a number that is none")
    if {entry.split for entry in manifest.shards} != set(SPLITS):
        raise ValueError(f"{MANIFEST} has no shard of one of the two splits")
    if not {"tokenizer_config.json"} < set(manifest.tokenizer_sha256) <= {"tokenizer_config.json", *FILES}:
        raise ValueError(f"{MANIFEST} does not list the files of a tokenizer")
    return manifest


def _check_shards(folder: Path, manifest: Manifest) -> None:
    tokenizer = next(manifest.tokenizer_sha256[name] for name in FILES if name in manifest.tokenizer_sha256)
    shards = [open_shard(folder / entry.file) for entry in manifest.shards]
    for shard, entry in zip(shards, manifest.shards, strict=True):
        said = (shard.split, len(shard), shard.layout["starts"][1], shard.layout["bytes"][1], shard.tokenizer)
        if said != (entry.split, entry.tokens, entry.documents, entry.documents, tokenizer):
            raise DataError(f"{shard.path} is another shard than the one that {MANIFEST} describes")
        if shard.dtype != shards[0].dtype:
            raise DataError(f"{shard.path} has ids of {shard.dtype}, and {shards[0].path} of {shards[0].dtype}")
    large = sum(shard.path.stat().st_size for shard in shards) > _LARGE
    record = assets.cache_dir() / "checked" / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}.json"
    known = _known(record) if large else {}
    for shard, entry in zip(shards, manifest.shards, strict=True):
        status = shard.path.stat()
        state = [status.st_size, status.st_mtime_ns, status.st_ino, entry.sha256]
        if known.get(entry.file) == state:
            continue
        found = sha256_of(shard.path)
        if found != entry.sha256:
            shard.check(manifest.vocab_size)  # which may know more
            raise DataError(
                f"{shard.path} was changed: SHA-256 {entry.sha256[:16]}... in {MANIFEST}, {found[:16]}... found. "
                "Prepare the data again"
            )
        shard.check(manifest.vocab_size)
        known[entry.file] = state
    if large:
        _remember(record, known)


def _known(record: Path) -> dict[str, Any]:
    """The shards that were checked before, and what they looked like then."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _remember(record: Path, known: Mapping[str, Any]) -> None:
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        temporary = record.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(known), encoding="utf-8")
        os.replace(temporary, record)
    except OSError:
        return  # then it is checked again

"""A prepared corpus: a folder of token shards, a tokenizer, and ``manifest.json``, by which they are checked."""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from glassgpt import assets
from glassgpt.config import DataConfig
from glassgpt.data.corpus.shards import FORMAT_VERSION, READABLE_VERSIONS, SPLITS, Shard, Tokens, open_shard
from glassgpt.data.sources.source import MANIFEST
from glassgpt.errors import ConfigError, DataError, GlassError
from glassgpt.files import has_type, parse_json, sha256_of, write_text
from glassgpt.tokenizer import Tokenizer, load
from glassgpt.tokenizer.base import FILES

#: In a corpus of more than this many bytes, shards that have not changed since the last check are not read again.
_LARGE = 1 << 30


@dataclass(frozen=True)
class ShardEntry:
    """A shard in the manifest. ``bytes`` are UTF-8 bytes of text."""

    file: str
    split: str
    tokens: int
    documents: int
    bytes: int
    sha256: str  # of the file


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``."""

    format_version: int
    text_sha256: str  # of the text; for several files, of the list of their SHA-256
    tokenizer: str  # its identity, see glassgpt.tokenizer.specs
    vocab_size: int
    split: str  # "position" or "documents"
    settings: dict[str, Any]  # the part of the configuration's section `data` that decides the shards
    lossless: bool  # whether the validation ids decode to their text; not if <|unk|> is among them
    tokenizer_sha256: dict[str, str]  # by file name
    shards: list[ShardEntry]
    duplicates: dict[str, int] = field(default_factory=dict)  # how many were dropped: "exact", "near"
    left_out: dict[str, int] = field(default_factory=dict)  # rows and files without text: "null", "empty", ...

    @property
    def key(self) -> str:
        """The cache key of this corpus."""
        return cache_key(self.text_sha256, self.tokenizer, self.settings)

    @property
    def data_sha256(self) -> str:
        """Hash of the shards, the tokenizer and max_val_tokens: equal if training and validation data are equal."""
        parts = [entry.sha256 for entry in self.shards] + sorted(self.tokenizer_sha256.values())
        parts.append(str(self.settings["max_val_tokens"]))
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def total(self, name: str) -> dict[str, int]:
        """Sum "tokens", "documents" or "bytes" over the shards of each split."""
        return {split: sum(getattr(entry, name) for entry in self.shards if entry.split == split) for split in SPLITS}


@dataclass(frozen=True)
class StreamInfo:
    """The numbers of a token stream; see :class:`Manifest`."""

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
    """A prepared corpus. The ids are memory-mapped, so a large corpus needs no more memory.

    Validation documents beyond ``max_val_tokens`` bytes of text are in neither split, to limit the time of validation.
    """

    folder: Path
    manifest: Manifest

    @cached_property
    def train(self) -> Tokens:
        """Training ids, ``[tokens]``, read-only."""
        return Tokens(self._shards("train"))

    @cached_property
    def val(self) -> Tokens:
        """Validation ids, ``[tokens]``, read-only; their documents are not in ``train``."""
        return Tokens(self._shards("val"), self._validation[0])

    @cached_property
    def info(self) -> StreamInfo:
        """The numbers of this stream."""
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
        """Validation tokens per byte of their text; None if they are not lossless."""
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
        """Count the tokens, bytes of text and documents of the validation split, up to ``max_val_tokens``."""
        totals = [self.manifest.total(name)["val"] for name in ("tokens", "bytes", "documents")]
        limit = self.manifest.settings["max_val_tokens"]
        if self.manifest.split == "position" or totals[1] <= limit:
            return totals[0], totals[1], totals[2]
        tokens = size = documents = 0
        for shard, entry in zip(self._shards("val"), self._entries("val"), strict=True):
            sizes = np.asarray(shard.bytes)
            size += entry.bytes - int(sizes.sum())  # of a document that began in an earlier shard
            count = int(np.searchsorted(size + np.cumsum(sizes), limit, side="right"))
            if count < len(sizes):
                count += documents + count == 0  # at least one document
                kept = int(shard.starts[count]) if count < len(sizes) else len(shard)
                return tokens + kept, size + int(sizes[:count].sum()), documents + count
            tokens, size, documents = tokens + len(shard), size + int(sizes.sum()), documents + len(sizes)
        return tokens, size, documents


def settings_of(config: DataConfig) -> dict[str, Any]:
    """Give the settings that decide the content of the shards, apart from the tokenizer."""
    names = ("val_fraction", "max_val_tokens", "separator", "text_field", "duplicates")
    return {name: getattr(config, name) for name in names}


def cache_key(text_sha256: str, tokenizer_id: str, settings: Mapping[str, Any]) -> str:
    """Hash the first format version with these ids, the text, the tokenizer ID and the settings."""
    parts = [READABLE_VERSIONS[0], text_sha256, tokenizer_id, settings]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` atomically."""
    write_text(folder / MANIFEST, json.dumps(asdict(manifest), indent=2) + "\n")


def open_stream(folder: Path) -> TokenStream:
    """Open a prepared corpus, and check its files against its manifest.

    Every byte is read. Of more than 1 GiB, only the shards that have changed since their last check on this machine.

    Raises:
        DataError: if a file is missing, truncated or changed, or has an id beyond the vocabulary; the message names it.
    """
    try:
        return _open_stream(folder)
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be read: {error.strerror or error}") from None


def _open_stream(folder: Path) -> TokenStream:
    manifest = read_manifest(folder)
    for name, expected in manifest.tokenizer_sha256.items():
        file = folder / name
        found = sha256_of(file) if file.exists() else "no file"
        if found != expected:
            raise DataError(f"{file} does not match {MANIFEST}: expected SHA-256 {expected}, found {found}")
    _check_shards(folder, manifest)
    stream = TokenStream(folder, manifest)
    try:
        vocab_size = stream.tokenizer.vocab_size
    except GlassError as error:
        raise DataError(f"the tokenizer in {folder} cannot be read: {error}") from None
    if vocab_size != manifest.vocab_size:
        raise DataError(f"{folder / MANIFEST}: vocab_size is {manifest.vocab_size}, but {vocab_size} in the tokenizer")
    return stream


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a prepared corpus, without looking at the other files.

    Raises:
        DataError: if there is no valid manifest of this version.
    """
    try:
        return _parse(parse_json((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, ConfigError) as error:
        raise DataError(f"{folder} is not a valid prepared corpus: {error}") from None


def parse_entry(content: dict[str, Any]) -> ShardEntry:
    """Make a ShardEntry of JSON.

    Raises:
        ValueError: if it is damaged or was written by hand.
        TypeError: if it is not an object with the fields of an entry.
    """
    entry = ShardEntry(**content)
    _check_types(entry)
    if entry.split not in SPLITS or Path(entry.file).name != entry.file:
        raise ValueError(f"{MANIFEST} has a shard {entry.file!r} in a split {entry.split!r}")
    return entry


def _check_types(part: Manifest | ShardEntry) -> None:
    for name, kind in get_type_hints(type(part)).items():
        if not has_type(getattr(part, name), kind):
            raise ValueError(f"{MANIFEST} has {name} = {str(getattr(part, name))[:40]!r}, which cannot be")


def _parse(content: Any) -> Manifest:
    """Make a Manifest; raise an error that says what is wrong if it is damaged or was written by hand."""
    if not isinstance(content, dict):
        raise ValueError(f"{MANIFEST} does not hold an object")
    version = content.get("format_version")
    if version not in READABLE_VERSIONS:
        raise ValueError(
            f"{MANIFEST} has format version {version}; this program reads {FORMAT_VERSION}. Prepare the data again"
        )
    manifest = Manifest(**{**content, "shards": [parse_entry(entry) for entry in content["shards"]]})
    _check_types(manifest)
    if manifest.split not in ("position", "documents") or set(manifest.duplicates) not in (set(), {"exact", "near"}):
        raise ValueError(f"{MANIFEST} has another split or other duplicates than this program writes")
    if settings_of(DataConfig(**manifest.settings)) != manifest.settings:
        raise ValueError(f"{MANIFEST} does not have the settings of a prepared corpus")
    if len({entry.file for entry in manifest.shards}) < len(manifest.shards):
        raise ValueError(f"{MANIFEST} has a shard twice")
    if {entry.split for entry in manifest.shards} != set(SPLITS):
        raise ValueError(f"{MANIFEST} has no shard for one of the two splits")
    if not {"tokenizer_config.json"} < set(manifest.tokenizer_sha256) <= {"tokenizer_config.json", *FILES}:
        raise ValueError(f"{MANIFEST} does not list the files of a tokenizer")
    return manifest


def _check_shards(folder: Path, manifest: Manifest) -> None:
    tokenizer = next(manifest.tokenizer_sha256[name] for name in FILES if name in manifest.tokenizer_sha256)
    shards = [open_shard(folder / entry.file) for entry in manifest.shards]
    for shard, entry in zip(shards, manifest.shards, strict=True):
        header = (shard.split, len(shard), shard.layout["starts"][1], shard.layout["bytes"][1], shard.tokenizer)
        if header != (entry.split, entry.tokens, entry.documents, entry.documents, tokenizer):
            raise DataError(f"{shard.path} is not the shard that {MANIFEST} describes")
        if shard.dtype != shards[0].dtype:
            raise DataError(f"{shard.path} has ids of {shard.dtype}, but {shards[0].path} of {shards[0].dtype}")
    large = sum(shard.path.stat().st_size for shard in shards) > _LARGE
    record = assets.cache_dir() / "checked" / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}.json"
    checked = _read_record(record) if large else {}
    for shard, entry in zip(shards, manifest.shards, strict=True):
        status = shard.path.stat()
        state = [status.st_size, status.st_mtime_ns, status.st_ino, entry.sha256]
        if checked.get(entry.file) == state:
            continue
        found = sha256_of(shard.path)
        shard.check(manifest.vocab_size)  # before the comparison: its message may be more precise
        if found != entry.sha256:
            raise DataError(
                f"{shard.path} was changed: SHA-256 {entry.sha256[:16]}... in {MANIFEST}, {found[:16]}... found. "
                "Prepare the data again"
            )
        checked[entry.file] = state
    if large:
        with contextlib.suppress(OSError):  # then the shards are checked again the next time
            record.parent.mkdir(parents=True, exist_ok=True)
            write_text(record, json.dumps(checked))


def _read_record(record: Path) -> dict[str, Any]:
    """Read size, time, inode and SHA-256 of each shard at its last check."""
    try:
        content = parse_json(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}

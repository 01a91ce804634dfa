"""The token stream on disk: two flat files of ids, and a description that is checked before use.

``train.bin`` and ``val.bin`` hold little-endian uint16 (uint32 for vocabularies above 65,536) and nothing else;
``stream.json`` names their dtype, lengths and SHA-256, the tokenizer and the text they came from.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from glassgpt import assets
from glassgpt.config import DataConfig
from glassgpt.data.readers import Text
from glassgpt.errors import DataError
from glassgpt.tokenizer import Tokenizer, load, save, specs

FORMAT_VERSION = 2


@dataclass(frozen=True)
class StreamInfo:
    """What ``stream.json`` says."""

    format_version: int
    text_sha256: str
    tokenizer: str  # its identity
    vocab_size: int
    dtype: str
    tokens: dict[str, int]  # per split
    bytes: dict[str, int]  # UTF-8 bytes of text, per split
    lossless: bool  # whether the validation ids decode to the text: with <|unk|> among them they do not
    sha256: dict[str, str]  # of every other file of the folder


@dataclass(frozen=True)
class TokenStream:
    """A prepared text. ``train`` and ``val`` are memory-mapped, so their size costs no memory."""

    folder: Path
    info: StreamInfo

    @cached_property
    def train(self) -> np.ndarray:
        """Training ids, ``[tokens]``, read-only."""
        return self._open("train")

    @cached_property
    def val(self) -> np.ndarray:
        """Validation ids, ``[tokens]``, read-only: the end of the text, none of it in ``train``."""
        return self._open("val")

    @property
    def tokens_per_byte(self) -> float | None:
        """Validation tokens per byte of their text; None where they do not hold that text."""
        return self.info.tokens["val"] / self.info.bytes["val"] if self.info.lossless else None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids."""
        return load(self.folder)

    def _open(self, split: str) -> np.ndarray:
        if (self.folder / f"{split}.bin").stat().st_size == 0:
            return np.zeros(0, dtype=self.info.dtype)  # an empty file cannot be mapped
        return np.memmap(self.folder / f"{split}.bin", dtype=self.info.dtype, mode="r")


def prepare(text: Text, config: DataConfig, progress: specs.Progress | None = None) -> TokenStream:
    """Tokenise a text once and keep the result in the cache; later calls with the same text only open it.

    The split is by position, in characters, so it is the same for every tokenizer: the first part trains, the last
    ``val_fraction`` (but at most ``max_val_tokens`` characters) validates.

    Args:
        text: what was read.
        config: the tokenizer, and how to split.
        progress: told while a tokenizer is trained.

    Raises:
        DataError: if the cache cannot be written.
        TokenizerError: if there is no such tokenizer, or it does not know the text.
    """
    spec = specs.parse(config.tokenizer)

    def make(train: str, val: str) -> Tokenizer:
        return specs.make(spec, train, val, progress=progress)

    return _prepared(text, config, specs.identity(spec), make)


def prepare_again(text: Text, config: DataConfig, identity: str, tokenizer: Tokenizer) -> TokenStream:
    """As :func:`prepare`, with a tokenizer that is at hand and was known by ``identity`` then."""
    return _prepared(text, config, identity, lambda train, val: tokenizer)


def _prepared(text: Text, config: DataConfig, identity: str, make: Callable[[str, str], Tokenizer]) -> TokenStream:
    digest = hashlib.sha256(text.content.encode("utf-8")).hexdigest()
    folder = _folder(digest, identity, config)
    for _ in range(10):  # another process may be preparing the same text, or mending the same damage
        found = find_prepared(digest, identity, config)
        if found is not None:
            return found
        shutil.rmtree(folder, ignore_errors=True)
        temporary = _write_stream(text.content, digest, config, identity, make, folder)
        try:
            os.replace(temporary, folder)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
    raise DataError(f"the token stream in {folder} cannot be written; is something else changing that folder?")


def _write_stream(
    content: str, digest: str, config: DataConfig, identity: str, make: Callable[[str, str], Tokenizer], folder: Path
) -> Path:
    """Write a stream into a temporary folder beside its place."""
    cut = len(content) - min(round(len(content) * config.val_fraction), config.max_val_tokens)
    parts = {"train": content[:cut], "val": content[cut:]}
    tokenizer = make(parts["train"], parts["val"])
    dtype = "<u2" if tokenizer.vocab_size <= 2**16 else "<u4"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", suffix=".tmp", dir=folder.parent))
    except OSError as error:
        raise DataError(
            f"the cache {folder.parent} cannot be written: {error.strerror}; set GLASSGPT_CACHE to a folder that can"
        ) from None
    try:
        tokens, lossless = {}, True
        for split, part in parts.items():
            ids = tokenizer.encode_array(part)
            tokens[split] = len(ids)
            lossless = split == "train" or tokenizer.decode(ids.tolist()) == part
            (temporary / f"{split}.bin").write_bytes(ids.astype(dtype).tobytes())
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    save(tokenizer, temporary, block_size=2**31 - 1)
    info = StreamInfo(
        format_version=FORMAT_VERSION,
        text_sha256=digest,
        tokenizer=identity,
        vocab_size=tokenizer.vocab_size,
        dtype=dtype,
        tokens=tokens,
        bytes={split: len(part.encode("utf-8")) for split, part in parts.items()},
        lossless=lossless,
        sha256={file.name: assets.sha256_of(file) for file in sorted(temporary.iterdir())},
    )
    (temporary / "stream.json").write_text(json.dumps(asdict(info), indent=2) + "\n", encoding="utf-8")
    return temporary


def find_prepared(text_sha256: str, identity: str, config: DataConfig) -> TokenStream | None:
    """The stream in the cache for a text of that SHA-256 and a tokenizer, or None if there is none or it is damaged.

    Args:
        text_sha256: of the text, in UTF-8.
        identity: of the tokenizer, see :func:`glassgpt.tokenizer.specs.identity`.
        config: how the text was split.
    """
    try:
        stream = open_stream(_folder(text_sha256, identity, config))
    except DataError:
        return None
    return stream if (stream.info.text_sha256, stream.info.tokenizer) == (text_sha256, identity) else None


def _folder(text_sha256: str, identity: str, config: DataConfig) -> Path:
    description = f"{FORMAT_VERSION} {identity} {config.val_fraction!r} {config.max_val_tokens} {text_sha256}"
    return assets.cache_dir() / "streams" / hashlib.sha256(description.encode()).hexdigest()[:16]


def open_stream(folder: Path) -> TokenStream:
    """Open a prepared stream, checking that its files are what its description says.

    Raises:
        DataError: if it is not there, was cut short or changed, or holds an id beyond its vocabulary.
    """
    path = folder / "stream.json"
    try:
        info = StreamInfo(**json.loads(path.read_text(encoding="utf-8")))
        if info.format_version != FORMAT_VERSION:
            raise DataError(f"{path} has format version {info.format_version}; this version reads {FORMAT_VERSION}")
        _check_description(info)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise DataError(f"{folder} holds no token stream that can be read: {error}") from None
    for name, expected in info.sha256.items():
        file = folder / name
        found = assets.sha256_of(file) if file.exists() else "no file"
        if found != expected:
            raise DataError(f"{file} is not what stream.json describes: SHA-256 {expected} expected, found {found}")
    for split, tokens in info.tokens.items():
        size, expected_size = (folder / f"{split}.bin").stat().st_size, tokens * np.dtype(info.dtype).itemsize
        if size != expected_size:
            raise DataError(
                f"{folder / split}.bin has {size} bytes; {tokens} tokens of {info.dtype} are {expected_size}"
            )
    stream = TokenStream(folder, info)
    for split, ids in (("train", stream.train), ("val", stream.val)):
        if ids.size and int(ids.max()) >= info.vocab_size:
            place = int(np.argmax(ids >= info.vocab_size))
            raise DataError(
                f"{folder / split}.bin: id {int(ids[place])} at token {place} is beyond the vocabulary of "
                f"{info.vocab_size}"
            )
    if stream.tokenizer.vocab_size != info.vocab_size:
        raise DataError(f"{path}: vocab_size {info.vocab_size}, and {stream.tokenizer.vocab_size} in tokenizer.json")
    return stream


def _check_description(info: StreamInfo) -> None:
    """Refuse a stream.json that was written by hand or damaged (a ValueError that says where)."""
    if info.dtype not in ("<u2", "<u4"):
        raise ValueError(f"dtype {info.dtype!r}")
    carried = set(info.sha256) - {"train.bin", "val.bin", "tokenizer_config.json"}
    if len(info.sha256) != 4 or len(carried) != 1 or not carried <= {"tokenizer.json", "tokenizer.model"}:
        raise ValueError("sha256 does not list the files of a stream")
    for name, counts in (
        ("tokens", info.tokens),
        ("bytes", info.bytes),
        ("vocab_size", {"train": info.vocab_size, "val": 1}),
    ):
        if set(counts) != {"train", "val"} or any(type(n) is not int or n < 0 for n in counts.values()):
            raise ValueError(f"{name} is {counts!r}")

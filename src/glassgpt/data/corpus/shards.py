"""Token shards: memory-mapped files of token ids and document starts.

A shard is a safetensors file (https://github.com/huggingface/safetensors) of three arrays: ``tokens`` (little-endian
uint16, or uint32 for vocabularies above 65,536), ``starts`` (the place of the first token of each document that begins
in this shard) and ``bytes`` (UTF-8 bytes of each document's text). Its metadata has one key, ``glassgpt``, whose value
is JSON: the format version, the split, the tokenizer's hash, the number of tokens and the SHA-256 of the arrays, so a
shard can be checked alone. (The library writes several keys in another order each time, and the files must be equal.)
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from glassgpt.errors import DataError
from glassgpt.files import atomic_write, has_type, parse_json

FORMAT_VERSION = 4
#: Version 3 had the same arrays, and a metadata key for each value.
READABLE_VERSIONS = (3, 4)
SPLITS = ("train", "val")
_ARRAYS = ("tokens", "starts", "bytes")  # in a file, they are in the opposite order: the widest type first
#: The dtypes in a shard: safetensors' names and numpy's.
_DTYPES = {"U16": "<u2", "U32": "<u4", "I64": "<i8"}

#: Token ids, ``[N]``: an array, or in many files.
Ids: TypeAlias = "np.ndarray | Tokens"


@dataclass(frozen=True)
class Shard:
    """A shard's file and header; the arrays are memory-mapped at first use."""

    path: Path
    split: str  # "train" or "val"
    tokenizer: str  # SHA-256 of the tokenizer's file
    sha256: str  # of the three arrays, concatenated
    layout: dict[str, tuple[str, int, int]]  # dtype, length, and first byte in the file, of each array

    def __len__(self) -> int:
        """Count the tokens."""
        return self.layout["tokens"][1]

    @property
    def dtype(self) -> str:
        """Numpy's name of the ids' type: ``<u2`` or ``<u4``."""
        return self.layout["tokens"][0]

    @cached_property
    def tokens(self) -> np.ndarray:
        """The ids, ``[tokens]``, read-only."""
        return self._array("tokens")

    @cached_property
    def starts(self) -> np.ndarray:
        """The first token of each document, int64 ``[documents]``, ascending."""
        return self._array("starts")

    @cached_property
    def bytes(self) -> np.ndarray:
        """UTF-8 bytes, in this shard, of each document that begins here, int64 ``[documents]``."""
        return self._array("bytes")

    def _array(self, name: str) -> np.ndarray:
        dtype, length, offset = self.layout[name]
        if length == 0:
            return np.zeros(0, dtype=dtype)  # an empty range cannot be mapped
        return np.memmap(self.path, dtype=dtype, mode="r", offset=offset, shape=(length,))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the mapped arrays: a process that unpickles the shard maps them again."""
        return {name: value for name, value in self.__dict__.items() if name not in _ARRAYS}

    def check(self, vocab_size: int) -> None:
        """Read the full shard and compare it with its header.

        Raises:
            DataError: if it was changed, or has an id beyond the vocabulary.
        """
        arrays = [self._array(name) for name in _ARRAYS]  # not cached: they would stay in resident memory
        found = _digest(arrays)
        if found != self.sha256:
            raise DataError(
                f"{self.path} was changed after it was written: SHA-256 {self.sha256[:16]}... in its header, "
                f"{found[:16]}... found. Prepare the data again"
            )
        check_ids(arrays[0], vocab_size, str(self.path), self.layout["tokens"][2])


def check_ids(tokens: np.ndarray, vocab_size: int, where: str, offset: int = 0) -> None:
    """Check that all ids ``[N]`` are below ``vocab_size``, 16 million at a time.

    Raises:
        DataError: if not; names the first such id, its place, and its byte in the file.
    """
    for begin in range(0, len(tokens), 1 << 24):
        part = tokens[begin : begin + (1 << 24)]
        if int(part.max()) >= vocab_size:
            place = begin + int(np.argmax(part >= vocab_size))
            raise DataError(
                f"{where}: id {int(tokens[place])} at token {place} (byte {offset + place * tokens.itemsize}) is "
                f"beyond the vocabulary of {vocab_size}"
            )


def write_shard(path: Path, split: str, tokenizer: str, arrays: Sequence[np.ndarray]) -> str:
    """Write tokens (``<u2`` or ``<u4``), starts and bytes (``<i8``) as a shard, atomically; give the file's SHA-256.

    Tokens are ``[N]``; starts and bytes have one value per document, ``[D]``.
    ``tokenizer`` is the SHA-256 of the tokenizer's file.
    """
    header = {
        "format_version": FORMAT_VERSION,
        "split": split,
        "tokenizer": tokenizer,
        "tokens": len(arrays[0]),
        "documents": len(arrays[1]),
        "sha256": _digest(arrays),
    }
    content = save(dict(zip(_ARRAYS, arrays, strict=True)), metadata={"glassgpt": json.dumps(header)})
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def open_shard(path: Path) -> Shard:
    """Read a shard's header and check the length of the file.

    Raises:
        DataError: if the file does not exist, is not a shard of this version, or is truncated.
    """
    try:
        with safe_open(path, "numpy") as file:
            header = file.metadata() or {}
            header = parse_json(header["glassgpt"]) if "glassgpt" in header else header
            parts = {name: file.get_slice(name) for name in _ARRAYS}
            shapes = {name: (_DTYPES[part.get_dtype()], *part.get_shape()) for name, part in parts.items()}
        if int(header["format_version"]) not in READABLE_VERSIONS:
            raise ValueError(f"format version {header['format_version']}; this program reads {FORMAT_VERSION}")
        layout, end = {}, path.stat().st_size
        for name, (dtype, length) in shapes.items():
            end -= length * np.dtype(dtype).itemsize
            layout[name] = (dtype, length, end)
        split, tokenizer, sha256 = texts = [header[name] for name in ("split", "tokenizer", "sha256")]
        if split not in SPLITS or int(header["tokens"]) != layout["tokens"][1] or not has_type(texts, list[str]):
            raise ValueError("its header is not consistent")
        return Shard(path, split, tokenizer, sha256, layout)
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a valid token shard: {error}") from None


def _digest(arrays: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


class Tokens:
    """The ids of many shards as one array ``[N]``, with the document of each.

    Args:
        shards: in order; at least one.
        length: N, if only the first ids are to be used; all by default.
    """

    def __init__(self, shards: Sequence[Shard], length: int | None = None):
        assert shards, "at least one shard"
        self.shards = list(shards)
        ends = np.cumsum([len(shard) for shard in shards])
        self._length = int(ends[-1]) if length is None else length
        self.ends = np.minimum(ends, self._length)  # [shards]
        self.begins = np.concatenate([[0], self.ends[:-1]])  # [shards]
        self.dtype = np.dtype(shards[0].dtype)

    def __len__(self) -> int:
        """N."""
        return self._length

    @property
    def shape(self) -> tuple[int]:
        """``(N,)``."""
        return (self._length,)

    @property
    def size(self) -> int:
        """N."""
        return self._length

    def __getitem__(self, index: Any) -> Any:
        """Index like an array: an int gives an id, a slice or an array of integers an array of ids."""
        if isinstance(index, slice):
            begin, end, step = index.indices(self._length)
            if step != 1:
                return self[np.arange(begin, end, step)]
            return self._slice(begin, end)
        places = np.asarray(index)
        if places.size and not (-self._length <= int(places.min()) and int(places.max()) < self._length):
            raise IndexError(f"index out of range for {self._length} tokens")
        places = np.where(places < 0, places + self._length, places)
        if len(self.shards) == 1:
            return self.shards[0].tokens[places]
        ids = np.empty(places.shape, dtype=self.dtype)
        shards = np.searchsorted(self.ends, places, side="right")
        for shard in np.unique(shards):
            here = shards == shard
            ids[here] = self.shards[shard].tokens[places[here] - self.begins[shard]]
        return ids if ids.shape else ids[()]

    def _slice(self, begin: int, end: int) -> np.ndarray:
        """Give the ids from ``begin`` to ``end``; memory-mapped if they are in one shard."""
        parts = [
            shard.tokens[max(begin - first, 0) : end - first]
            for shard, first, last in zip(self.shards, self.begins, self.ends, strict=True)
            if first < end and begin < last
        ]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Read all ids into memory."""
        return np.asarray(self._slice(0, self._length), dtype=dtype)

    def tolist(self) -> list[int]:
        """Read all ids as a list."""
        return self._slice(0, self._length).tolist()

    @cached_property
    def _documents_before(self) -> np.ndarray:
        """How many documents begin before each shard, ``[shards]``."""
        return np.concatenate([[0], np.cumsum([shard.layout["starts"][1] for shard in self.shards])[:-1]])

    def document_of(self, places: np.ndarray) -> np.ndarray:
        """Give the number of the document, from 0, of the tokens at these places: int64 of the same shape."""
        document_ids = np.empty(places.shape, dtype=np.int64)
        shards = np.searchsorted(self.ends, places, side="right")
        for shard in np.unique(shards):
            here = shards == shard
            started = np.searchsorted(self.shards[shard].starts, places[here] - self.begins[shard], side="right")
            document_ids[here] = self._documents_before[shard] + started - 1
        return document_ids

"""Token shards: files that hold ids and where documents begin, mapped into memory rather than read.

A shard is a safetensors file (https://github.com/huggingface/safetensors) of three arrays: ``tokens`` (little-endian
uint16, or uint32 for vocabularies above 65,536), ``starts`` (the place of the first token of each document that begins
in this shard) and ``bytes`` (UTF-8 bytes of each document's text). Its header tells the format version, the split, the
tokenizer's hash, the number of tokens and the SHA-256 of the arrays, so a shard can be checked by itself.
"""

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from glassgpt.errors import DataError

FORMAT_VERSION = 3
SPLITS = ("train", "val")
_ARRAYS = ("tokens", "starts", "bytes")
#: safetensors' names of the dtypes that a shard may have.
_DTYPES = {"U16": "<u2", "U32": "<u4", "I64": "<i8"}
_MOST_HEADER = 1 << 20

#: What takes the place of ``[N]`` ids: they may lie in many files.
Ids: TypeAlias = "np.ndarray | Tokens"


@dataclass(frozen=True)
class Shard:
    """A shard's file and what its header says; the arrays are mapped when they are first used.

    Attributes:
        path: the file.
        split: "train" or "val".
        tokenizer: SHA-256 of the tokenizer's file.
        sha256: of the three arrays, one after another.
        layout: of each array, its dtype, length, and first byte in the file.
    """

    path: Path
    split: str
    tokenizer: str
    sha256: str
    layout: dict[str, tuple[str, int, int]]

    def __len__(self) -> int:
        """How many tokens it has."""
        return self.layout["tokens"][1]

    @property
    def dtype(self) -> str:
        """Of the ids: ``<u2`` or ``<u4``."""
        return self.layout["tokens"][0]

    @cached_property
    def tokens(self) -> np.ndarray:
        """The ids, ``[tokens]``, read-only."""
        return self._array("tokens")

    @cached_property
    def starts(self) -> np.ndarray:
        """Where documents begin, int64 ``[documents]``, ascending."""
        return self._array("starts")

    @cached_property
    def bytes(self) -> np.ndarray:
        """UTF-8 bytes of each document that begins here, int64 ``[documents]``; of a text in parts, of its parts."""
        return self._array("bytes")

    def _array(self, name: str) -> np.ndarray:
        dtype, length, offset = self.layout[name]
        if length == 0:
            return np.zeros(0, dtype=dtype)  # nothing cannot be mapped
        return np.memmap(self.path, dtype=dtype, mode="r", offset=offset, shape=(length,))

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapped arrays: another process maps them again, instead of being sent them."""
        return {name: value for name, value in self.__dict__.items() if name not in _ARRAYS}

    def check(self, vocab_size: int) -> None:
        """Read the whole shard and compare it with its header.

        Raises:
            DataError: if it was changed, or has an id beyond the vocabulary.
        """
        arrays = [self._array(name) for name in _ARRAYS]  # let go at the end, or all shards would count as resident
        found = _digest(arrays)
        if found != self.sha256:
            raise DataError(
                f"{self.path} was changed after it was written: SHA-256 {self.sha256[:16]}... in its header, "
                f"{found[:16]}... found. Prepare the data again"
            )
        check_ids(arrays[0], vocab_size, str(self.path), self.layout["tokens"][2])


def check_ids(tokens: np.ndarray, vocab_size: int, where: str, offset: int = 0) -> None:
    """See that all ids are below ``vocab_size``, 16 million at a time.

    Raises:
        DataError: naming the first that is not, its place, and its byte in the file.
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
    """Write a shard, whole or not at all, and return the SHA-256 of its file.

    Args:
        path: where.
        split: "train" or "val".
        tokenizer: SHA-256 of the tokenizer's file.
        arrays: tokens (``<u2`` or ``<u4``), starts and bytes (``<i8``).
    """
    named = dict(zip(_ARRAYS, arrays, strict=True))
    metadata = {
        "format": "glassgpt tokens",
        "format_version": str(FORMAT_VERSION),
        "split": split,
        "tokenizer": tokenizer,
        "tokens": str(len(named["tokens"])),
        "documents": str(len(named["starts"])),
        "sha256": _digest(arrays),
    }
    # Written here because safetensors' library puts the metadata in another order each time.
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in reversed(_ARRAYS):  # the widest first, so that each is aligned
        array, begin = named[name], end
        end += array.nbytes
        dtype = next(word for word, numpy in _DTYPES.items() if numpy == array.dtype.newbyteorder("<").str)
        header[name] = {"dtype": dtype, "shape": [len(array)], "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    digest = hashlib.sha256()
    try:
        with temporary.open("xb") as file:
            contents: list[Any] = [np.ascontiguousarray(named[name]).data for name in reversed(_ARRAYS)]
            for content in [struct.pack("<Q", len(encoded)), encoded, *contents]:
                file.write(content)
                digest.update(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return digest.hexdigest()


def open_shard(path: Path) -> Shard:
    """Read a shard's header and see that the file is as long as it says.

    Raises:
        DataError: if there is no such file, it is no shard, of another version, or was cut short.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MOST_HEADER:
                raise ValueError("it has no header")
            content = json.loads(file.read(length))
        header, layout = content.pop("__metadata__"), {}
        if header.get("format") != "glassgpt tokens":
            raise ValueError("its header does not speak of tokens")
        if header["format_version"] != str(FORMAT_VERSION):
            raise ValueError(f"format version {header['format_version']}, and this version reads {FORMAT_VERSION}")
        for name in _ARRAYS:
            entry = content[name]
            begin, end = entry["data_offsets"]
            layout[name] = (_DTYPES[entry["dtype"]], int(entry["shape"][0]), 8 + length + int(begin))
            if 8 + length + end > size:
                raise ValueError(f"it was cut short: {size:,} bytes, and its header speaks of {8 + length + end:,}")
            if begin < 0 or end - begin != layout[name][1] * np.dtype(layout[name][0]).itemsize:
                raise ValueError(f"its {name} are {end - begin} bytes, which {layout[name][1]} of them are not")
        if header["split"] not in SPLITS or int(header["tokens"]) != layout["tokens"][1]:
            raise ValueError("its header contradicts itself")
        return Shard(path, header["split"], header["tokenizer"], header["sha256"], layout)
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise DataError(f"{path} is no token shard that can be read: {error}") from None


def _digest(arrays: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


class Tokens:
    """The ids of many shards as one array ``[N]``, with the documents that they belong to.

    Args:
        shards: in order; at least one.
        length: how many of their ids count, from the beginning; all by default.
    """

    def __init__(self, shards: Sequence[Shard], length: int | None = None):
        assert shards, "there is no array of nothing"
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
        """As of an array: an int gives an id, a slice or an array of integers an array of ids."""
        if isinstance(index, slice):
            begin, end, step = index.indices(self._length)
            if step != 1:
                return self[np.arange(begin, end, step)]
            return self._run(begin, end)
        places = np.asarray(index)
        if places.size and not (-self._length <= int(places.min()) and int(places.max()) < self._length):
            raise IndexError(f"a place beyond the {self._length} tokens")
        places = np.where(places < 0, places + self._length, places)
        if len(self.shards) == 1:
            return self.shards[0].tokens[places]
        found = np.empty(places.shape, dtype=self.dtype)
        holders = np.searchsorted(self.ends, places, side="right")
        for holder in np.unique(holders):
            here = holders == holder
            found[here] = self.shards[holder].tokens[places[here] - self.begins[holder]]
        return found if found.shape else found[()]

    def _run(self, begin: int, end: int) -> np.ndarray:
        """Ids from ``begin`` to ``end``: mapped where they lie in one shard."""
        parts = [
            shard.tokens[max(begin - first, 0) : end - first]
            for shard, first, last in zip(self.shards, self.begins, self.ends, strict=True)
            if first < end and begin < last
        ]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All ids in memory."""
        return np.asarray(self._run(0, self._length), dtype=dtype)

    def tolist(self) -> list[int]:
        """All ids as a list."""
        ids: list[int] = self._run(0, self._length).tolist()
        return ids

    @cached_property
    def _documents_before(self) -> np.ndarray:
        """How many documents begin before each shard, ``[shards]``."""
        return np.concatenate([[0], np.cumsum([shard.layout["starts"][1] for shard in self.shards])[:-1]])

    def document_of(self, places: np.ndarray) -> np.ndarray:
        """Which document the tokens at these places belong to: int64 of the same shape, counted from 0."""
        holders = np.searchsorted(self.ends, places, side="right")
        found = np.empty(places.shape, dtype=np.int64)
        for holder in np.unique(holders):
            here = holders == holder
            local = places[here] - self.begins[holder]
            started = np.searchsorted(self.shards[holder].starts, local, side="right")
            found[here] = self._documents_before[holder] + started - 1
        return found

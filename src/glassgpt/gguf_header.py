"""The header of a .gguf file: its metadata, and where its tensors lie.

The `gguf` library reads it, too, but makes several arrays of every single string of a vocabulary: 3.1 s for SmolLM2's
49,152 tokens and 48,900 merges, against some 0.1 s here. The layout is that of docs/gguf.md in ggml-org/ggml, versions
2 and 3, little-endian; the tests hold this reader against the library's.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
#: The types of plain numbers, as `struct` names them.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor lies in its file.

    Attributes:
        shape: rows first, as in PyTorch (the file has it the other way round).
        type: ggml's number of the way in which its values are stored.
        offset: of its first byte, from the beginning of the file.
    """

    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class Header:
    """What a .gguf file says before its tensors begin.

    Attributes:
        values: the metadata by key: numbers, strings, and lists of these.
        tensors: by their names, in the order of the file.
        size: of the whole file, in bytes.
    """

    values: dict[str, Any]
    tensors: dict[str, TensorPlace]
    size: int


def read(path: Path) -> Header:
    """Read the header of a file; its tensors are not looked at.

    Raises:
        OSError: if the file cannot be read.
        ValueError: saying in what way it is no GGUF file, or a damaged one.
    """
    with path.open("rb") as file:
        if file.read(4) != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _Cursor(data).header()
            except (struct.error, IndexError):
                raise ValueError(f"it ends within its header, after {len(data):,} bytes") from None
            except UnicodeDecodeError:
                raise ValueError("its header holds a string that is no UTF-8") from None


class _Cursor:
    """Reads one thing after another."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, len(_MAGIC)

    def header(self) -> Header:
        version = self.number("I")
        if version not in (2, 3):
            hint = " (big-endian)" if version & 0xFFFF == 0 else ""
            raise ValueError(f"it is of GGUF version {version}{hint}; 2 and 3 can be read")
        tensor_count, value_count = self.number("Q"), self.number("Q")
        values: dict[str, Any] = {}
        for _ in range(value_count):
            key = self.string()
            if key in values:
                raise ValueError(f"its header has {key} twice")
            values[key] = self.value(self.number("I"))
        places: dict[str, TensorPlace] = {}
        for _ in range(tensor_count):
            name = self.string()
            if name in places:
                raise ValueError(f"its header has the tensor {name} twice")
            shape = self.numbers("Q", self.number("I"))
            places[name] = TensorPlace(tuple(reversed(shape)), self.number("I"), self.number("Q"))
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"its general.alignment is {alignment!r}")
        start = -(-self.at // alignment) * alignment
        tensors = {name: TensorPlace(place.shape, place.type, start + place.offset) for name, place in places.items()}
        return Header(values, tensors, len(self.data))

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            kind, count = self.number("I"), self.number("Q")
            if kind == _STRING:
                return [self.string() for _ in range(count)]
            if kind in _NUMBERS:
                return list(self.numbers(_NUMBERS[kind], count))
        elif kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        raise ValueError(f"its header has a value of the unknown type {kind}")

    def number(self, kind: str) -> Any:
        return self.numbers(kind, 1)[0]

    def numbers(self, kind: str, count: int) -> tuple[Any, ...]:
        if count > len(self.data):
            raise IndexError  # before a number beyond all reason asks for memory
        layout = struct.Struct(f"<{count}{kind}")
        found = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return found

    def string(self) -> str:
        begin = self.at + 8
        end = begin + _LENGTH.unpack_from(self.data, self.at)[0]
        if end > len(self.data):
            raise IndexError
        self.at = end
        return self.data[begin:end].decode("utf-8")


_LENGTH = struct.Struct("<Q")

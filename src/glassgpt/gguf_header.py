"""Read the header of a .gguf file: its metadata, and the places of its tensors.

This module is below the tokenizer because two rooms read such files: the tokenizer takes its vocabulary from the
metadata, and :mod:`glassgpt.weights.gguf` takes the weights.

The `gguf` library can read headers too, but makes several arrays for every string of a vocabulary: 3.1 s for SmolLM2's
49,152 tokens and 48,900 merges, compared with about 0.1 s here. The layout is that of docs/gguf.md in ggml-org/ggml,
versions 2 and 3, little-endian; the tests compare this reader with the library's.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glassgpt.errors import GlassError

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
#: The numeric types -> their `struct` format characters.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class TensorInfo:
    """Shape, type and place of a tensor.

    Attributes:
        shape: as in PyTorch (the file stores it reversed).
        type: ggml's number for how its values are stored.
        offset: of its first byte in the file.
    """

    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class Header:
    """The header of a .gguf file.

    Attributes:
        metadata: by key: numbers, strings, and lists of these.
        tensors: by name, in the order of the file.
        size: of the whole file, in bytes.
    """

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    size: int


def read_header(path: Path, error_type: type[GlassError]) -> Header:
    """Read the header of a file, without its tensors.

    Raises:
        error_type: if the file cannot be read, is not a GGUF file, or is damaged.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != _MAGIC:
                raise ValueError("it does not begin with GGUF")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(data).header()
    except OSError as error:
        raise error_type(f"{path} cannot be read: {error.strerror}") from None
    except (struct.error, IndexError):
        reason = f"it ends within its header, after {path.stat().st_size:,} bytes"
    except UnicodeDecodeError:
        reason = "its header holds a string that is not valid UTF-8"
    except ValueError as error:
        reason = str(error)
    raise error_type(f"{path} is not a readable GGUF file: {reason}")


class _Reader:
    """Reads one value after another."""

    def __init__(self, data: mmap.mmap):
        self.data, self.offset = data, len(_MAGIC)

    def header(self) -> Header:
        version = self.number("I")
        if version not in (2, 3):
            hint = " (big-endian)" if version & 0xFFFF == 0 else ""
            raise ValueError(f"it is of GGUF version {version}{hint}; versions 2 and 3 are supported")
        tensor_count, value_count = self.number("Q"), self.number("Q")
        metadata: dict[str, Any] = {}
        for _ in range(value_count):
            key = self.string()
            if key in metadata:
                raise ValueError(f"its header has {key} twice")
            metadata[key] = self.value(self.number("I"))
        infos: dict[str, TensorInfo] = {}
        for _ in range(tensor_count):
            name = self.string()
            if name in infos:
                raise ValueError(f"its header has the tensor {name} twice")
            shape = self.numbers("Q", self.number("I"))
            infos[name] = TensorInfo(tuple(reversed(shape)), self.number("I"), self.number("Q"))
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"its general.alignment is {alignment!r}")
        start = -(-self.offset // alignment) * alignment
        tensors = {name: TensorInfo(info.shape, info.type, start + info.offset) for name, info in infos.items()}
        return Header(metadata, tensors, len(self.data))

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
            raise IndexError  # a damaged count: do not allocate memory for it
        layout = struct.Struct(f"<{count}{kind}")
        found = layout.unpack_from(self.data, self.offset)
        self.offset += layout.size
        return found

    def string(self) -> str:
        begin = self.offset + 8
        end = begin + _LENGTH.unpack_from(self.data, self.offset)[0]
        if end > len(self.data):
            raise IndexError
        self.offset = end
        return self.data[begin:end].decode("utf-8")

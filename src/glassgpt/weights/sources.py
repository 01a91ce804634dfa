"""Sources of published weights: names and shapes at once, contents piece by piece.

Loading needs nothing but a :class:`WeightSource`, so a folder, a download and a GGUF file are loaded by the same code.
:class:`FolderSource` is a folder in the Hugging Face layout: one ``model.safetensors``, shards with an index, or the
older ``pytorch_model.bin``, from which only tensors are read (``weights_only``).
"""

import contextlib
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from glassgpt import tokenizer as tokenizers
from glassgpt.errors import CheckpointError, first_line
from glassgpt.files import parse_json, read_json_object, sha256_of
from glassgpt.model.quantized import Quantization
from glassgpt.tokenizer.base import Tokenizer

#: The files that hold weights, in the order in which they are looked for.
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
OLD_SINGLE, OLD_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
#: The files of a LoRA adapter; see :mod:`glassgpt.weights.adapter`.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: torch's dtypes -> the names that safetensors has for them.
_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.bool: "BOOL",
    torch.uint8: "U8",
}


class WeightSource(Protocol):
    """Weights under their published names.

    Attributes:
        path: the folder or file.
        config: the content of config.json, under Hugging Face's keys; enough to build the model.
        shapes: of every tensor, by name.
        stored: how each tensor is stored: ``F32``, ``BF16``, ``Q4_1`` and so on.
        notes: sentences that the user should see.
    """

    path: Path
    config: dict[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    stored: Mapping[str, str]
    notes: tuple[str, ...]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Read rows ``start`` to ``stop`` (along dimension 0; all by default) of a tensor, on the CPU.

        The dtype is the stored one, or float32 for quantised tensors. Reading a large tensor in parts saves memory.

        Raises:
            CheckpointError: if it cannot be read.
        """

    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer that came with the weights.

        Raises:
            TokenizerError: if it is missing or damaged.
        """


@runtime_checkable
class QuantizedSource(WeightSource, Protocol):
    """A source that has integers with scales for some matrices; ``read`` dequantises them.

    Attributes:
        quantized: how they are stored, by the published name of the weight.
    """

    quantized: Mapping[str, Quantization]

    def read_quantized(self, name: str) -> tuple[Tensor, Tensor]:
        """Read values and scales of a matrix, ``[out, in]``, as QuantizedMatrix has them.

        Raises:
            CheckpointError: if they cannot be read.
        """


class FolderSource:
    """A folder in the Hugging Face layout; see :class:`WeightSource`. Opening it reads only names and shapes.

    Raises:
        CheckpointError: if a file is missing, truncated or damaged, or an index does not match its shards.
    """

    def __init__(self, folder: Path):
        self.path = folder
        self.config = read_json(folder / "config.json")
        self.notes: tuple[str, ...] = ()
        self.files = weight_files(folder)
        self._file_of: dict[str, Path] = {}
        self._open_shard: tuple[Path, dict[str, Tensor]] | None = None
        shapes, stored_as = dict[str, tuple[int, ...]](), dict[str, str]()
        for path in self.files:
            for name, (shape, stored) in (_list_old(path) if _is_old(path) else _list_safetensors(path)).items():
                if name in self._file_of:
                    raise CheckpointError(f"{name} is in both {self._file_of[name].name} and {path.name} of {folder}")
                self._file_of[name], shapes[name], stored_as[name] = path, shape, stored
        self.shapes: Mapping[str, tuple[int, ...]] = shapes
        self.stored: Mapping[str, str] = stored_as
        if any(map(_is_old, self.files)):
            self.notes = (
                f"{self.files[0].name} is in torch's old format; only its tensors were read. As safetensors the model "
                "would load faster and more safely: ask its author for them, or save it with glassgpt",
            )

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """As :meth:`WeightSource.read`. The file is opened for each read, so that the system can free its pages."""
        path = self._file_of[name]
        if _is_old(path):
            if self._open_shard is None or self._open_shard[0] != path:
                self._open_shard = None  # free one shard before loading the next
                self._open_shard = path, _read_old(path)
            return self._open_shard[1][name][start:stop]
        with reading(path), safe_open(path, "pt") as file:
            return file.get_slice(name)[start:stop]

    def tokenizer(self) -> Tokenizer:
        """As :meth:`WeightSource.tokenizer`."""
        return tokenizers.load(self.path)


def file_checksums(source: WeightSource) -> dict[str, str]:
    """Compute the SHA-256 of every file of a source's weights, by file name."""
    return {path.name: sha256_of(path) for path in getattr(source, "files", [source.path])}


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a LoRA adapter, and no whole model."""
    whole = any((folder / name).exists() for name in (SINGLE, INDEX, OLD_SINGLE, OLD_INDEX))
    return (folder / ADAPTER_CONFIG).exists() and not whole


def weight_files(folder: Path) -> list[Path]:
    """List the files that hold a folder's weights, in order; safetensors win over older files.

    Raises:
        CheckpointError: if there are none, or an index names a file that is missing.
    """
    for single, index in ((SINGLE, INDEX), (OLD_SINGLE, OLD_INDEX)):
        if (folder / single).exists():
            return [folder / single]
        if (folder / index).exists():
            return _shards(folder / index)
    others = sorted(p.name for p in folder.glob("*") if p.suffix in (".safetensors", ".bin", ".pth", ".pt", ".gguf"))
    found = f"; it has {', '.join(others[:5])}, in a layout that is not supported" if others else ""
    raise CheckpointError(f"{folder / SINGLE} is missing; {folder} is not a complete model folder{found}")


def _shards(index: Path) -> list[Path]:
    """List the shards of an index; check that each exists and holds the tensors that the index expects in it."""
    file_of = read_json(index).get("weight_map")
    if not isinstance(file_of, dict) or not file_of or not all(isinstance(name, str) for name in file_of.values()):
        raise CheckpointError(f"{index} is damaged: its weight_map should give the file of each tensor")
    names = sorted(set(file_of.values()))
    if outside := [name for name in names if Path(name).name != name]:
        raise CheckpointError(f"{index} names {outside[0]!r}, which is not a file of its folder")
    if missing := [name for name in names if not (index.parent / name).exists()]:
        raise CheckpointError(f"{index.parent} lacks {some(missing)} of its {len(names)} shards; fetch it again")
    for name in names:
        if name.endswith(".safetensors"):
            absent = {n for n, file in file_of.items() if file == name} - set(_list_safetensors(index.parent / name))
            if absent:
                raise CheckpointError(f"{index} expects {some(sorted(absent))} in {name}, which has no such tensor")
    return [index.parent / name for name in names]


def _list_safetensors(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """List shape and stored type of every tensor in a safetensors file; check the file's length against its header."""
    with reading(path):
        with safe_open(path, "pt"):  # checks the header: offsets, sizes, and the length of the file
            pass
        with path.open("rb") as file:
            header = parse_json(file.read(struct.unpack("<Q", file.read(8))[0]))
    return {name: (tuple(entry["shape"]), entry["dtype"]) for name, entry in header.items() if name != "__metadata__"}


def _is_old(path: Path) -> bool:
    return path.suffix == ".bin"


def _list_old(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    tensors = _read_old(path)
    return {name: (tuple(t.shape), _DTYPE_NAMES.get(t.dtype, str(t.dtype))) for name, t in tensors.items()}


def _read_old(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file in torch's old format, and nothing else from it."""
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            content = torch.load(path, map_location="cpu", weights_only=True)  # even older: cannot be memory-mapped
    except Exception as error:  # a damaged file can raise almost anything
        reason = first_line(error)
        raise CheckpointError(
            f"{path} cannot be read: it is damaged, or holds more than tensors ({reason}); "
            "use a version of the model that is published as safetensors"
        ) from None
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} holds more than named tensors, so it is not a published model's weights")
    for name, tensor in content.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
            raise CheckpointError(
                f"{path}: {name} is sparse, quantised or empty, not a plain tensor; use a version of the model that is "
                "published as safetensors"
            )
    return dict(content)


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    with reading(path):
        return read_json_object(path)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Report the errors of reading a file of a model folder as CheckpointError."""
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; {path.parent} is not a complete model folder") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged and cannot be read: {error}") from None


def some(names: list[str], limit: int = 3) -> str:
    """List at most ``limit`` names, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")

"""Where published weights come from: their names, shapes and contents, one piece at a time.

A :class:`Source` is all that loading asks for, so a folder, a download and a GGUF file are loaded by the same code.
:class:`FolderSource` is a folder in the Hugging Face layout: one ``model.safetensors``, shards with an index, or the
older ``pytorch_model.bin``, of which nothing but tensors is ever read (``weights_only``).
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from glassgpt.errors import CheckpointError
from glassgpt.tokenizer import Tokenizer
from glassgpt.tokenizer import load as load_tokenizer

#: The files that hold weights, in the order in which they are looked for.
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
OLD_SINGLE, OLD_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
#: The names that safetensors has for torch's types.
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.bool: "BOOL",
    torch.uint8: "U8",
}


class Source(Protocol):
    """Published weights, under their published names.

    Attributes:
        where: the folder or file, for messages.
        config: what config.json holds, under Hugging Face's keys; enough to build the model.
        shapes: of every tensor, by name; known without reading one.
        stored: how each is stored: ``F32``, ``BF16``, ``Q4_1`` and so on.
        notes: what the user should know, a sentence each; empty where all is well.
    """

    where: Path
    config: dict[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    stored: Mapping[str, str]
    notes: tuple[str, ...]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows ``start`` to ``stop`` (of the first dimension; all by default) of a tensor, on the CPU.

        In the type it is stored in; dequantised where that is none of torch's. Large tensors are asked for in parts,
        so that never more than a part is held beside the model.

        Raises:
            CheckpointError: if it cannot be read.
        """
        ...

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that came with the weights.

        Raises:
            TokenizerError: if there is none, or it is damaged.
        """
        ...

    def generation(self) -> dict[str, Any]:
        """What generation_config.json holds: end tokens and sampling settings; empty where there is none."""
        ...


class FolderSource:
    """A folder in the Hugging Face layout; see :class:`Source`. Opening it reads the names alone.

    Raises:
        CheckpointError: if a file is missing, truncated or damaged, or an index and its shards disagree.
    """

    def __init__(self, folder: Path):
        self.where = folder
        self.config = read_json(folder / "config.json")
        self.notes: tuple[str, ...] = ()
        self._file_of: dict[str, Path] = {}
        self._open_shard: tuple[Path, dict[str, Tensor]] | None = None
        self.files = weight_files(folder)
        found: dict[str, tuple[tuple[int, ...], str]] = {}
        for path in self.files:
            found |= self._list(path)
        self.shapes: Mapping[str, tuple[int, ...]] = {name: shape for name, (shape, _) in found.items()}
        self.stored: Mapping[str, str] = {name: stored for name, (_, stored) in found.items()}
        if any(path.suffix == ".bin" for path in self.files):
            self.notes = (
                f"{self.files[0].name} is in torch's old format; only its tensors were read. Published again as "
                "safetensors it loads faster and needs no trust: ask its author for that, or save it from here",
            )

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """As :meth:`Source.read`. The file is opened anew each time, so that pages that were read can be let go."""
        path = self._file_of[name]
        if path.suffix == ".bin":
            if self._open_shard is None or self._open_shard[0] != path:
                self._open_shard = None  # before the next is opened, so that there is one at a time
                self._open_shard = path, _read_old(path)
            return self._open_shard[1][name][start:stop]
        try:
            with safe_open(path, "pt") as file:
                return file.get_slice(name)[start:stop]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged and cannot be read: {error}") from None

    def tokenizer(self) -> Tokenizer:
        """As :meth:`Source.tokenizer`."""
        return load_tokenizer(self.where)

    def generation(self) -> dict[str, Any]:
        """As :meth:`Source.generation`."""
        path = self.where / "generation_config.json"
        return read_json(path) if path.exists() else {}

    def _list(self, path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
        """What a file holds; remembers that it does."""
        if path.suffix == ".bin":
            tensors = _read_old(path)
            found = {n: (tuple(t.shape), _TYPES.get(t.dtype, str(t.dtype))) for n, t in tensors.items()}
        else:
            found = list_safetensors(path)
        for name in found:
            if name in self._file_of:
                raise CheckpointError(f"{name} is in both {self._file_of[name].name} and {path.name} of {self.where}")
            self._file_of[name] = path
        return found


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, in order; of several layouts the newest.

    Raises:
        CheckpointError: if there are none, or an index names a file that is not there.
    """
    for single, index in ((SINGLE, INDEX), (OLD_SINGLE, OLD_INDEX)):
        if (folder / single).exists():
            return [folder / single]
        if (folder / index).exists():
            return _indexed(folder / index)
    others = sorted(p.name for p in folder.glob("*") if p.suffix in (".safetensors", ".bin", ".pth", ".pt", ".gguf"))
    found = f"; it has {', '.join(others[:5])}, in a layout that is not read here" if others else ""
    raise CheckpointError(f"{folder / SINGLE} is missing; the folder is not a whole model folder{found}")


def _indexed(index: Path) -> list[Path]:
    """The shards that an index names, all of them there and holding what it says."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{index} is damaged: its weight_map should give the file of each tensor")
    names = sorted(set(places.values()))
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{index} names {name!r}, which is no file of its folder")
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing:
        raise CheckpointError(f"{index.parent} lacks {_some(missing)} of its {len(names)} shards; fetch it again")
    for name in names:
        if name.endswith(".safetensors"):
            lacking = {n for n, file in places.items() if file == name} - set(list_safetensors(index.parent / name))
            if lacking:
                raise CheckpointError(f"{index} expects {_some(sorted(lacking))} in {name}, which has no such tensor")
    return [index.parent / name for name in names]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def list_safetensors(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and stored type of every tensor in a safetensors file, whose length is checked against its header.

    Raises:
        CheckpointError: if the file is missing, truncated or damaged.
    """
    try:
        with safe_open(path, "pt"):  # checks the whole header: offsets, sizes, and the length of the file
            pass
        with path.open("rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; the folder is not a whole model folder") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged and cannot be read: {error}") from None
    return {name: (tuple(entry["shape"]), entry["dtype"]) for name, entry in header.items() if name != "__metadata__"}


def _read_old(path: Path) -> dict[str, Tensor]:
    """The tensors of a file in torch's old format; nothing but tensors is read from it."""
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            content = torch.load(path, map_location="cpu", weights_only=True)  # older still: cannot be mapped
    except Exception as error:  # a damaged file can end in any of a dozen ways
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read: it is damaged, or holds more than tensors ({reason}); "
            "use a version of the model that is published as safetensors"
        ) from None
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} holds more than named tensors, so it is no published model's weights")
    return dict(content)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; {path.parent} is not a whole model folder") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged and cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: an object was expected")
    return content

"""Read .gguf files, llama.cpp's format, as tensors with Hugging Face's names and layout.

========================  =============================================================================================
names                     ``blk.0.attn_q.weight`` is ``model.layers.0.self_attn.q_proj.weight``: one table for each
                          architecture
queries and keys          architecture `llama` (Llama, Mistral, SmolLM2, TinyLlama) rotates neighbouring dimensions of a
                          head, Hugging Face rotates halves: the rows are reordered. Qwen's are stored in halves
GPT-2's matrices          (out, in) in the file, (in, out) as published
values                    F32, F16 and BF16 as stored; quantised ones are dequantised by the `gguf` library, in parts,
                          but Q8_0 and Q4_0 can also be read as they are: integers and a scale for 32 of them
``rope_freqs``            a tensor with the RoPE scaling factors of Llama 3: converted back to its configuration
========================  =============================================================================================
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from glassgpt import gguf_header
from glassgpt.errors import CheckpointError, MissingExtraError
from glassgpt.gguf_header import TensorInfo
from glassgpt.model.quantized import Quantization
from glassgpt.tokenizer import Tokenizer
from glassgpt.tokenizer.gguf import tokenizer_from_metadata
from glassgpt.weights.gguf.config import hf_config
from glassgpt.weights.gguf.tables import ARCHITECTURES, ROPE_FACTORS, Architecture, rotated_halves

#: Values in each row that the library dequantises; it works on 16 rows at a time, which then fit into a cache.
_ROW = 16384
_NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")
#: Types whose blocks can be read as they are: bytes of a block, and how it is stored.
_KEPT = {"Q8_0": (34, Quantization(8, 32)), "Q4_0": (18, Quantization(4, 32))}
_TORCH_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


class GGUFSource:
    """The weights in a .gguf file; see :class:`glassgpt.weights.sources.QuantizedSource`. Opening it reads its header.

    Raises:
        CheckpointError: if it is missing, damaged or truncated, or its architecture is not supported.
        MissingExtraError: if the `gguf` library is not installed.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, path: Path):
        self.path = path
        self._gguf = import_gguf("reading the weights of a .gguf file")
        self.header = gguf_header.read_header(path, CheckpointError)
        name = self.header.metadata.get("general.architecture")
        if not isinstance(name, str) or name not in ARCHITECTURES:
            raise CheckpointError(
                f"{path}: its architecture {name!r} is not supported (supported: gpt2, llama, which includes Mistral, "
                "qwen2 and qwen3)"
            )
        self.architecture = ARCHITECTURES[name]
        self._nbytes = {theirs: self._check(theirs, info) for theirs, info in self.header.tensors.items()}
        self._names: dict[str, tuple[str, str]] = {}  # published name -> name in the file, entry of the table
        stored, shapes = dict[str, str](), dict[str, tuple[int, ...]]()
        for theirs, info in self.header.tensors.items():
            if theirs != ROPE_FACTORS:
                published, entry = _published_name(theirs, self.architecture)
                self._names[published], stored[published] = (theirs, entry), self._type(theirs)
                shapes[published] = info.shape[::-1] if self._is_transposed(entry, info.shape) else info.shape
        self.quantized: Mapping[str, Quantization] = {
            name: _KEPT[stored[name]][1]
            for name, (theirs, entry) in self._names.items()
            if stored[name] in _KEPT and len(self.header.tensors[theirs].shape) == 2 and entry != "position_embd"
        }
        self.stored: Mapping[str, str] = stored
        self.shapes: Mapping[str, tuple[int, ...]] = shapes
        matrix_types = {self._type(theirs) for theirs, info in self.header.tensors.items() if len(info.shape) == 2}
        try:
            self.config = hf_config(self.header, matrix_types, self._rope_factors())
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise CheckpointError(f"{path}: its configuration cannot be read: {reason}") from None
        self._transposed: tuple[str, Tensor] | None = None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Read rows of a tensor by its published name, in the published layout; float32 if it is quantised.

        Raises:
            CheckpointError: if the file can no longer be read.
        """
        theirs, entry = self._names[name]
        info, shape = self.header.tensors[theirs], self.shapes[name]
        stop = shape[0] if stop is None else min(stop, shape[0])
        try:
            if self._is_transposed(entry, info.shape):
                if self._transposed is None or self._transposed[0] != name:
                    self._transposed = name, self._rows(theirs, 0, info.shape[0]).T
                return self._transposed[1][start:stop]
            if entry in self.architecture.permuted:
                order = self._row_order(entry, shape[0])[start:stop]
                first = int(order.min())
                return self._rows(theirs, first, int(order.max()) + 1)[torch.from_numpy(order - first)]
            return self._rows(theirs, start, stop)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path} can no longer be read: {error}") from None

    def read_quantized(self, name: str) -> tuple[Tensor, Tensor]:
        """As :meth:`~glassgpt.weights.sources.QuantizedSource.read_quantized`.

        A block is a float16 scale, and then 32 int8 (Q8_0), or 16 bytes that are packed as ours are (Q4_0).

        Raises:
            CheckpointError: if they cannot be read.
        """
        theirs, entry = self._names[name]
        size, kind = _KEPT[self.stored[name]]
        rows, columns = self.header.tensors[theirs].shape
        try:
            raw = self._raw(theirs, 0, rows)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path} can no longer be read: {error}") from None
        blocks = raw.reshape(rows, columns // kind.group_size, size)
        if entry in self.architecture.permuted:
            blocks = blocks[self._row_order(entry, rows)]
        scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0].astype(np.float32)
        values = np.ascontiguousarray(blocks[..., 2:]).reshape(rows, -1)
        return torch.from_numpy(values.view(np.int8) if kind.bits == 8 else values), torch.from_numpy(scales)

    def _row_order(self, entry: str, rows: int) -> np.ndarray:
        """Give the file's rows of queries or keys in the published order, ``[rows]``."""
        return rotated_halves(
            rows, self.config["num_attention_heads" if entry.endswith("q") else "num_key_value_heads"]
        )

    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer in the file, as :func:`tokenizer_from_metadata`."""
        return tokenizer_from_metadata(self.path, self.header.metadata)

    def _rope_factors(self) -> np.ndarray | None:
        """Read the divisors of the RoPE frequencies, ``[head_dim / 2]``; None if the file does not have them."""
        info = self.header.tensors.get(ROPE_FACTORS)
        return None if info is None else self._rows(ROPE_FACTORS, 0, info.shape[0]).float().numpy()

    def _is_transposed(self, entry: str, shape: tuple[int, ...]) -> bool:
        return entry in self.architecture.transposed and len(shape) == 2

    def _type(self, theirs: str) -> str:
        """Name the type in which a tensor is stored, as ggml does."""
        return self._gguf.GGMLQuantizationType(self.header.tensors[theirs].type).name

    def _check(self, theirs: str, info: TensorInfo) -> int:
        """Compute the bytes of a tensor, and check that the file has them."""
        try:
            block, size = self._gguf.GGML_QUANT_SIZES[self._gguf.GGMLQuantizationType(info.type)]
        except (ValueError, KeyError):
            raise CheckpointError(f"{self.path}: {theirs} is stored in an unknown type ({info.type})") from None
        count = math.prod(info.shape)
        if not info.shape or len(info.shape) > 2 or count == 0 or info.shape[-1] % block:
            raise CheckpointError(f"{self.path} is damaged: {theirs} has the shape {list(info.shape)}")
        nbytes: int = count // block * size
        if info.offset + nbytes > self.header.size:
            raise CheckpointError(
                f"{self.path} is truncated: {theirs} ends at byte {info.offset + nbytes:,}, the file at "
                f"{self.header.size:,}; fetch it again"
            )
        return nbytes

    def _rows(self, theirs: str, start: int, stop: int) -> Tensor:
        """Read rows of a tensor in the file's layout, dequantised."""
        values = self._dequantize(self._raw(theirs, start, stop), self._type(theirs))
        return values.view(stop - start, -1) if len(self.header.tensors[theirs].shape) == 2 else values[start:stop]

    def _raw(self, theirs: str, start: int, stop: int) -> np.ndarray:
        """Read the bytes of rows of a tensor; of a vector, all bytes."""
        info, nbytes = self.header.tensors[theirs], self._nbytes[theirs]
        per_row = nbytes // info.shape[0] if len(info.shape) == 2 else 0
        begin, count = (start * per_row, (stop - start) * per_row) if per_row else (0, nbytes)
        with self.path.open("rb") as file:
            file.seek(info.offset + begin)
            raw = np.fromfile(file, dtype=np.uint8, count=count)
        if len(raw) != count:
            raise ValueError(f"{theirs} is truncated")
        return raw

    def _dequantize(self, raw: np.ndarray, type_name: str) -> Tensor:
        """Convert stored bytes to numbers, in one dimension."""
        if type_name in _TORCH_TYPES:
            return torch.from_numpy(raw).view(_TORCH_TYPES[type_name])
        quantization = self._gguf.GGMLQuantizationType[type_name]
        block, size = self._gguf.GGML_QUANT_SIZES[quantization]
        row = _ROW // block * size
        full = len(raw) // row * row
        parts = [raw[:full].reshape(-1, row), raw[None, full:]]
        try:
            parts = [self._gguf.dequantize(part, quantization) for part in parts if part.size]
        except NotImplementedError:
            raise CheckpointError(f"{self.path}: the `gguf` library cannot dequantise {type_name}") from None
        return torch.from_numpy(np.concatenate([part.reshape(-1) for part in parts]))


def _published_name(theirs: str, architecture: Architecture) -> tuple[str, str]:
    """Give a tensor's published name and its entry of the table; its own name and "" if the table has none."""
    match = _NAME.fullmatch(theirs)
    if match is not None:
        layer, base, kind = match.groups()
        entry = base if layer is None else f"blk.{{i}}.{base}"
        if entry in architecture.names:
            return f"{architecture.names[entry].format(i=layer)}.{kind}", entry
    return theirs, ""


def import_gguf(purpose: str) -> ModuleType:
    """Import the `gguf` library.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise MissingExtraError("gguf", "gguf", purpose) from None
    return gguf

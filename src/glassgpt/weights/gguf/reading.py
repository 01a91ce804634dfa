"""Reading .gguf files, llama.cpp's format: tensors under their Hugging Face names, in Hugging Face's layout.

========================  =============================================================================================
names                     ``blk.0.attn_q.weight`` is ``model.layers.0.self_attn.q_proj.weight``: a table for each kind
queries and keys          architecture `llama` (Llama, Mistral, SmolLM2, TinyLlama) turns neighbouring pairs of a head,
                          Hugging Face's turn halves: the rows are put back in that order. Qwen's never left it
GPT-2's matrices          (out, in) in the file, (in, out) as published
values                    F32, F16 and BF16 as they are; quantised ones dequantised by the `gguf` library, in parts
``rope_freqs``            a tensor that holds Llama 3's scaling of the rotary frequencies: back to its configuration
========================  =============================================================================================
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glassgpt import gguf_header
from glassgpt.errors import CheckpointError, MissingExtraError
from glassgpt.gguf_header import Header, TensorPlace
from glassgpt.tokenizer import Tokenizer
from glassgpt.tokenizer.gguf import tokenizer_from_metadata
from glassgpt.weights.gguf.tables import (
    ARCHITECTURES,
    BEYOND,
    HINT,
    LLAMA_KEYS,
    ROPE_FACTORS,
    Architecture,
    llama3_factors,
    llama3_scaling,
    rotated_halves,
)

#: Values that are dequantised at a time by each step of the library, which takes 16 rows: few steps, within a cache.
_STEP = 16384
_NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")


class GGUFSource:
    """A .gguf file as published weights; see :class:`glassgpt.weights.sources.Source`. Opening it reads its header.

    Raises:
        CheckpointError: if it cannot be read, is damaged or truncated, or of an architecture that is not read here.
        MissingExtraError: if the `gguf` library is not installed.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, path: Path):
        self.where = path
        self._gguf = library("reading the weights of a .gguf file")
        self.header = read_header(path)
        name = self.header.values.get("general.architecture")
        if name not in ARCHITECTURES:
            raise CheckpointError(f"{path}: its architecture {name!r} is not one that is read here ({_KNOWN})")
        self.architecture = ARCHITECTURES[name]
        self._sizes = {info: self._check(info, place) for info, place in self.header.tensors.items()}
        self._names: dict[str, tuple[str, str]] = {}  # Hugging Face's name -> theirs, and the entry of the table
        for theirs in self.header.tensors:
            if theirs != ROPE_FACTORS:
                ours, entry = _published_name(theirs, self.architecture)
                self._names[ours] = theirs, entry
        self.stored: Mapping[str, str] = {ours: self.type_of(theirs) for ours, (theirs, _) in self._names.items()}
        shapes: dict[str, tuple[int, ...]] = {}
        for ours, (theirs, entry) in self._names.items():
            shape = self.header.tensors[theirs].shape
            shapes[ours] = shape[::-1] if self._is_transposed(entry, shape) else shape
        self.shapes: Mapping[str, tuple[int, ...]] = shapes
        try:
            self.config = _config(self)
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            said = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise CheckpointError(f"{path}: its configuration cannot be read: {said}") from None
        self._transposed: tuple[str, Tensor] | None = None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows of a tensor under its Hugging Face name, in that layout; float32 where it is quantised.

        Raises:
            CheckpointError: if the file can no longer be read.
        """
        theirs, entry = self._names[name]
        place, shape = self.header.tensors[theirs], self.shapes[name]
        stop = shape[0] if stop is None else min(stop, shape[0])
        try:
            if self._is_transposed(entry, place.shape):
                if self._transposed is None or self._transposed[0] != name:
                    self._transposed = name, self._rows(theirs, 0, place.shape[0]).T
                return self._transposed[1][start:stop]
            if entry in self.architecture.permuted:
                key = "num_attention_heads" if entry.endswith("q") else "num_key_value_heads"
                order = rotated_halves(shape[0], self.config[key])[start:stop]
                first = int(order.min())
                return self._rows(theirs, first, int(order.max()) + 1)[torch.from_numpy(order - first)]
            return self._rows(theirs, start, stop)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.where} can no longer be read: {error}") from None

    def tokenizer(self) -> Tokenizer:
        """The tokenizer inside the file.

        Raises:
            TokenizerError: if it is damaged, or of a type or split pattern that is not known here.
        """
        return tokenizer_from_metadata(self.where, self.header.values)

    def generation(self) -> dict[str, Any]:
        """The special tokens, which is what a GGUF file has of a generation_config.json."""
        return {key: self.config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in self.config}

    def chat_template(self) -> str | None:
        """The chat template inside the file; None where there is none."""
        found = self.header.values.get("tokenizer.chat_template")
        return found if isinstance(found, str) else None

    def factors(self) -> np.ndarray | None:
        """What the rotary frequencies are divided by, ``[head_dim / 2]``, where the file scales each by itself."""
        place = self.header.tensors.get(ROPE_FACTORS)
        return None if place is None else self._rows(ROPE_FACTORS, 0, place.shape[0]).float().numpy()

    def _is_transposed(self, entry: str, shape: tuple[int, ...]) -> bool:
        return entry in self.architecture.transposed and len(shape) == 2

    def type_of(self, name: str) -> str:
        """How a tensor of the file is stored, in ggml's words."""
        stored: str = self._gguf.GGMLQuantizationType(self.header.tensors[name].type).name
        return stored

    def _check(self, name: str, place: TensorPlace) -> int:
        """The bytes that a tensor takes, all of which have to be there."""
        try:
            block, size = self._gguf.GGML_QUANT_SIZES[self._gguf.GGMLQuantizationType(place.type)]
        except (ValueError, KeyError):
            raise CheckpointError(f"{self.where}: {name} is stored in a way that is not known ({place.type})") from None
        count = math.prod(place.shape)
        if not place.shape or len(place.shape) > 2 or count == 0 or place.shape[-1] % block:
            raise CheckpointError(f"{self.where} is damaged: {name} has the shape {list(place.shape)}")
        taken: int = count // block * size
        if place.offset + taken > self.header.size:
            raise CheckpointError(
                f"{self.where} is truncated: {name} ends at byte {place.offset + taken:,}, the file at "
                f"{self.header.size:,}; fetch it again"
            )
        return taken

    def _rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor as it lies in the file, dequantised."""
        place = self.header.tensors[name]
        kind = self.type_of(name)
        per_row = self._sizes[name] // place.shape[0] if len(place.shape) == 2 else 0
        begin, count = (start * per_row, (stop - start) * per_row) if per_row else (0, self._sizes[name])
        with self.where.open("rb") as file:
            file.seek(place.offset + begin)
            raw = np.fromfile(file, dtype=np.uint8, count=count)
        if len(raw) != count:
            raise ValueError(f"{name} is no longer whole")
        found = self._values(raw, kind)
        return found.view(stop - start, -1) if per_row else found[start:stop]

    def _values(self, raw: np.ndarray, kind: str) -> Tensor:
        """The numbers in these bytes, in a row."""
        if kind in _TORCH_TYPES:
            return torch.from_numpy(raw).view(_TORCH_TYPES[kind])
        type_ = self._gguf.GGMLQuantizationType[kind]
        block, size = self._gguf.GGML_QUANT_SIZES[type_]
        step = _STEP // block * size
        whole = len(raw) // step * step
        parts = [raw[:whole].reshape(-1, step), raw[None, whole:]]
        try:
            parts = [self._gguf.dequantize(part, type_) for part in parts if part.size]
        except NotImplementedError:
            raise CheckpointError(f"{self.where}: the `gguf` library cannot dequantise {kind}") from None
        return torch.from_numpy(np.concatenate([part.reshape(-1) for part in parts]))


_TORCH_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_KNOWN = "gpt2, llama (which Mistral's are, too), qwen2 and qwen3"


def read_header(path: Path) -> Header:
    """The header of a .gguf file.

    Raises:
        CheckpointError: if the file cannot be read, or is none.
    """
    try:
        return gguf_header.read(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is no GGUF file that can be read: {error}") from None


def _published_name(theirs: str, architecture: Architecture) -> tuple[str, str]:
    """Hugging Face's name of a tensor and its entry of the table; its own, where the table has none."""
    match = _NAME.fullmatch(theirs)
    if match is not None:
        layer, base, kind = match.groups()
        entry = base if layer is None else f"blk.{{i}}.{base}"
        if entry in architecture.names:
            return f"{architecture.names[entry].format(i=layer)}.{kind}", entry
    return theirs, ""


def library(purpose: str) -> ModuleType:
    """The `gguf` library.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise MissingExtraError("gguf", "gguf", purpose) from None
    found: ModuleType = gguf
    return found


# --- configuration ---------------------------------------------------------------------------------------------------


def _config(source: GGUFSource) -> dict[str, Any]:
    """What config.json would say."""
    values, tensors, architecture = source.header.values, source.header.tensors, source.architecture
    numbers = {ours: values.get(f"{architecture.name}.{key}") for key, ours in architecture.keys.items()}
    config: dict[str, Any] = {
        "model_type": architecture.model_type,
        "vocab_size": tensors["token_embd.weight"].shape[0],
        **{key: _plain(value) for key, value in numbers.items() if value is not None},
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if values.get(f"{architecture.name}.expert_count"):
        raise ValueError("it is a mixture of experts, which is not implemented here")
    for role in ("bos", "eos", "padding"):
        if (token := values.get(f"tokenizer.ggml.{role}_token_id")) is not None:
            config[f"{role.removesuffix('ding')}_token_id"] = token
    kinds = {source.type_of(name) for name, place in tensors.items() if len(place.shape) == 2}
    config["dtype"] = {"F16": "float16", "BF16": "bfloat16"}.get(kinds.pop() if len(kinds) == 1 else "", "float32")
    config |= _gpt2_config(config) if architecture.name == "gpt2" else _llama_config(source, config)
    return config | (_hint(source, config) if HINT in values else {})


def _hint(source: GGUFSource, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says in our own key, where it agrees with the rest of the file."""
    hint = json.loads(source.header.values.get(HINT, "{}"))
    if not isinstance(hint, dict):
        raise ValueError(f"{HINT} is {hint!r}")
    rope, factors = hint.get("rope_parameters"), source.factors()
    if factors is not None and (not isinstance(rope, dict) or rope.get("rope_type") != "llama3"):
        raise ValueError(f"{ROPE_FACTORS} is there, and {HINT} does not say how it came about")
    if isinstance(rope, dict) and factors is not None:
        expected = llama3_factors(rope, config["rope_theta"], config["head_dim"])
        if len(expected) != len(factors) or not np.allclose(expected, factors, rtol=1e-5):
            raise ValueError(f"{ROPE_FACTORS} and {HINT} disagree")
    return {key: hint[key] for key in BEYOND if key in hint}


def _gpt2_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that only GPT-2 has."""
    _require(config, ("n_positions", "n_embd", "n_layer", "n_head"))
    return {"activation_function": "gelu_new"}


def _llama_config(source: GGUFSource, config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that Llama and its kin have beside the numbers of all."""
    values, tensors, name = source.header.values, source.header.tensors, source.architecture.name
    _require(config, tuple(LLAMA_KEYS[key] for key in LLAMA_KEYS if key != "attention.head_count_kv"))
    heads = config["num_attention_heads"]
    turned = values.get(f"{name}.rope.dimension_count")
    head_dim = values.get(f"{name}.attention.key_length") or turned or config["hidden_size"] // heads
    if turned not in (None, head_dim):
        raise ValueError(f"it turns {turned} of {head_dim} dimensions of each head, which is not implemented here")
    found: dict[str, Any] = {"hidden_act": "silu", "head_dim": head_dim, "num_key_value_heads": heads}
    found |= {key: config[key] for key in ("num_key_value_heads",) if key in config}
    if name != "qwen2":  # which always has biases on queries, keys and values, and no others
        found["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if name == "llama":
        found["mlp_bias"] = "blk.0.ffn_up.bias" in tensors
    if window := values.get(f"{name}.attention.sliding_window"):
        found |= {"model_type": "mistral"} if name == "llama" else {"use_sliding_window": True, "max_window_layers": 0}
        found["sliding_window"] = window
    rope = _rope(source, head_dim)
    return found | {"rope_theta": rope["rope_theta"], "rope_parameters": rope}


def _require(config: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    """Refuse numbers that are missing, or differ from layer to layer."""
    for key in keys:
        if not isinstance(config.get(key), (int, float)):
            raise ValueError(f"{key} is {config.get(key, 'missing')}; one number for all layers is implemented here")


def _plain(value: Any) -> Any:
    """A number as it was meant: 1e-05, where the file's 32 bits make 9.999999747378752e-06 of it.

    Numbers given once per layer are taken as one where they are all equal.
    """
    if isinstance(value, list) and len(set(value)) == 1:
        value = value[0]
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _rope(source: GGUFSource, head_dim: int) -> dict[str, Any]:
    """The rotary settings, as `rope_parameters` of config.json."""
    values, prefix = source.header.values, f"{source.architecture.name}.rope"
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": _plain(values.get(f"{prefix}.freq_base", 10000.0))}
    factors = source.factors()
    if factors is not None and HINT not in values:
        return rope | llama3_scaling(factors, rope["rope_theta"], head_dim)
    factor = _plain(values.get(f"{prefix}.scaling.factor", values.get(f"{prefix}.scale_linear", 0.0)))
    kind = values.get(f"{prefix}.scaling.type", "linear" if factor else "none")
    if kind == "none" or factor in (0.0, 1.0):
        return rope
    if kind not in ("linear", "yarn"):
        raise ValueError(f"rotary scaling of the type {kind!r} is not implemented here")
    rope |= {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        names = {
            "original_context_length": "original_max_position_embeddings",
            "yarn_beta_fast": "beta_fast",
            "yarn_beta_slow": "beta_slow",
        }
        if more := values.get(f"{prefix}.scaling.attn_factor"):
            rope["attention_factor"] = float(more * (0.1 * math.log(factor) + 1.0))  # llama.cpp has the latter itself
        found = {ours: values.get(f"{prefix}.scaling.{theirs}") for theirs, ours in names.items()}
        rope |= {ours: _plain(value) for ours, value in found.items() if value is not None}
    return rope

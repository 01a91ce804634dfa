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

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
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
from glassgpt.tokenizer.pretrained import gguf_tokenizer


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp names and lays out a family.

    Attributes:
        name: `general.architecture`, which begins the keys of its numbers, too.
        model_type: Hugging Face's name.
        names: of tensors, less `.weight` or `.bias`: theirs -> Hugging Face's.
        keys: of numbers: theirs, after the name -> those of config.json.
        permuted: tensors whose rows are in llama.cpp's order of rotated pairs.
        transposed: matrices that Hugging Face stores as (in, out).
    """

    name: str
    model_type: str
    names: Mapping[str, str]
    keys: Mapping[str, str]
    permuted: frozenset[str] = field(default=frozenset())
    transposed: frozenset[str] = field(default=frozenset())


_LLAMA_LAYER = "model.layers.{i}"
_LLAMA_NAMES = {
    "token_embd": "model.embed_tokens",
    "blk.{i}.attn_norm": f"{_LLAMA_LAYER}.input_layernorm",
    "blk.{i}.attn_q": f"{_LLAMA_LAYER}.self_attn.q_proj",
    "blk.{i}.attn_k": f"{_LLAMA_LAYER}.self_attn.k_proj",
    "blk.{i}.attn_v": f"{_LLAMA_LAYER}.self_attn.v_proj",
    "blk.{i}.attn_output": f"{_LLAMA_LAYER}.self_attn.o_proj",
    "blk.{i}.ffn_norm": f"{_LLAMA_LAYER}.post_attention_layernorm",
    "blk.{i}.ffn_gate": f"{_LLAMA_LAYER}.mlp.gate_proj",
    "blk.{i}.ffn_up": f"{_LLAMA_LAYER}.mlp.up_proj",
    "blk.{i}.ffn_down": f"{_LLAMA_LAYER}.mlp.down_proj",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_QWEN3_NAMES = _LLAMA_NAMES | {
    "blk.{i}.attn_q_norm": f"{_LLAMA_LAYER}.self_attn.q_norm",
    "blk.{i}.attn_k_norm": f"{_LLAMA_LAYER}.self_attn.k_norm",
}
_GPT2_LAYER = "transformer.h.{i}"
_GPT2_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "blk.{i}.attn_norm": f"{_GPT2_LAYER}.ln_1",
    "blk.{i}.attn_qkv": f"{_GPT2_LAYER}.attn.c_attn",
    "blk.{i}.attn_output": f"{_GPT2_LAYER}.attn.c_proj",
    "blk.{i}.ffn_norm": f"{_GPT2_LAYER}.ln_2",
    "blk.{i}.ffn_up": f"{_GPT2_LAYER}.mlp.c_fc",
    "blk.{i}.ffn_down": f"{_GPT2_LAYER}.mlp.c_proj",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_LLAMA_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_GPT2_KEYS = {
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
_TRANSPOSED = frozenset({"blk.{i}.attn_qkv", "blk.{i}.attn_output", "blk.{i}.ffn_up", "blk.{i}.ffn_down"})
ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("gpt2", "gpt2", _GPT2_NAMES, _GPT2_KEYS, transposed=_TRANSPOSED),
        Architecture("llama", "llama", _LLAMA_NAMES, _LLAMA_KEYS, frozenset({"blk.{i}.attn_q", "blk.{i}.attn_k"})),
        Architecture("qwen2", "qwen2", _LLAMA_NAMES, _LLAMA_KEYS),
        Architecture("qwen3", "qwen3", _QWEN3_NAMES, _LLAMA_KEYS),
    )
}
#: The tensor of Llama 3's rotary scaling, which is configuration elsewhere.
ROPE_FACTORS = "rope_freqs.weight"
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
        self._gguf = _library()
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
        return gguf_tokenizer(self.where, self.header.values)

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


def rotated_halves(rows: int, heads: int) -> np.ndarray:
    """For each row of queries or keys as Hugging Face orders them, its place in a GGUF file, ``[rows]``.

    A head's dimensions i and i + head_dim/2 turn together in Hugging Face's order, 2i and 2i + 1 in llama.cpp's.
    """
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)


def _published_name(theirs: str, architecture: Architecture) -> tuple[str, str]:
    """Hugging Face's name of a tensor and its entry of the table; its own, where the table has none."""
    match = _NAME.fullmatch(theirs)
    if match is not None:
        layer, base, kind = match.groups()
        entry = base if layer is None else f"blk.{{i}}.{base}"
        if entry in architecture.names:
            return f"{architecture.names[entry].format(i=layer)}.{kind}", entry
    return theirs, ""


def _library() -> ModuleType:
    try:
        import gguf
    except ImportError:
        raise MissingExtraError("gguf", "gguf", "reading the weights of a .gguf file") from None
    library: ModuleType = gguf
    return library


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
    return config | (_gpt2_config(config) if architecture.name == "gpt2" else _llama_config(source, config))


def _gpt2_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that only GPT-2 has."""
    _require(config, ("n_positions", "n_embd", "n_layer", "n_head"))
    return {"activation_function": "gelu_new"}


def _llama_config(source: GGUFSource, config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that Llama and its kin have beside the numbers of all."""
    values, tensors, name = source.header.values, source.header.tensors, source.architecture.name
    _require(config, tuple(_LLAMA_KEYS[key] for key in _LLAMA_KEYS if key != "attention.head_count_kv"))
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
    if factors is not None:
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
        found = {ours: values.get(f"{prefix}.scaling.{theirs}") for theirs, ours in names.items()}
        rope |= {ours: _plain(value) for ours, value in found.items() if value is not None}
    return rope


def llama3_factors(scaling: Mapping[str, Any], theta: float, head_dim: int) -> np.ndarray:
    """What Llama 3's scaling divides each rotary frequency by, ``[head_dim / 2]`` of float32.

    Long waves by ``factor``, short ones by 1, and those between smoothly (as in transformers' modeling_rope_utils).
    """
    factor, low, high = (scaling[key] for key in ("factor", "low_freq_factor", "high_freq_factor"))
    waves = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (scaling["original_max_position_embeddings"] / waves - low) / (high - low)
    return (1 / ((1 - smooth.clip(0, 1)) / factor + smooth.clip(0, 1))).astype(np.float32)


def llama3_scaling(factors: np.ndarray, theta: float, head_dim: int) -> dict[str, Any]:
    """The settings of Llama 3's scaling whose factors these are.

    A file has the factors alone. Between short and long waves, smoothness is linear in the frequency, so two of them
    give the line. Its ends are the ratio of two settings each: with ``low_freq_factor`` 1, as in all that is published,
    they are known.

    Raises:
        ValueError: if no settings give these factors.
    """
    factor = round(float(factors.max()), 4)
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)
    between = (factors > 1 + 1e-5) & (factors < factor * (1 - 1e-5))
    if len(factors) == head_dim // 2 and factor > 1 and between.sum() >= 2:
        smooth = (1 / factors[between].astype(np.float64) - 1 / factor) / (1 - 1 / factor)
        slope, begin = np.polyfit(frequencies[between], smooth, 1)
        high = round(1 - 1 / begin, 3)
        scaling = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": high,
            "original_max_position_embeddings": round(slope * (high - 1)),
        }
        if np.allclose(llama3_factors(scaling, theta, head_dim), factors, rtol=1e-5):
            return scaling
    raise ValueError(f"{ROPE_FACTORS} scales the rotary frequencies in a way that is not Llama 3's")

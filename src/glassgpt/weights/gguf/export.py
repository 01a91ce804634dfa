"""Writing .gguf files, which llama.cpp and what is built on it run: weights, tokenizer and chat template in one file.

The tables are those of :mod:`glassgpt.weights.gguf.tables`, read the other way round; the file is written by the `gguf`
library, one tensor at a time. Norms, biases and GPT-2's positions stay in float32, as llama.cpp's own converter
keeps them.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from glassgpt import __version__
from glassgpt.config import ModelConfig
from glassgpt.errors import CheckpointError, ConfigError, TokenizerError
from glassgpt.files import Progress
from glassgpt.model import GPT
from glassgpt.tokenizer import BPETokenizer, Tokenizer
from glassgpt.tokenizer.base import adds_bos_token
from glassgpt.tokenizer.bpe import bytelevel
from glassgpt.tokenizer.gguf import pre_tokenizer_name
from glassgpt.weights import mapping
from glassgpt.weights.families import Family
from glassgpt.weights.gguf.reading import library
from glassgpt.weights.gguf.tables import (
    ARCHITECTURES,
    BEYOND,
    HINT,
    ROPE_FACTORS,
    Architecture,
    llama3_factors,
    rotated_halves,
)

#: What can be asked for: ggml's name of the type, and llama.cpp's number for a file that is mostly of it.
TYPES = {"f32": ("F32", 0), "f16": ("F16", 1), "bf16": ("BF16", 32), "q8_0": ("Q8_0", 7)}
#: Our families by llama.cpp's architecture, where the names differ.
_ARCHITECTURE = {"mistral": "llama"}
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
#: The largest number that float16 holds.
_LARGEST_HALF = 65504


def write_gguf(
    path: Path,
    model: GPT,
    tokenizer: Tokenizer,
    *,
    dtype: str = "f16",
    name: str = "",
    chat_template: str | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Write a model to a .gguf file, whole or not at all.

    Args:
        path: of the file; its folder exists.
        model: of a family that llama.cpp knows.
        tokenizer: byte-level BPE.
        dtype: of the matrices: f32, f16, bf16 or q8_0 (f16 where a row is no multiple of 32).
        name: of the model, as programs show it.
        chat_template: Jinja, if there is one.
        progress: told of it as it goes on.

    Returns:
        What the user should know: where llama.cpp computes something else.

    Raises:
        ConfigError: for an unknown type, or a model that no published family or not llama.cpp can express.
        TokenizerError: for a tokenizer that llama.cpp would read otherwise, or not at all.
        CheckpointError: if a weight does not fit into the type.
        MissingExtraError: if the `gguf` library is not installed.
    """
    gguf = library("writing a .gguf file")
    if dtype not in TYPES:
        raise ConfigError(f"a .gguf file is written with --dtype {', '.join(TYPES)}; got {dtype!r}")
    config = model.config
    family = mapping.family_of(config)
    architecture = ARCHITECTURES[_ARCHITECTURE.get(family.model_type, family.model_type)]
    notes = _notes(config, family, tokenizer)
    temporary = path.with_name(f".{path.name}.glassgpt-new")
    writer = gguf.GGUFWriter(temporary, architecture.name)
    try:
        writer.add_type("model")
        writer.add_name(name or path.stem)
        writer.add_string("general.description", f"written by glassgpt {__version__}")
        writer.add_file_type(TYPES[dtype][1])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_config(writer, gguf, config, family, architecture)
        _add_tokenizer(writer, tokenizer, config.vocab_size)
        if chat_template:
            writer.add_chat_template(chat_template)
        _add_tensors(writer, gguf, model, architecture, dtype, progress)
        writer.close()
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        writer.close()
        temporary.unlink(missing_ok=True)
    return notes


def _notes(config: ModelConfig, family: Family, tokenizer: Tokenizer) -> list[str]:
    """Where llama.cpp computes something else; refusals where that is everywhere."""
    wide = config.head_dim * config.n_head != config.n_embd
    refusals = {
        f"mlp=gelu_tanh, not {config.mlp}": family.model_type == "gpt2" and config.mlp != "gelu_tanh",
        "no bias on the attention's output": family.model_type == "qwen3" and config.attention_out_bias,
        f"heads that fill n_embd={config.n_embd}": family.model_type == "qwen2" and wide,
    }
    if found := [reason for reason, holds in refusals.items() if holds]:
        raise ConfigError(
            f"llama.cpp's {family.model_type} has {' and '.join(found)}: this model cannot be written as GGUF"
        )
    notes = []
    if config.sliding_window and config.sliding_window < config.block_size:
        notes.append(
            f"llama.cpp has no sliding windows in this family: beyond {config.sliding_window} tokens it differs"
        )
    if isinstance(tokenizer, BPETokenizer) and tokenizer.model.normal_form:
        notes.append(
            f"llama.cpp leaves out this tokenizer's first step, bringing text into form {tokenizer.model.normal_form}"
        )
    return notes


# --- configuration ---------------------------------------------------------------------------------------------------


def _add_config(writer: Any, gguf: ModuleType, config: ModelConfig, family: Family, architecture: Architecture) -> None:
    """The numbers of the model, under llama.cpp's keys."""
    entries, name = mapping.to_hf_config(config, family), architecture.name
    for key, theirs in architecture.keys.items():
        add = writer.add_float32 if isinstance(entries[theirs], float) else writer.add_uint32
        add(f"{name}.{key}", entries[theirs])
    writer.add_vocab_size(config.vocab_size)
    writer.add_string(HINT, json.dumps({key: entries[key] for key in BEYOND if key in entries}))
    if config.position != "rope":
        return
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    if config.rope_scaling in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(config.rope_scaling))
        writer.add_rope_scaling_factor(config.rope_factor)
    if config.rope_scaling == "yarn":
        writer.add_rope_scaling_orig_ctx_len(config.rope_original_context)
        writer.add_rope_scaling_yarn_beta_fast(config.rope_high_freq_factor)
        writer.add_rope_scaling_yarn_beta_slow(config.rope_low_freq_factor)
        usual = 0.1 * math.log(config.rope_factor) + 1.0  # which llama.cpp multiplies this with
        writer.add_rope_scaling_attn_factors(config.rope_attention_factor / usual)


# --- tokenizer -------------------------------------------------------------------------------------------------------


def _add_tokenizer(writer: Any, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Tokens, their kinds, merges, and the name of the split pattern."""
    if not isinstance(tokenizer, BPETokenizer):
        raise TokenizerError(
            f"llama.cpp reads byte-level BPE from us, and this tokenizer is of the kind {tokenizer.kind!r}: train with "
            "tokenizer=bpe:N, or export --to hf"
        )
    model = tokenizer.model
    pre = pre_tokenizer_name(tokenizer)
    tokens = {i: (bytelevel.bytes_to_unicode(token), _NORMAL) for token, i in model.vocab.items()}
    tokens |= {i: (token, _CONTROL) for token, i in model.special.items()}
    tokens |= {i: (token, _USER_DEFINED) for token, i in model.added.items()}
    if max(tokens) >= vocab_size:
        raise TokenizerError(
            f"the tokenizer has {max(tokens) + 1} tokens, the model {vocab_size}; they do not belong together"
        )
    listed = [tokens.get(i, (f"[PAD{i}]", _UNUSED)) for i in range(vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in listed])
    writer.add_token_types([kind for _, kind in listed])
    writer.add_token_merges([" ".join(map(bytelevel.bytes_to_unicode, merge)) for merge in model.merges])
    for add, i in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
    ):
        if i is not None:
            add(i)
    writer.add_add_bos_token(adds_bos_token(tokenizer))


# --- weights ---------------------------------------------------------------------------------------------------------


def _add_tensors(
    writer: Any, gguf: ModuleType, model: GPT, architecture: Architecture, dtype: str, progress: Progress | None
) -> None:
    """Announce every tensor, then write one after the other."""
    config = model.config
    published = mapping.to_published(model.state_dict(), config, mapping.family_of(config))
    heads = {"attn_q": config.n_head, "attn_k": config.n_kv_head}
    tensors: dict[str, tuple[Tensor, str, int]] = {}  # ours, how it is stored, and the heads whose rows are reordered
    for theirs, entry, ours in _names(published, architecture):
        transposed = entry in architecture.transposed and published[ours].dim() == 2
        tensor = published[ours].T if transposed else published[ours]
        permuted = heads[entry.rpartition(".")[2]] if entry in architecture.permuted else 0
        tensors[theirs] = tensor, _stored_as(tensor, entry, TYPES[dtype][0]), permuted
    for theirs, (tensor, kind, _) in tensors.items():
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        nbytes = tensor.numel() // block * size
        writer.add_tensor_info(
            theirs, list(tensor.shape), np.dtype(np.float32), nbytes, raw_dtype=gguf.GGMLQuantizationType[kind]
        )
    if config.rope_scaling == "llama3":
        factors = llama3_factors(_llama3(config), config.rope_theta, config.head_dim)
        writer.add_tensor_info(ROPE_FACTORS, list(factors.shape), factors.dtype, factors.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, (theirs, (tensor, kind, permuted)) in enumerate(tensors.items(), 1):
        values = tensor.detach().float().cpu().contiguous().numpy()
        if kind == "F16" and np.abs(values).max() > _LARGEST_HALF:
            raise CheckpointError(
                f"{theirs} has numbers beyond {_LARGEST_HALF:,}, which float16 cannot hold; use --dtype bf16"
            )
        if permuted:
            values = values[np.argsort(rotated_halves(len(values), permuted))]
        writer.write_tensor_data(gguf.quantize(values, gguf.GGMLQuantizationType[kind]))
        if progress:
            progress("writing", done, len(tensors))
    if config.rope_scaling == "llama3":
        writer.write_tensor_data(factors)


def _names(published: Mapping[str, Tensor], architecture: Architecture) -> list[tuple[str, str, str]]:
    """llama.cpp's name of each tensor, its entry of the table, and the published name."""
    entries = {ours: theirs for theirs, ours in architecture.names.items()}
    found = []
    for name in published:
        stem, _, kind = name.rpartition(".")
        layer = next((part for part in stem.split(".") if part.isdigit()), None)
        general = stem if layer is None else stem.replace(f".{layer}", ".{i}", 1)
        found.append((f"{entries[general].format(i=layer)}.{kind}", entries[general], name))
    return found


def _stored_as(tensor: Tensor, entry: str, wanted: str) -> str:
    if tensor.dim() < 2 or entry == "position_embd":
        return "F32"
    return "F16" if wanted == "Q8_0" and tensor.size(1) % 32 else wanted


def _llama3(config: ModelConfig) -> dict[str, Any]:
    return {
        "factor": config.rope_factor,
        "low_freq_factor": config.rope_low_freq_factor,
        "high_freq_factor": config.rope_high_freq_factor,
        "original_max_position_embeddings": config.rope_original_context,
    }

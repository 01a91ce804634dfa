"""Write .gguf files for llama.cpp and programs built on it: weights, tokenizer and chat template in one file.

The names come from :mod:`glassgpt.weights.gguf.tables`; the `gguf` library writes the file, one tensor at a time.
Norms, biases and GPT-2's positions stay in float32, as in llama.cpp's own converter.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from glassgpt import __version__
from glassgpt.config import ModelConfig
from glassgpt.errors import CheckpointError, ConfigError, TokenizerError
from glassgpt.files import Progress, atomic_write
from glassgpt.model import GPT
from glassgpt.tokenizer import BPETokenizer, Tokenizer
from glassgpt.tokenizer.base import adds_bos_token
from glassgpt.tokenizer.bpe import bytelevel
from glassgpt.tokenizer.bpe.tokenizer import require_bpe
from glassgpt.tokenizer.gguf import END_KEYS, PUBLISHED_KEY, pre_tokenizer_name, published_json
from glassgpt.tokenizer.published import PublishedSettings
from glassgpt.weights import mapping
from glassgpt.weights.families.family import Family
from glassgpt.weights.gguf.reading import import_gguf
from glassgpt.weights.gguf.tables import (
    ARCHITECTURES,
    CONFIG_KEY,
    EXTRAS,
    ROPE_FACTORS,
    Architecture,
    llama3_factors,
    rotated_halves,
)

#: The values of --dtype: ggml's name of the type, and llama.cpp's number for a file of mostly this type.
TYPES = {"f32": ("F32", 0), "f16": ("F16", 1), "bf16": ("BF16", 32), "q8_0": ("Q8_0", 7), "q4_0": ("Q4_0", 2)}
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
#: The largest value that a type can hold; in Q8_0 and Q4_0, the scale of 127 or 8 steps is a float16.
_LARGEST = {
    "F16": ("float16", 65504), "Q8_0": ("q8_0", 127 * 65504), "Q4_0": ("q4_0", 8 * 65504),
    "BF16": ("bfloat16", 3.3895e38),
}  # fmt: skip


def write_gguf(
    path: Path,
    model: GPT,
    tokenizer: Tokenizer,
    *,
    dtype: str = "f16",
    progress: Progress | None = None,
) -> list[str]:
    """Write a model to a .gguf file, atomically.

    Args:
        path: of the file, in an existing folder; its name is the model's.
        model: of a family that llama.cpp supports.
        tokenizer: byte-level BPE; written with its chat templates and end tokens.
        dtype: of the matrices: f32, f16, bf16, q8_0 or q4_0 (f16 if the row length is not a multiple of 32). With
            q4_0, the embedding and the head are q8_0.
        progress: called as tensors are written.

    Returns:
        Sentences that the user should see: where llama.cpp computes something different.

    Raises:
        ConfigError: for an unknown dtype, or a model that no published family, or not llama.cpp, can express.
        TokenizerError: for a tokenizer that llama.cpp does not support, or would run differently.
        CheckpointError: if a weight is too large for the dtype.
        MissingExtraError: if the `gguf` library is not installed.
    """
    gguf = import_gguf("writing a .gguf file")
    if dtype not in TYPES:
        raise ConfigError(f"a .gguf file is written with --dtype {', '.join(TYPES)}; got {dtype!r}")
    config, family = model.config, mapping.family_of(model.config)
    architecture = ARCHITECTURES["llama" if family.model_type == "mistral" else family.model_type]
    notes = _notes(config, family, tokenizer)
    with atomic_write(path) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture.name)
        try:
            writer.add_type("model")
            writer.add_name(path.stem)
            writer.add_string("general.description", f"written by glassgpt {__version__}")
            writer.add_file_type(TYPES[dtype][1])
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            _add_config(writer, gguf, config, family, architecture)
            _add_tokenizer(writer, tokenizer, config.vocab_size)
            _add_tensors(writer, gguf, model, architecture, dtype, progress)
        finally:
            writer.close()
    return notes


def _notes(config: ModelConfig, family: Family, tokenizer: Tokenizer) -> list[str]:
    """List where llama.cpp computes something different; refuse the model if it does everywhere."""
    wide = config.head_dim * config.n_head != config.n_embd
    refusals = {
        f"mlp=gelu_tanh, not {config.mlp}": family.model_type == "gpt2" and config.mlp != "gelu_tanh",
        "no bias on the attention's output": family.model_type == "qwen3" and config.attention_out_bias,
        f"heads that fill n_embd={config.n_embd}": family.model_type == "qwen2" and wide,
    }
    if reasons := [reason for reason, applies in refusals.items() if applies]:
        raise ConfigError(
            f"llama.cpp's {family.model_type} has {' and '.join(reasons)}: this model cannot be written as GGUF"
        )
    notes = []
    if config.sliding_window and config.sliding_window < config.block_size:
        notes.append(
            f"llama.cpp has no sliding windows in this family: its results differ beyond {config.sliding_window} tokens"
        )
    if isinstance(tokenizer, BPETokenizer) and tokenizer.model.normal_form:
        notes.append(
            f"llama.cpp skips this tokenizer's first step, the normalisation to form {tokenizer.model.normal_form}"
        )
    if more := tokenizer.end_token_ids[len(END_KEYS) :]:
        notes.append(
            f"a .gguf file has {len(END_KEYS)} tokens that end a text, and this model more: llama.cpp may not end at "
            f"the ids {', '.join(map(str, more))}"
        )
    return notes


def _add_config(writer: Any, gguf: ModuleType, config: ModelConfig, family: Family, architecture: Architecture) -> None:
    """Write the model's configuration under llama.cpp's keys."""
    entries, name = mapping.to_hf_config(config, family), architecture.name
    for key, hf_key in architecture.keys.items():
        add = writer.add_float32 if isinstance(entries[hf_key], float) else writer.add_uint32
        add(f"{name}.{key}", entries[hf_key])
    writer.add_vocab_size(config.vocab_size)
    writer.add_string(CONFIG_KEY, json.dumps({key: entries[key] for key in EXTRAS if key in entries}))
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
        own_factor = 0.1 * math.log(config.rope_factor) + 1.0  # llama.cpp multiplies by this itself
        writer.add_rope_scaling_attn_factors(config.rope_attention_factor / own_factor)


def _add_tokenizer(writer: Any, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Write tokens, their types, merges, and the name of the split pattern."""
    bpe = require_bpe(tokenizer, ".gguf files are written with")
    model, pre = bpe.model, pre_tokenizer_name(bpe)
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
    roles, ids = tokenizer.roles(), tokenizer.special_ids()
    written = {"bos": tokenizer.bos_token_id, "pad": tokenizer.pad_token_id, "unk": ids.get(roles.get("unk_token", ""))}
    for role, i in written.items():
        if i is not None:
            getattr(writer, f"add_{role}_token_id")(i)
    for key, i in zip(END_KEYS, tokenizer.end_token_ids, strict=False):
        writer.add_uint32(key, i)
    writer.add_add_bos_token(adds_bos_token(tokenizer))
    published = tokenizer.published
    if published != PublishedSettings():
        writer.add_string(PUBLISHED_KEY, published_json(published))
    if published.chat_templates:
        writer.add_chat_template(
            [{"name": name, "template": template} for name, template in published.chat_templates.items()]
        )


def _add_tensors(
    writer: Any, gguf: ModuleType, model: GPT, architecture: Architecture, dtype: str, progress: Progress | None
) -> None:
    """Write the list of all tensors, then the tensors one by one."""
    config, family = model.config, mapping.family_of(model.config)
    published = mapping.to_published(model.state_dict(), config, family)
    heads = {"attn_q": config.n_head, "attn_k": config.n_kv_head}
    tensors: dict[str, tuple[Tensor, str, int]] = {}  # tensor, stored type, number of heads to reorder (0: none)
    for theirs, entry, tensor in _renamed(published, architecture):
        if entry in architecture.transposed and tensor.dim() == 2:
            tensor = tensor.T
        permuted_heads = heads[entry.rpartition(".")[2]] if entry in architecture.permuted else 0
        tensors[theirs] = tensor, _stored_type(tensor, entry, TYPES[dtype][0]), permuted_heads
    for theirs, (tensor, kind, _) in tensors.items():
        raw_dtype = gguf.GGMLQuantizationType[kind]
        block, size = gguf.GGML_QUANT_SIZES[raw_dtype]
        nbytes = tensor.numel() // block * size
        writer.add_tensor_info(theirs, list(tensor.shape), np.dtype(np.float32), nbytes, raw_dtype=raw_dtype)
    if config.rope_scaling == "llama3":
        scaling = mapping.to_hf_config(config, family)["rope_parameters"]
        factors = llama3_factors(scaling, config.rope_theta, config.head_dim)
        writer.add_tensor_info(ROPE_FACTORS, list(factors.shape), factors.dtype, factors.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, (theirs, (tensor, kind, permuted_heads)) in enumerate(tensors.items(), 1):
        values = tensor.detach().float().cpu().contiguous().numpy()
        kind_name, largest = _LARGEST.get(kind, ("float32", math.inf))
        if np.abs(values).max() > largest:
            wider = "f32" if kind == "BF16" else "bf16"
            raise CheckpointError(
                f"{theirs} has values beyond {largest:g}, which {kind_name} cannot hold; use --dtype {wider}"
            )
        if permuted_heads:
            values = values[np.argsort(rotated_halves(len(values), permuted_heads))]
        writer.write_tensor_data(gguf.quantize(values, gguf.GGMLQuantizationType[kind]))
        if progress:
            progress("writing", done, len(tensors))
    if config.rope_scaling == "llama3":
        writer.write_tensor_data(factors)


def _renamed(published: Mapping[str, Tensor], architecture: Architecture) -> Iterator[tuple[str, str, Tensor]]:
    """Give each tensor with llama.cpp's name and the table's entry for it."""
    entries = {hf_name: theirs for theirs, hf_name in architecture.names.items()}
    for name, tensor in published.items():
        stem, _, kind = name.rpartition(".")
        layer = next((part for part in stem.split(".") if part.isdigit()), None)
        general = stem if layer is None else stem.replace(f".{layer}", ".{i}", 1)
        yield f"{entries[general].format(i=layer)}.{kind}", entries[general], tensor


def _stored_type(tensor: Tensor, entry: str, matrix_type: str) -> str:
    if tensor.dim() < 2 or entry == "position_embd":
        return "F32"
    if matrix_type == "Q4_0" and entry in ("token_embd", "output"):
        matrix_type = "Q8_0"
    return "F16" if matrix_type in ("Q8_0", "Q4_0") and tensor.size(1) % 32 else matrix_type

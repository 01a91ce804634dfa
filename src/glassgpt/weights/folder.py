"""A model folder: config.json, generation_config.json, model.safetensors, tokenizer and model card.

In the published format, `transformers` opens it directly. A folder is written atomically: into a temporary folder
beside it, which is synced to disk and then renamed.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from glassgpt import __version__
from glassgpt.config import ModelConfig
from glassgpt.errors import CheckpointError
from glassgpt.files import sha256_of, sync_to_disk, writing
from glassgpt.model import GPT
from glassgpt.model.quantized import is_quantized
from glassgpt.tokenizer.base import Tokenizer
from glassgpt.tokenizer.base import save as save_tokenizer
from glassgpt.tokenizer.published import GENERATION_CONFIG
from glassgpt.weights import mapping
from glassgpt.weights.loading import cast_finite, load_into
from glassgpt.weights.quantized import QUANTIZATION_KEY, SCALES, to_published
from glassgpt.weights.sources import INDEX, SINGLE, FolderSource, reading

CHECKSUMS = "SHA256SUMS"
#: Weights of more bytes are saved as several files.
MAX_SHARD_BYTES = 5 * 10**9
#: The dtypes that weights can be saved in, by their names in config.json.
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def dtype_name(dtype: torch.dtype) -> str:
    """Name a dtype as config.json does."""
    return str(dtype).removeprefix("torch.")


def save_model(
    folder: Path,
    model: GPT,
    tokenizer: Tokenizer,
    *,
    native: bool = False,
    card: str = "",
    state: dict[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write the files of a model into an existing folder.

    Args:
        folder: an existing folder.
        model: saved with its configuration.
        tokenizer: saved with it, and with the settings that were published with it.
        native: whether to use glassgpt's own format, which can hold any configuration.
        card: the content of README.md; a short one by default.
        state: a state_dict to save instead of the model's own.
        dtype: of the saved weights; one of DTYPES.
        max_shard_bytes: weights of more bytes are saved as several files and an index.

    Raises:
        ConfigError: if no published family can express the model and ``native`` is not set.
        CheckpointError: if a weight is NaN or infinite, or too large for the dtype.
    """
    config, state = model.config, state or model.state_dict()
    family = mapping.NATIVE_FAMILY if native else mapping.family_of(config)
    published_ids = tokenizer.published.ids_below(tokenizer.vocab_size)
    entries = mapping.to_hf_config(config, family) | _special_ids(tokenizer) | published_ids
    entries |= {"dtype": dtype_name(dtype), "torch_dtype": dtype_name(dtype), "glassgpt_version": __version__}
    if is_quantized(model):
        weights, entries[QUANTIZATION_KEY] = to_published(model, family)
    else:
        weights = mapping.to_published(state, config, family)
    write_json(folder / "config.json", entries)
    write_generation_config(folder, tokenizer)
    _save_weights(folder, weights, dtype, max_shard_bytes)
    save_tokenizer(tokenizer, folder, config.block_size)
    (folder / "README.md").write_text(card or _card(config), encoding="utf-8", newline="\n")


def write_generation_config(folder: Path, tokenizer: Tokenizer) -> None:
    """Write generation_config.json: what was published with the tokenizer, and its special tokens."""
    generation = dict(tokenizer.published.generation_config)
    generation |= {key: ids for key, ids in _special_ids(tokenizer).items() if generation.get(key) is None}
    write_json(folder / GENERATION_CONFIG, generation)


def _special_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """Give the ids of special tokens as config.json has them."""
    ends = tokenizer.end_token_ids
    special: dict[str, Any] = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    special["eos_token_id"] = list(ends) if len(ends) > 1 else next(iter(ends), None)
    return special


def _save_weights(folder: Path, weights: Mapping[str, Tensor], dtype: torch.dtype, max_bytes: int) -> None:
    """Write one file, or several and their index. Only one file's weights are copied at a time."""
    shards: list[list[str]] = [[]]
    size = total = 0
    for name, tensor in weights.items():
        nbytes = tensor.numel() * _saved_dtype(name, tensor, dtype).itemsize
        if size + nbytes > max_bytes and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size, total = size + nbytes, total + nbytes
    files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [SINGLE]
    for file, names in zip(files, shards, strict=True):
        copied = dict[str, Tensor]()
        for name in names:
            tensor = weights[name].detach()
            copied[name] = cast_finite(tensor, _saved_dtype(name, tensor, dtype), name).cpu().contiguous()
        save_file(copied, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        file_of = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": file_of})


def _saved_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype to save a tensor in: that of the model, but for integers and their scales."""
    return dtype if tensor.is_floating_point() and not name.endswith(SCALES) else tensor.dtype


def load_weights(folder: Path, model: GPT) -> None:
    """Load a folder's weights into a model, strictly: none may be missing, of another shape, or left over.

    Raises:
        CheckpointError: listing the weights that do not fit, or naming a damaged file. The model is unchanged.
    """
    verify_weights(folder)
    load_into(model, FolderSource(folder))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, by name, on the CPU.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    with reading(path):
        return load_file(path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as indented JSON, which has no inf and no NaN."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


@contextlib.contextmanager
def write_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; then write its checksums, flush it to disk, and move it to ``target``.

    If anything fails, or the process dies, ``target`` is what it was before. An existing ``target`` is moved aside
    between two renames; :func:`find_complete` finds it there, and :func:`recover` moves it back.

    Raises:
        CheckpointError: if ``target`` is the current folder, or contains it.
        OSError: if it cannot be written; see :func:`glassgpt.files.writing`.
    """
    require_not_current(target)
    temporary, old = _beside(target)
    recover(target)
    temporary.mkdir(parents=True)
    try:
        with writing(target):
            yield temporary
            _write_checksums(temporary)
            for path in (*temporary.rglob("*"), temporary):
                sync_to_disk(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if target.exists():
        os.replace(target, old)
    os.replace(temporary, target)
    sync_to_disk(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def require_not_current(target: Path) -> None:
    """Refuse to replace the current folder, or one that contains it.

    Raises:
        CheckpointError: if so.
    """
    with contextlib.suppress(FileNotFoundError):  # the current folder may have been deleted
        if Path.cwd().is_relative_to(target.resolve()):
            raise CheckpointError(f"{str(target)!r} is the current folder, or contains it; name a new folder to write")


def _beside(target: Path) -> tuple[Path, Path]:
    """Name the folders beside ``target`` for the version being written and the previous version."""
    return target.with_name(f".{target.name}.glassgpt-new"), target.with_name(f".{target.name}.glassgpt-old")


def find_complete(target: Path) -> Path | None:
    """Find the newest complete version of a folder, without changing anything; None if there is none."""
    return next((path for path in (target, _beside(target)[1]) if path.exists()), None)


def recover(target: Path) -> None:
    """Undo an unfinished write of a process that died. Only the process that writes ``target`` may call this."""
    temporary, old = _beside(target)
    if old.exists() and not target.exists():
        os.replace(old, target)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(temporary, ignore_errors=True)


def verify(folder: Path, names: list[str] | None = None, *, required: bool = False) -> None:
    """Check files against the folder's SHA256SUMS, if it has one: all listed files, or only those named.

    Args:
        folder: a model folder.
        names: of files; all listed ones by default.
        required: whether to refuse a folder without SHA256SUMS; glassgpt writes one into every folder.

    Raises:
        CheckpointError: naming the files that differ.
    """
    if not (folder / CHECKSUMS).exists() and not required:
        return  # not written by glassgpt
    changed = [
        name
        for name, digest in read_checksums(folder).items()
        if (names is None or name in names) and (not (folder / name).is_file() or sha256_of(folder / name) != digest)
    ]
    if changed:
        raise CheckpointError(
            f"{folder}: {', '.join(changed)} is not what was saved (its SHA-256 differs); "
            "use another checkpoint of the run"
        )


def read_checksums(folder: Path) -> dict[str, str]:
    """Read a folder's SHA256SUMS: the digests by file name.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    path = folder / CHECKSUMS
    try:
        lines = [line.split("  ", 1) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing, so that {folder} cannot be checked") from None
    except (OSError, UnicodeDecodeError):
        lines = []
    if not lines or any(len(line) != 2 for line in lines):
        raise CheckpointError(f"{path} is damaged; use another checkpoint of the run")
    return {name: digest for digest, name in lines}


def verify_weights(folder: Path) -> None:
    """Check a folder's safetensors files against its SHA256SUMS, if it has one.

    Raises:
        CheckpointError: naming the files that differ.
    """
    verify(folder, [path.name for path in folder.glob("*.safetensors")])


def _write_checksums(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*.*") if path.suffix in (".safetensors", ".json") and path.is_file())
    lines = [f"{sha256_of(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8", newline="\n")


def _card(config: ModelConfig) -> str:
    """Write a short model card."""
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [glassgpt]\n---\n\n"
        "# A language model trained with glassgpt\n\n"
        f"{config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide, context {config.block_size}, "
        f"vocabulary {config.vocab_size}.\n"
    )

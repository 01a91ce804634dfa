"""A model folder: config.json, generation_config.json, model.safetensors, tokenizer and model card.

In the published format, `transformers` opens it directly. A folder appears whole or not at all: it is written
beside its place, synced to disk, and renamed.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from glassgpt import __version__
from glassgpt.config import ModelConfig
from glassgpt.errors import CheckpointError
from glassgpt.files import sha256_of
from glassgpt.model import GPT
from glassgpt.tokenizer import Tokenizer
from glassgpt.tokenizer import save as save_tokenizer
from glassgpt.weights import mapping
from glassgpt.weights.loading import load_into
from glassgpt.weights.sources import INDEX, SINGLE, FolderSource

CHECKSUMS = "SHA256SUMS"
#: Bytes of a file of weights, beyond which they are cut into several.
MAX_SHARD_BYTES = 5 * 10**9
#: What config.json calls the types that weights can be saved in.
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Write the files of a model into an existing folder.

    Args:
        folder: to write into.
        model: whose weights to save.
        tokenizer: to save beside it.
        native: in our own format, which takes any configuration.
        card: the README.md; a plain one by default.
        state: weights to save instead of the model's own, under our names.
        dtype: to save the weights in; one of DTYPES.
        max_shard_bytes: weights of more bytes are cut into several files, with an index.
        generation: of generation_config.json, beside the tokenizer's special tokens, over which it wins.

    Raises:
        ConfigError: if no published family can express the model and ``native`` is not set.
    """
    config, state = model.config, state or model.state_dict()
    family = mapping.NATIVE_FAMILY if native else mapping.family_of(config)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    name = next(name for name, known in DTYPES.items() if known == dtype)
    entries = mapping.to_hf_config(config, family) | special
    entries |= {"dtype": name, "torch_dtype": name, "glassgpt_version": __version__}
    write_json(folder / "config.json", entries)
    write_json(folder / "generation_config.json", special | dict(generation or {}))
    _save_weights(folder, mapping.to_published(state, config, family), dtype, max_shard_bytes)
    save_tokenizer(tokenizer, folder, config.block_size)
    (folder / "README.md").write_text(card or _card(config), encoding="utf-8", newline="\n")


def _save_weights(folder: Path, weights: Mapping[str, Tensor], dtype: torch.dtype, max_bytes: int) -> None:
    """Write one file, or as many as it takes and their index. One file's weights at a time are copied."""
    shards: list[list[str]] = [[]]
    size = total = 0
    for name, tensor in weights.items():
        needed = tensor.numel() * dtype.itemsize
        if size + needed > max_bytes and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size, total = size + needed, total + needed
    files = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    )
    for file, names in zip(files, shards, strict=True):
        copied = {name: weights[name].detach().to("cpu", dtype).contiguous() for name in names}
        save_file(copied, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        places = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def load_weights(folder: Path, model: GPT) -> None:
    """Fill a model with a folder's weights, strictly: every weight is there, fits, and none is left over.

    Raises:
        CheckpointError: listing missing, unexpected and misshapen weights, or a damaged file. The model is as it was.
    """
    load_into(model, open_folder(folder))


def open_folder(folder: Path) -> FolderSource:
    """A folder whose weights are what its checksums say, as a source.

    Raises:
        CheckpointError: if they are not, or it is no whole model folder.
    """
    verify(folder, [path.name for path in folder.glob("*.safetensors")])
    return FolderSource(folder)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name, on the CPU.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; the folder is not a whole model folder") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged and cannot be read: {error}") from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as indented JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


@contextlib.contextmanager
def write_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder to fill, then put it in ``target``'s place, atomically and checksummed.

    If anything fails, or the process dies, ``target`` is what it was before. Where ``target`` exists it is moved
    aside for the instant between two renames; :func:`whole` finds it there, and :func:`recover` undoes a death
    within that instant.
    """
    temporary, old = _beside(target)
    recover(target)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _write_checksums(temporary)
        for path in (*temporary.rglob("*"), temporary):
            _sync(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if target.exists():
        os.replace(target, old)
    os.replace(temporary, target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _beside(target: Path) -> tuple[Path, Path]:
    """Where a folder is written before it takes its place, and where the one before it waits meanwhile."""
    return target.with_name(f".{target.name}.glassgpt-new"), target.with_name(f".{target.name}.glassgpt-old")


def whole(target: Path) -> Path | None:
    """Where the newest whole version of a folder is, changing nothing; None if there is none."""
    return next((path for path in (target, _beside(target)[1]) if path.exists()), None)


def recover(target: Path) -> None:
    """Clean up after a process that died while writing ``target``: undo what it had begun. For the writer alone."""
    temporary, old = _beside(target)
    if old.exists() and not target.exists():
        os.replace(old, target)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(temporary, ignore_errors=True)


def verify(folder: Path, names: list[str] | None = None) -> None:
    """Compare files with the folder's SHA256SUMS, if it has one; all listed files, or only those named.

    Raises:
        CheckpointError: naming the files that differ.
    """
    path = folder / CHECKSUMS
    if not path.exists():
        return  # a folder from elsewhere
    try:
        lines = [line.split("  ", 1) for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError:
        lines = [[]]
    if any(len(line) != 2 for line in lines):
        raise CheckpointError(f"{path} is damaged; use another checkpoint of the run")
    changed = [
        name
        for digest, name in lines
        if (names is None or name in names) and (not (folder / name).exists() or sha256_of(folder / name) != digest)
    ]
    if changed:
        raise CheckpointError(
            f"{folder}: {', '.join(changed)} is not what was saved (its SHA-256 differs); "
            "use another checkpoint of the run"
        )


def _write_checksums(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*.*") if path.suffix in (".safetensors", ".json") and path.is_file())
    lines = [f"{sha256_of(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8", newline="\n")


def _sync(path: Path) -> None:
    """Flush a file or folder to disk. Some systems cannot open folders; there the rename has to do."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _card(config: ModelConfig) -> str:
    """A plain model card."""
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [glassgpt]\n---\n\n"
        "# A language model trained with glassgpt\n\n"
        f"{config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide, context {config.block_size}, "
        f"vocabulary {config.vocab_size}.\n"
    )

"""A model folder: config.json, generation_config.json, model.safetensors, tokenizer and model card.

In the published format, `transformers` opens it directly. A folder appears whole or not at all: it is written
beside its place, synced to disk, and renamed.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from glassgpt import __version__, assets
from glassgpt.config import ModelConfig
from glassgpt.errors import CheckpointError, ConfigError
from glassgpt.model import GPT
from glassgpt.tokenizer import Tokenizer
from glassgpt.tokenizer import load as load_tokenizer
from glassgpt.tokenizer import save as save_tokenizer
from glassgpt.weights import mapping

CHECKSUMS = "SHA256SUMS"


def save_model(
    folder: Path,
    model: GPT,
    tokenizer: Tokenizer,
    *,
    native: bool = False,
    card: str = "",
    state: dict[str, Tensor] | None = None,
) -> None:
    """Write the files of a model into an existing folder; with ``state``, those weights instead of the model's own.

    Raises:
        ConfigError: if no published family can express the model and ``native`` is not set.
    """
    config, state = model.config, state or model.state_dict()
    if native:
        entries, published = mapping.native_config(config), {k: v.contiguous() for k, v in state.items()}
        if config.tie_embeddings:
            del published["head.weight"]
    else:
        family = mapping.family_of(config)
        entries, published = mapping.to_hf_config(config, family), mapping.to_published(state, config, family)
    special = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": None}
    entries |= special | {"dtype": "float32", "torch_dtype": "float32", "glassgpt_version": __version__}
    write_json(folder / "config.json", entries)
    write_json(folder / "generation_config.json", special)
    published = {name: tensor.detach().float().cpu() for name, tensor in published.items()}
    save_file(published, folder / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(tokenizer, folder, config.block_size)
    (folder / "README.md").write_text(card or _card(config), encoding="utf-8", newline="\n")


def load_model(folder: Path, device: torch.device | None = None) -> tuple[GPT, Tokenizer]:
    """Build the model and tokenizer of a folder. Needs neither `transformers` nor the training text.

    Raises:
        CheckpointError: if something is missing, damaged, unexpected or of another shape; all of it is listed.
    """
    config = load_config(folder)
    model = GPT(config) if device is None else GPT(config).to(device)
    load_weights(folder, model)
    return model.eval(), load_tokenizer(folder)


def load_config(folder: Path) -> ModelConfig:
    """The configuration in a folder's config.json.

    Raises:
        CheckpointError: if there is none or it cannot be read.
    """
    content = read_json(folder / "config.json")
    try:
        if content.get("model_type") != "glassgpt":
            return mapping.from_hf_config(content)[0]
        known = set(ModelConfig.__dataclass_fields__)
        return ModelConfig(**{key: value for key, value in content.items() if key in known})
    except ConfigError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from None


def load_weights(folder: Path, model: GPT) -> None:
    """Fill a model with a folder's weights, strictly: every weight is there, fits, and none is left over.

    Raises:
        CheckpointError: listing missing, unexpected and misshapen weights, or a damaged file.
    """
    path, config = folder / "model.safetensors", model.config
    verify(folder, ["model.safetensors"])
    published = read_tensors(path)
    content = read_json(folder / "config.json")
    if content.get("model_type") == "glassgpt":
        state = dict(published)
        if config.tie_embeddings and "token_embedding.weight" in state:
            state["head.weight"] = state["token_embedding.weight"]
    else:
        state = mapping.from_published(published, config, mapping.FAMILIES[content["model_type"]])
    expected = model.state_dict()
    problems = [f"missing: {name}" for name in expected if name not in state]
    problems += [f"unexpected: {name}" for name in state if name not in expected]
    problems += [
        f"shape of {name}: {list(state[name].shape)} in the file, {list(tensor.shape)} in the model"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        shown = "\n  ".join(problems[:20] + ([f"and {len(problems) - 20} more"] if len(problems) > 20 else []))
        raise CheckpointError(f"{path} does not fit its config.json:\n  {shown}")
    model.load_state_dict(state)


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
        if (names is None or name in names)
        and (not (folder / name).exists() or assets.sha256_of(folder / name) != digest)
    ]
    if changed:
        raise CheckpointError(
            f"{folder}: {', '.join(changed)} is not what was saved (its SHA-256 differs); "
            "use another checkpoint of the run"
        )


def _write_checksums(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*.*") if path.suffix in (".safetensors", ".json") and path.is_file())
    lines = [f"{assets.sha256_of(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
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

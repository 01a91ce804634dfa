"""Models as others want them: from any source to a Hugging Face folder, a .gguf file, or a .tiktoken file."""

from pathlib import Path

import torch

from glassgpt import __version__
from glassgpt.errors import CheckpointError, TokenizerError
from glassgpt.files import Progress
from glassgpt.tokenizer import BPETokenizer
from glassgpt.tokenizer.chat import TEMPLATE_FILE, template_in
from glassgpt.tokenizer.tiktoken_file import tiktoken_bytes
from glassgpt.weights.folder import DTYPES, save_model, write_folder
from glassgpt.weights.gguf.export import write_gguf
from glassgpt.weights.gguf.reading import GGUFSource
from glassgpt.weights.loading import load_source
from glassgpt.weights.sources import Source


def chat_template(source: Source) -> str | None:
    """The chat template that came with a model; None where there is none.

    Raises:
        TokenizerError: if it cannot be read.
    """
    return source.chat_template() if isinstance(source, GGUFSource) else template_in(source.where)


def stored_dtype(source: Source) -> torch.dtype:
    """The smallest type that holds a source's weights without rounding; float32 for quantised ones."""
    kinds = set(source.stored.values())
    held = {"F32"} if kinds - {"F16", "BF16"} else kinds
    return {"F16": torch.float16, "BF16": torch.bfloat16}.get(held.pop() if len(held) == 1 else "", torch.float32)


def to_folder(
    source: Source, target: Path, *, dtype: torch.dtype | None = None, progress: Progress | None = None
) -> torch.dtype:
    """Write a model folder in the Hugging Face layout, with what came beside the weights.

    Args:
        source: of the model.
        target: the folder; it is written whole, or not at all.
        dtype: of the weights; by default the source's own.
        progress: told of it as it goes on.

    Returns:
        The type of the weights.

    Raises:
        CheckpointError: if there is something of that name, or the source is damaged.
        ConfigError: if no published family can express the model.
        TokenizerError: if the tokenizer is missing or damaged.
    """
    _refuse_existing(target)
    dtype = dtype or stored_dtype(source)
    model, tokenizer = load_source(source, dtype=dtype, progress=progress)
    template = chat_template(source)
    with write_folder(target) as folder:
        save_model(folder, model, tokenizer, dtype=dtype, generation=source.generation(), card=_card(source, dtype))
        if template is not None:
            (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8", newline="")
        if source.where.is_dir():
            for path in source.where.glob("LICENSE*"):
                (folder / path.name).write_bytes(path.read_bytes())
    return dtype


def to_gguf(source: Source, target: Path, *, dtype: str = "f16", progress: Progress | None = None) -> list[str]:
    """Write a .gguf file, with tokenizer and chat template inside.

    Returns:
        What the user should know, a sentence each.

    Raises:
        GlassError: as :func:`write_gguf` and :func:`load_source`; if there is a file of that name.
    """
    _refuse_existing(target)
    model, tokenizer = load_source(source, dtype=stored_dtype(source), progress=progress)
    target.parent.mkdir(parents=True, exist_ok=True)
    template = chat_template(source)
    return write_gguf(target, model, tokenizer, dtype=dtype, chat_template=template, progress=progress)


def to_tiktoken(source: Source, target: Path) -> BPETokenizer:
    """Write a tokenizer's ranks, as the tiktoken library reads them: one line a token, special ones left out.

    Returns:
        The tokenizer, whose split pattern and special tokens tiktoken has to be told.

    Raises:
        TokenizerError: if it is not byte-level BPE, or tiktoken would make other tokens.
        CheckpointError: if there is a file of that name.
    """
    _refuse_existing(target)
    tokenizer = source.tokenizer()
    if not isinstance(tokenizer, BPETokenizer):
        raise TokenizerError(
            f"tiktoken runs byte-level BPE, and this tokenizer is of the kind {tokenizer.kind!r}: train with "
            "tokenizer=bpe:N, or take the tokenizer.json of export --to hf"
        )
    if len(tokenizer.model.patterns) > 1 or tokenizer.model.normal_form:
        raise TokenizerError("tiktoken splits texts by one pattern, as they are; this tokenizer takes more steps")
    if missing := tokenizer.model.missing_bytes():
        raise TokenizerError(f"tiktoken needs a rank for every byte, and this tokenizer has none for {len(missing)}")
    content = tiktoken_bytes(tokenizer)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return tokenizer


def _refuse_existing(target: Path) -> None:
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise CheckpointError(f"{target} exists, and is not overwritten; name another with -o, or delete it")


def _card(source: Source, dtype: torch.dtype) -> str:
    """A model card that says where the weights are from."""
    kinds = ", ".join(sorted(set(source.stored.values())))
    name = next(name for name, known in DTYPES.items() if known == dtype)
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n"
        f"# {source.where.stem if source.where.suffix == '.gguf' else source.where.name}\n\n"
        f"The weights of {source.where.name} (stored as {kinds}) in {name}, written by glassgpt {__version__}. The "
        "licence of the original holds.\n"
    )

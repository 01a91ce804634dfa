"""Write a model for other programs: from any source to a Hugging Face folder, a .gguf file, or a .tiktoken file."""

from pathlib import Path

import torch

from glassgpt import __version__
from glassgpt.errors import CheckpointError, TokenizerError
from glassgpt.files import Progress, atomic_write
from glassgpt.model import GPT
from glassgpt.model.quantized import quantized_layers
from glassgpt.tokenizer import BPETokenizer, Tokenizer
from glassgpt.tokenizer.bpe.tokenizer import require_bpe
from glassgpt.tokenizer.tiktoken_file import tiktoken_files
from glassgpt.weights import mapping
from glassgpt.weights.folder import dtype_name, require_not_current, save_model, write_folder
from glassgpt.weights.gguf.export import write_gguf
from glassgpt.weights.loading import describe, load_source
from glassgpt.weights.sources import WeightSource


def stored_dtype(source: WeightSource) -> torch.dtype:
    """Give the smallest dtype that holds a source's weights without rounding; float32 if they are quantised."""
    kinds = set(source.stored.values())
    if kinds == {"F16"}:
        return torch.float16
    return torch.bfloat16 if kinds == {"BF16"} else torch.float32


def to_folder(
    source: WeightSource, target: Path, *, dtype: torch.dtype | None = None, native: bool = False,
    progress: Progress | None = None,
) -> torch.dtype:  # fmt: skip
    """Write a Hugging Face model folder, with all that the source says about its use, and its licence, atomically.

    ``native`` writes glassgpt's own format instead, which can express any model.

    Returns:
        The dtype of the weights: ``dtype``, or by default the source's own (:func:`stored_dtype`).

    Raises:
        CheckpointError: if the target exists, or the source is damaged.
        ConfigError: if no published family can express the model.
        TokenizerError: if the tokenizer is missing or damaged.
    """
    require_not_current(target)
    refuse_existing(target, "folder")
    dtype = dtype or stored_dtype(source)
    model, tokenizer = load_source(source, dtype=dtype, progress=progress)
    with write_folder(target) as folder:
        save_model(folder, model, tokenizer, native=native, dtype=dtype, card=_card(source, dtype_name(dtype)))
        _copy_licence(source, folder)
    return dtype


def write_quantized(source: WeightSource, model: GPT, tokenizer: Tokenizer, target: Path) -> int:
    """Write the folder of a model that was loaded from a source and then quantised; return the bytes of its weights.

    Raises:
        CheckpointError: if the target exists.
    """
    require_not_current(target)
    refuse_existing(target, "folder")
    native = describe(source)[1] is mapping.NATIVE_FAMILY
    kinds = " and ".join(sorted({f"INT{layer.bits}" for layer in quantized_layers(model).values()}))
    with write_folder(target) as folder:
        save_model(folder, model, tokenizer, native=native, card=_card(source, kinds, library="glassgpt"))
        _copy_licence(source, folder)
    return sum(path.stat().st_size for path in target.glob("*.safetensors"))


def _copy_licence(source: WeightSource, folder: Path) -> None:
    if source.path.is_dir():
        for path in source.path.glob("LICENSE*"):
            (folder / path.name).write_bytes(path.read_bytes())


def to_gguf(source: WeightSource, target: Path, *, dtype: str = "f16", progress: Progress | None = None) -> list[str]:
    """Write a .gguf file with weights, tokenizer and chat template.

    Returns:
        Sentences that the user should see.

    Raises:
        GlassError: as :func:`write_gguf` and :func:`load_source`; if the file exists.
    """
    refuse_existing(target)
    model, tokenizer = load_source(source, dtype=stored_dtype(source), progress=progress)
    return write_gguf(target, model, tokenizer, dtype=dtype, progress=progress)


def to_tiktoken(source: WeightSource, target: Path) -> BPETokenizer:
    """Write a tokenizer's ranks in tiktoken's format, and beside it a file with split pattern and special tokens.

    Returns:
        The tokenizer; tiktoken needs its split pattern and special tokens too.

    Raises:
        TokenizerError: if it is not byte-level BPE, or tiktoken would encode differently.
        CheckpointError: if a file exists.
    """
    refuse_existing(target)
    tokenizer = require_bpe(source.tokenizer(), "tiktoken runs")
    if len(tokenizer.model.patterns) > 1 or tokenizer.model.normal_form:
        raise TokenizerError(
            "tiktoken splits text by one pattern, without normalising it; this tokenizer has several steps"
        )
    if missing := tokenizer.model.missing_bytes():
        raise TokenizerError(f"tiktoken needs a rank for every byte, and this tokenizer lacks {len(missing)} of them")
    files = tiktoken_files(tokenizer, target)
    for path in files:
        refuse_existing(path)
    for path, content in files.items():
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    return tokenizer


def refuse_existing(target: Path, kind: str = "file") -> None:
    """Refuse to write where there is something.

    Raises:
        CheckpointError: if there is.
    """
    found = target.resolve()  # "missing/.." exists
    if found.exists() and (kind == "file" or not found.is_dir() or any(found.iterdir())):
        raise CheckpointError(f"{target} exists, and is not overwritten; name another with -o, or delete it")


def _card(source: WeightSource, dtype: str, library: str = "transformers") -> str:
    """Write a model card that names the original."""
    kinds = ", ".join(sorted(set(source.stored.values())))
    return (
        f"---\nlibrary_name: {library}\npipeline_tag: text-generation\n---\n\n"
        f"# {source.path.stem if source.path.suffix == '.gguf' else source.path.name}\n\n"
        f"The weights of {source.path.name} (stored as {kinds}) in {dtype}, written by glassgpt "
        f"{__version__}. The licence of the original holds.\n"
    )

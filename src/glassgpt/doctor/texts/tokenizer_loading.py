"""Load a tokenizer to examine: a file, a folder, a run, or somebody's object."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glassgpt.doctor.loading import import_factory, names_a_factory
from glassgpt.doctor.texts.foreign_tokenizer import adapt_tokenizer
from glassgpt.doctor.texts.tokenizer_subject import TokenizerSubject, of_house
from glassgpt.errors import GlassError, MissingExtraError
from glassgpt.files import parse_json, read_json_object
from glassgpt.tokenizer import specs


def load_tokenizer_subject(spec: str, model_vocab_size: int | None = None) -> TokenizerSubject:
    """Load a tokenizer: a file, a folder, a run, ``gpt2``, or ``module.py:factory`` of an object that encodes.

    A file that is there and damaged is a subject, too: the check of the file fails.

    Raises:
        TokenizerError: if there is no such file, or it is of no known format.
        ConfigError: if the factory's object cannot encode or decode.
        GlassError: as :func:`glassgpt.doctor.loading.import_factory`.
    """
    if names_a_factory(spec):
        return adapt_tokenizer(import_factory(spec)(), spec, model_vocab_size)
    path = Path(spec).expanduser()
    size = model_vocab_size or _model_vocab_size(path)
    try:
        subject = of_house(specs.open_tokenizer(spec), spec, size)
    except MissingExtraError:
        raise
    except GlassError as error:
        if not path.exists() or "known format" in str(error) or "must contain its tokenizer" in str(error):
            raise
        return TokenizerSubject(spec, lambda text: [], lambda ids: "", model_vocab_size=size, problem=str(error),
                                content=_content_of(path))  # fmt: skip
    return subject


def _model_vocab_size(path: Path) -> int | None:
    """The vocabulary size in the config.json beside a tokenizer."""
    folder = path if path.is_dir() else path.parent
    for config in (folder / "config.json", folder / "best" / "config.json", folder / "last" / "config.json"):
        if config.exists():
            try:
                size = read_json_object(config).get("vocab_size")
            except (OSError, ValueError, GlassError):
                return None
            return size if isinstance(size, int) else None
    return None


def _content_of(path: Path) -> Mapping[str, Any] | None:
    """The content of a tokenizer.json that cannot be read as a tokenizer."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if file.suffix != ".json":
        return None
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None

"""What every tokenizer can do, and how one is read back from a model folder."""

import json
from pathlib import Path
from typing import Any, Protocol

from glassgpt.errors import TokenizerError


class Tokenizer(Protocol):
    """Text to token ids and back.

    ``eos_id`` is the id that ends a document, None for a tokenizer that has none.
    """

    kind: str
    vocab_size: int
    eos_id: int | None

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Token ids of the text. Special tokens written in the text stay text unless allowed.

        Raises:
            TokenizerError: for text that this tokenizer cannot express.
        """
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of these ids."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The content of ``tokenizer.json``, as the `tokenizers` library reads it."""
        ...

    def special_tokens(self) -> dict[str, str]:
        """Named special tokens, for example ``{"eos_token": "<|endoftext|>"}``; empty where there are none."""
        ...


def save(tokenizer: Tokenizer, folder: Path, block_size: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``, which `tokenizers` and `AutoTokenizer` open."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
        **tokenizer.special_tokens(),
    }
    for name, content in (("tokenizer.json", tokenizer.to_json()), ("tokenizer_config.json", config)):
        text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def load(folder: Path) -> Tokenizer:
    """Read the tokenizer of a model folder.

    Raises:
        TokenizerError: if there is none, it is damaged, or of a kind this version cannot read.
    """
    from glassgpt.tokenizer.char import CharTokenizer

    path = folder / "tokenizer.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TokenizerError(f"{folder} has no tokenizer.json; a model folder carries its tokenizer") from None
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from None
    return CharTokenizer.from_json(content, path)

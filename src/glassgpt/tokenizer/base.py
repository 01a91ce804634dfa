"""What every tokenizer can do, and how one is kept in a model folder and read back."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from glassgpt.errors import TokenizerError

#: The files of a model folder that hold a tokenizer; the first that is there counts.
FILES = ("tokenizer.json", "tokenizer.model")
#: The token that ends a document.
END_OF_TEXT = "<|endoftext|>"


class Tokenizer(Protocol):
    """Text to token ids and back.

    Attributes:
        kind: "char", "word", "bpe", or what another library calls it.
        vocab_size: ids are below it.
        eos_token_id: the id that ends a document, None for a tokenizer that has none.
        bos_token_id: the id that generation from nothing starts with, None if models were not trained with one.
        can_encode_in_chunks: whether the parts of a text that is cut at
            :func:`glassgpt.tokenizer.pretokenize.safe_cut` have the same ids as the whole text.
    """

    kind: str
    vocab_size: int
    eos_token_id: int | None
    bos_token_id: int | None
    can_encode_in_chunks: bool

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Token ids of the text. Special tokens written in the text stay text unless allowed.

        Raises:
            TokenizerError: for text that this tokenizer cannot express.
        """
        ...

    def encode_array(self, text: str) -> np.ndarray:
        """As :meth:`encode`, to an int64 array ``[tokens]``: the quick way for long texts."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids; special tokens are written by their names.

        Raises:
            TokenizerError: for an id that is not in the vocabulary.
        """
        ...

    def token_bytes(self, i: int) -> bytes:
        """The UTF-8 bytes that a token stands for in the middle of a text: those of a text are its tokens', joined."""
        ...

    def special_tokens(self) -> dict[str, str]:
        """Named special tokens, for example ``{"eos_token": "<|endoftext|>"}``; empty where there are none."""
        ...

    def special_ids(self) -> dict[str, int]:
        """Every special token and its id."""
        ...

    def files(self) -> dict[str, bytes]:
        """What a model folder holds of it, beside ``tokenizer_config.json``: by name, as published tools read it."""
        ...


def json_file(content: Mapping[str, Any], name: str = "tokenizer.json") -> dict[str, bytes]:
    """The file of that name with this content."""
    return {name: (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode("utf-8")}


def added_token(i: int, name: str, special: bool) -> dict[str, Any]:
    """An entry of `added_tokens` in ``tokenizer.json``: found as it is written, wherever it stands."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": name, **flags, "special": special}


def adds_bos_token(tokenizer: Tokenizer) -> bool:
    """Whether a text that a model is given begins with the token that begins documents, as Llama's do.

    Our own tokenizers never ask for it; the tokenizer.json of a published model may (in its `post_processor`). Encoding
    a text does not put it there: whoever begins a text does.
    """
    content = getattr(tokenizer, "content", None) or {}
    processor = content.get("post_processor") or {}
    for step in (processor, *(processor.get("processors") or ())):
        single = step.get("single") if step.get("type") == "TemplateProcessing" else None
        if isinstance(single, list) and single and "SpecialToken" in single[0]:
            return single[0]["SpecialToken"].get("id") == tokenizer.special_tokens().get("bos_token")
    return False


def bos_processor(bos: str, i: int) -> dict[str, Any]:
    """The `post_processor` of a tokenizer.json that puts this token first."""
    first, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = [{part: {**entry[part], "type_id": 1} for part in entry} for entry in (first, {"Sequence": {"id": "B"}})]
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, *second],
        "special_tokens": {bos: {"id": bos, "ids": [i], "tokens": [bos]}},
    }


def save(tokenizer: Tokenizer, folder: Path, block_size: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``, which `tokenizers` and `AutoTokenizer` open."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
        **tokenizer.special_tokens(),
    }
    files = tokenizer.files()
    if "tokenizer.json" not in files:
        config["tokenizer_class"] = "LlamaTokenizer"  # which reads a SentencePiece tokenizer.model
    for name, content in {**files, **json_file(config, "tokenizer_config.json")}.items():
        (folder / name).write_bytes(content)


def file_in(folder: Path) -> Path:
    """The file of a folder that holds its tokenizer.

    Raises:
        TokenizerError: if there is none.
    """
    for name in FILES:
        if (folder / name).exists():
            return folder / name
    raise TokenizerError(f"{folder} has no tokenizer.json; a model folder carries its tokenizer")

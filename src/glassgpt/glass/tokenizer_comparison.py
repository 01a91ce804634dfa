"""Measure tokenizers on a text: tokens, bytes per token, use of the vocabulary, speed."""

import contextlib
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from glassgpt.errors import DataError, TokenizerError

if TYPE_CHECKING:
    from glassgpt.tokenizer import Tokenizer
    from glassgpt.tokenizer.specs import Spec

#: Share of the text, at its end, that tokenizers are measured on.
TEST_FRACTION = 0.1
#: Characters of its training text, at most, that a new tokenizer is measured on.
MAX_CHARACTERS = 1 << 21


@dataclass(frozen=True)
class TextSplit:
    """The beginning of a text, to train tokenizers on, and the rest, to measure them on."""

    train: str  # the first 90 %
    test: str  # the last 10 %
    bytes_taken: int  # of both
    bytes_of_text: int  # of the full text


@dataclass(frozen=True)
class TokenizerMeasurement:
    """Measurements of a tokenizer on a text; None if it cannot encode the text."""

    tokenizer: str  # as the user wrote it
    kind: str
    vocab_size: int
    tokens: int | None = None
    bytes_per_token: float | None = None  # UTF-8 bytes of the text per token
    tokens_per_word: float | None = None  # per word between white space; None if there are no words
    vocabulary_used: float | None = None  # share of the vocabulary that occurs
    unknown: float | None = None  # share of the tokens that are <|unk|>; None for a tokenizer without such a token
    gives_text_back: bool | None = None  # whether decoding the ids gives the same text
    bytes_per_second: float | None = None  # encoding speed, with warm caches
    error: str | None = None  # why it cannot encode the text


def split_text(content: str, max_bytes: int) -> TextSplit:
    """Split the first ``max_bytes`` bytes of a text into a training and a test part.

    Raises:
        DataError: if the text is too short.
    """
    encoded = content.encode("utf-8")
    text = encoded[:max_bytes].decode("utf-8", errors="ignore")  # without a character that is cut
    cut = len(text) - round(len(text) * TEST_FRACTION)
    if cut == len(text):
        raise DataError(
            f"there is too little text to compare on: {len(text)} character{'s' * (len(text) != 1)}, of which the last "
            "tenth is measured; give a longer text"
        )
    return TextSplit(text[:cut], text[cut:], len(text.encode("utf-8")), len(encoded))


def measure_tokenizer(name: str, tokenizer: "Tokenizer", text: str, warm_up: str = "") -> TokenizerMeasurement:
    """Encode a text, which is not empty, and measure the result. First encode ``warm_up``, to fill the caches."""
    import numpy as np

    row = TokenizerMeasurement(name, tokenizer.kind, tokenizer.vocab_size)
    with contextlib.suppress(TokenizerError):
        tokenizer.encode_array(warm_up)
    try:
        start = time.perf_counter()
        ids = tokenizer.encode_array(text)
        seconds = time.perf_counter() - start
    except TokenizerError as error:
        return replace(row, error=str(error))
    size, words, unknown = len(text.encode("utf-8")), len(text.split()), _unknown_id(tokenizer)
    count = len(ids)
    return replace(
        row,
        tokens=count,
        bytes_per_token=size / count if count else None,
        tokens_per_word=count / words if words else None,
        vocabulary_used=len(np.unique(ids)) / tokenizer.vocab_size,
        unknown=None if unknown is None or not count else float((ids == unknown).mean()),
        gives_text_back=tokenizer.decode(ids.tolist()) == text,
        bytes_per_second=size / seconds,
    )


def _unknown_id(tokenizer: "Tokenizer") -> int | None:
    """Return the id of the unknown token; None for a tokenizer without one, or without a name for it."""
    special = tokenizer.special_ids()
    names = (tokenizer.special_tokens().get("unk_token"), "<|unk|>", "<unk>", "[UNK]")
    return next((special[name] for name in names if name in special), None)


def summarize_training(tokenizer: "Tokenizer", spec: "Spec", content: str) -> dict[str, Any]:
    """Describe a newly trained tokenizer, and measure it on the beginning of its text, as JSON values."""
    from glassgpt.tokenizer import BPETokenizer

    text = _beginning(content)
    row = measure_tokenizer(spec.text, tokenizer, text)
    if row.error is not None:  # the last word was cut, and a closed vocabulary does not have its first half
        text = content
        row = measure_tokenizer(spec.text, tokenizer, text)
    return {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "asked_for": spec.vocab_size,
        "merges": len(tokenizer.model.merges) if isinstance(tokenizer, BPETokenizer) else None,
        "special_tokens": tokenizer.special_ids(),
        "bytes_per_token": row.bytes_per_token,
        "unknown": row.unknown,
        "measured_on": "the text" if text is content else f"the first {len(text):,} characters of the text",
    }


def _beginning(content: str) -> str:
    """Return the first :data:`MAX_CHARACTERS` of a text, cut between words if there are any."""
    if len(content) <= MAX_CHARACTERS:
        return content
    cut = max(content.rfind(space, 0, MAX_CHARACTERS) for space in " \n")
    return content[: cut if cut > 0 else MAX_CHARACTERS]

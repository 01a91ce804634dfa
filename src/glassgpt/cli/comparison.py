"""Several tokenizers on the same text: trained on its beginning, measured on its end."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from glassgpt.cli.common import counted, print_table
from glassgpt.errors import DataError, TokenizerError

if TYPE_CHECKING:
    from glassgpt.tokenizer import Tokenizer

#: Share of the text, at its end, that is measured on.
MEASURED = 0.1
#: What is counted while a tokenizer is trained.
UNITS = {"counting pre-tokens": "characters", "merging": "merges"}


@dataclass(frozen=True)
class Parts:
    """A text in two: to train on, and to measure on; and how many of its bytes were left out."""

    train: str
    measured: str
    bytes_taken: int
    bytes_of_text: int

    def sizes(self) -> dict[str, int]:
        """As JSON values."""
        return {
            "train_characters": len(self.train),
            "measured_characters": len(self.measured),
            "bytes_taken": self.bytes_taken,
            "bytes_of_text": self.bytes_of_text,
        }

    def describe(self, name: str, trained: Sequence[str]) -> str:
        """In words; ``trained`` names the tokenizers that are trained on the first part."""
        lines = [f"{name}, {counted(self.bytes_of_text, 'byte')}"]
        if self.bytes_taken < self.bytes_of_text:
            lines[0] += f"; the first {self.bytes_taken:,} are taken (--bytes takes more)"
        if trained:
            seen = counted(len(self.train), "character")
            lines.append(f"trained on the first 90 % ({seen}): {', '.join(trained)}")
        lines.append(f"measured on the last 10 % ({counted(len(self.measured), 'character')}): all")
        return "\n".join(lines)


@dataclass(frozen=True)
class Row:
    """What a tokenizer makes of a text; None where it cannot encode it, and ``error`` says why.

    Attributes:
        tokenizer: what was asked for.
        kind: of tokenizer.
        vocab_size: tokens in its vocabulary.
        tokens: of the text.
        bytes_per_token: UTF-8 bytes of the text per token.
        tokens_per_word: tokens per word between white space; None if there is none.
        vocabulary_used: share of the vocabulary that occurs.
        unknown: share of the tokens that stand for an unknown word; None for a tokenizer without such a token.
        gives_text_back: whether decoding gives the text again.
        bytes_per_second: of encoding, after as much text was encoded before.
        error: why it cannot encode the text.
    """

    tokenizer: str
    kind: str
    vocab_size: int
    tokens: int | None = None
    bytes_per_token: float | None = None
    tokens_per_word: float | None = None
    vocabulary_used: float | None = None
    unknown: float | None = None
    gives_text_back: bool | None = None
    bytes_per_second: float | None = None
    error: str | None = None


def divide(content: str, limit: int) -> Parts:
    """The first ``limit`` bytes of a text in two parts.

    Raises:
        DataError: if the text is too short.
    """
    encoded = content.encode("utf-8")
    taken = encoded[:limit].decode("utf-8", errors="ignore")  # less a character that is cut
    cut = len(taken) - round(len(taken) * MEASURED)
    if cut == len(taken):
        size = counted(len(taken), "character")
        raise DataError(f"there is too little text to compare on: {size}, of which a tenth is measured on")
    return Parts(taken[:cut], taken[cut:], len(taken.encode("utf-8")), len(encoded))


def measure(name: str, tokenizer: "Tokenizer", text: str, before: str = "") -> Row:
    """What a tokenizer makes of a text.

    Args:
        name: to show.
        tokenizer: to measure.
        text: to encode; not empty.
        before: encoded first and not measured, so that vocabularies and caches are warm as within a long text.
    """
    import numpy as np

    row = Row(name, tokenizer.kind, tokenizer.vocab_size)
    with contextlib.suppress(TokenizerError):  # of the other text alone
        tokenizer.encode_array(before)
    try:
        began = time.perf_counter()
        ids = tokenizer.encode_array(text)
        seconds = time.perf_counter() - began
    except TokenizerError as error:
        return replace(row, error=str(error))
    size, words, unknown = len(text.encode("utf-8")), len(text.split()), unknown_id(tokenizer)
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


def unknown_id(tokenizer: "Tokenizer") -> int | None:
    """The id that stands for unknown words, None for a tokenizer without one (or where nothing says which it is)."""
    special = tokenizer.special_ids()
    names = (tokenizer.special_tokens().get("unk_token"), "<|unk|>", "<unk>", "[UNK]")
    return next((special[name] for name in names if name in special), None)


def print_comparison(rows: Sequence[Row]) -> None:
    """Print a table of them, and below it what has to be said."""
    with_unknown = any(row.unknown is not None for row in rows)
    header = ["tokenizer", "vocabulary", "used", "tokens", "bytes/token", "tokens/word", "encode MB/s"]
    table = []
    for row in rows:
        mark = "*" if row.gives_text_back is False else " "
        speed = None if row.bytes_per_second is None else row.bytes_per_second / 1e6
        cells = [row.tokenizer, f"{row.vocab_size:,}", _share(row.vocabulary_used)]
        cells += ["-" if row.tokens is None else f"{row.tokens:,}", _number(row.bytes_per_token) + mark]
        cells += [_number(row.tokens_per_word), _number(speed)]
        table.append([*cells, *([_share(row.unknown)] if with_unknown else [])])
    print_table([*header, *(["unknown"] if with_unknown else [])], table, right=range(1, len(header) + 1))
    notes = []
    for row in rows:
        if row.error is not None:
            notes.append(f"- {row.tokenizer} cannot encode the last 10 %: {row.error}")
        elif row.gives_text_back is False and row.unknown:
            notes.append(f"* {row.tokenizer}: not comparable; the text of its unknown words is lost")
        elif row.gives_text_back is False:
            notes.append(f"* {row.tokenizer}: not quite comparable; its tokens do not give the text back exactly")
    if notes:
        print("\n" + "\n".join(notes))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as JSON values."""
    return [asdict(row) for row in rows]

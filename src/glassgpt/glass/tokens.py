"""Examine tokens: those of a text, the merges of a word, and the vocabulary of a tokenizer.

Tokens are written as Python writes text: a line end as ``\\n``, a backslash as ``\\\\``. Bytes that are only a part of
a character are written in hexadecimal, as ``<E4 BD>``; these characters in a text get a backslash: ``\\<E4 BD>``.
"""

import contextlib
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glassgpt.errors import DataError

if TYPE_CHECKING:
    from glassgpt.tokenizer import BPETokenizer, Tokenizer
    from glassgpt.tokenizer.bpe.bytelevel import BPEModel

_INVALID_BYTES = re.compile(r"[\udc80-\udcff]+")  # bytes that are not UTF-8, as `surrogateescape` decodes them
_LIKE_INVALID_BYTES = re.compile(r"<(?=[0-9A-F]{2}(?: [0-9A-F]{2})*>)")
#: Characters of a quoted token, at most.
_MAX_QUOTED = 48
#: Tokens, and merges at either end, that describe a tokenizer.
_EXAMPLES = 5


@dataclass(frozen=True)
class TokenInText:
    """A token of a text: its id, its bytes, whether it is special, and a note for people."""

    id: int
    content: bytes
    special: bool
    note: str

    def to_json(self, position: int) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"position": position, **token_json(self.id, self.content), "special": self.special, "note": self.note}


@dataclass(frozen=True)
class MergeStep:
    """The tokens of a pre-token before a merge, and that merge: its pair, rank and new id. None after the last one."""

    tokens: list[bytes]
    pair: tuple[bytes, bytes] | None
    rank: int | None
    merged_id: int | None


@dataclass(frozen=True)
class PreTokenMerges:
    """A pre-token, the steps of its merging, and its final token ids."""

    content: bytes
    steps: list[MergeStep]
    ids: list[int]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, with the tokens as printable text."""
        steps = [
            {
                "tokens": [escaped(token) for token in step.tokens],
                "pair": [escaped(token) for token in step.pair] if step.pair else None,
                "rank": step.rank,
                "id": step.merged_id,
            }
            for step in self.steps
        ]
        return {"piece": escaped(self.content), "ids": self.ids, "steps": steps}


@functools.lru_cache(1 << 16)  # the same tokens occur again and again
def escaped(content: bytes, line_breaks: bool = False) -> str:
    """Write bytes as printable text; with ``line_breaks``, also break the line after each ``\\n``."""
    text = content.decode("utf-8", errors="surrogateescape")
    text = _LIKE_INVALID_BYTES.sub(r"\\<", text.replace("\\", "\\\\"))
    text = _INVALID_BYTES.sub(lambda match: f"<{' '.join(f'{ord(c) - 0xDC00:02X}' for c in match[0])}>", text)
    line_end = "\\n\n" if line_breaks else "\\n"
    return "".join(line_end if c == "\n" else c if c.isprintable() else repr(c)[1:-1] for c in text)


def quoted(content: bytes) -> str:
    """Write bytes as printable text in quotes, shortened to fit into a table."""
    text = _decode(content)
    shown = f"'{escaped(content)}'" if text is None else repr(text)
    return shown if len(shown) <= _MAX_QUOTED else f"{shown[: _MAX_QUOTED - 4]}...{shown[0]}"


def _decode(content: bytes) -> str | None:
    """Return the text; None if the bytes are not UTF-8."""
    with contextlib.suppress(UnicodeDecodeError):
        return content.decode("utf-8")
    return None


def token_json(i: int, content: bytes) -> dict[str, Any]:
    """Return a token as JSON values. Its text is None if the bytes are not UTF-8."""
    return {"id": i, "bytes": content.hex(), "text": _decode(content)}


def encode_bytes(tokenizer: "Tokenizer", content: bytes, allow_special: bool) -> tuple[list[int], str | None]:
    """Encode bytes to ids, and decode them to a text. Byte-level BPE also encodes bytes that are not UTF-8: text None.

    Raises:
        GlassError: if the tokenizer cannot encode them.
    """
    from glassgpt.tokenizer import BPETokenizer

    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        if isinstance(tokenizer, BPETokenizer) and not allow_special:
            return tokenizer.encode_bytes(content), None
        raise DataError(
            f"the text is not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start}; only byte-level BPE "
            "can encode such bytes, and only without special tokens"
        ) from None
    return tokenizer.encode(text, allow_special), text


def unknown_words(tokenizer: "Tokenizer", text: str, ids: Sequence[int]) -> dict[int, str]:
    """Find the words that were encoded as ``<|unk|>``, by the position of the token."""
    from glassgpt.tokenizer import WordTokenizer
    from glassgpt.tokenizer.pretokenize import PreTokenizer
    from glassgpt.tokenizer.word import PATTERN

    if not isinstance(tokenizer, WordTokenizer):
        return {}
    words = zip(PreTokenizer([PATTERN]).split(text), ids, strict=True)
    return {position: word for position, (word, i) in enumerate(words) if i == tokenizer.unk_token_id}


def examine_tokens(tokenizer: "Tokenizer", ids: Sequence[int], unknown: Mapping[int, str]) -> list[TokenInText]:
    """Look up the bytes of each token of a text, and note special, added and cut ones, and :func:`unknown_words`."""
    special = set(tokenizer.special_ids().values())
    model: BPEModel | None = getattr(tokenizer, "model", None)
    added = set(model.added.values()) if model else set[int]()
    contents = {i: tokenizer.token_bytes(i) for i in set(ids)}
    stream = b"".join(contents[i] for i in ids)
    tokens, begin = [], 0
    for position, i in enumerate(ids):
        end = begin + len(contents[i])
        note = partial_characters(stream, begin, end) if _decode(contents[i]) is None else ""
        if i in special:
            note = f"special; the unknown word {unknown[position]!r}" if position in unknown else "special"
        elif i in added:
            note = "added"
        tokens.append(TokenInText(i, contents[i], i in special, note))
        begin = end
    return tokens


def partial_characters(stream: bytes, begin: int, end: int) -> str:
    """Name the characters that ``stream[begin:end]`` holds only a part of: ``bytes 1-2 of 3 of '你'``."""
    notes = {}
    for border in (begin, end):
        for first in range(max(0, border - 3), border):
            for last in range(border + 1, min(first + 4, len(stream)) + 1):
                character = _decode(stream[first:last])
                if character is not None and len(character) == 1:
                    low, high = max(begin, first) - first + 1, min(end, last) - first
                    span = f"byte {low}" if low == high else f"bytes {low}-{high}"
                    notes[first] = f"{span} of {last - first} of {character!r}"
    return ", ".join(notes.values()) or "not UTF-8"


def merge_steps(tokenizer: "BPETokenizer", word: str) -> list[PreTokenMerges]:
    """Replay how BPE merges the bytes of a word into tokens, for each of its pre-tokens.

    Raises:
        TokenizerError: if the word cannot be encoded.
    """
    vocab, merges = tokenizer.model.vocab, tokenizer.model.merges
    pre_tokens = []
    for replay in tokenizer.replay(word):
        steps = []
        for tokens, rank in replay:
            pair = None if rank is None else merges[rank]
            steps.append(MergeStep(tokens, pair, rank, vocab[pair[0] + pair[1]] if pair else None))
        last = steps[-1].tokens
        pre_tokens.append(PreTokenMerges(b"".join(last), steps, [vocab[token] for token in last]))
    return pre_tokens


def describe_tokenizer(tokenizer: "Tokenizer") -> dict[str, Any]:
    """Describe a tokenizer as JSON values: kind, size, special tokens, examples of tokens; merges if it is BPE."""
    from glassgpt.tokenizer import BPETokenizer

    special, unused = tokenizer.special_ids(), tokenizer.unused_ids()
    others = set(range(tokenizer.vocab_size)).difference(special.values(), unused)
    contents = {i: tokenizer.token_bytes(i) for i in others}
    ids = [i for i in sorted(contents) if contents[i]]
    longest = sorted(ids, key=lambda i: (-len(contents[i]), i))
    description = {
        "kind": tokenizer.kind,
        "about": _about(tokenizer),
        "vocab_size": tokenizer.vocab_size,
        "unused_ids": len(unused),
        "special_tokens": special,
        "roles": tokenizer.special_tokens(),
        "first_tokens": [token_json(i, contents[i]) for i in ids[: 2 * _EXAMPLES]],
        "longest_tokens": [token_json(i, contents[i]) for i in longest[:_EXAMPLES]],
    }
    return description | (_describe_bpe(tokenizer.model) if isinstance(tokenizer, BPETokenizer) else {})


def _about(tokenizer: "Tokenizer") -> str:
    from glassgpt.tokenizer import BPETokenizer, CharTokenizer, WordTokenizer

    if isinstance(tokenizer, BPETokenizer):
        return "byte-level BPE: encodes any text"
    if isinstance(tokenizer, WordTokenizer) and tokenizer.unk_token_id is not None:
        return "words: any other is <|unk|>, and lost"
    if isinstance(tokenizer, CharTokenizer | WordTokenizer):
        return f"{'characters' if tokenizer.kind == 'char' else 'words'}: a text with any other is refused"
    return f"{tokenizer.kind}, run by the library that defines it"


def _describe_bpe(model: "BPEModel") -> dict[str, Any]:
    from glassgpt.tokenizer.pretokenize import PATTERNS

    names = {pattern: name for name, pattern in PATTERNS.items()}
    ranks = range(len(model.merges))
    return {
        "added_tokens": dict(model.added),
        "patterns": [{"name": names.get(pattern), "regex": pattern} for pattern in model.patterns],
        "normal_form": model.normal_form,
        "whole_pieces": model.ignore_merges,
        "merges": len(model.merges),
        "some_merges": [
            {
                "rank": rank,
                "pair": [token_json(model.vocab[token], token) for token in model.merges[rank]],
                "into": token_json(model.vocab[b"".join(model.merges[rank])], b"".join(model.merges[rank])),
            }
            for rank in sorted({*ranks[:_EXAMPLES], *ranks[-_EXAMPLES:]})
        ],
    }

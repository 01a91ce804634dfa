"""How tokens are shown: their boundaries in a text, tables of them, the merges of a word, what a tokenizer is.

Text is shown as Python writes it: control characters as ``\\n``, a backslash as ``\\\\``. Bytes that are only a part
of a character are shown in hexadecimal, as ``<E4 BD>``; a text that has these very characters as ``\\<E4 BD>``.
"""

import contextlib
import functools
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glassgpt.cli.common import counted, print_table

if TYPE_CHECKING:
    from glassgpt.tokenizer import BPETokenizer, Tokenizer
    from glassgpt.tokenizer.bpe.bytelevel import BPEModel

#: Backgrounds of tokens in a terminal (of the 256 colours), one after another, and of special tokens.
_COLOURS, _SPECIAL = (153, 223, 157, 225), (161, 126)
_BLACK, _WHITE = 16, 231
_RAW = re.compile(r"[\udc80-\udcff]+")  # bytes that make no character, as `surrogateescape` decodes them
_LIKE_RAW = re.compile(r"<(?=[0-9A-F]{2}(?: [0-9A-F]{2})*>)")
#: What a table shows of one token at most: characters, and bytes.
_WIDEST, _MOST_BYTES = 48, 16
#: How many tokens, and merges at either end, a description names.
_EXAMPLES = 5


@dataclass(frozen=True)
class Shown:
    """A token of a text, and what there is to say about it."""

    id: int
    content: bytes
    special: bool
    note: str


@dataclass(frozen=True)
class Step:
    """The tokens of a piece before a merge; the pair that is merged next, its rank, and the id of what it becomes."""

    tokens: list[bytes]
    pair: tuple[bytes, bytes] | None
    rank: int | None
    made: int | None


@dataclass(frozen=True)
class Piece:
    """A piece of a word, each step of its merging, and the ids in the end."""

    content: bytes
    steps: list[Step]
    ids: list[int]


# --- writing tokens --------------------------------------------------------------------------------------------------


@functools.lru_cache(1 << 16)  # the same tokens come again and again
def spelled(content: bytes, line_breaks: bool = False) -> str:
    """Bytes as text that can be printed.

    Args:
        content: the bytes.
        line_breaks: whether a line also ends where it ends in the text, after the ``\\n``.
    """
    text = content.decode("utf-8", errors="surrogateescape")
    text = _LIKE_RAW.sub(r"\\<", text.replace("\\", "\\\\"))
    text = _RAW.sub(lambda found: f"<{' '.join(f'{ord(c) - 0xDC00:02X}' for c in found[0])}>", text)
    line_end = "\\n\n" if line_breaks else "\\n"
    return "".join(line_end if c == "\n" else c if c.isprintable() else repr(c)[1:-1] for c in text)


def quoted(content: bytes) -> str:
    """The same in quotes, and no longer than a table can take."""
    shown = repr(content.decode("utf-8")) if _is_text(content) else f"'{spelled(content)}'"
    return shown if len(shown) <= _WIDEST else f"{shown[: _WIDEST - 4]}...{shown[0]}"


def separator() -> str:
    """What is printed between tokens where there are no colours: ``│``, or ``|`` where that cannot be written."""
    try:
        "│".encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return "|"
    return "│"


def separated(contents: Sequence[bytes], line_breaks: bool = False) -> str:
    """Tokens with a separator between them; where the text has that character, a backslash comes before it."""
    mark = separator()
    return mark.join(spelled(content, line_breaks).replace(mark, f"\\{mark}") for content in contents)


def coloured(tokens: Sequence[Shown]) -> str:
    """Tokens one after another, each on another background than its neighbours."""
    painted, numbers = [], {True: 0, False: 0}
    for token in tokens:
        colours, foreground = (_SPECIAL, _WHITE) if token.special else (_COLOURS, _BLACK)
        colour = colours[numbers[token.special] % len(colours)]
        lines = spelled(token.content, line_breaks=True).split("\n")  # colours would go on to the terminal's edge
        painted.append("\n".join(_paint(line, colour, foreground) if line else "" for line in lines))
        numbers[token.special] += 1
    return "".join(painted)


def colours_wanted() -> bool:
    """Whether standard output is a terminal that shows colours, and NO_COLOR is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _paint(text: str, background: int, foreground: int = _BLACK) -> str:
    return f"\x1b[38;5;{foreground};48;5;{background}m{text}\x1b[0m"


def _is_text(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


# --- a text ----------------------------------------------------------------------------------------------------------


def examine(tokenizer: "Tokenizer", ids: Sequence[int], lost: Mapping[int, str]) -> list[Shown]:
    """What there is to say about each token of a text.

    Args:
        tokenizer: that made them.
        ids: of the tokens.
        lost: by position, the words that became ``<|unk|>``.
    """
    special = set(tokenizer.special_ids().values())
    model: BPEModel | None = getattr(tokenizer, "model", None)
    added = set(model.added.values()) if model else set[int]()
    contents = {i: tokenizer.token_bytes(i) for i in set(ids)}
    stream = b"".join(contents[i] for i in ids)
    shown, begin = [], 0
    for position, i in enumerate(ids):
        end = begin + len(contents[i])
        note = "" if _is_text(contents[i]) else _parts(stream, begin, end)
        if i in special:
            note = f"special; the unknown word {lost[position]!r}" if position in lost else "special"
        elif i in added:
            note = "added"
        shown.append(Shown(i, contents[i], i in special, note))
        begin = end
    return shown


def _parts(stream: bytes, begin: int, end: int) -> str:
    """Of which characters ``stream[begin:end]`` holds a part: ``bytes 1-2 of 3 of '你'``."""
    notes = {}
    for border in (begin, end):
        for first in range(max(0, border - 3), border):
            for last in range(border + 1, min(first + 4, len(stream)) + 1):
                whole = stream[first:last]
                if _is_text(whole) and len(whole.decode("utf-8")) == 1:
                    low, high = max(begin, first) - first + 1, min(end, last) - first
                    span = f"byte {low}" if low == high else f"bytes {low}-{high}"
                    notes[first] = f"{span} of {len(whole)} of {whole.decode('utf-8')!r}"
    return ", ".join(notes.values()) or "not UTF-8"


def tokens_json(tokens: Sequence[Shown]) -> list[dict[str, Any]]:
    """The tokens of a text as JSON values; a token that is only a part of a character has no text."""
    return [
        {"position": position, **_example(token.id, token.content), "special": token.special, "note": token.note}
        for position, token in enumerate(tokens)
    ]


def print_tokens(tokens: Sequence[Shown], rows: int) -> None:
    """Print a text with the boundaries of its tokens, then a table of them.

    Args:
        tokens: of the text.
        rows: of the table at most; 0 for all.
    """
    if colours_wanted():
        print(coloured(tokens))
    else:
        print(separated([token.content for token in tokens], line_breaks=True))
    shown = tokens[: rows or None]
    table = []
    for position, token in enumerate(shown):
        content = token.content[:_MOST_BYTES].hex(" ") + (" ..." if len(token.content) > _MOST_BYTES else "")
        content = "-" if token.special else content
        table.append([f"{position:,}", str(token.id), content, quoted(token.content), token.note])
    print()
    print_table(["position", "id", "bytes", "token", ""], table, right=(0, 1))
    if len(shown) < len(tokens):
        print(f"... and {len(tokens) - len(shown):,} more (--rows 0 shows all)")


# --- the merges of a word --------------------------------------------------------------------------------------------


def replay(tokenizer: "BPETokenizer", word: str) -> list[Piece]:
    """How a word comes to its tokens, piece by piece.

    Raises:
        TokenizerError: if the word cannot be encoded.
    """
    vocab, merges = tokenizer.model.vocab, tokenizer.model.merges
    pieces = []
    for replayed in tokenizer.replay(word):
        steps = []
        for tokens, rank in replayed:
            pair = None if rank is None else merges[rank]
            steps.append(Step(tokens, pair, rank, vocab[pair[0] + pair[1]] if pair else None))
        last = steps[-1].tokens
        pieces.append(Piece(b"".join(last), steps, [vocab[token] for token in last]))
    return pieces


def replay_json(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """The same as JSON values; tokens are written as they are printed."""
    return [
        {
            "piece": spelled(piece.content),
            "ids": piece.ids,
            "steps": [
                {
                    "tokens": [spelled(token) for token in step.tokens],
                    "pair": [spelled(token) for token in step.pair] if step.pair else None,
                    "rank": step.rank,
                    "id": step.made,
                }
                for step in piece.steps
            ],
        }
        for piece in pieces
    ]


def print_replay(pieces: Sequence[Piece]) -> None:
    """Print, for each piece, the tokens before every merge, and which pair is merged next."""
    for number, piece in enumerate(pieces, start=1):
        place = f"piece {number} of {len(pieces)}: " if len(pieces) > 1 else ""
        size = f"{counted(len(piece.content), 'byte')}, {counted(len(piece.steps) - 1, 'merge')}"
        print(f"{place}{quoted(piece.content)}, {size}\n")
        rows = []
        for count, step in enumerate(piece.steps):
            row = [str(count), separated(step.tokens), "none: no pair has a rank", "", ""]
            if step.pair:
                left, right = step.pair
                merged = len(step.tokens) - len(piece.steps[count + 1].tokens)  # times that the pair is merged now
                row[1:3] = [_marked(step.tokens, step.pair, merged), f"{quoted(left)} + {quoted(right)}"]
                row[3:] = [f"{step.rank:,}", f"{quoted(left + right)} {step.made}"]
            rows.append(row)
        print_table(["step", "tokens", "merged next", "rank", "into"], rows, right=(0, 3))
        final = piece.steps[-1].tokens
        named = ", ".join(f"{quoted(token)} {i}" for token, i in zip(final, piece.ids, strict=True))
        print(f"\n{counted(len(final), 'token')}: {named}" + ("\n" if number < len(pieces) else ""))


def _marked(tokens: list[bytes], pair: tuple[bytes, bytes], times: int) -> str:
    """Tokens, the first ``times`` that a pair occurs on a background of its own where there are colours."""
    parts, at, left = [], 0, times if colours_wanted() else 0
    while at < len(tokens):
        found = left > 0 and tuple(tokens[at : at + 2]) == pair
        size, left = (2, left - 1) if found else (1, left)
        text = separated(tokens[at : at + size])
        parts.append(_paint(text, _COLOURS[0]) if found else text)
        at += size
    return separator().join(parts)


# --- a tokenizer -----------------------------------------------------------------------------------------------------


def describe(tokenizer: "Tokenizer") -> dict[str, Any]:
    """What a tokenizer is, as JSON values."""
    from glassgpt.errors import TokenizerError
    from glassgpt.tokenizer import BPETokenizer

    special, contents = tokenizer.special_ids(), dict[int, bytes]()
    for i in set(range(tokenizer.vocab_size)).difference(special.values()):
        with contextlib.suppress(TokenizerError):  # no token has this id
            contents[i] = tokenizer.token_bytes(i)
    known = [i for i in sorted(contents) if contents[i]]
    longest = sorted(known, key=lambda i: (-len(contents[i]), i))
    found = {
        "kind": tokenizer.kind,
        "about": _about(tokenizer),
        "vocab_size": tokenizer.vocab_size,
        "special_tokens": special,
        "roles": tokenizer.special_tokens(),
        "first_tokens": [_example(i, contents[i]) for i in known[: 2 * _EXAMPLES]],
        "longest_tokens": [_example(i, contents[i]) for i in longest[:_EXAMPLES]],
    }
    return found | (_describe_bpe(tokenizer.model) if isinstance(tokenizer, BPETokenizer) else {})


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
                "pair": [_example(model.vocab[token], token) for token in model.merges[rank]],
                "into": _example(model.vocab[b"".join(model.merges[rank])], b"".join(model.merges[rank])),
            }
            for rank in sorted({*ranks[:_EXAMPLES], *ranks[-_EXAMPLES:]})
        ],
    }


def print_description(name: str, found: Mapping[str, Any]) -> None:
    """Print what :func:`describe` found."""
    roles = {token: role.removesuffix("_token") for role, token in found["roles"].items()}
    special = [f"{token} {i}" + (f" ({roles[token]})" if token in roles else "") for token, i in _special(found)]
    size = counted(found["vocab_size"], "token")
    if "merges" in found:
        size += f": 256 bytes, {counted(found['merges'], 'merge')}"
    lines = [("kind", found["about"]), ("vocabulary", size), ("special tokens", ", ".join(special) or "none")]
    for token, i in found.get("added_tokens", {}).items():
        lines.append(("added token", f"{spelled(token.encode('utf-8'))} {i}"))
    for pattern in found.get("patterns", []):
        regex = pattern["regex"] if pattern["regex"].isprintable() else repr(pattern["regex"])
        lines.append(("split pattern", f"{pattern['name'] or 'its own'}: {regex}"))
    if found.get("normal_form"):
        lines.append(("normal form", f"text is brought into {found['normal_form']} first"))
    if found.get("whole_pieces"):
        lines.append(("whole pieces", "a piece that is a token is taken whole, before any merge"))
    if "merges" not in found:
        lines.append(("first tokens", ", ".join(map(_named, found["first_tokens"]))))
    if found["kind"] != "char":
        lines += [("" if i else "longest tokens", _named(token)) for i, token in enumerate(found["longest_tokens"])]
    print(f"{name}\n")
    for label, value in lines:
        print(f"{label:<14}  {value}")
    if found.get("some_merges"):
        print()
        _print_merges(found["some_merges"])


def _special(found: Mapping[str, Any]) -> list[tuple[str, int]]:
    return [(spelled(token.encode("utf-8")), i) for token, i in found["special_tokens"].items()]


def _print_merges(merges: Sequence[Mapping[str, Any]]) -> None:
    rows, previous = [], -1
    for merge in merges:
        if merge["rank"] != previous + 1:
            rows.append(["...", "", "", ""])
        left, right = (quoted(bytes.fromhex(token["bytes"])) for token in merge["pair"])
        rows.append(
            [
                f"{merge['rank']:,}",
                f"{left} + {right}",
                quoted(bytes.fromhex(merge["into"]["bytes"])),
                str(merge["into"]["id"]),
            ]
        )
        previous = merge["rank"]
    print_table(["rank", "merge", "into", "id"], rows, right=(0, 3))


def _example(i: int, content: bytes) -> dict[str, Any]:
    """A token as JSON values; its text is None where it is only a part of a character."""
    return {"id": i, "bytes": content.hex(), "text": content.decode("utf-8") if _is_text(content) else None}


def _named(token: Mapping[str, Any]) -> str:
    return f"{quoted(bytes.fromhex(token['bytes']))} {token['id']}"

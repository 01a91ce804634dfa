"""Encode conversations with the mask of what is trained; cut those that are too long at a turn."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from glassgpt.data.conversations.rows import TEXT, Conversation, Problem
from glassgpt.errors import TokenizerError
from glassgpt.tokenizer.base import Tokenizer
from glassgpt.tokenizer.chat import encode_trained

#: A text with more characters per token than this is too long; no vocabulary has such tokens, except for runs of one
#: character. So a line of megabytes need not be encoded to find that it does not fit.
MAX_CHARACTERS_PER_TOKEN = 256


@dataclass(frozen=True, eq=False)
class Row:
    """An encoded conversation: its line, ``ids`` int32 ``[N]``, and ``trained`` bool ``[N]``: which ids to train."""

    line: int
    ids: np.ndarray
    trained: np.ndarray


@dataclass(frozen=True)
class EncodedRows:
    """The rows to train on, and why others are not used, or not in full."""

    rows: list[Row]
    problems: list[Problem]


def encode_rows(
    conversations: Iterable[Conversation], tokenizer: Tokenizer, template: str, max_tokens: int
) -> EncodedRows:
    """Encode conversations and plain texts.

    A conversation that is longer than max_tokens loses its last turns, whole pairs of user and assistant. A long text
    is cut into pieces.

    A conversation whose answers are all cut away, whose mask is empty, or that cannot be encoded is left out. The kinds
    of problems are ``cut``, ``too long``, ``nothing to train`` and ``not encoded``.

    Args:
        conversations: to encode.
        tokenizer: of the model.
        template: its chat template.
        max_tokens: ids in a row at most. As targets are shifted by one, a context of T reads rows of T + 1.
    """
    rows, problems = list[Row](), list[Problem]()
    for conversation in conversations:
        line = conversation.line
        try:
            if conversation.messages[0]["role"] == TEXT:
                rows += (pieces := _encode_text(conversation, tokenizer, max_tokens))
                if not pieces:
                    problems.append(Problem(line, "nothing to train", "the text has only one token; it is left out"))
                continue
            row, turns = _encode(conversation, tokenizer, template, max_tokens)
        except TokenizerError as error:
            problems.append(Problem(line, "not encoded", str(error)))
            continue
        if row is None:
            reason = f"up to its first answer it is longer than {max_tokens:,} tokens; it is left out"
            problems.append(Problem(line, "too long", reason))
        elif not row.trained[1:].any():
            problems.append(Problem(line, "nothing to train", "no token of it is trained; it is left out"))
        else:
            if turns < (total := len(conversation.messages)):
                reason = f"longer than {max_tokens:,} tokens; {turns} of its {total} turns are kept"
                problems.append(Problem(line, "cut", reason))
            rows.append(row)
    return EncodedRows(rows, problems)


def _encode_text(conversation: Conversation, tokenizer: Tokenizer, max_tokens: int) -> list[Row]:
    """Encode a plain text; a long one in pieces. Every token but the first is trained."""
    ids = tokenizer.encode_array(conversation.messages[0]["content"]).astype(np.int32)
    pieces = [ids[start : start + max_tokens] for start in range(0, len(ids), max_tokens)]
    return [Row(conversation.line, piece, np.arange(len(piece)) > 0) for piece in pieces if len(piece) > 1]


def _encode(conversation: Conversation, tokenizer: Tokenizer, template: str, max_tokens: int) -> tuple[Row | None, int]:
    """Encode as many turns as fit; return the row, None if not even the first answer fits, and the number of turns."""
    messages = conversation.messages
    sizes = np.cumsum([len(message["content"]) for message in messages])
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    count = max((i + 1 for i in answers if sizes[i] <= max_tokens * MAX_CHARACTERS_PER_TOKEN), default=0)
    while count:
        ids, trained = encode_trained(tokenizer, template, messages[:count])
        if len(ids) <= max_tokens:
            row = Row(conversation.line, np.array(ids, dtype=np.int32), np.array(trained, dtype=bool))
            return row, count
        ends = np.flatnonzero(np.diff(np.array([*trained, False], dtype=np.int8)) == -1)  # of each answer
        fitting = [i for i, end in zip(answers, ends, strict=False) if end < max_tokens and i + 1 < count]
        count = max(fitting, default=-1) + 1
    return None, 0

"""The conversations of a fine-tuning run: read, encoded with the model's template, and split for validation."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from glassgpt.data.conversations.batches import ChatBatches, split_rows
from glassgpt.data.conversations.encoding import Row, encode_rows
from glassgpt.data.conversations.rows import Conversation, Problem, read_rows
from glassgpt.errors import ConfigError, DataError, TokenizerError
from glassgpt.tokenizer.base import Tokenizer

#: A derived length of rows is a multiple of the first, and between the other two.
MULTIPLE, SHORTEST, LONGEST = 64, 256, 1024


@dataclass(frozen=True)
class ChatData:
    """What a fine-tuning run trains on.

    Attributes:
        path: of the file.
        sha256: of its content.
        format: of its rows, in words.
        tokenizer: of the model, with the chat template.
        conversations: the rows of the file that could be read, by their line.
        problems: of rows that were cut or left out.
        max_length: tokens in a row of a batch.
        train: encoded rows to train on.
        val: encoded rows to validate on.
    """

    path: Path
    sha256: str
    format: str
    tokenizer: Tokenizer
    conversations: dict[int, Conversation]
    problems: list[Problem]
    max_length: int
    train: list[Row]
    val: list[Row]

    def batches(self, batch_size: int, seed: int, packing: bool) -> ChatBatches:
        """The batches of the training split."""
        return ChatBatches(self.train, self.max_length, batch_size, seed, packing)

    def first_question(self) -> list[dict[str, str]] | None:
        """The messages before the first answer of the first conversation of the validation split, if there is one."""
        for row in self.val:
            roles = [message["role"] for message in self.conversations[row.line].messages]
            if "assistant" in roles:
                return list(self.conversations[row.line].messages[: roles.index("assistant")])
        return None

    def notes(self) -> list[str]:
        """What the user should know: the format, the counts, and what was left out."""
        tokens, trained = (sum(int(count(row)) for row in self.train) for count in (_length, _trained))
        notes = [
            f"{self.path}: {self.format}; rows to train on: {len(self.train):,}, with {tokens:,} tokens, of which "
            f"{trained:,} ({trained / tokens:.0%}) are trained; rows to validate on: {len(self.val):,}"
        ]
        if self.val[0] in self.train:
            notes.append("no row can be spared for validation: it uses one that is trained; add conversations")
        for kind, count in Counter(problem.kind for problem in self.problems).most_common():
            first = next(problem for problem in self.problems if problem.kind == kind)
            notes.append(f"{kind}: {count:,} row{'s' * (count != 1)}; line {first.line}: {first.reason}")
        return notes


def load_chats(
    source: str | Path, tokenizer: Tokenizer, *, context: int, max_length: int, val_fraction: float, seed: int
) -> ChatData:
    """Read, encode and split conversations.

    Args:
        source: a file, or the name "tutor".
        tokenizer: of the model; its default chat template is used.
        context: of the model.
        max_length: tokens in a row at most; 0: as many as the longest conversation has, within bounds.
        val_fraction: share of the conversations for validation.
        seed: of the split.

    Raises:
        ConfigError: if max_length is longer than the context.
        DataError: if the file cannot be read, or has no conversation to train on.
        TokenizerError: if the tokenizer has no chat template, or it cannot be used.
    """
    if max_length > context:
        raise ConfigError(f"max_length: {max_length:,} is longer than the model's context of {context:,} tokens")
    template = tokenizer.published.chat_templates.get("default")
    if template is None:
        raise TokenizerError("the model has no chat template")
    rows = read_rows(source)
    encoded = encode_rows(rows.conversations, tokenizer, template, max_length or min(LONGEST, context))
    problems = sorted([*rows.problems, *encoded.problems], key=lambda problem: problem.line)
    if not encoded.rows:
        raise DataError(
            f"{rows.path} has no conversation to train on; line {problems[0].line}: {problems[0].reason}"
            if problems
            else f"{rows.path} has no conversation"
        )
    longest = max(map(_length, encoded.rows))
    length = max_length or min(context, max(SHORTEST, math.ceil(longest / MULTIPLE) * MULTIPLE))
    train, val = split_rows(encoded.rows, val_fraction, seed)
    val = val or train[:1]  # nothing can be spared
    by_line = {conversation.line: conversation for conversation in rows.conversations}
    return ChatData(rows.path, rows.sha256, rows.format, tokenizer, by_line, problems, length, train, val)


def _length(row: Row) -> int:
    return len(row.ids)


def _trained(row: Row) -> int:
    return int(row.trained.sum())

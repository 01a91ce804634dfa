"""Conversations to examine: rows of ids with labels, and what they were made from.

A file is encoded as `glassgpt tune` does it, with the base model's tokenizer and template. Somebody's own rows come
from a factory, whose object has what it has of:

``rows``        a list of (input_ids, labels), or of mappings with ``input_ids``, ``labels`` and perhaps
                ``attention_mask``; negative labels are not trained. Labels may be shifted already or not;
                shifted ones of mappings go with ``input_ids[:-1]``, for models of Hugging Face shift again
``tokenizer``   with ``encode`` and ``decode``
``messages``    the conversations that the rows were made of: lists of ``{"role": ..., "content": ...}``
``render_prompt``  a function of messages that returns the text (or the ids) given to the model before it answers
``render``      the same, or the text of the messages alone, if the header of the answer comes from elsewhere
``context``     tokens that the model can read
``trains_on_prompts``  True if all tokens are meant to be trained
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from glassgpt.data.conversations.encoding import encode_rows
from glassgpt.data.conversations.rows import TEXT, Problem, read_rows
from glassgpt.doctor.loading import import_factory, names_a_factory
from glassgpt.doctor.texts.foreign_tokenizer import adapt_tokenizer
from glassgpt.doctor.texts.tokenizer_subject import TokenizerSubject, of_house
from glassgpt.errors import ConfigError
from glassgpt.planning.initial_model import find_initial_model
from glassgpt.tokenizer import chat
from glassgpt.weights.chat_tokens import with_chat_template
from glassgpt.weights.loading import describe

#: Conversations of a file that are examined: evenly spaced ones of a longer file.
MOST = 400

Message = Mapping[str, Any]


@dataclass(frozen=True)
class ExaminedRow:
    """One row: its ids, the label at each place (negative: not trained), and the attention mask if it has one."""

    ids: list[int]
    labels: list[int]
    mask: list[int] | None = None


@dataclass
class Conversations:
    """Rows to train on, and what is known of how they were made; see the top of this file.

    Attributes:
        name: of the file or factory.
        rows: the rows.
        tokenizer: None if there is none.
        messages: the conversations, or None.
        render: messages to the text before an answer, or None.
        renders_prompts: whether it is sure that `render` gives all that the model reads before it answers.
        context: tokens that the model reads, or None.
        trains_on_prompts: whether that is meant.
        problems: of a file that was read by the house: the rows that it leaves out or cuts.
        total: rows of the file, with those that are left out.
        shifts_again: whether the rows have the names of Hugging Face's (``input_ids``, ``labels``), whose models shift
            labels themselves, and are whole rows with shifted labels, the last of which is thus missing.
        shifted: whether labels were the next tokens, not those at their own place; None if they were neither. Rows of
            the first kind are kept as those of the second: each label at the place of its token.
    """

    name: str
    rows: list[ExaminedRow]
    tokenizer: TokenizerSubject | None = None
    messages: list[list[Message]] | None = None
    render: Callable[[list[Message]], Any] | None = None
    context: int | None = None
    renders_prompts: bool = False
    trains_on_prompts: bool = False
    problems: list[Problem] = field(default_factory=list)
    total: int = 0
    shifts_again: bool = False
    shifted: bool | None = None

    def __post_init__(self) -> None:
        self.shifted = _are_shifted(self.rows)
        self.shifts_again &= bool(self.shifted) and all(map(_is_whole, self.rows))
        if self.shifted:  # from here on, a label is that of its own place
            self.rows = [_aligned(row) for row in self.rows]

    def trained_spans(self, row: ExaminedRow) -> list[list[int]]:
        """The runs of trained tokens of a row."""
        spans, open_span = list[list[int]](), False
        for label in row.labels:
            if label >= 0 and not open_span:
                spans.append([])
            open_span = label >= 0
            if open_span:
                spans[-1].append(label)
        return spans

    def trained_places(self, row: ExaminedRow) -> list[bool]:
        """Whether each token of a row is a trained target."""
        return [label >= 0 for label in row.labels]


def _are_shifted(rows: Sequence[ExaminedRow]) -> bool | None:
    """Whether labels are the next tokens (True) or those at their own place (False); None if they are neither."""
    here, after, total, total_after = 0, 0, 0, 0
    for row in rows:
        for at, label in enumerate(row.labels[: len(row.ids)]):
            if label >= 0:
                here, total = here + (row.ids[at] == label), total + 1
                if at + 1 < len(row.ids):
                    after, total_after = after + (row.ids[at + 1] == label), total_after + 1
    if here >= 0.9 * total and here * total_after >= after * total:
        return False
    return True if after >= 0.9 * total_after else None


def _is_whole(row: ExaminedRow) -> bool:
    """Whether the last token that a row trains is among its ids, so that nothing was cut off for the shift."""
    last = next((at for at in reversed(range(len(row.labels))) if row.labels[at] >= 0), None)
    return last is None or (last + 1 < len(row.ids) and row.ids[last + 1] == row.labels[last])


def _aligned(row: ExaminedRow) -> ExaminedRow:
    """A row whose labels are those of the next tokens, with each label at its own place."""
    last = row.labels[-1:] if row.labels and row.labels[-1] >= 0 else []
    ids = [*row.ids, *last]
    mask = row.mask if row.mask is None else [*row.mask, *row.mask[-1:]][: len(ids)]
    return ExaminedRow(ids, [-100, *row.labels][: len(ids)], mask)


def load_conversations(spec: str, base: str | None = None, max_length: int = 0) -> Conversations:
    """Load conversations: a file with its base model, or ``module.py:factory``.

    Args:
        spec: a file of conversations, ``tutor``, or a factory.
        base: the model that is fine-tuned on the file: a run, a folder, a .gguf file, an asset.
        max_length: tokens in a row at most; 0: the model's context.

    Raises:
        ConfigError: if a file comes without a base model, or the factory's object has no rows.
        GlassError: if something cannot be read.
    """
    if names_a_factory(spec):
        return conversations_of(import_factory(spec)(), spec)
    if base is None:
        raise ConfigError(
            f"{spec}: which model is tuned on these conversations? Name it: they are encoded as it reads them"
        )
    source = with_chat_template(find_initial_model(base).source)
    context, tokenizer = describe(source)[0].block_size, source.tokenizer()
    rows = read_rows(spec)
    step = -(-len(rows.conversations) // MOST)
    chosen = rows.conversations[::step]
    lines = {conversation.line for conversation in chosen}
    template = tokenizer.published.chat_templates["default"]
    encoded = encode_rows(chosen, tokenizer, template, max_length or context)
    kept = [row for row in encoded.rows if _is_chat(rows.conversations, row.line)]
    by_line = {c.line: list[Message](c.messages) for c in chosen}
    cut = {problem.line for problem in encoded.problems if problem.kind == "cut"}
    kept = [row for row in kept if row.line not in cut]
    examined = [ExaminedRow(row.ids.tolist(), np.where(row.trained, row.ids, -100).tolist()) for row in kept]
    bad = [problem for problem in rows.problems if step == 1 or problem.line not in lines]
    return Conversations(
        spec, examined, of_house(tokenizer, base), [by_line[row.line] for row in kept],
        lambda messages: chat.render(template, messages, prompt=True, **tokenizer.roles()), max_length or context,
        renders_prompts=True, problems=[*bad, *encoded.problems], total=len(rows.conversations) + len(rows.problems),
    )  # fmt: skip


def _is_chat(conversations: Sequence[Any], line: int) -> bool:
    return next(c for c in conversations if c.line == line).messages[0]["role"] != TEXT


def conversations_of(made: Any, name: str) -> Conversations:
    """The subject of a factory's object, or of a mapping with the same names."""

    def part(*keys: str) -> Any:
        values = (made.get(key) if isinstance(made, Mapping) else getattr(made, key, None) for key in keys)
        return next((value for value in values if value is not None), None)

    rows = made if isinstance(made, list) else part("rows", "examples", "dataset", "data")
    rows = rows() if callable(rows) and not hasattr(rows, "__getitem__") else rows
    if rows is None:
        raise ConfigError(f"{name}: the object has no rows; see the page about conversations for what it may have")
    tokenizer, messages = part("tokenizer", "tok"), part("messages", "conversations", "chats")
    subject = adapt_tokenizer(tokenizer, f"{name}'s tokenizer") if tokenizer is not None else None
    if subject is not None and (end := part("eos_token_id", "eos_id", "end_token_id")) is not None:
        subject.roles = {**subject.roles, "eos": int(end)}
        subject.end_ids = (int(end),)
    prompt = part("render_prompt", "prompt")
    context = part("context", "block_size", "context_length", "max_length", "max_seq_len")
    return Conversations(
        name, [_row(rows[i], name) for i in _spaced(len(rows))], subject,
        _messages(messages, len(rows)), prompt or part("render"), context if isinstance(context, int) else None,
        prompt is not None, bool(part("trains_on_prompts", "train_on_prompts")),
        total=len(rows), shifts_again=all(_of_hugging_face(rows[i]) for i in _spaced(len(rows))),
    )  # fmt: skip


def _of_hugging_face(row: Any) -> bool:
    return isinstance(row, Mapping) and {"input_ids", "labels"} <= row.keys()


def _spaced(count: int) -> range:
    return range(0, count, max(1, -(-count // MOST)))


def _messages(messages: Any, num_rows: int) -> list[list[Message]] | None:
    """The conversations, as lists of messages; those that belong to the rows that are examined."""
    if messages is None:
        return None
    found = [_turns(one) for one in messages]
    return [found[i] for i in _spaced(num_rows)] if len(found) == num_rows else found


def _turns(one: Any) -> list[Message]:
    """The turns of a conversation: a list, a mapping that has one, an instruction with its output, or such a pair."""
    if isinstance(one, Mapping):
        turns = one.get("messages", one.get("conversations", one.get("conversation")))
        if turns is not None:
            return list(turns)
        question = "\n".join(filter(None, (one.get("instruction", one.get("prompt", "")), one.get("input"))))
        one = question, one.get("output", one.get("completion", one.get("response", "")))
    if len(one) == 2 and all(isinstance(part, str) for part in one):
        return [{"role": "user", "content": one[0]}, {"role": "assistant", "content": one[1]}]
    return list(one)


def _row(row: Any, name: str) -> ExaminedRow:
    mask = None
    if isinstance(row, Mapping):
        ids, labels, mask = row.get("input_ids"), row.get("labels", row.get("targets")), row.get("attention_mask")
    else:
        ids, labels = (row[0], row[1]) if isinstance(row, tuple | list) and len(row) >= 2 else (None, None)
    if ids is None or labels is None:
        raise ConfigError(
            f"{name}: a row is (input_ids, labels), or has input_ids and labels; got {type(row).__name__}"
        )
    return ExaminedRow(_list(ids), _list(labels), None if mask is None else _list(mask))


def _list(values: Any) -> list[int]:
    values = values.flatten().tolist() if hasattr(values, "flatten") else list(values)
    return [int(value) for value in values]

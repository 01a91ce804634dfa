"""Held-out questions with reference answers and rubrics.

A rubric has groups of alternatives, each group a fact that a right answer states, and words that only a wrong answer
contains. It is looked up in the answer's words; no other model judges.
"""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from glassgpt.errors import DataError
from glassgpt.files import is_unicode, parse_json

#: The topic of questions that should be refused.
REFUSAL = "refusal"
#: An answer that has one of these is a refusal.
REFUSING = (
    *("i only answer", "i only help", "i only know", "only things that i", "a tutor only"),
    *("only program that i", "only program is"),
    *("my only subject", "are my subjects", "is not my subject", "outside my subject"),
    *("i cannot help", "i can't help", "i cannot answer", "i can't answer", "i cannot assist", "i can't assist"),
)
_KEYS = ("question", "messages", "answer", "must", "must_not", "topic")
_ROLES = ("system", "user", "assistant")
_PLAIN = str.maketrans({"’": "'", "‘": "'", "‐": "-", "‑": "-", "–": "-", "−": "-", "`": None})
#: At most so many mistakes of a file are listed.
_MAX_LISTED = 10


@dataclass(frozen=True)
class Question:
    """A question, its reference answer, and its rubric.

    Attributes:
        messages: of the conversation so far; the last is the user's.
        answer: the reference answer, or empty.
        must: groups of alternatives in lower case; an answer meets a group if it has one of them.
        must_not: texts in lower case that only a wrong answer has.
        topic: :data:`REFUSAL` if the model should refuse to answer.
    """

    messages: tuple[Mapping[str, str], ...]
    answer: str = ""
    must: tuple[tuple[str, ...], ...] = ()
    must_not: tuple[str, ...] = ()
    topic: str = ""

    @property
    def is_refusal(self) -> bool:
        """Whether the right answer is a refusal."""
        return self.topic == REFUSAL

    @property
    def text(self) -> str:
        """The last message: the question itself."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class Score:
    """How well an answer meets a rubric.

    Attributes:
        points: the share of the groups that it meets; 0 if it has a text of ``must_not``.
        missed: the groups that it does not meet.
        wrong: the texts of ``must_not`` that it has.
    """

    points: float
    missed: tuple[tuple[str, ...], ...] = ()
    wrong: tuple[str, ...] = ()


def score(question: Question, answer: str) -> Score | None:
    """Score an answer by the question's rubric; None if it has none.

    Case, backticks and line breaks do not count. An alternative matches whole words and whole numbers: ``mask`` is not
    in ``masked``, ``1`` is not in ``0.1``, and ``--resume`` is in ``(--resume)``.
    """
    if not question.must:
        return None
    plain = _plain(answer)
    missed = tuple(group for group in question.must if not any(_occurs(text, plain) for text in group))
    wrong = tuple(text for text in question.must_not if _occurs(text, plain))
    points = 0.0 if wrong else 1 - len(missed) / len(question.must)
    return Score(points, missed, wrong)


def refuses(answer: str) -> bool:
    """Whether an answer has one of the phrases of a refusal, :data:`REFUSING`."""
    plain = _plain(answer)
    return any(_occurs(phrase, plain) for phrase in REFUSING)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).translate(_PLAIN).lower().split())


def _occurs(text: str, plain: str) -> bool:
    return _pattern(text).search(plain) is not None


@lru_cache(maxsize=4096)
def _pattern(text: str) -> re.Pattern[str]:
    plain = _plain(text)
    before = r"(?<!\w)" + r"(?<!\d[.,])" * plain[:1].isdigit()
    after = r"(?!\w)" + r"(?![.,]\d)" * plain[-1:].isdigit()
    return re.compile(before + re.escape(plain) + after)


def read_questions(path: Path) -> list[Question]:
    """Read a JSONL file with a question in each line; empty lines are skipped.

    A line is ``{"question": "...", "answer": "...", "must": [["...", "..."]], "must_not": ["..."], "topic": "..."}``;
    only the question is required. Instead of it, ``messages`` can give a conversation that ends with a user's message.

    Raises:
        DataError: if the file cannot be read or has no question; or with every mistake and its line.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"the questions {path} cannot be read: {error.strerror or error}") from None
    questions: list[Question] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except ValueError as error:  # also of bytes that are not UTF-8
            problems.append(f"line {number}: it is not JSON in UTF-8: {error}")
            continue
        found = list(_row_problems(row))
        problems += [f"line {number}: {problem}" for problem in found]
        if not found:
            questions.append(_question(row))
    if problems:
        more = [f"and {len(problems) - _MAX_LISTED} more"] if len(problems) > _MAX_LISTED else []
        shown = "".join(f"\n  {problem}" for problem in problems[:_MAX_LISTED] + more)
        raise DataError(f"the questions {path} have mistakes; correct or delete these lines:{shown}")
    if not questions:
        raise DataError(f'{path} has no question; write one JSON object in each line, such as {{"question": "..."}}')
    return questions


def _question(row: Mapping[str, Any]) -> Question:
    messages = row.get("messages") or [{"role": "user", "content": row["question"]}]
    return Question(
        tuple(messages), row.get("answer", ""), tuple(map(tuple, row.get("must", ()))), tuple(row.get("must_not", ())),
        row.get("topic", ""),
    )  # fmt: skip


def _row_problems(row: Any) -> list[str]:
    """What is wrong with a line of a file of questions."""
    if not isinstance(row, dict):
        return [f"expected an object, found {type(row).__name__}"]
    problems = [f"{key!r} is not one of {', '.join(_KEYS)}" for key in row if key not in _KEYS]
    if ("question" in row) == ("messages" in row):
        problems.append('give either "question" or "messages"')
    elif "question" in row and not _is_text(row["question"], required=True):
        problems.append("question: expected a text that is not empty")
    elif "messages" in row:
        problems += _message_problems(row["messages"])
    problems += [f"{key}: expected a text" for key in ("answer", "topic") if not _is_text(row.get(key, ""))]
    must, must_not = row.get("must", []), row.get("must_not", [])
    if not isinstance(must, list) or not all(group and _are_texts(group) for group in must):
        problems.append('must: expected groups of texts, such as [["mask", "masked"], ["future"]]')
    if not _are_texts(must_not):
        problems.append('must_not: expected a list of texts, such as ["convolution"]')
    if must_not and not must:
        problems.append("must_not: it needs must beside it")
    return problems


def _message_problems(messages: Any) -> list[str]:
    if not isinstance(messages, list) or not messages:
        return ["messages: expected a list of messages"]
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or set(message) != {"role", "content"} or message["role"] not in _ROLES:
            return [f'messages: number {number} is not {{"role": "user", "content": "..."}} (or system, assistant)']
        if not _is_text(message["content"], required=True):
            return [f"messages: the content of number {number} is not a text, or is empty"]
    return [] if messages[-1]["role"] == "user" else ["messages: the last one has to be the user's"]


def _is_text(value: Any, *, required: bool = False) -> bool:
    return isinstance(value, str) and is_unicode(value) and (bool(value.strip()) or not required)


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(_is_text(value) and _plain(value) for value in values)


def first_questions(conversations: Sequence[Sequence[Mapping[str, str]]], count: int = 3) -> list[Question]:
    """Make questions of conversations, evenly spread: the messages before the first answer, and that answer.

    Args:
        conversations: the messages of each.
        count: questions to make at most.
    """
    questions: list[Question] = []
    for messages in conversations:
        first = next((at for at, message in enumerate(messages) if message["role"] == "assistant"), 0)
        if first and messages[first - 1]["role"] == "user":
            questions.append(Question(tuple(messages[:first]), messages[first]["content"]))
    step = max(1.0, len(questions) / count)
    return [questions[math.floor(at * step)] for at in range(min(count, len(questions)))]

"""Find the messages of conversations among the tokens of the rows that were made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from glassgpt.doctor.report import NotRun
from glassgpt.doctor.texts.conversation_subject import Conversations, ExaminedRow
from glassgpt.doctor.texts.tokenizer_subject import TokenizerSubject

#: A message, its role, and its content as it is in the row.
_Wanted = tuple[Mapping[str, Any], str, str]
#: Names of roles in other formats.
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "developer": "system"}


@dataclass(frozen=True)
class Place:
    """Where a message is in a row.

    Attributes:
        message: as it was given.
        role: user, assistant, system, or another.
        text: its content, as the tokenizer gives it back.
        first: the first token that has a character of it; None if it is not in the row as a whole.
        end: the token after the last one.
        began: whether its beginning is at the end of the row.
        row_starts: the token with which its conversation begins in the row; None if that is not known (packed rows).
    """

    message: Mapping[str, Any]
    role: str
    text: str
    first: int | None
    end: int
    began: bool
    row_starts: int | None


def text_of(tokenizer: TokenizerSubject, ids: Sequence[int]) -> str:
    """Decode ids; an error of the tokenizer gives an empty text."""
    try:
        return tokenizer.decode(list(ids))
    except Exception:  # of somebody's code, at ids that it does not know
        return ""


def clean(tokenizer: TokenizerSubject, text: str) -> str:
    """A text as the tokenizer gives it back, if it loses something: lower case, unknown words."""
    if "unk" not in tokenizer.roles and not tokenizer.declared:
        return text
    try:
        return text_of(tokenizer, tokenizer.encode(text))
    except Exception:  # of somebody's code
        return text


def locate(subject: Conversations) -> list[tuple[ExaminedRow, list[Place]]]:
    """For each conversation that is found: its row, and the places of its messages.

    Row i belongs to conversation i if they are as many and fit; else the row is searched that has the user's messages.
    """
    tokenizer = subject.tokenizer
    if tokenizer is None or not subject.messages:
        return []
    texts = [_Text(tokenizer, row.ids) for row in subject.rows]
    paired = len(texts) == len(subject.messages)
    found = []
    for number, messages in enumerate(subject.messages):
        wanted = [_message(tokenizer, message) for message in messages]
        keys = [content for _, role, content in wanted if role == "user"] or [content for _, _, content in wanted]
        if not keys:
            continue
        own = [number] if paired else []
        row = next((i for i in (*own, *range(len(texts))) if keys[0] and keys[0] in texts[i].text), None)
        if row is None and paired:
            row = number  # cut or changed: examined all the same
        if row is not None:
            found.append(
                (subject.rows[row], _places(subject, subject.rows[row], texts[row], wanted, paired and row == number))
            )
    return found


def _message(tokenizer: TokenizerSubject, message: Mapping[str, Any]) -> _Wanted:
    role = str(message.get("role", message.get("from")))
    return message, ROLES.get(role, role), clean(tokenizer, content_of(message).strip()).strip()


def content_of(message: Mapping[str, Any]) -> str:
    """The text of a message; of one in parts, all texts."""
    content = message.get("content", message.get("value")) or ""
    return content if isinstance(content, str) else "".join(str(part.get("text", "")) for part in content)


class _Text:
    """The text of a row, and the token of each of its characters."""

    def __init__(self, tokenizer: TokenizerSubject, ids: Sequence[int]):
        self.ids, self.tokenizer = ids, tokenizer
        self.text = text_of(tokenizer, ids)
        self._ends: list[int] | None = None

    def ends(self) -> list[int]:
        """The number of characters of the text after each token; of half a character, as many as it will be."""
        if self._ends is None:
            singles = [text_of(self.tokenizer, [i]) for i in self.ids]
            if "".join(singles) == self.text:
                self._ends = list(accumulate(map(len, singles)))
            else:
                self._ends = [self._common(text_of(self.tokenizer, self.ids[: n + 1])) for n in range(len(self.ids))]
        return self._ends

    def _common(self, part: str) -> int:
        part = part.rstrip("\ufffd")
        return len(part) if self.text.startswith(part) else len(part.rstrip())

    def token_range(self, begin: int, end: int) -> tuple[int, int]:
        """The tokens that have the characters from begin to end."""
        ends = self.ends()
        first = next((n for n, at in enumerate(ends) if at > begin), len(ends))
        last = next((n for n, at in enumerate(ends) if at >= end), len(ends) - 1)
        return first, last + 1


def _places(subject: Conversations, row: ExaminedRow, text: _Text, wanted: list[_Wanted], alone: bool) -> list[Place]:
    """The places of messages, each searched behind the one before it.

    A short content may be elsewhere, too: an answer is taken to be where it is trained, a prompt where it is not.
    """
    trained, starts = subject.trained_places(row), _start(subject, row) if alone else None
    places, at = list[Place](), 0 if alone else _packed_start(text.text, wanted)
    for number, (message, role, content) in enumerate(wanted):
        ranges = [
            text.token_range(begin, begin + len(content)) for begin in _occurrences(text.text, wanted, number, at)
        ]
        if not ranges:
            tail = text.text[at:].rstrip() if content else ""
            began = any(content.startswith(tail[-n:]) for n in range(min(len(tail), len(content)), 3, -1))
            places.append(Place(message, role, content, None, 0, began, starts))
            continue
        answer = role == "assistant"
        chosen = next((r for r in ranges if all(on == answer for on in trained[slice(*r)])), ranges[0])
        places.append(Place(message, role, content, *chosen, True, starts))
        at = text.text.find(content, text.ends()[chosen[0] - 1] if chosen[0] else 0) + len(content)
    return places


def _occurrences(text: str, wanted: list[_Wanted], number: int, at: int) -> list[int]:
    """Where a content is in a text, from ``at`` to the first place of the next message's content behind it."""
    content = wanted[number][2]
    begin = text.find(content, at) if content else -1
    found = list[int]()
    limit = len(text)
    if begin >= 0 and number + 1 < len(wanted) and wanted[number + 1][2]:
        following = text.find(wanted[number + 1][2], begin + len(content))
        limit = following if following >= 0 else limit
    while 0 <= begin <= limit and len(found) < 50:
        found.append(begin)
        begin = text.find(content, begin + 1)
    return found


def _packed_start(text: str, wanted: list[_Wanted]) -> int:
    """Where a conversation begins in a row of several, about."""
    first = next((content for _, role, content in wanted if role == "user"), "")
    system = next((content for _, role, content in wanted if role == "system"), "")
    begin = max(text.find(first), 0)
    return max(text.rfind(system, 0, begin), 0) if system else begin


def _start(subject: Conversations, row: ExaminedRow) -> int:
    """The first token of a row that is no padding."""
    if row.mask is not None:
        return next((at for at, on in enumerate(row.mask) if on), 0)
    pad = subject.tokenizer.roles.get("pad") if subject.tokenizer else None
    return next((at for at, i in enumerate(row.ids) if i != pad), 0)


def need_rows(subject: Conversations) -> None:
    """Raise NotRun if there are no rows."""
    if not subject.rows:
        raise NotRun("there are no rows")


def need_labels(subject: Conversations) -> None:
    """Raise NotRun if there are no rows, or the labels are not those of their rows."""
    need_rows(subject)
    if subject.shifted is None:
        raise NotRun("the labels are not those of their rows")


def need_messages(subject: Conversations) -> TokenizerSubject:
    """Return the tokenizer; raise NotRun if messages cannot be compared with rows."""
    need_labels(subject)
    if subject.tokenizer is None:
        raise NotRun("there is no tokenizer, so the rows cannot be read")
    if not subject.messages:
        raise NotRun("there are no messages to compare the rows with")
    return subject.tokenizer

"""Read a file of conversations, one JSON object per line. The format of each row is recognised by its keys.

=====================  ===============================================================================================
OpenAI messages        ``messages``: a list of ``{"role": ..., "content": ...}``. Content is a text or a list of text
                       parts. The role developer becomes system.
ShareGPT               ``conversations``: a list of ``{"from": ..., "value": ...}``: human or user; gpt, chatgpt or
                       assistant; system
prompt and completion  ``prompt`` and ``completion``: two texts, or two lists of messages
Alpaca                 ``instruction``, ``output``, and perhaps ``input``
=====================  ===============================================================================================

An Alpaca row's instruction and input are joined by a blank line and become the user's message, without headings such as
"### Instruction:": the chat template separates question and answer already. Other keys of a row are ignored. An empty
system turn is left out.

Each row that cannot be used is a :class:`Problem` with its line, and the others are kept. Also a file that is one JSON
array of rows is read; its "lines" are the places in the array, from 1.
"""

import difflib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glassgpt.data.sources.textfiles import open_bytes, reading
from glassgpt.errors import DataError
from glassgpt.files import is_unicode, parse_json, sha256_of

#: The name of the conversations that come with this package.
TUTOR = "tutor"
_BOM = b"\xef\xbb\xbf"
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_SHAREGPT_ROLES = {
    **{"system": "system", "human": "user", "user": "user"},
    **dict.fromkeys(("gpt", "chatgpt", "assistant"), "assistant"),
}
_TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython")
_TOOL_KEYS = ("tool_calls", "function_call", "tools", "functions")
_EXPECTED = "messages; conversations; prompt and completion; or instruction and output"
#: The kind of problem of a row that is kept.
USER_TURN_CUT = "user turn at the end cut"


@dataclass(frozen=True)
class Conversation:
    """A conversation: its line in the file, from 1, and its messages, each with ``role`` and ``content``.

    There is perhaps a system turn, then turns of user and assistant alternate; the last is the assistant's.
    """

    line: int
    messages: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Problem:
    """Why a row, or a part of it, is not used: its line in the file, the kind of problem, and the reason."""

    line: int
    kind: str
    reason: str


@dataclass(frozen=True)
class Rows:
    """The conversations of a file.

    Attributes:
        path: the file.
        format: of the conversations: ``OpenAI messages``; several with counts: ``Alpaca (420), ShareGPT (3)``.
        conversations: in the order of the file.
        problems: in the order of the file.
        sha256: of the file.
    """

    path: Path
    format: str
    conversations: list[Conversation] = field(repr=False)
    problems: list[Problem] = field(repr=False)
    sha256: str


class _BadRowError(Exception):
    """A row that cannot be used: kind and reason."""


def read_rows(source: str | Path) -> Rows:
    """Read the conversations of a file.

    Args:
        source: a .jsonl file; .gz and .zst are decompressed. ``tutor``: the conversations in this package.

    Raises:
        DataError: if the file cannot be read, is not text, is empty, or no row can be used.
        MissingExtraError: if the library that decompresses it is not installed.
    """
    path = _find(source)
    conversations, problems, formats = list[Conversation](), list[Problem](), Counter[str]()
    num_rows = 0
    for line, row in _rows(path):
        num_rows += 1
        try:
            name, messages = _messages(_parsed(row) if isinstance(row, bytes) else row)
            if problem := _check_order(messages):
                problems.append(Problem(line, *problem))
            conversations.append(Conversation(line, tuple(messages)))
            formats[name] += 1
        except _BadRowError as error:
            problems.append(Problem(line, *error.args))
    if not num_rows:
        raise DataError(f"{path} is empty; conversations are expected, one JSON object per line")
    if not conversations:
        first = "\n".join(f"  line {problem.line}: {problem.kind}: {problem.reason}" for problem in problems[:5])
        raise DataError(
            f"{path}: none of its {num_rows:,} rows is a conversation that can be used. The first:\n{first}"
        )
    names = [f"{name} ({count:,})" if len(formats) > 1 else name for name, count in formats.most_common()]
    return Rows(path, ", ".join(names), conversations, problems, sha256_of(path))


def _find(source: str | Path) -> Path:
    """The file of that name. A file or folder named tutor is written ./tutor."""
    if source == TUTOR:
        from glassgpt.assets.tutor import conversations_path

        return conversations_path()
    path = Path(source).expanduser()
    try:
        if path.is_file():
            return path
        if path.is_dir():
            files = sorted(file.name for file in path.iterdir() if file.suffix in (".jsonl", ".json"))
            inside = f", for example {path / files[0]}" if files else ""
            raise DataError(f"{str(source)!r} is a folder; name a .jsonl file of conversations{inside}")
        if path.exists():
            raise DataError(f"{str(source)!r} is neither a file nor a folder; write its content to a .jsonl file")
        near = difflib.get_close_matches(path.name, [TUTOR, *(file.name for file in path.parent.glob("*.json*"))], n=1)
    except (OSError, ValueError) as error:
        raise DataError(f"{str(source)[:200]!r} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    hint = f"; did you mean {near[0]}?" if near else ""
    raise DataError(f"there is no file of conversations {str(source)[:200]!r}{hint}")


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Give the rows of a file, numbered: the bytes of each line that is not blank, or the items of an array."""
    with reading(path), open_bytes(path) as file:
        content = file.read().removeprefix(_BOM)
    if content[:1024].lstrip().startswith(b"["):
        try:
            items = parse_json(content)
            yield from enumerate(items, start=1)
            return
        except ValueError as error:
            if path.suffix == ".json":
                raise DataError(f"{path} is damaged: it begins as a JSON array, but {error}") from None
    line, begin = 0, 0
    while begin < len(content):
        end = content.find(b"\n", begin)
        end = len(content) if end < 0 else end
        line += 1
        if row := content[begin:end].strip():
            yield line, row
        begin = end + 1


def _parsed(row: bytes) -> Any:
    try:
        text = row.decode("utf-8")
    except UnicodeDecodeError as error:
        reason = f"byte 0x{row[error.start]:02x} at offset {error.start} of the line"
        raise _BadRowError("not UTF-8", reason) from None
    try:
        return parse_json(text, constant=_no_constant)
    except json.JSONDecodeError as error:
        raise _BadRowError("not JSON", f"{error.msg} at character {error.pos + 1} of the line") from None
    except ValueError as error:
        raise _BadRowError("not JSON", str(error)) from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON; write null")


def _messages(row: Any) -> tuple[str, list[dict[str, str]]]:
    """Give the format of a row and its messages."""
    if not isinstance(row, dict):
        raise _BadRowError("not an object", f"the row is {_type(row)}; expected an object with {_EXPECTED}")
    if used := [key for key in _TOOL_KEYS if row.get(key)]:
        raise _BadRowError("tool calls", f"the row has {used[0]}; tools are not supported")
    for key in ("messages", "conversations", "conversation"):
        if key in row:
            turns = _list(row[key], key)
            sharegpt = any(isinstance(turn, dict) and "from" in turn for turn in turns)
            return ("ShareGPT" if sharegpt else "OpenAI messages"), [_message(*turn) for turn in enumerate(turns, 1)]
    if "prompt" in row or "completion" in row:
        return "prompt and completion", _prompt_and_completion(row)
    if "instruction" in row or "output" in row:
        instruction, output = _text(row, "instruction"), _text(row, "output")
        context = _text(row, "input") if row.get("input") is not None else ""
        question = f"{instruction}\n\n{context}" if context.strip() else instruction
        return "Alpaca", [{"role": "user", "content": question}, {"role": "assistant", "content": output}]
    raise _BadRowError("missing keys", f"{_has(row)}; expected {_EXPECTED}")


def _prompt_and_completion(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """Two texts, or two lists of messages."""
    roles = {"prompt": "user", "completion": "assistant"}
    lists = [isinstance(row.get(key), list) for key in roles]
    if all(lists):
        turns = [turn for key in roles for turn in _list(row[key], key)]
        return [_message(*turn) for turn in enumerate(turns, 1)]
    if any(lists) and all(isinstance(row.get(key), str | list) for key in roles):
        raise _BadRowError("not text", "one of prompt and completion is a text, the other a list of messages")
    return [{"role": role, "content": _text(row, key)} for key, role in roles.items()]


def _message(number: int, turn: Any) -> dict[str, str]:
    """A turn of OpenAI's or ShareGPT's format as a message; ``number`` is its place, from 1."""
    where = f"turn {number}"
    if not isinstance(turn, dict):
        raise _BadRowError("not an object", f"{where} is {_type(turn)}; expected an object")
    role_key, content_key, roles = ("from", "value", _SHAREGPT_ROLES) if "from" in turn else ("role", "content", _ROLES)
    role, tools = turn.get(role_key), [key for key in _TOOL_KEYS if turn.get(key)]
    if role_key not in turn or (content_key not in turn and not tools):
        raise _BadRowError("missing keys", f"{where}: {_has(turn)}; expected {role_key} and {content_key}")
    if tools or role in _TOOL_ROLES:
        raise _BadRowError("tool calls", f"{where} has {tools[0] if tools else f'{role_key} {role!r}'}; not supported")
    if not isinstance(role, str) or role not in roles:
        raise _BadRowError("wrong role", f"{where}: {role_key} is {_short(role)}; expected {', '.join(roles)}")
    if turn.get("weight", 1) != 1:
        raise _BadRowError("weight", f"{where} has the weight {_short(turn['weight'])}; all answers are trained alike")
    return {"role": roles[role], "content": _content(turn[content_key], f"{where}: {content_key}")}


def _content(content: Any, where: str) -> str:
    """The text of a message; null is empty, and text parts are joined."""
    if isinstance(content, list):
        texts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        if wrong := [part for part, text in zip(content, texts, strict=True) if not isinstance(text, str)]:
            raise _BadRowError("not text", f"{where} has the part {_short(wrong[0])}; only text parts are supported")
        content = "".join(text for text in texts if text is not None)
    return _checked("" if content is None else content, where)


def _text(row: Mapping[str, Any], key: str) -> str:
    if key not in row:
        raise _BadRowError("missing keys", f"{_has(row)}, but not {key}")
    return _checked("" if row[key] is None else row[key], key)


def _checked(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise _BadRowError("not text", f"{where} is {_type(text)}; expected a text")
    if not is_unicode(text):
        raise _BadRowError("not text", f"{where} has half of a surrogate pair, which is not a character")
    return text


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise _BadRowError("not a list", f"{key} is {_type(value)}; expected a list of turns")
    return value


def _check_order(messages: list[dict[str, str]]) -> tuple[str, str] | None:
    """Check the order of the turns; cut a user's turn at the end, and return kind and reason if there is one."""
    if messages and messages[0]["role"] == "system" and not messages[0]["content"].strip():
        del messages[0]
    systems = [i for i, message in enumerate(messages) if message["role"] == "system"]
    if len(systems) > 1:
        raise _BadRowError("system turn", f"{len(systems)} system turns; expected at most one")
    if systems and systems[0] != 0:
        raise _BadRowError("system turn", f"turn {systems[0] + 1} is a system turn; it must be the first")
    if not any(message["role"] == "assistant" for message in messages):
        raise _BadRowError("no assistant turn", f"the row has {len(messages)} turns, and none is the assistant's")
    for number, message in enumerate(messages, 1):
        if not message["content"].strip():
            raise _BadRowError("empty turn", f"turn {number} ({message['role']}) has no text")
    for i, message in enumerate(messages[len(systems) :]):
        if message["role"] != ("user", "assistant")[i % 2]:
            place = f"turn {i + len(systems) + 1}"
            after = "the first" if i == 0 else f"after another {message['role']} turn"
            raise _BadRowError("turn order", f"{place} is the {message['role']}'s, {after}; turns must alternate")
    if messages[-1]["role"] == "user":
        del messages[-1]
        return USER_TURN_CUT, f"turn {len(messages) + 1} has no answer; the turns before it are kept"
    return None


def _has(row: Mapping[str, Any]) -> str:
    return f"it has {_short(', '.join(row), quote=False)}" if row else "it has no keys"


def _short(value: Any, quote: bool = True) -> str:
    text = repr(value) if quote else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"the number {_short(value)}")

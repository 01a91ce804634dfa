"""Rows of every format become the same messages; every bad row is reported by its line, and the rest is kept."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glassgpt.data.conversations.rows import Problem, Rows, read_rows
from glassgpt.errors import DataError, GlassError


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


GOOD = {"messages": [user("q"), assistant("a")]}


def write(path: Path, *rows: Any) -> Path:
    """A file of rows; bytes are lines as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines))
    return path


def read(tmp_path: Path, *rows: Any) -> Rows:
    return read_rows(write(tmp_path / "rows.jsonl", *rows))


FORMATS: list[tuple[str, Any, list[dict[str, str]]]] = [
    ("OpenAI messages", {"messages": [user("q"), assistant(" a\n"), user("r"), assistant("b")], "id": 3},
     [user("q"), assistant(" a\n"), user("r"), assistant("b")]),
    ("OpenAI messages", {"messages": [{"role": "developer", "content": "d"}, user([{"type": "text", "text": "q"},
     {"type": "text", "text": " r"}]), {**assistant("a"), "name": "x", "tool_calls": None, "weight": 1}]},
     [system("d"), user("q r"), assistant("a")]),
    ("OpenAI messages", {"messages": [system(None), user("q"), assistant("a")]}, [user("q"), assistant("a")]),
    ("OpenAI messages", {"conversations": [user("q"), assistant("a")]}, [user("q"), assistant("a")]),
    ("prompt and completion", {"prompt": "q", "completion": "a"}, [user("q"), assistant("a")]),
    ("prompt and completion", {"prompt": [system("s"), user("q")], "completion": [assistant("a")]},
     [system("s"), user("q"), assistant("a")]),
    ("Alpaca", {"instruction": "i", "input": "x", "output": "o"}, [user("i\n\nx"), assistant("o")]),
    ("Alpaca", {"instruction": "i", "input": "", "output": "o"}, [user("i"), assistant("o")]),
    ("Alpaca", {"instruction": "i", "input": None, "output": "o"}, [user("i"), assistant("o")]),
    ("Alpaca", {"instruction": "i", "output": "o"}, [user("i"), assistant("o")]),
    ("ShareGPT", {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"},
     {"from": "gpt", "value": "a"}, {"from": "user", "value": "r"}, {"from": "chatgpt", "value": "b"}]},
     [system("s"), user("q"), assistant("a"), user("r"), assistant("b")]),
    ("ShareGPT", {"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]},
     [user("q"), assistant("a")]),
    ("plain text", {"text": " t\n", "topic": "x"}, [{"role": "text", "content": " t\n"}]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "messages"), FORMATS)
def test_every_format_becomes_messages(name: str, row: Any, messages: list[Any], tmp_path: Path) -> None:
    rows = read(tmp_path, row)
    assert (rows.format, rows.problems) == (name, [])
    assert [list(conversation.messages) for conversation in rows.conversations] == [messages]


def test_a_file_of_several_formats_says_how_many_of_each(tmp_path: Path) -> None:
    rows = read(tmp_path, *(row for _, row, _ in FORMATS))
    assert rows.format == "OpenAI messages (4), Alpaca (4), prompt and completion (2), ShareGPT (2), plain text (1)"
    assert [conversation.line for conversation in rows.conversations] == list(range(1, len(FORMATS) + 1))


TOOL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BAD: list[tuple[Any, str, str]] = [
    (b"nonsense", "not JSON", "Expecting value at character 1 of the line"),
    (b'{"messages": ', "not JSON", "Expecting value at character 13"),
    (b'{"prompt": NaN, "completion": "a"}', "not JSON", "NaN is not JSON; write null"),
    (b"[" * 100_000, "not JSON", "nested too deeply"),
    (b'{"prompt": "q\xff", "completion": "a"}', "not UTF-8", "byte 0xff at offset 13 of the line"),
    (b'{"prompt": "\\ud83d", "completion": "a"}', "not text", "prompt has half of a surrogate pair"),
    ([GOOD], "not an object", "the row is a list"),
    ("text", "not an object", "the row is a text"),
    (None, "not an object", "the row is null"),
    (3, "not an object", "the row is the number 3"),
    ({}, "missing keys", "it has no keys; expected messages"),
    ({"txt": "x", "id": 1}, "missing keys", "it has txt, id; expected messages"),
    ({"text": " \n"}, "empty turn", "the text is empty"),
    ({"text": ["x"]}, "not text", "text is a list"),
    ({"prompt": "q", "id": 1}, "missing keys", "it has prompt, id, but not completion"),
    ({"output": "o"}, "missing keys", "it has output, but not instruction"),
    ({"messages": "q"}, "not a list", "messages is a text"),
    ({"messages": ["q"]}, "not an object", "turn 1 is a text"),
    ({"messages": [{"role": "user"}, assistant("a")]}, "missing keys", "turn 1: it has role; expected role and"),
    ({"messages": [user("q"), {"content": "a"}]}, "missing keys", "turn 2: it has content"),
    ({"conversations": [{"from": "human", "content": "q"}]}, "missing keys", "expected from and value"),
    ({"messages": [{"role": "bot", "content": "q"}]}, "wrong role", "role is 'bot'; expected system, developer, user"),
    ({"messages": [{"role": ["user"], "content": "q"}]}, "wrong role", "role is ['user']"),
    ({"conversations": [{"from": "x" * 200, "value": "q"}]}, "wrong role", "from is 'xxx"),
    ({"messages": [user("q"), assistant("a"), {"role": "tool", "content": "t"}]}, "tool calls", "turn 3 has role"),
    ({"messages": [user("q"), {**assistant(None), "tool_calls": [TOOL]}]}, "tool calls", "turn 2 has tool_calls"),
    ({"messages": [user("q"), {"role": "assistant", "tool_calls": [TOOL]}]}, "tool calls", "turn 2 has tool_calls"),
    ({**GOOD, "tools": [TOOL]}, "tool calls", "the row has tools"),
    ({"conversations": [{"from": "observation", "value": "q"}]}, "tool calls", "turn 1 has from 'observation'"),
    ({"messages": [user([{"type": "image_url", "image_url": "x"}]), assistant("a")]}, "not text", "has the part {"),
    ({"messages": [user(["q"]), assistant("a")]}, "not text", "turn 1: content has the part 'q'"),
    ({"messages": [user(5), assistant("a")]}, "not text", "turn 1: content is the number 5; expected a text"),
    ({"messages": [user({"q": 1}), assistant("a")]}, "not text", "content is an object"),
    ({"instruction": "i", "input": True, "output": "o"}, "not text", "input is true or false"),
    ({"prompt": "q", "completion": 7.5}, "not text", "completion is the number 7.5"),
    ({"prompt": [user("q")], "completion": "a"}, "not text", "one of prompt and completion is a text"),
    ({"prompt": "q", "completion": None}, "empty turn", "turn 2 (assistant) has no text"),
    ({"messages": [user(" \n"), assistant("a")]}, "empty turn", "turn 1 (user) has no text"),
    ({"instruction": "", "output": "o"}, "empty turn", "turn 1 (user)"),
    ({"messages": []}, "no assistant turn", "the row has 0 turns"),
    ({"messages": [system("s"), user("q")]}, "no assistant turn", "the row has 2 turns"),
    ({"messages": [system("s"), system("t"), user("q"), assistant("a")]}, "system turn", "2 system turns"),
    ({"messages": [user("q"), system("s"), assistant("a")]}, "system turn", "turn 2 is a system turn; it must be the"),
    ({"messages": [user("q"), user("r"), assistant("a")]}, "turn order", "turn 2 is the user's, after another"),
    ({"messages": [user("q"), assistant("a"), assistant("b")]}, "turn order", "turn 3 is the assistant's"),
    ({"messages": [system("s"), assistant("a"), user("q")]}, "turn order", "turn 2 is the assistant's, the first"),
    ({"messages": [user("q"), {**assistant("a"), "weight": 0}]}, "weight", "turn 2 has the weight 0"),
]  # fmt: skip


def test_every_bad_row_is_reported_with_line_kind_and_reason_and_the_rest_is_kept(tmp_path: Path) -> None:
    rows = read(tmp_path, GOOD, *(row for row, _, _ in BAD), GOOD)
    assert [conversation.line for conversation in rows.conversations] == [1, len(BAD) + 2]
    assert len(rows.problems) == len(BAD)
    for number, (problem, (_, kind, reason)) in enumerate(zip(rows.problems, BAD, strict=True), start=2):
        assert (problem.line, problem.kind) == (number, kind)
        assert reason in problem.reason and len(problem.reason) < 300, problem.reason


def test_a_user_turn_at_the_end_is_cut_and_said(tmp_path: Path) -> None:
    rows = read(tmp_path, {"messages": [user("q"), assistant("a"), user("r")]})
    assert list(rows.conversations[0].messages) == [user("q"), assistant("a")]
    assert rows.problems == [
        Problem(1, "user turn at the end cut", "turn 3 has no answer; the turns before it are kept")
    ]


def test_bom_line_ends_and_blank_lines_do_not_matter(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n  \n" + json.dumps(GOOD).encode() + b"\r\n{"
    rows = read(tmp_path, content)
    assert [conversation.line for conversation in rows.conversations] == [1, 4]
    assert [problem.line for problem in rows.problems] == [5]
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(content))
    assert read_rows(tmp_path / "packed.jsonl.gz").conversations == rows.conversations


def test_a_file_with_one_array_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("\ufeff\n" + json.dumps([GOOD, 3, GOOD], indent=2), encoding="utf-8")
    rows = read_rows(path)
    assert [conversation.line for conversation in rows.conversations] == [1, 3]
    assert [(problem.line, problem.kind) for problem in rows.problems] == [(2, "not an object")]
    path.write_text(json.dumps([GOOD], indent=2)[:-1], encoding="utf-8")
    with pytest.raises(DataError, match=r"begins as a JSON array, but Expecting ',' delimiter"):
        read_rows(path)


def test_lines_of_five_megabytes_are_rows_like_others(tmp_path: Path) -> None:
    long = "word " * 1_000_000
    write(tmp_path / "rows.jsonl", {"prompt": long, "completion": "a"}, ("x" * 5_000_000).encode(), {long: 1}, GOOD)
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [conversation.line for conversation in rows.conversations] == [1, 4]
    assert all(len(problem.reason) < 300 for problem in rows.problems)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no file of conversations"),
        (b"", "is empty; conversations are expected"),
        (b"\xef\xbb\xbf\n \n", "is empty"),
        (b"\x00\x01\x02", "looks binary"),
        (b"PK\x03\x04rest", "a zip archive"),
        ("{}".encode("utf-16"), "is UTF-16 text"),
        (b"Once upon a time.\n\nThe end.", r"none of its 2 rows .*\n  line 1: not JSON: .*\n  line 3: not JSON"),
        (b"[]", "is empty"),
        (b"[1]", r"none of its 1 rows .*\n  line 1: not an object: the row is the number 1"),
    ],
)
def test_a_file_without_conversations_gives_one_message(content: bytes | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_rows(tmp_path / "rows.jsonl")


def test_names_that_are_no_files_give_one_message(tmp_path: Path) -> None:
    write(tmp_path / "conversations.jsonl", GOOD)
    for name, said in (
        (tmp_path, "is a folder; name a .jsonl file of conversations, for example"),
        (tmp_path / "conversation.jsonl", r"did you mean conversations.jsonl\?"),
        ("tutr", r"did you mean tutor\?"),
        ("a\0b", "there is no file of conversations"),
        ("x" * 5000, "cannot be read|there is no file"),
        ("", "is a folder"),
        ("/dev/null", "is neither a file nor a folder|there is no file"),
    ):
        with pytest.raises(DataError, match=said):
            read_rows(name)
    with pytest.raises(DataError) as raised:
        read_rows("x" * 5000)
    assert len(str(raised.value)) < 300


KEYS = ("messages", "conversations", "role", "content", "from", "value", "prompt", "completion", "input", "output")
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner)),
    max_leaves=12,
)
LINES = st.one_of(JSON.map(lambda row: json.dumps(row).encode()), st.binary(max_size=30))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows=st.lists(LINES, max_size=5))
def test_any_content_gives_rows_and_problems_or_one_message(
    rows: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.mktemp("rows") / "rows.jsonl", *rows, GOOD)
    try:
        read = read_rows(path)
    except GlassError as error:
        assert str(error)
    else:
        lines = [*(c.line for c in read.conversations), *(p.line for p in read.problems if "cut" not in p.kind)]
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
        assert sorted(lines) == [n for n, line in enumerate(content.split(b"\n"), 1) if line.strip()]

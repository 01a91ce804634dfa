"""Files of questions, and the points of answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from glassgpt.errors import DataError
from glassgpt.evaluation.questions import Question, first_questions, read_questions, refuses, score

ASKED = ({"role": "user", "content": "Why?"},)


def write(path: Path, *rows: Any) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("alternative", "answer", "met"),
    [
        ("mask", "The causal Mask.", True),
        ("mask", "It is masked.", False),
        ("mask", "un-mask", True),
        ("--resume", "Use `--resume my`.", True),
        ("--resume", "resume it", False),
        ("-o", "with `-o head.png`", True),
        ("-o", "up-or-down", False),
        ("tune lora", "`glassgpt tune lora MODEL DATA`", True),
        ("tune lora", "tune\n  lora", True),
        ("tune lora", "`tune` `lora`", True),
        ("tune lora", "attune loras", False),
        ("ln v", "It is ln V.", True),
        ("ln(v)", "about ln(V), i.e. 8", True),
        ("steps=300", "`steps=300`", True),
        ("steps=300", "steps=3000", False),
        ("1", "a limit of 1.", True),
        ("1", "0.1 and 1.5 and 21", False),
        ("16,384", "16,384 tokens", True),
        ("user's", "the user’s tokens", True),
        ("/reset", "type `/reset`:", True),
        ("top-k", "top‑k", True),
    ],
)
def test_an_alternative_matches_whole_words(alternative: str, answer: str, met: bool) -> None:
    scored = score(Question(ASKED, must=((alternative,),)), answer)
    assert scored is not None
    assert scored.points == met


def test_points_are_the_share_of_groups_and_zero_with_a_wrong_word() -> None:
    question = Question(ASKED, must=(("mask", "masks"), ("future", "later"), ("copy",)), must_not=("convolution",))
    results = [score(question, text) for text in ("Masks hide what is later.", "nothing", "mask, copy the convolution")]
    assert [round(result.points, 3) for result in results if result] == [0.667, 0.0, 0.0]
    assert results[0] is not None and results[2] is not None
    assert (results[0].missed, results[2].wrong) == ((("copy",),), ("convolution",))
    assert score(Question(ASKED), "anything") is None


def test_refusals_are_told_from_answers() -> None:
    assert refuses("Cats? I only answer questions about GPTs.")
    assert refuses("I'm sorry, but I can’t help with that.")
    assert not refuses("`glassgpt plot` only draws the curves; it cannot help with text.")


def test_every_mistake_of_a_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = write(
        tmp_path / "q.jsonl",
        {"question": "What?", "answer": "That.", "must": [["that"]], "must_not": [], "topic": "t"},
        "",
        "{broken",
        [1],
        {"answer": "no question"},
        {"question": " ", "must": [[]], "extra": 1},
        {"question": "x", "must": [["a"]], "must_not": "b"},
        {"question": "x", "must_not": ["b"]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"messages": [{"role": "tool", "content": "a"}]},
        {"question": "\ud800"},
    )
    with pytest.raises(DataError) as caught:
        read_questions(path)
    message = str(caught.value)
    for number in (3, 4, 5, 6, 7, 8, 9, 10, 11):
        assert f"line {number}: " in message or "more" in message
    assert message.count("line 6: ") == 3
    assert "line 1:" not in message


@pytest.mark.parametrize("content", ["", "\n \n", b"\xff\xfe\n"])
def test_a_file_without_questions_is_an_error(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=r"q\.jsonl"):
        read_questions(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_questions(tmp_path / "nothing.jsonl")


def test_a_question_may_be_a_conversation(tmp_path: Path) -> None:
    messages = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    (question,) = read_questions(write(tmp_path / "q.jsonl", "\ufeff" + json.dumps({"messages": messages})))
    assert question == Question(tuple(messages))
    assert question.text == "c"


def test_first_questions_are_spread_over_the_conversations() -> None:
    def talk(i: int) -> list[dict[str, str]]:
        turns = (("system", "s"), ("user", f"q{i}"), ("assistant", f"a{i}"), ("user", "more"), ("assistant", "b"))
        return [{"role": role, "content": content} for role, content in turns]

    questions = first_questions([talk(i) for i in range(9)])
    assert [(q.text, q.answer, len(q.messages)) for q in questions] == [(f"q{i}", f"a{i}", 2) for i in (0, 3, 6)]
    assert len(first_questions([talk(0)])) == 1
    assert first_questions([talk(0)[3:4], []]) == []

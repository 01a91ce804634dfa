"""`glassgpt tune show`: rows with the tokens that are trained, bad rows, and counts."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from glassgpt.config import ModelConfig
from glassgpt.data.conversations.encoding import encode_rows
from glassgpt.data.conversations.rows import read_rows
from glassgpt.model import GPT
from glassgpt.tokenizer import CharTokenizer
from glassgpt.tokenizer.chat import CHATML
from glassgpt.weights.chat_tokens import with_chat_template
from glassgpt.weights.folder import save_model, write_folder
from glassgpt.weights.resolve import open_folder

ROWS = [
    {"prompt": "the cat", "completion": "sat ⟦on⟧\nthe mat"},
    {"instruction": "a", "output": "b"},
    {"messages": [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]},
    {"prompt": "the dog", "completion": "\u05d0"},
    {"prompt": "the cat", "completion": "the mat " * 40},
    {"\x1b[31m": "a"},
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of characters without a chat template, with a context of 200, beside conversations."""
    lines = [json.dumps(row) for row in ROWS]
    (tmp_path / "chats.jsonl").write_text("\n".join([*lines[:5], "{", lines[5]]), encoding="utf-8")
    tokenizer = CharTokenizer.train("the cat sat ⟦on⟧\nthe mat assistant user b")
    model = GPT(ModelConfig(vocab_size=tokenizer.vocab_size, block_size=200, n_layer=1, n_head=1, n_embd=4))
    with write_folder(tmp_path / "m") as temporary:
        save_model(temporary, model, tokenizer)
    return tmp_path / "m"


def test_rows_are_shown_with_what_is_trained(cli: Any, folder: Path) -> None:
    code, out, err = cli("tune", "show", "chats.jsonl", folder)
    assert code == 0, err
    assert "note: the model has no chat template; it gets ChatML" in err
    assert "prompt and completion (3), Alpaca (1), OpenAI messages (1); 3 conversations to train on" in out
    row = "<|im_start|>user\\n\nthe cat<|im_end|>\\n\n<|im_start|>assistant\\n\n"
    assert f"{row}⟦sat \\⟦on\\⟧\\n\nthe mat<|im_end|>⟧\\n\n" in out
    for kind, line in (("not JSON", 6), ("missing keys", 7), ("too long", 5), ("not encoded", 4), ("user turn", 3)):
        assert re.search(rf"^{kind}.* 1  line {line}: ", out, re.MULTILINE), kind
    assert "\x1b" not in out and "5 problems" in out


def test_json_has_the_rows_of_the_library(cli: Any, folder: Path) -> None:
    code, out, _ = cli("tune", "show", "chats.jsonl", folder, "--json", "--rows", 0, "--batch-size", 2)
    shown = json.loads(out)
    source = with_chat_template(open_folder(folder))
    encoded = encode_rows(read_rows("chats.jsonl").conversations, source.tokenizer(), CHATML, 200)
    assert code == 0 and [row["line"] for row in shown["rows"]] == [row.line for row in encoded.rows] == [1, 2, 3]
    for row, ours in zip(shown["rows"], encoded.rows, strict=True):
        assert [token["id"] for token in row["tokens"]] == ours.ids.tolist()
        assert [token["trained"] for token in row["tokens"]] == ours.trained.tolist()
        assert row["trained"] == ours.trained.sum()
    lengths, trained = [len(row.ids) for row in encoded.rows], sum(int(row.trained.sum()) for row in encoded.rows)
    assert shown["total"] == {"tokens": sum(lengths), "trained": trained, "longest": max(lengths), "longest_line": 1}
    packed = shown["batches"]["packed"]
    assert packed["rows"] < 3 and packed["trained"] > shown["batches"]["unpacked"]["trained"]
    assert [problem["line"] for problem in shown["problems"]] == [3, 4, 5, 6, 7]


def test_in_a_terminal_each_trained_token_has_a_colour(cli: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from glassgpt.cli.printing import token_tables

    monkeypatch.setattr(token_tables, "has_colours", lambda: True)
    _, out, _ = cli("tune", "show", "chats.jsonl", folder, "--rows", 2)
    assert re.findall(r"\x1b\[38;5;16;48;5;\d+m(.*?)\x1b\[0m", out.partition("line 2:")[2]) == ["b", "<|im_end|>"]
    assert "and 1 more (--rows 0 shows all)" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("nothing.jsonl m", "there is no file of conversations 'nothing.jsonl'"),
        ("chats.jsonl nothing", "there is no model 'nothing'"),
        ("m m", "is a folder; name a .jsonl file"),
        ("chats.jsonl m --max-length 201", "longer than the model's context of 200 tokens"),
        ("chats.jsonl m --max-length 5", "no conversation to train on"),
    ],
)
def test_mistakes_give_one_message(arguments: str, said: str, cli: Any, folder: Path) -> None:
    code, out, err = cli("tune", "show", *arguments.split())
    assert (code, out) == (2, "") and said in err and "Traceback" not in err

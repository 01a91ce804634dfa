"""`glassgpt tokenizer train | show | compare`: their output, the files they write, and their errors."""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from glassgpt.glass import tokenizer_comparison
from glassgpt.glass.tokens import escaped, merge_steps
from glassgpt.tokenizer import BPETokenizer, WordTokenizer, load, save
from glassgpt.tokenizer.specs import open_tokenizer

BYTES_ALONE = "bpe:257"  # no merges: every byte is a token


@pytest.fixture
def folder(cli: Any, text_file: Path) -> Path:
    """A byte-level BPE tokenizer of 400 tokens, in the folder ``tok`` of the working directory."""
    code, _, err = cli("tokenizer", "train", text_file, "bpe:400", "-o", "tok")
    assert code == 0, err
    return Path("tok")


def answer(cli: Any, *arguments: object) -> Any:
    code, out, err = cli("tokenizer", *arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[bytes], None]]:
    """Give these bytes to the next command as its standard input."""
    with contextlib.ExitStack() as files:

        def put(content: bytes) -> None:
            (tmp_path / "piped").write_bytes(content)
            monkeypatch.setattr(sys, "stdin", files.enter_context((tmp_path / "piped").open(encoding="utf-8")))

        yield put


# --- train -----------------------------------------------------------------------------------------------------------


def test_train_writes_files_that_other_libraries_read_with_the_same_ids(cli: Any, folder: Path, prose: str) -> None:
    ours, theirs = load(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert isinstance(ours, BPETokenizer) and ours.vocab_size == theirs.get_vocab_size() == 400
    text = prose[:3000] + " né 你好 🦜"
    assert ours.encode(text) == theirs.encode(text).ids == BPETokenizer.train(prose, 400).encode(text)
    assert {path.name for path in folder.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    assert json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["eos_token"] == "<|endoftext|>"


def test_train_reports_the_result(cli: Any, text_file: Path, prose: str) -> None:
    code, out, err = cli("tokenizer", "train", text_file, "bpe:400", "-o", "tok", "--special", "<|user|>")
    assert (code, err) == (0, "")
    size, count = len(prose.encode("utf-8")), len(load(Path("tok")).encode(prose))
    assert "bpe, 400 tokens: 256 bytes, 142 merges, <|endoftext|> 398, <|user|> 399\n" in out
    assert f"{size / count:.2f} bytes per token on the text\n" in out
    assert "written to tok/tokenizer.json and tok/tokenizer_config.json\n" in out
    assert "glassgpt tokenizer show tok 'Any text'" in out and f"glassgpt train {text_file} tokenizer=tok" in out
    result = answer(cli, "train", text_file, "bpe:400", "-o", "two", "--special", "<|user|>")
    seconds = result.pop("seconds")
    assert 0 < seconds < 60
    assert result == {
        "kind": "bpe", "vocab_size": 400, "asked_for": 400, "merges": 142, "bytes_per_token": size / count,
        "special_tokens": {"<|endoftext|>": 398, "<|user|>": 399}, "unknown": None, "measured_on": "the text",
        "files": ["two/tokenizer.json", "two/tokenizer_config.json"],
    }  # fmt: skip
    assert (Path("tok") / "tokenizer.json").read_bytes() == (Path("two") / "tokenizer.json").read_bytes()


def test_train_takes_every_setting(cli: Any, text_file: Path, prose: str) -> None:
    arguments = ["--pattern", "qwen2", "--min-frequency", "40", "--special", "<|a|>", "--special", "<|b|>"]
    code, out, err = cli("tokenizer", "train", text_file, "bpe:5000", "-o", "tok.json", *arguments, "--processes", 2)
    assert (code, err) == (0, "")
    names = ("<|endoftext|>", "<|a|>", "<|b|>")
    same = BPETokenizer.train(prose, 5000, pattern="qwen2", min_frequency=40, special=names)
    assert json.loads(Path("tok.json").read_text(encoding="utf-8")) == same.to_json()
    assert "fewer than the 5,000 requested: no remaining pair occurs 40 times" in out


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("char", "char, "),
        ("word", "word, "),
        ("word:50", "of its words are unknown and lost"),
        ("word:5000", "fewer than the 5,000 requested: the text has no more words"),
    ],
)
def test_train_closed_and_open_vocabularies(cli: Any, text_file: Path, prose: str, spec: str, said: str) -> None:
    code, out, err = cli("tokenizer", "train", text_file, spec, "-o", "tok")
    assert (code, err) == (0, "") and said in out
    tokenizer = load(Path("tok"))
    assert tokenizer.kind == spec.partition(":")[0]
    assert (tokenizer.decode(tokenizer.encode(prose)) == prose) == (spec != "word:50")


def test_train_writes_tiktoken_files(cli: Any, text_file: Path, prose: str, tmp_path: Path) -> None:
    code, out, _ = cli("tokenizer", "train", text_file, "bpe:400", "-o", "my ranks.tiktoken", "--pattern", "llama3")
    assert code == 0 and "are in my ranks.tiktoken.json" in out
    assert "show 'my ranks.tiktoken' 'Any text'\n" in out and "'tokenizer=my ranks.tiktoken'" in out
    same = BPETokenizer.train(prose, 400, pattern="llama3")
    text = prose[:500] + " don't 12345"
    for more in ([], ["--pattern", "llama3"]):
        found = answer(cli, "show", "my ranks.tiktoken", text, *more)
        assert [token["id"] for token in found["tokens"]] == same.encode(text)
    code, _, err = cli("tokenizer", "train", text_file, "-o", "my ranks.tiktoken")
    assert code == 2 and "exists" in err
    (tmp_path / "my ranks.tiktoken.json").unlink()
    for verb in (("tokenizer", "show", "my ranks.tiktoken"), ("train", text_file, "tokenizer=my ranks.tiktoken")):
        code, _, err = cli(*verb)
        assert code == 2 and "does not say how text is split" in err and err.count("error:") == 1


def test_train_takes_a_pattern_of_ones_own(cli: Any, text_file: Path, prose: str) -> None:
    pattern = r" ?\p{L}+|\p{N}|[^\p{L}\p{N}]"
    for out in ("own", "own.tiktoken"):
        code, _, err = cli("tokenizer", "train", text_file, "bpe:400", "-o", out, "--pattern", pattern)
        assert (code, err) == (0, "")
        ours = open_tokenizer(out)
        assert isinstance(ours, BPETokenizer) and ours.model.patterns == (pattern,)
        assert ours.encode(prose) == BPETokenizer.train(prose, 400, pattern=pattern).encode(prose)
    library = tokenizers.Tokenizer.from_file("own/tokenizer.json")
    assert library.encode(prose).ids == ours.encode(prose)


def test_long_texts_are_measured_at_their_beginning(
    cli: Any, text_file: Path, prose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_comparison, "MAX_CHARACTERS", 1000)
    found = answer(cli, "train", text_file, "word", "-o", "tok")
    cut = max(prose.rfind(" ", 0, 1000), prose.rfind("\n", 0, 1000))
    assert found["measured_on"] == f"the first {cut:,} characters of the text"
    text_file.write_text("ab" * 1000, encoding="utf-8")
    assert answer(cli, "train", text_file, "word", "-o", "two")["measured_on"] == "the text", "nowhere to cut"


def test_output_paths_are_checked_before_training_and_nothing_is_overwritten(
    cli: Any, folder: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained, and the output cannot be written")

    before = (folder / "tokenizer.json").read_bytes()
    model = Path("model")
    model.mkdir()
    (model / "config.json").write_text("{}", encoding="utf-8")
    mistakes = {
        "tok": "tok/tokenizer.json exists",
        "tok/tokenizer.json": "tok/tokenizer.json exists",
        "missing/tok": "there is no folder missing",
        "missing/tok.json": "there is no folder missing",
        f"{text_file}": "ends in .json or .tiktoken",
        f"{text_file}/tok": "cannot be written",
        "my.model": "ends in .json or .tiktoken",
        "x" * 300: "cannot be written",
        "word:8": "has another meaning",
    }
    with monkeypatch.context() as patch:
        patch.setattr(BPETokenizer, "train", never)
        for out, said in mistakes.items():
            code, _, err = cli("tokenizer", "train", text_file, "bpe:300", "-o", out)
            assert (code, said in err, "Traceback" in err) == (2, True, False), err
        for out in ("model", "model/tokenizer.json"):
            code, _, err = cli("tokenizer", "train", text_file, "bpe:300", "-o", out, "--force")
            assert code == 2 and "holds a model" in err
    assert (folder / "tokenizer.json").read_bytes() == before
    assert cli("tokenizer", "train", text_file, "bpe:300", "-o", "tok", "--force")[0] == 0
    assert load(folder).vocab_size == 300


def test_a_failure_while_writing_leaves_the_old_files(
    cli: Any, folder: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "tok")

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("glassgpt.tokenizer.save", full)
    code, _, err = cli("tokenizer", "train", text_file, "bpe:300", "-o", "tok", "--force")
    assert (code, err) == (1, "error: tok: No space left on device\n")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_special_token_is_never_also_a_plain_one(cli: Any, text_file: Path) -> None:
    for name in ("the", "a", "Ġthe", "!!", "Ã"):
        code, _, err = cli("tokenizer", "train", text_file, "bpe:300", "-o", "tok", "--special", name)
        assert code == 2 and "could be learned as a plain token" in err
        assert not Path("tok").exists()


# --- show ------------------------------------------------------------------------------------------------------------


def test_show_the_tokens_of_a_text(cli: Any, text_file: Path) -> None:
    text_file.write_text("low lower lowest " * 9, encoding="utf-8")
    assert cli("tokenizer", "train", text_file, "bpe:262", "-o", "tok")[0] == 0
    code, out, err = cli("tokenizer", "show", "tok", "low slower│\n你\t<E4> \\n")
    assert (code, err) == (0, "")
    text, table, totals = out.split("\n\n")
    assert text == "low│ │s│low│e│r│<E2>│<94>│<82>│\\n\n│<E4>│<BD>│<A0>│\\t│<│E│4│>│ │\\\\│n"
    rows = table.splitlines()
    assert rows[0].split() == ["position", "id", "bytes", "token"]
    assert rows[1].split() == ["0", str(load(Path("tok")).encode("low")[0]), "6c", "6f", "77", "'low'"]
    assert rows[7].endswith("e2        '<E2>'  byte 1 of 3 of '│'")
    assert rows[11].endswith("e4        '<E4>'  byte 1 of 3 of '你'")
    assert "'\\t'" in rows[14] and "'\\\\'" in rows[20]
    assert totals == "21 tokens, 21 characters, 25 bytes: 1.19 bytes per token\n"


def test_show_as_json(cli: Any, folder: Path) -> None:
    text = "The native 🦜 said:\n<|endoftext|>"
    found = answer(cli, "show", "tok", text)
    tokenizer = load(folder)
    assert [token["id"] for token in found["tokens"]] == tokenizer.encode(text)
    assert b"".join(bytes.fromhex(token["bytes"]) for token in found["tokens"]) == text.encode("utf-8")
    assert [token["position"] for token in found["tokens"]] == list(range(len(found["tokens"])))
    assert not any(token["special"] for token in found["tokens"])
    for token in found["tokens"]:
        assert token["text"] is None or token["text"].encode("utf-8").hex() == token["bytes"]
    assert {token["note"] for token in found["tokens"] if token["text"] is None} == {
        f"byte {i} of 4 of '🦜'" for i in (1, 2, 3, 4)
    }
    size = len(text.encode("utf-8"))
    assert (found["characters"], found["bytes"]) == (len(text), size)
    assert found["bytes_per_token"] == size / len(found["tokens"]) and found["gives_text_back"]


def test_special_tokens_in_a_text_need_allow_special(cli: Any, folder: Path) -> None:
    text = "one<|endoftext|>two"
    _, out, _ = cli("tokenizer", "show", "tok", text)
    assert "note: <|endoftext|> was taken as text" in out
    code, out, _ = cli("tokenizer", "show", "tok", text, "--allow-special")
    assert code == 0 and "│<|endoftext|>│" in out and "note:" not in out
    assert re.search(r"399  -  +'<\|endoftext\|>'  special\n", out)
    special = [token for token in answer(cli, "show", "tok", text, "--allow-special")["tokens"] if token["special"]]
    assert [(token["id"], token["text"]) for token in special] == [(399, "<|endoftext|>")]


def test_unknown_words_are_named(cli: Any, text_file: Path) -> None:
    text_file.write_text("to be or not to be " * 3, encoding="utf-8")
    assert cli("tokenizer", "train", text_file, "word:20", "-o", "tok")[0] == 0
    code, out, _ = cli("tokenizer", "show", "tok", "to bee or not")
    assert code == 0 and out.startswith("to│<|unk|>│ or│ not\n")
    assert "'<|unk|>'  special; the unknown word ' bee'" in out
    assert "note: these tokens do not give the text back" in out
    assert not answer(cli, "show", "tok", "to bee or not")["gives_text_back"]


@pytest.mark.parametrize("argument", [["-"], []])
def test_piped_text_loses_its_last_line_end(
    cli: Any, folder: Path, pipe: Callable[[bytes], None], argument: list[str]
) -> None:
    pipe(b"first\nsecond\n")
    found = answer(cli, "show", "tok", *argument)
    assert b"".join(bytes.fromhex(token["bytes"]) for token in found["tokens"]) == b"first\nsecond"


def test_any_bytes_can_be_shown_by_byte_level_bpe(cli: Any, folder: Path, pipe: Callable[[bytes], None]) -> None:
    content = b"a\xff\xfe\x00 the\xe4\xbd"
    pipe(content)
    found = answer(cli, "show", "tok", "-")
    assert b"".join(bytes.fromhex(token["bytes"]) for token in found["tokens"]) == content
    assert found["characters"] is None and found["gives_text_back"]
    assert [token["note"] for token in found["tokens"]].count("not UTF-8") == 4
    pipe(content)
    code, _, err = cli("tokenizer", "show", "tok", "-", "--allow-special")
    assert code == 2 and "byte 0xff at offset 1" in err


def test_an_empty_pipe_is_ignored_but_an_empty_text_is_refused(
    cli: Any, folder: Path, pipe: Callable[[bytes], None]
) -> None:
    pipe(b"")
    assert answer(cli, "show", "tok")["vocab_size"] == 400
    for argument in ("-", ""):
        pipe(b"\n")
        code, _, err = cli("tokenizer", "show", "tok", argument)
        assert (code, err) == (2, "error: the text is empty; there is nothing to show\n")


def test_long_tables_are_cut_on_request(cli: Any, folder: Path) -> None:
    _, out, _ = cli("tokenizer", "show", "tok", "abcdefgh " * 100)
    count = len(load(folder).encode("abcdefgh " * 100))
    assert f"... and {count - 200:,} more (--rows 0 shows all)\n" in out
    whole = cli("tokenizer", "show", "tok", "abcdefgh " * 100, "--rows", 0)[1]
    assert "more (" not in whole and len(whole.splitlines()) == len(out.splitlines()) + count - 201


def test_a_file_name_given_as_text_is_pointed_out(cli: Any, folder: Path, text_file: Path) -> None:
    code, out, err = cli("tokenizer", "show", "tok", "prose.txt")
    assert code == 0 and "9 characters" in out
    assert err == "note: 'prose.txt' is taken as the text itself; to show the file: < prose.txt\n"


def test_show_describes_a_tokenizer(cli: Any, folder: Path) -> None:
    found = answer(cli, "show", "tok")
    tokenizer = load(folder)
    assert isinstance(tokenizer, BPETokenizer)
    assert (found["kind"], found["vocab_size"], found["merges"]) == ("bpe", 400, 143)
    assert found["special_tokens"] == {"<|endoftext|>": 399} and found["roles"]["eos_token"] == "<|endoftext|>"
    assert [pattern["name"] for pattern in found["patterns"]] == ["gpt2"]
    sizes = sorted((len(tokenizer.token_bytes(i)) for i in range(399)), reverse=True)
    assert [len(token["bytes"]) // 2 for token in found["longest_tokens"]] == sizes[:5]
    assert [merge["rank"] for merge in found["some_merges"]] == [0, 1, 2, 3, 4, 138, 139, 140, 141, 142]
    for merge in found["some_merges"]:
        pair = tuple(bytes.fromhex(token["bytes"]) for token in merge["pair"])
        assert pair == tokenizer.model.merges[merge["rank"]]
        assert merge["into"]["id"] == tokenizer.model.vocab[b"".join(pair)] == 256 + merge["rank"]
    code, out, _ = cli("tokenizer", "show", "tok")
    assert code == 0
    for said in (
        "byte-level BPE", "400 tokens: 256 bytes, 143 merges", "<|endoftext|> 399 (eos)", "gpt2: '(?:[sdmt]|ll",
        " ...\n",
    ):  # fmt: skip
        assert said in out


@pytest.mark.parametrize(
    ("spec", "said"),
    [("char", "characters: a text with any other is refused"), ("word", "words: "), ("word:9", "lost")],
)
def test_show_describes_closed_vocabularies(cli: Any, text_file: Path, spec: str, said: str) -> None:
    assert cli("tokenizer", "train", text_file, spec, "-o", "tok")[0] == 0
    code, out, _ = cli("tokenizer", "show", "tok")
    assert code == 0 and said in out and "first tokens" in out and "merge" not in out


def test_a_tokenizer_of_another_library_is_shown(cli: Any, text_file: Path) -> None:
    library = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    library.decoder = tokenizers.decoders.WordPiece()
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"], show_progress=False)
    library.train([str(text_file)], trainer)
    library.save("theirs.json")
    assert "wordpiece, run by the library" in cli("tokenizer", "show", "theirs.json")[1]
    found = answer(cli, "show", "theirs.json", "the 你 the")
    assert [token["id"] for token in found["tokens"]] == library.encode("the 你 the").ids
    assert [token["special"] for token in found["tokens"]].count(True) == 1 and not found["gives_text_back"]
    rows = answer(cli, "compare", text_file, "theirs.json")["tokenizers"]
    assert rows[0]["unknown"] is not None and rows[0]["gives_text_back"] is False


def test_a_run_name_opens_its_tokenizer(cli: Any, folder: Path, prose: str) -> None:
    run = Path("runs") / "mine"
    (run / "best").mkdir(parents=True)
    (run / "run.toml").write_text("", encoding="utf-8")
    save(WordTokenizer.train(prose, vocab_size=50), run / "best", block_size=32)
    for name in ("mine", "runs/mine", "runs/mine/best"):
        assert answer(cli, "show", name)["vocab_size"] == 50
    (run.rename("elsewhere-mine").parent / "elsewhere").mkdir()
    Path("elsewhere-mine").rename("elsewhere/mine")
    assert answer(cli, "show", "mine", "--runs-dir", "elsewhere")["vocab_size"] == 50
    code, _, err = cli("tokenizer", "show", "mien", "--runs-dir", "elsewhere")
    assert code == 2 and "did you mean mine?" in err


# --- the merges of a word --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["lowering", " the king, 12 naïve"])
def test_the_merges_of_a_word_lead_to_its_tokens(cli: Any, folder: Path, word: str) -> None:
    found = answer(cli, "show", "tok", "--merges", word)
    tokenizer = load(folder)
    assert isinstance(tokenizer, BPETokenizer)
    assert found["ids"] == [i for piece in found["pieces"] for i in piece["ids"]] == tokenizer.encode(word)
    ranks = {pair: rank for rank, pair in enumerate(tokenizer.model.merges)}
    for piece, shown in zip(merge_steps(tokenizer, word), found["pieces"], strict=True):
        assert shown["piece"] == escaped(piece.content)
        for number, step in enumerate(piece.steps):
            neighbours = [pair for pair in pairwise(step.tokens) if pair in ranks]
            assert step.rank == min((ranks[pair] for pair in neighbours), default=None)
            assert shown["steps"][number]["rank"] == step.rank and shown["steps"][number]["id"] == step.merged_id
            assert b"".join(step.tokens) == piece.content
        assert len(piece.steps[0].tokens) == len(piece.content), "it begins with bytes"


def test_the_merges_are_printed_step_by_step(cli: Any, text_file: Path) -> None:
    text_file.write_text("low lower " * 9, encoding="utf-8")
    assert cli("tokenizer", "train", text_file, "bpe:259", "-o", "tok")[0] == 0
    code, out, err = cli("tokenizer", "show", "tok", "--merges", "low 你")
    assert (code, err) == (0, "")
    lines = [re.sub(" +", " ", line) for line in out.splitlines()]
    assert lines[0] == "piece 1 of 2: 'low', 3 bytes, 2 merges"
    assert lines[2] == "step tokens merged next rank into"
    assert lines[3] == " 0 l│o│w 'l' + 'o' 0 'lo' 256"
    assert lines[4] == " 1 lo│w 'lo' + 'w' 1 'low' 257"
    assert lines[5] == " 2 low none: no pair has a rank"
    assert lines[7] == "1 token: 'low' 257"
    assert lines[9] == "piece 2 of 2: ' 你', 4 bytes, 0 merges"
    assert lines[14].startswith("4 tokens: ' ' ") and "'<E4>' " in lines[14]


def test_tokens_that_are_not_merged_are_reported(cli: Any, folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    content["added_tokens"].append({"id": 400, "content": "<tool>", **flags})
    Path("added.json").write_text(json.dumps(content), encoding="utf-8")
    code, out, _ = cli("tokenizer", "show", "added.json", "--merges", "<tool>")
    assert code == 0 and "note: encoding gives '<tool>' 400" in out
    assert "added token     <tool> 400" in cli("tokenizer", "show", "added.json")[1]
    assert answer(cli, "show", "added.json", "a<tool>")["tokens"][1]["note"] == "added"


# --- compare ---------------------------------------------------------------------------------------------------------


def test_compare_trains_on_the_beginning_and_measures_on_the_end(cli: Any, text_file: Path, prose: str) -> None:
    found = answer(cli, "compare", text_file, "bpe:400", "word:100", BYTES_ALONE)
    cut = len(prose) - round(len(prose) * 0.1)
    train, measured = prose[:cut], prose[cut:]
    assert (found["text"], found["train_characters"], found["measured_characters"]) == ("prose", cut, len(measured))
    assert found["bytes_taken"] == found["bytes_of_text"] == len(prose.encode("utf-8"))
    size = len(measured.encode("utf-8"))
    made = [BPETokenizer.train(train, 400), WordTokenizer.train(train, vocab_size=100), BPETokenizer.train(train, 257)]
    for row, tokenizer in zip(found["tokenizers"], made, strict=True):
        ids = tokenizer.encode(measured)
        assert row["tokens"] == len(ids) and row["bytes_per_token"] == size / len(ids)
        assert row["tokens_per_word"] == len(ids) / len(measured.split())
        assert row["vocabulary_used"] == len(set(ids)) / tokenizer.vocab_size
        assert row["vocab_size"] == tokenizer.vocab_size and row["error"] is None and row["bytes_per_second"] > 0
    word = found["tokenizers"][1]
    ids = made[1].encode(measured)
    assert word["unknown"] == ids.count(98) / len(ids) > 0 and not word["gives_text_back"]
    assert [row["gives_text_back"] for row in found["tokenizers"]] == [True, False, True]
    assert found["tokenizers"][2]["bytes_per_token"] == 1


def test_compare_prints_a_row_for_a_tokenizer_that_cannot_encode(cli: Any, folder: Path, text_file: Path) -> None:
    with text_file.open("a", encoding="utf-8") as file:
        file.write("Ω unheard")
    code, out, err = cli("tokenizer", "compare", text_file, "char", "word", "word:100", "bpe:300", "tok")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[1].endswith(": char, word, word:100, bpe:300") and lines[2].endswith(": all")
    table = {line.split()[0]: line.split() for line in lines[4:10]}
    assert table["tokenizer"][:4] == ["tokenizer", "vocabulary", "used", "tokens"]
    assert table["char"][2:] == table["word"][2:] == ["-"] * 6
    assert table["word:100"][4].endswith("*") and table["word:100"][-1].endswith("%")
    assert float(table["bpe:300"][4]) < float(table["tok"][4])
    assert "- char cannot encode the last 10 %: the character 'Ω'" in out
    assert "- word cannot encode the last 10 %: the word " in out
    assert "* word:100: not comparable; the text of its unknown words is lost" in out
    assert len({line.rindex("-") for line in lines[5:7]}) == 1, "columns are aligned"


def test_compare_takes_the_beginning_of_a_long_text(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("é" * 5000, encoding="utf-8")
    found = answer(cli, "compare", "long.txt", "char", "--bytes", 2001)
    assert (found["bytes_taken"], found["bytes_of_text"]) == (2000, 10000), "no character is cut"
    assert (found["train_characters"], found["measured_characters"]) == (900, 100)
    _, out, _ = cli("tokenizer", "compare", "long.txt", "char", "--bytes", 2000)
    assert "long, 10,000 bytes; the first 2,000 are taken (--bytes takes more)\n" in out
    assert "are taken" not in cli("tokenizer", "compare", "long.txt", "char")[1]


# --- mistakes --------------------------------------------------------------------------------------------------------

MISTAKES = {
    "no verb": ([], "Usage"),
    "a wrong verb": (["trian"], "Did you mean 'train'"),
    "no output": (["train", "{text}"], "Missing option '--out'"),
    "a missing text": (["train", "nofile", "-o", "x"], "no file 'nofile'"),
    "an empty text": (["train", "empty.txt", "-o", "x"], "empty.txt holds only white space"),
    "a binary text": (["train", "binary", "-o", "x"], "is not UTF-8 text: byte 0xff"),
    "a folder of no texts": (["train", "no-texts", "-o", "x"], "holds no file that can be read"),
    "no size": (["train", "{text}", "bpe", "-o", "x"], "for example bpe:4096"),
    "too small": (["train", "{text}", "bpe:256", "-o", "x"], "at least 257 tokens"),
    "too few words": (["train", "{text}", "word:2", "-o", "x"], "at least 3 tokens"),
    "nothing to learn": (["train", "{text}", "gpt2", "-o", "x"], "'gpt2' cannot be trained"),
    "a wrong kind": (["train", "{text}", "bqe:300", "-o", "x"], "'bqe:300' cannot be trained"),
    "a setting of another kind": (
        ["train", "{text}", "word", "-o", "x", "--pattern", "gpt2", "--min-frequency", "3"],
        "--pattern and --min-frequency: only for bpe:N, and the tokenizer is word",
    ),
    "a wrong pattern": (["train", "{text}", "-o", "x", "--pattern", "gpt4"], "there are gpt2, llama3, qwen2"),
    "a wrong frequency": (["train", "{text}", "-o", "x", "--min-frequency", "0"], "'--min-frequency'"),
    "a nameless token": (["train", "{text}", "-o", "x", "--special", ""], "the names of special tokens"),
    "a token twice": (["train", "{text}", "-o", "x", "--special", "<a>", "--special", "<a>"], "all different"),
    "ranks of words": (["train", "{text}", "char", "-o", "x.tiktoken"], "holds byte-level BPE, not char"),
    "show nothing": (["show"], "Missing argument 'TOKENIZER'"),
    "show a missing file": (["show", "nothing"], "no tokenizer 'nothing'"),
    "show nobody's home": (["show", "~nobody-of-that-name/x"], "no tokenizer '~nobody"),
    "show a misspelt name": (["show", "gtp2"], "did you mean gpt2?"),
    "show a recipe": (["show", "bpe:300"], "train it first"),
    "show a folder without": (["show", "."], "no tokenizer.json"),
    "show another file": (["show", "{text}"], "is not a tokenizer file of a known format"),
    "show a damaged file": (["show", "damaged.json"], "damaged.json cannot be read"),
    "show damaged ranks": (["show", "damaged.tiktoken"], "damaged.tiktoken is damaged: line 1"),
    "a pattern of another file": (["show", "words.json", "a", "--pattern", "gpt2"], "words.json has its own"),
    "an unknown word": (["show", "words.json", "unheard"], "the word 'unheard'"),
    "merges of words": (["show", "words.json", "--merges", "the"], "has no merges to replay"),
    "merges of nothing": (["show", "tok", "--merges", ""], "the word is empty"),
    "merges of bytes": (["show", "tok", "--merges", "a\udcff"], "the word is not UTF-8 text"),
    "merges and a text": (["show", "tok", "a", "--merges", "b"], "leave out TEXT"),
    "bytes for words": (["show", "words.json", "a\udcff"], "byte 0xff at offset 1"),
    "compare nothing": (["compare", "{text}"], "Missing argument 'TOKENIZER'"),
    "compare on nothing": (["compare", "nofile", "char"], "no file 'nofile'"),
    "compare a missing file": (["compare", "{text}", "char", "nothing"], "no tokenizer 'nothing'"),
    "compare too small": (["compare", "{text}", "char", "bpe:2"], "at least 257 tokens"),
    "compare on too little": (["compare", "short.txt", "char"], "too little text to compare on: 3 characters"),
    "compare with a pattern": (["compare", "{text}", "char", "--pattern", "gpt2"], "there is none among these"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_message_and_exit_code_2(cli: Any, text_file: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "short.txt").write_text("abc", encoding="utf-8")
    for damaged in ("binary", "damaged.json", "damaged.tiktoken"):
        (tmp_path / damaged).write_bytes(b"\xff{damage")
    (tmp_path / "tok").mkdir()
    (tmp_path / "no-texts").mkdir()
    save(BPETokenizer.train("a", 257), tmp_path / "tok", block_size=32)
    (tmp_path / "words.json").write_bytes(WordTokenizer.train("to be the").files()["tokenizer.json"])
    before = {path.name for path in tmp_path.iterdir()}
    arguments, expected = MISTAKES[name]
    code, out, err = cli("tokenizer", *(argument.format(text=text_file) for argument in arguments))
    assert code == 2
    assert expected in err + out
    assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} == before, "a mistake leaves nothing behind"


# --- terminals and imports --------------------------------------------------------------------------------------------


def test_a_terminal_shows_colours_unless_no_color_is_set(cli: Any, folder: Path) -> None:
    pty = pytest.importorskip("pty")

    def in_terminal(*arguments: str, **environment: str) -> str:
        ours, theirs = pty.openpty()
        kept = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        with subprocess.Popen(
            [sys.executable, "-m", "glassgpt", "tokenizer", *arguments],
            stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=kept | {"TERM": "xterm"} | environment,
        ) as process:  # fmt: skip
            os.close(theirs)
            shown = b""
            while True:
                try:
                    part = os.read(ours, 65536)
                except OSError:  # the other end is closed
                    break
                if not part:
                    break
                shown += part
            assert process.wait() == 0
        os.close(ours)
        return shown.decode("utf-8").replace("\r\n", "\n")

    text = "the\nthe <|endoftext|><|endoftext|>"
    shown = in_terminal("show", "tok", text, "--allow-special")
    painted, _, _ = shown.partition("\n\n")
    assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == "the\\n\nthe <|endoftext|><|endoftext|>"
    colours = re.findall(r"48;5;(\d+)m", painted)
    assert all(one != other for one, other in pairwise(colours)), "neighbours differ"
    assert len(colours) == len(load(folder).encode(text, allow_special=True))
    assert all(line.count("\x1b[38") == line.count("\x1b[0m") for line in painted.splitlines()), "none spans lines"
    assert "\x1b" not in in_terminal("show", "tok", text, NO_COLOR="1")
    assert "\x1b[38" in in_terminal("show", "tok", "--merges", " the")


def test_torch_is_not_imported(folder: Path, text_file: Path) -> None:
    script = (
        "import sys\n"
        "from glassgpt.cli.main import main\n"
        "for line in sys.argv[1:]:\n"
        "    sys.argv = ['glassgpt', 'tokenizer', *line.split('|')]\n"
        "    try:\n        main()\n"
        "    except SystemExit as ended:\n        assert not ended.code, line\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    lines = [f"train|{text_file}|bpe:300|-o|new", "show|tok|a text", "show|tok", f"compare|{text_file}|char|tok"]
    done = subprocess.run([sys.executable, "-c", script, *lines], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

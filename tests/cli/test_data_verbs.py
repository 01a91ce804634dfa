"""``data prepare`` and ``data show``: their output, the files they write, and their errors."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glassgpt import data
from glassgpt.config import DataConfig
from glassgpt.data.corpus import encoding
from glassgpt.data.corpus.encoding import in_validation

Cli = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture
def stories(cli: Cli) -> list[str]:
    """Documents in stories.jsonl; the last two are a near duplicate of number 8 and a copy of number 7."""
    generator = random.Random(1)
    words = [f"{a}{b}" for a in ("sun", "moon", "star", "cloud", "wind", "rain") for b in ("rise", "set", "light", "y")]
    texts = [f"{i} " + " ".join(generator.choices(words, k=60)) for i in range(60)]
    texts += [texts[8] + " end", texts[7]]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    Path("stories.jsonl").write_text(lines, encoding="utf-8")
    return texts


def numbers(cli: Cli, *arguments: object) -> Any:
    code, out, err = cli("data", *arguments, "--json")
    assert (code, err) == (0, ""), err
    return json.loads(out)


# --- prepare ---------------------------------------------------------------------------------------------------------


def test_prepare_documents(cli: Cli, stories: list[str]) -> None:
    arguments = ("prepare", "stories.jsonl", "tokenizer=bpe:300", "val_fraction=0.2", "--out", "ready")
    code, out, err = cli("data", *arguments)
    assert (code, err) == (0, "")
    assert "stories: documents, split by their content" in out and "next: glassgpt train ready" in out
    found = numbers(cli, *arguments)  # opened, not made again
    stream = data.open_stream(Path("ready"))
    validating = [text for text in stories if in_validation([text], 0.2)]
    assert found["documents"] == {"train": len(stories) - len(validating), "val": len(validating)}
    assert found["tokens"] == {"train": len(stream.train), "val": len(stream.val)}
    size = sum(len(text.encode()) for text in validating)
    assert found["bytes"]["val"] == size and found["bytes_per_token"]["val"] == size / len(stream.val)
    assert (found["tokenizer"], found["split"], found["vocab_size"]) == ("bpe:300", "documents", stream.info.vocab_size)
    assert (found["folder"], found["shards"], found["duplicates_dropped"]) == ("ready", 2, {})
    assert f"{len(stream.train):,}" in out and f"{size:,}" in out
    assert data.find_source(DataConfig(source="ready")).prepared == Path("ready").resolve()


def test_prepare_a_text(cli: Cli, prose: str) -> None:
    Path("a.txt").write_text(prose, encoding="utf-8")
    code, out, _ = cli("data", "prepare", "a.txt", "-o", "ready", "--processes", 2)
    assert code == 0 and "a: one text, split by position" in out and "documents" not in out
    stream = data.open_stream(Path("ready"))
    assert stream.tokenizer.decode(stream.train.tolist() + stream.val.tolist()) == prose


def test_what_was_not_read_is_counted(cli: Cli, prose: str) -> None:
    """In the output of `data prepare` and `data show`, in JSON, and in the notes of a run."""
    folder = Path("mixed")
    folder.mkdir()
    rows = [*({"text": line} for line in prose.splitlines()), {"text": None}, {"text": None}, {"text": ""}]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    (folder / "b.csv").write_text('id,text\n1,one\n2,""\n3," "\n', encoding="utf-8")
    for name, text in (("c.txt", "a text"), ("d.txt", ""), ("e.pdf", "x"), ("f.pdf", "x"), ("g", "x"), (".h.txt", "x")):
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "runs" / "x").mkdir(parents=True)
    for name, text in (("run.toml", ""), ("metrics.jsonl", '{"step": 1}')):
        (folder / "runs" / "x" / name).write_text(text, encoding="utf-8")
    left_out, passed_over = {"null": 2, "empty": 3, "only white space": 1}, {".pdf": 2, "hidden": 1, "no ending": 1}
    passed_over["training run"] = 1
    said = "2 .pdf, 1 hidden, 1 no ending, 1 training run"
    for arguments in (["prepare", "mixed", "-o", "ready"], ["show", "mixed"]):
        code, out, err = cli("data", *arguments)
        assert (code, err) == (0, "")
        assert f"\nfiles: 2 .txt, 1 .csv, 1 .jsonl; passed over: {said}\n" in out
        assert "left out, because they have no text: 3 empty, 2 null, 1 only white space\n" in out
        found = numbers(cli, *arguments)
        assert (found["files"], found["passed_over"]) == ({".txt": 2, ".csv": 1, ".jsonl": 1}, passed_over)
        assert found["left_out"] == left_out
        assert sum(found["documents"].values()) == len(rows) - 3 + 2
    notes = cli("plan", "mixed", "preset=tiny", "--no-measure")[1]
    assert f"files passed over: {said}; left out, because they have no text: 3 empty, 2 null" in notes


def test_prepare_drops_duplicates(cli: Cli, stories: list[str]) -> None:
    code, out, _ = cli("data", "prepare", "stories.jsonl", "duplicates=drop", "-o", "ready")
    assert code == 0 and "dropped 1 exact and 1 near duplicates" in out
    found = numbers(cli, "prepare", "stories.jsonl", "duplicates=drop", "-o", "ready")
    assert found["duplicates_dropped"] == {"exact": 1, "near": 1}
    assert sum(found["documents"].values()) == len(stories) - 2


def test_prepare_reports_unused_validation_documents(cli: Cli, stories: list[str]) -> None:
    code, out, _ = cli("data", "prepare", "stories.jsonl", "val_fraction=0.5", "max_val_tokens=2000", "-o", "ready")
    stream = data.open_stream(Path("ready"))
    unused = stream.manifest.total("documents")["val"] - stream.info.documents["val"]
    assert code == 0 and unused > 5 and stream.info.bytes["val"] <= 2000
    assert f"{unused} more validation documents are beyond max_val_tokens and not used" in out


def test_an_interrupted_prepare_is_resumed(cli: Cli, stories: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: encoding.Encoder, task: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(encoding.Encoder, "__call__", interrupted)
        code, out, err = cli("data", "prepare", "stories.jsonl", "-o", "ready")
        assert code == 130 and out == "" and "Traceback" not in err
    code, _, err = cli("train", "ready")
    assert code == 2 and "ready holds an interrupted preparation; resume it with the same" in err
    code, _, err = cli("data", "prepare", "stories.jsonl", "val_fraction=0.3", "-o", "ready")
    assert code == 2 and "unfinished preparation of another text or with other settings" in err
    assert cli("data", "prepare", "stories.jsonl", "-o", "ready")[0] == 0
    assert cli("data", "show", "ready")[0] == 0


# --- show ------------------------------------------------------------------------------------------------------------


def test_show_documents_lengths_vocabulary_and_a_batch(cli: Cli, stories: list[str]) -> None:
    assert cli("data", "prepare", "stories.jsonl", "tokenizer=bpe:300", "-o", "ready")[0] == 0
    stream = data.open_stream(Path("ready"))
    code, out, err = cli("data", "show", "ready", "--rows", 3, "mask_documents=true")
    assert (code, err) == (0, "")
    ids, decode = stream.train.tolist(), stream.tokenizer.decode
    begins = [i for i, token in enumerate(ids) if token == stream.tokenizer.eos_token_id]
    for number in range(3):
        beginning = decode(ids[begins[number] : begins[number] + 12])
        assert f"document {number}, from token {begins[number]:,}\n  {beginning!r}"[:-1] in out
    assert f"document {3}, from" not in out
    lengths = sorted(b - a for a, b in zip(begins, [*begins[1:], len(ids)], strict=True))
    assert f"documents: {lengths[0]} to {lengths[-1]} tokens" in out
    assert f"{len(set(ids))} of {stream.info.vocab_size} tokens occur" in out
    found = numbers(cli, "show", "ready", "--batch", 5)
    assert found["distinct_ids"] == len(set(ids)) and found["document_tokens"][0] == lengths[0]
    most = max(set(ids), key=ids.count)
    assert found["most_frequent"][0]["share"] == ids.count(most) / len(ids)
    for row in found["rows"]:
        assert row["inputs"] == ids[row["start"] : row["start"] + 32]
        assert row["targets"] == ids[row["start"] + 1 : row["start"] + 33]
    assert found["rows"] != numbers(cli, "show", "ready", "--batch", 6)["rows"]


def test_show_leaks(cli: Cli, stories: list[str]) -> None:
    train = [text for text in stories if not in_validation([text], 0.1)]
    shared = train[0].split()[10:30]
    Path("exam.txt").write_text("Which comes next? " + " ".join(shared).upper() + " ... nothing?", encoding="utf-8")
    code, out, err = cli("data", "show", "stories.jsonl", "--leaks", "--against", "exam.txt")
    assert (code, err) == (0, "")
    own, exam = out.split("exam.txt against the training text:")
    assert own.startswith("validation against the training text:") and "0 of " in own
    assert "1 of 1 evaluation documents (100.0%)" in exam and "20 words: " in exam and "training document 0" in exam
    found = numbers(cli, "show", "stories.jsonl", "--leaks", "--against", "exam.txt")
    assert found["exam.txt"]["found"] == 8 and found["exam.txt"]["passages"][0]["words"] == 20
    assert found["validation"]["found"] == 0
    assert cli("data", "prepare", "stories.jsonl", "-o", "ready")[0] == 0
    assert numbers(cli, "show", "ready", "--leaks", "--against", "exam.txt") == found


def test_show_leaks_within_a_text(cli: Cli, stories: list[str]) -> None:
    Path("a.txt").write_text("\n".join(stories[:40]) + "\n" + stories[3], encoding="utf-8")
    found = numbers(cli, "show", "a.txt", "--leaks")
    (passage, *_) = found["validation"]["passages"]
    assert passage["text"] == stories[3] and (passage["document"], passage["other"]) == (
        "validation the text", "training the text"
    )  # fmt: skip


def test_show_duplicates(cli: Cli, stories: list[str], empty_cache: Path) -> None:
    code, out, err = cli("data", "show", "stories.jsonl", "--duplicates", "val_fraction=0.0001")
    assert (code, err) == (0, "")
    assert "62 documents, 2 of them like an earlier one:" in out
    assert "data.duplicates=drop drops 1 exact and 1 near duplicates" in out
    place = Path("stories.jsonl").read_bytes().index(stories[-1].encode()) - len('{"text": "')
    assert f"stories.jsonl, byte {place}" in out and repr(stories[7][:160]) in out
    found = numbers(cli, "show", "stories.jsonl", "--duplicates", "val_fraction=0.0001", "--rows", 1)
    assert (found["documents"], found["exact"], found["near"], len(found["pairs"])) == (62, 1, 1, 1)
    assert found["kinds"] == {"train": 2, "validation": 0, "across": 0}
    assert not (empty_cache / "streams").exists(), "nothing is prepared for it"


# --- errors -----------------------------------------------------------------------------------------------------------

WRONG = {
    "nowhere to write": (["prepare", "stories.jsonl"], "'--out'"),
    "no such source": (["prepare", "nothing.jsonl", "-o", "out"], "there is no file 'nothing.jsonl'"),
    "an empty pattern": (["prepare", "*.parquet", "-o", "out"], "no file matches the pattern"),
    "two sources": (["prepare", "stories.jsonl", "a.txt", "-o", "out"], "one text at a time"),
    "no number": (["prepare", "stories.jsonl", "-o", "out", "--processes", "many"], "--processes"),
    "negative processes": (["prepare", "stories.jsonl", "-o", "out", "--processes", "-1"], "--processes"),
    "an unknown setting": (["prepare", "stories.jsonl", "-o", "out", "tokeniser=char"], "tokeniser"),
    "a share too large": (["prepare", "stories.jsonl", "-o", "out", "val_fraction=0.9"], "val_fraction"),
    "an unknown choice": (["prepare", "stories.jsonl", "-o", "out", "duplicates=some"], "duplicates"),
    "no such tokenizer": (["prepare", "stories.jsonl", "-o", "out", "tokenizer=nowhere"], "there is no tokenizer"),
    "no such field": (["prepare", "stories.jsonl", "-o", "out", "text_field=body"], "body"),
    "duplicates of one text": (["prepare", "a.txt", "-o", "out", "duplicates=drop"], "a.txt is one text"),
    "prepared already": (["prepare", "ready", "-o", "out"], "is prepared already; train on it: glassgpt train"),
    "prepared otherwise": (["prepare", "a.txt", "-o", "ready"], "ready holds a corpus of another text"),
    "a folder in use": (["prepare", "a.txt", "-o", "in-use"], "exists and is not empty"),
    "a file in the way": (["prepare", "a.txt", "-o", "a.txt"], "a.txt cannot be written"),
    "not UTF-8": (["prepare", "latin.txt", "-o", "out"], "byte 0xe9 at offset 3 (line 1)"),
    "bad JSON": (["prepare", "bad.jsonl", "-o", "out"], "bad.jsonl, line 2: not JSON"),
    "show nothing": (["show", "nothing.txt"], "there is no file 'nothing.txt'"),
    "two reports": (["show", "stories.jsonl", "--leaks", "--duplicates"], "ask for one at a time"),
    "against alone": (["show", "stories.jsonl", "--against", "a.txt"], "--against names a file for --leaks"),
    "against nothing": (["show", "stories.jsonl", "--leaks", "--against", "no.txt"], "there is no file 'no.txt'"),
    "against ids": (["show", "stories.jsonl", "--leaks", "--against", "ready"], "ready is a prepared corpus"),
    "duplicates of a text": (["show", "a.txt", "--duplicates"], "a single text has no documents"),
    "duplicates of ids": (["show", "ready", "--duplicates"], "a prepared corpus holds ids"),
    "a negative batch": (["show", "ready", "--batch", "-1"], "--batch"),
    "no rows": (["show", "ready", "--rows", "0"], "--rows"),
    "too long a context": (["show", "ready", "block_size=999999"], "needs at least 1000000"),
    "a damaged shard": (["show", "damaged"], "train-00000.safetensors"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_message(name: str, cli: Cli, stories: list[str], prose: str) -> None:
    Path("a.txt").write_text(prose, encoding="utf-8")
    Path("latin.txt").write_bytes(b"caf\xe9")
    Path("bad.jsonl").write_text('{"text": "one"}\n{"text": \n', encoding="utf-8")
    Path("in-use/folder").mkdir(parents=True)
    for folder in ("ready", "damaged"):
        assert cli("data", "prepare", "stories.jsonl", "-o", folder)[0] == 0
    shard = Path("damaged/train-00000.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1])
    arguments, said = WRONG[name]
    code, out, err = cli("data", *arguments)
    assert code == 2 and out == ""
    assert said in err and err.lower().count("error:") == 1 and "Traceback" not in err
    assert data.open_stream(Path("ready")).info.documents["train"] > 50, "what was there stays as it was"

"""Preparing a corpus: the ids are those of the text, whatever it is cut into, however often it is killed."""

import gzip
import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tokenizers
from dying import Dying
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers
from wording import prose as ordinary

from glassgpt.config import DataConfig
from glassgpt.data import TokenStream, find_source, prepare
from glassgpt.data.corpus import encoding, tasks
from glassgpt.data.sources import source as readers
from glassgpt.errors import DataError, TokenizerError
from glassgpt.tokenizer import BPETokenizer, CharTokenizer, Tokenizer, load, save
from glassgpt.tokenizer.bpe.bytelevel import BPEModel
from glassgpt.workers import run_tasks

ENDS = ["<s>", "</s>"]

pytestmark = pytest.mark.usefixtures("empty_cache")


def prepared(
    source: Path, folder: Path | None = None, *, processes: int | None = None, **settings: Any
) -> TokenStream:  # fmt: skip
    config = DataConfig(source=str(source), **settings)
    return prepare(find_source(config), config, folder=folder, processes=processes)


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory, prose: str) -> dict[str, Path]:
    """Tokenizers in folders, with an id for each end of a document: byte-level BPE, and one as Llama's first was."""
    folder = tmp_path_factory.mktemp("tokenizers")
    bpe, llama = folder / "bpe", folder / "llama"
    for path in (bpe, llama):
        path.mkdir()
    model = BPETokenizer.train(prose, 300).model
    named = {name: 300 + i for i, name in enumerate(ENDS)}
    model = BPEModel(model.vocab, model.merges, special=named, bos="<s>", eos="</s>")
    save(BPETokenizer(model), bpe, 8)
    library = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    everything = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", *ENDS, *everything], show_progress=False
    )  # fmt: skip
    library.train_from_iterator(prose.splitlines(), trainer)
    library.save(str(llama / "tokenizer.json"))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (llama / "tokenizer_config.json").write_text(json.dumps(roles), encoding="utf-8")
    assert load(bpe).can_encode_in_chunks and not load(llama).can_encode_in_chunks
    return {"bpe": bpe, "llama": llama}


# --- documents -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def documents(prose: str) -> list[str]:
    """Documents of all kinds and lengths, each different."""
    lines = prose.splitlines()
    made = [" ".join(lines[i * 4 : i * 4 + 1 + i % 5]) + "\n" * (i % 3) for i in range(100)]
    return [f"{i} {text}" for i, text in enumerate(made)] + ["\n\nleading", " é ", "日本語", "x" * 700]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> Path:
    """They, in files of many kinds, in the order in which these are read."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "sub").mkdir()

    def rows(texts: list[str]) -> bytes:
        return "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in texts).encode("utf-8")

    (folder / "a.jsonl").write_bytes(rows(documents[:40]) + rows([" \n "]))  # a blank one is none
    (folder / "b.txt").write_bytes(b"\xef\xbb\xbf" + documents[40].encode("utf-8"))
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(rows(documents[41:60])))
    quoted = "".join('"' + text.replace('"', '""') + '"\r\n' for text in documents[60:70])
    (folder / "d.csv").write_bytes(b"text\r\n" + quoted.encode("utf-8"))
    (folder / "e.md.gz").write_bytes(gzip.compress(documents[70].encode("utf-8")))
    (folder / "empty.txt").write_bytes(b"")
    (folder / "sub" / "a.py").write_bytes(documents[71].encode("utf-8"))
    (folder / "sub" / "b.jsonl").write_bytes(rows(documents[72:]))
    return folder


def side_of(text: str, val_fraction: float) -> str:
    return "val" if int(hashlib.sha256(text.encode("utf-8")).hexdigest()[:16], 16) < val_fraction * 2**64 else "train"


Streams = dict[str, tuple[list[int], list[int], list[int]]]


def reference(documents: Iterable[str], tokenizer: Tokenizer, val_fraction: float) -> Streams:
    """Ids, where documents begin, and their bytes, of each split, as simply as it can be said."""
    streams: Streams = {"train": ([], [], []), "val": ([], [], [])}
    for text in documents:
        ids, starts, sizes = streams[side_of(text, val_fraction)]
        starts.append(len(ids))
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        if begin is None and end is None:
            ids += tokenizer.encode(text) + tokenizer.encode("\n\n")
            sizes.append(len(text.encode("utf-8")) + 2)
        else:
            one = [] if begin == end or end is None else [end]
            ids += [end if begin is None else begin, *tokenizer.encode(text), *one]  # type: ignore[list-item]
            sizes.append(len(text.encode("utf-8")))
    return streams


def found(stream: TokenStream) -> Streams:
    streams: Streams = {"train": ([], [], []), "val": ([], [], [])}
    for split, tokens in (("train", stream.train), ("val", stream.val)):
        ids, starts, sizes = streams[split]
        ids += tokens.tolist()
        for shard, first in zip(tokens.shards, tokens.begins, strict=True):
            starts += (np.asarray(shard.starts) + first).tolist()
            sizes += shard.bytes.tolist()
    return streams


SPECS = ["bpe:300", "word:90", "char", "word", "BPE", "LLAMA"]


@pytest.mark.parametrize("task", [32 << 20, 1500], ids=["one task", "many"])
@pytest.mark.parametrize("spec", SPECS)
def test_the_stream_is_marker_and_document_in_order(
    spec: str, task: int, corpus: Path, documents: list[str], written: dict[str, Path], monkeypatch: Any
) -> None:
    monkeypatch.setattr(tasks, "MAX_TASK_BYTES", task)
    stream = prepared(corpus, tokenizer=str(written.get(spec.lower(), spec)), val_fraction=0.3, processes=1)
    tokenizer = stream.tokenizer
    if spec in ("bpe:300", "word:90"):
        assert tokenizer.bos_token_id == tokenizer.eos_token_id is not None, "generation may begin with it"
    elif spec in ("BPE", "LLAMA"):
        assert None is not tokenizer.bos_token_id != tokenizer.eos_token_id is not None
    assert found(stream) == reference(documents, tokenizer, 0.3)
    assert (len(stream.manifest.shards) > 10) == (task == 1500)
    info = stream.info
    assert info.tokens == {"train": len(stream.train), "val": len(stream.val)}
    assert info.bytes == {split: sum(sizes) for split, (_, _, sizes) in found(stream).items()}
    assert info.documents == {split: len(starts) for split, (_, starts, _) in found(stream).items()}
    assert sum(info.documents.values()) == len(documents)
    validated = [text for text in documents if side_of(text, 0.3) == "val"]
    assert info.lossless == all(tokenizer.decode(tokenizer.encode(text)) == text for text in validated)
    assert info.lossless == (spec not in ("word:90", "LLAMA")), "Llama's loses a space at the beginning"
    assert stream.tokens_per_byte == (info.tokens["val"] / info.bytes["val"] if info.lossless else None)
    for tokens in (stream.train, stream.val):
        belongs = tokens.document_of(np.arange(len(tokens)))
        assert np.array_equal(np.flatnonzero(np.diff(belongs, prepend=-1)), found(stream)[
            "train" if tokens is stream.train else "val"][1])  # fmt: skip


@pytest.mark.parametrize("spec", ["bpe:300", "char", "LLAMA"])
def test_long_documents_are_read_in_parts_to_the_same_ids(
    spec: str, corpus: Path, written: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = str(written.get(spec.lower(), spec))
    whole = prepared(corpus, tmp_path / "whole", tokenizer=spec)
    monkeypatch.setattr(encoding, "LONG_DOCUMENT_BYTES", 100)
    if spec != str(written["llama"]):
        monkeypatch.setattr(encoding, "CHUNK_CHARS", 20)
    monkeypatch.setattr(encoding, "text_parts", lambda file: readers.text_parts(file, 64))
    parts = prepared(corpus, tmp_path / "parts", tokenizer=spec)
    assert content_of(parts.folder) == content_of(whole.folder)
    monkeypatch.setattr(encoding, "SHARD_TOKENS", 100)
    small = prepared(corpus, tmp_path / "small", tokenizer=spec)
    assert len(small.manifest.shards) > len(whole.manifest.shards)
    assert [ids for ids, _, _ in found(small).values()] == [ids for ids, _, _ in found(whole).values()]
    assert [starts for _, starts, _ in found(small).values()] == [starts for _, starts, _ in found(whole).values()]
    assert (small.info.bytes, small.info.documents) == (whole.info.bytes, whole.info.documents)
    assert max(entry.tokens for entry in small.manifest.shards) < 1000


def test_adding_documents_moves_no_other(tmp_path: Path) -> None:
    generator = random.Random(3)
    texts = [ordinary(generator, 4) for _ in range(2000)]
    sides: list[dict[str, list[str]]] = []
    for count in (1000, 2000):
        folder = tmp_path / str(count)
        folder.mkdir()
        chosen = generator.sample(texts[:1000], 1000) + texts[1000:count]
        rows = "".join(json.dumps({"text": text}) + "\n" for text in chosen)
        (folder / "a.jsonl").write_text(rows, encoding="utf-8")
        stream = prepared(folder, val_fraction=0.2)
        ends = {
            split: stream.tokenizer.decode(tokens.tolist())
            for split, tokens in (("train", stream.train), ("val", stream.val))
        }
        sides.append({split: [text for text in chosen if text + "\n\n" in ends[split]] for split in ends})
        share = stream.info.documents["val"] / count
        assert abs(share - 0.2) < 4 * (0.2 * 0.8 / count) ** 0.5
    assert set(sides[0]["train"]) <= set(sides[1]["train"]) and set(sides[0]["val"]) <= set(sides[1]["val"])
    assert len(sides[0]["train"]) + len(sides[0]["val"]) == 1000


def test_two_documents_that_both_validate_still_train_a_tokenizer(tmp_path: Path) -> None:
    texts = [text for text in map("number {}".format, range(100)) if side_of(text, 0.2) == "val"][:2]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    for tokenizer in ("bpe:260", "word:5", "char"):
        stream = prepared(tmp_path / "a.jsonl", tokenizer=tokenizer, val_fraction=0.2)
        assert stream.info.documents == {"train": 1, "val": 1}


@pytest.mark.parametrize("task", [32 << 20, 1], ids=["one task", "a task each"])
def test_few_documents_leave_no_split_empty(task: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "MAX_TASK_BYTES", task)
    moved = Counter[str]()
    for case in range(12):
        texts = [f"{case} {i}" for i in range(2 + case % 3)]
        folder = tmp_path / str(case)
        folder.mkdir()
        for i, text in enumerate(texts):
            (folder / f"{i}.txt").write_text(text, encoding="utf-8")
        fraction = (0.01, 0.5)[case % 2]
        stream = prepared(folder, val_fraction=fraction, processes=1)
        assert min(stream.info.documents.values()) > 0 and sum(stream.info.documents.values()) == len(texts)
        expected = {text: side_of(text, fraction) for text in texts}
        if len(set(expected.values())) == 1:  # the one nearest to the border goes to the other side
            only = next(iter(expected.values()))
            nearest = (min if only == "train" else max)(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
            expected[nearest] = "val" if only == "train" else "train"
            moved[only] += 1
        for split, tokens in (("train", stream.train), ("val", stream.val)):
            kept = stream.tokenizer.decode(tokens.tolist()).split("\n\n")[:-1]
            assert kept == [text for text in texts if expected[text] == split]
    assert moved["train"] > 3 and moved["val"] > 0


def test_what_cannot_be_split_is_refused_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.jsonl").write_text('{"text": "alone"}\n\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"one\.jsonl holds one document; two are needed.*split by position"):
        prepared(tmp_path / "one.jsonl")
    (tmp_path / "none.jsonl").write_text('{"text": " "}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"none\.jsonl holds no document with text \(1 only white space\); there is"):
        prepared(tmp_path / "none.jsonl")
    save(CharTokenizer(["a"]), tmp_path, 8)
    with pytest.raises(DataError, match=r"none\.jsonl holds no document; two are needed.*no text: 1 only white space"):
        prepared(tmp_path / "none.jsonl", tokenizer=str(tmp_path))
    for size in (32 << 20, 1):
        monkeypatch.setattr(tasks, "MAX_TASK_BYTES", size)
        (tmp_path / "same.jsonl").write_text('{"text": "the same"}\n' * 5, encoding="utf-8")
        with pytest.raises(DataError, match="holds 5 documents, all with the same text"):
            prepared(tmp_path / "same.jsonl", processes=1)
        (tmp_path / "pair.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n' * 3, encoding="utf-8")
        stream = prepared(tmp_path / "pair.jsonl", processes=1)
        assert sorted(stream.info.documents.values()) == [3, 3], "what is the same stays together"


def test_planted_duplicates_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them and nothing else, within training, within validation and across."""
    monkeypatch.setattr(tasks, "MAX_TASK_BYTES", 60_000)
    generator = random.Random(5)
    texts = [ordinary(generator, 120) for _ in range(120)]
    again = [*texts[:20], *(text + " And one more word." for text in texts[20:40])]
    everything = texts + again
    generator.shuffle(everything)
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in everything), encoding="utf-8"
    )
    kept, dropped = list[str](), Counter[str]()
    for split in ("val", "train"):  # validation documents are kept before training documents
        for text in everything:
            if side_of(text, 0.3) == split:
                if text in kept or any(text in (other[: len(text)], other + " And one more word.") for other in kept):
                    dropped["exact" if text in kept else "near"] += 1
                else:
                    kept.append(text)
    order = [text for split in ("train", "val") for text in dict.fromkeys(everything) if text in kept]
    stream, other = (
        prepared(tmp_path / "a.jsonl", tmp_path / f"{n}", processes=n, duplicates="drop", val_fraction=0.3)
        for n in (1, 2)
    )
    assert stream.manifest.duplicates == {"exact": 20, "near": 20} == dict(dropped)
    assert found(stream) == reference(dict.fromkeys(order), stream.tokenizer, 0.3)
    assert content_of(other.folder) == content_of(stream.folder)


def test_one_text_has_no_duplicates_to_drop(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc " * 100, encoding="utf-8")
    with pytest.raises(DataError, match=r"duplicates=drop is for documents, and .*a\.txt is one text"):
        prepared(tmp_path / "a.txt", tmp_path / "out", duplicates="drop")
    assert not (tmp_path / "out").exists()
    assert prepared(tmp_path / "a.txt", tmp_path / "out").info.tokens["train"] == 360


# --- one long text ---------------------------------------------------------------------------------------------------

PIECES = ["a b", "é", "🦊", " ", "\n", "word", "中文", "\u0301", "...", "1 2", "\ufeff", "ſ ſ", "don't ", "</s>"]
LONG_TEXT = st.lists(st.sampled_from(PIECES), min_size=4, max_size=80).map("".join).filter(lambda text: text.strip())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    LONG_TEXT, st.booleans(), st.booleans(), st.integers(1, 40), st.integers(1, 30), st.integers(5, 60),
    st.sampled_from(["char", "word", "word:6", "bpe:270", "BPE"]),
)  # fmt: skip
def test_a_text_in_many_parts_has_the_ids_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, written: dict[str, Path],
    content: str, mark: bool, packed: bool, task: int, part: int, shard: int, spec: str,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("long")
    file = folder / ("a.txt.gz" if packed else "a.txt")
    raw = (b"\xef\xbb\xbf" if mark else b"") + content.encode("utf-8")
    file.write_bytes(gzip.compress(raw) if packed else raw)
    content = raw.decode("utf-8-sig")
    if not content.strip():
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "MAX_TASK_BYTES", task)
        patch.setattr(encoding, "CHUNK_CHARS", part)
        patch.setattr(encoding, "SHARD_TOKENS", shard)
        patch.setattr(readers, "_WINDOW", 70)
        stream = prepared(
            file, folder / "out", tokenizer=str(written.get(spec.lower(), spec)), val_fraction=0.3, processes=1
        )  # fmt: skip
    cut = len(content) - round(len(content) * 0.3)
    for text, tokens in ((content[:cut], stream.train), (content[cut:], stream.val)):
        assert tokens.tolist() == stream.tokenizer.encode(text) == stream.tokenizer.encode_array(text).tolist()
        assert not tokens.document_of(np.arange(len(tokens))).any()
    assert stream.info.bytes == {"train": len(content[:cut].encode()), "val": len(content[cut:].encode())}
    assert stream.info.documents == {"train": 1, "val": int(cut < len(content))}
    lossless = stream.tokenizer.decode(stream.val.tolist()) == content[cut:]
    assert stream.info.lossless == lossless and (lossless or spec == "word:6")
    assert stream.tokens_per_byte == (len(stream.val) / len(content[cut:].encode()) if lossless and cut < len(content)
                                      else None)  # fmt: skip


def test_a_tokenizer_that_cannot_divide_gets_texts_whole_or_in_long_parts(
    tmp_path: Path, written: dict[str, Path], prose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text(prose, encoding="utf-8")
    stream = prepared(tmp_path / "a.txt", tmp_path / "whole", tokenizer=str(written["llama"]))
    cut = len(prose) - round(0.1 * len(prose))
    assert stream.train.tolist() == stream.tokenizer.encode(prose[:cut])
    assert stream.val.tolist() == stream.tokenizer.encode(prose[cut:])
    asked: list[str] = []
    encode = type(stream.tokenizer).encode

    def noted(self: Tokenizer, text: str, allow_special: bool = False) -> list[int]:
        asked.append(text)
        return encode(self, text, allow_special)  # type: ignore[arg-type]

    monkeypatch.setattr(encoding, "UNSAFE_CHUNK_CHARS", 3000)
    monkeypatch.setattr(type(stream.tokenizer), "encode", noted)
    parts = prepared(tmp_path / "a.txt", tmp_path / "parts", tokenizer=str(written["llama"]))
    assert "".join(asked) == prose and 3000 < max(map(len, asked)) < 3100 and len(asked) > 5
    assert parts.train.tolist() + parts.val.tolist() == [i for text in asked for i in encode(stream.tokenizer, text)]  # type: ignore[arg-type]


def test_a_tokenizer_is_trained_on_an_even_part_of_what_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = "abcdefghijklmnop"
    (tmp_path / "a.txt").write_text("".join(f" {x * 3} {x * 3}" * 125 for x in letters + "qrst"), encoding="utf-8")

    def learned() -> set[str]:
        tokenizer = prepared(tmp_path / "a.txt", tokenizer="bpe:320", val_fraction=0.2, processes=1).tokenizer
        tokens = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
        return {x for x in letters if f" {x * 3}" in tokens}

    monkeypatch.setattr(tasks, "MAX_TASK_BYTES", 500)
    assert learned() == set(letters)
    monkeypatch.setattr("glassgpt.data.corpus.building.MAX_TOKENIZER_TRAIN_BYTES", 4000)
    monkeypatch.setenv("GLASSGPT_CACHE", str(tmp_path / "again"))
    some = learned()
    assert 6 <= len(some) <= 12 and min(some) < "d" and max(some) > "m", "from the beginning to the end"


# --- the same however it is done -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["documents", "text"])
def test_one_process_and_two_write_the_same_bytes(
    kind: str, corpus: Path, tmp_path: Path, prose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "MAX_TASK_BYTES", 1500)
    (tmp_path / "a.txt").write_text(prose, encoding="utf-8")
    source = corpus if kind == "documents" else tmp_path / "a.txt"
    one, two = (
        prepared(source, tmp_path / f"{processes}", tokenizer="bpe:300", processes=processes) for processes in (1, 2)
    )
    assert len(one.manifest.shards) > 8
    assert content_of(one.folder) == content_of(two.folder)
    assert one.info.data_sha256 == two.info.data_sha256
    cached = prepared(source, tokenizer="bpe:300", processes=1)
    assert content_of(cached.folder) == content_of(one.folder)


SCRIPT = textwrap.dedent("""
    import sys
    from glassgpt.cli.main import main
    from glassgpt.data.corpus import tasks
    tasks.MAX_TASK_BYTES = int(sys.argv.pop(1))
    main()
""")


def prepare_verb(*arguments: object, task: int = 1000) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", SCRIPT, str(task), "data", "prepare", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_again_and_again_it_ends_with_the_same_shards(
    processes: int, tmp_path: Path, prose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (prose * 5).splitlines()
    rows = [json.dumps({"text": f"{i} {line}"}) for i, line in enumerate(lines)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows), encoding="utf-8")
    arguments = [tmp_path / "a.jsonl", "tokenizer=bpe:400", "--processes", processes, "--json", "--out"]
    monkeypatch.setattr(tasks, "MAX_TASK_BYTES", 1000)
    whole = prepared(tmp_path / "a.jsonl", tmp_path / "whole", tokenizer="bpe:400", processes=1)
    assert len(whole.manifest.shards) > 200
    out, generator = tmp_path / "out", random.Random(processes)
    moments: list[Callable[[], bool]] = [
        lambda: (out / "plan.json").exists(),
        lambda: any(out.glob(".tokenizer-*")) or (out / "tokenizer.json").exists(),
        lambda: any(out.glob(".train-*")),
        lambda: len(list(out.glob("done/*.json"))) >= 9,
    ]
    for moment in moments if processes == 1 else moments[2:]:
        process = prepare_verb(*arguments, out)
        while not moment() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.05))
        process.kill()
        process.communicate()
        assert not (out / "manifest.json").exists(), "killed before the end"
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("done/*.json")}
    final = prepare_verb(*arguments, out)
    printed, complaints = final.communicate()
    assert (final.returncode, complaints) == (0, b"")
    assert json.loads(printed)["tokens"] == whole.info.tokens
    assert content_of(out) == content_of(whole.folder)
    assert len(kept) >= 9, "there was something to keep"
    assert [path.name for path in out.iterdir() if path.is_dir()] == []


def test_what_was_done_is_not_done_again(tmp_path: Path, prose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless its shards have changed since."""
    monkeypatch.setattr(tasks, "MAX_TASK_BYTES", 1000)
    (tmp_path / "a.txt").write_text(prose, encoding="utf-8")
    done: list[int] = []
    call = encoding.Encoder.__call__

    def stopped(self: encoding.Encoder, task: dict[str, Any]) -> dict[str, Any]:
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(task["number"])
        return call(self, task)

    with monkeypatch.context() as patch:
        patch.setattr(encoding.Encoder, "__call__", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepared(tmp_path / "a.txt", tmp_path / "out", processes=1)
    assert done == [0, 1, 2, 3, 4, 5, 6]
    path = tmp_path / "out" / "train-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    (tmp_path / "out" / "done" / "00005.json").write_text("{", encoding="utf-8")
    done.clear()

    def counted(self: encoding.Encoder, task: dict[str, Any]) -> dict[str, Any]:
        done.append(task["number"])
        return call(self, task)

    monkeypatch.setattr(encoding.Encoder, "__call__", counted)
    stream = prepared(tmp_path / "a.txt", tmp_path / "out", processes=1)
    assert done[:3] == [3, 5, 7] and len(done) == len(stream.manifest.shards) - 5
    assert stream.tokenizer.decode(stream.train.tolist() + stream.val.tolist()) == prose


def test_a_folder_that_holds_something_else_is_refused_and_untouched(tmp_path: Path, prose: str) -> None:
    (tmp_path / "a.txt").write_text(prose, encoding="utf-8")
    (tmp_path / "b.txt").write_text(prose + "more", encoding="utf-8")
    out = tmp_path / "out"

    def refused(message: str, source: str = "a.txt", **settings: Any) -> None:
        before = content_of(out)
        with pytest.raises(DataError, match=message):
            prepared(tmp_path / source, out, **settings)
        assert content_of(out) == before

    for name, content in (("notes.txt", b"mine"), ("plan.json", b'{"tomorrow": 1}'), ("manifest.json", b"{}")):
        out.mkdir()
        (out / name).write_bytes(content)
        refused("is not empty" if name != "manifest.json" else "is not a valid prepared corpus")
        (out / name).unlink()
        out.rmdir()
    prepared(tmp_path / "a.txt", out)
    refused("holds a corpus of another text", val_fraction=0.2)
    refused("holds a corpus of another text", tokenizer="word")
    refused("holds a corpus of another text", source="b.txt")
    before = content_of(out)
    assert prepared(tmp_path / "a.txt", out).folder == out and content_of(out) == before
    (out / "manifest.json").unlink()
    (out / "plan.json").write_text('{"key": "another"}', encoding="utf-8")
    refused("unfinished preparation of another text or with other settings")
    with pytest.raises(DataError, match="interrupted preparation; resume it with the same"):
        find_source(DataConfig(source=str(out)))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be written"):
        prepared(tmp_path / "a.txt", tmp_path / "file")


@pytest.mark.parametrize("damage", ["cut", "deleted", "manifest"])
def test_a_damaged_folder_is_made_again(damage: str, tmp_path: Path, prose: str) -> None:
    (tmp_path / "a.txt").write_text(prose, encoding="utf-8")
    stream = prepared(tmp_path / "a.txt", tmp_path / "out")
    before = content_of(stream.folder)
    path = stream.folder / stream.manifest.shards[0].file
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif damage == "deleted":
        path.unlink()
    else:
        text = (stream.folder / "manifest.json").read_text(encoding="utf-8")
        (stream.folder / "manifest.json").write_text(text.replace(stream.manifest.shards[0].sha256, "0" * 64))
    assert prepared(tmp_path / "a.txt", tmp_path / "out").info == stream.info
    assert content_of(stream.folder) == before


# --- errors in other processes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_in_any_process_is_one_message(
    processes: int, tmp_path: Path, written: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "MAX_TASK_BYTES", 100)
    for i in range(9):
        (tmp_path / f"{i}.txt").write_bytes(b"good " * 20)
    (tmp_path / "5.txt").write_bytes(b"go\xe9d " * 20)
    with pytest.raises(DataError) as refused:
        prepared(tmp_path / "*.txt", tokenizer=str(written["bpe"]), processes=processes)
    assert "5.txt is not UTF-8 text: byte 0xe9 at offset 2 (line 1)" in str(refused.value)
    (tmp_path / "5.txt").write_bytes(b"goOd " * 20)
    folder = tmp_path / "char"
    folder.mkdir()
    save(CharTokenizer(sorted(set("good \n"))), folder, 8)
    with pytest.raises(TokenizerError, match="the character 'O'"):
        prepared(tmp_path / "*.txt", tokenizer=str(folder), processes=processes)
    assert list((tmp_path / "cache" / "streams").iterdir()) == [], "nothing half done is left"


def test_a_process_that_is_killed_is_told() -> None:
    asked = [{"n": n} for n in range(12)]
    answers = dict(run_tasks(Dying, {"dies_at": -1}, asked, 2))
    assert {n: answer["square"] for n, answer in answers.items()} == {n: n * n for n in range(12)}
    assert os.getpid() not in {answer["process"] for answer in answers.values()}
    with pytest.raises(DataError, match=r"has ended early; is memory short\?"):
        list(run_tasks(Dying, {"dies_at": 5}, asked, 2))


WAIT = """
import sys
from dying import Waiting
from glassgpt.workers import run_tasks
try:
    list(run_tasks(Waiting, sys.argv[1], range(4), 2))
except KeyboardInterrupt:
    print("stopped")
"""


@pytest.mark.parametrize("received", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_one_that_started_it(received: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C goes to all processes of a terminal, and only the first handles it; no process can handle SIGKILL."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", WAIT, str(tmp_path)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    while len(list(tmp_path.iterdir())) < 2 and parent.poll() is None:
        time.sleep(0.01)
    os.killpg(parent.pid, received) if received == signal.SIGINT else parent.kill()
    printed, complaints = parent.communicate(timeout=60)
    if received == signal.SIGINT:
        assert (printed, complaints) == (b"stopped\n", b"")
    deadline = time.monotonic() + 30
    while any(psutil.pid_exists(int(path.name)) for path in tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(psutil.pid_exists(int(path.name)) for path in tmp_path.iterdir())


# --- memory ----------------------------------------------------------------------------------------------------------

MEASURE = textwrap.dedent("""
    import json, resource, sys, time
    from pathlib import Path
    from glassgpt import data
    from glassgpt.config import DataConfig
    source, out, tokenizer, processes = sys.argv[1:]
    config = DataConfig(source=source, tokenizer=tokenizer)
    began = time.monotonic()
    stream = data.prepare(data.find_source(config), config, folder=Path(out), processes=int(processes))
    lines = Path("/proc/self/status").read_text().splitlines()  # getrusage would count the process that began this one
    peaks = [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")]
    peaks.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
    print(json.dumps({"seconds": time.monotonic() - began, "peaks": peaks, "tokens": stream.info.tokens}))
""")


def measured(source: Path, out: Path, tokenizer: str, processes: int) -> dict[str, Any]:
    command = [sys.executable, "-c", MEASURE, str(source), str(out), tokenizer, str(processes)]
    result = subprocess.run(command, capture_output=True, check=True)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def write_words(path: Path, megabytes: int) -> None:
    """Ordinary words in lines, always the same."""
    block = ordinary(random.Random(0), 180_000).encode("utf-8")
    with path.open("wb") as file:
        for number in itertools.count():
            file.write(b"%d " % number + block)
            if file.tell() >= megabytes * 1_000_000:
                return


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read as Linux tells it")
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    write_words(tmp_path / "a.txt", 70)
    seen = measured(tmp_path / "a.txt", tmp_path / "out", "char", 2)
    assert max(seen["peaks"]) < 300, seen
    assert sum(seen["tokens"].values()) >= 70_000_000


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read as Linux tells it")
@pytest.mark.parametrize("spec", ["char", "gpt2"])
def test_a_gigabyte_in_half_of_one(spec: str, tmp_path: Path) -> None:
    """Less than 500 MB resident in any process."""
    from glassgpt import assets

    if spec == "gpt2" and assets.available("gpt2-bpe") is None:
        pytest.skip("GPT-2's vocabulary is not here")
    write_words(tmp_path / "a.txt", 1000)
    seen = measured(tmp_path / "a.txt", tmp_path / "out", spec, 2)
    assert max(seen["peaks"]) < 500, seen
    assert sum(entry.stat().st_size for entry in (tmp_path / "out").iterdir()) > 500_000_000


@pytest.mark.parametrize("change", ["written", "gone", "shorter"])
def test_a_source_that_changes_while_it_is_prepared_is_one_error(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    source, encode = tmp_path / "a.txt", encoding.Encoder.__call__
    source.write_text("a text of some words. " * 50, encoding="utf-8")

    def changing(self: encoding.Encoder, task: dict[str, Any]) -> dict[str, Any]:
        if task["number"] == 1:
            source.unlink()
            if change != "gone":
                source.write_text("words some of text a. " * (50 if change == "written" else 1), encoding="utf-8")
        return encode(self, task)

    with monkeypatch.context() as patch:
        patch.setattr(encoding.Encoder, "__call__", changing)
        with pytest.raises(DataError, match=r"a\.txt (was changed|cannot be read|has become shorter)"):
            prepare(find_source(DataConfig(source=str(source))), DataConfig(), processes=1)
    assert not list((empty_cache / "streams").iterdir()), "nothing of it is kept"


def test_a_broken_link_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a text", encoding="utf-8")
    (tmp_path / "texts" / "b.txt").symlink_to("nowhere")
    for name in ("texts", "texts/*"):
        with pytest.raises(DataError, match=r"b\.txt cannot be read"):
            prepared(tmp_path / name)

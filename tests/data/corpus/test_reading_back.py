"""A prepared corpus as text again is the text, document by document, without what marks them."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glassgpt.config import DataConfig
from glassgpt.data import TokenStream, find_source, prepare
from glassgpt.data.corpus import encoding, reading_back, tasks
from glassgpt.data.corpus.encoding import in_validation
from glassgpt.data.corpus.manifest import Manifest
from glassgpt.data.corpus.reading_back import texts_of
from glassgpt.tokenizer import BPETokenizer, save
from glassgpt.tokenizer.bpe.bytelevel import BPEModel

#: Tokens that end within characters, and documents that end as the marks between documents do.
PIECES = ["a", "é", "🦊", "中文", "\n", "\n\n", " ", "word", "�", "<|endoftext|>", "\u0301", "\x00"]
DOCUMENTS = st.lists(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join).filter(lambda text: text.strip()),
    min_size=2, max_size=9,
)  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, prose: str) -> dict[str, str]:
    """BPE with a token for each end of a document, with one for its beginning alone, and with none."""
    model = BPETokenizer.train(prose, 300).model
    names = {"both": ("<s>", "</s>"), "begin": ("<s>", None), "none": (None, None)}
    folders = {}
    for kind, (bos, eos) in names.items():
        folders[kind] = tmp_path_factory.mktemp(kind)
        special = {name: 299 + i for i, name in enumerate(filter(None, (bos, eos)))}
        save(BPETokenizer(BPEModel(model.vocab, model.merges, special=special, bos=bos, eos=eos)), folders[kind], 8)
    return {kind: str(folder) for kind, folder in folders.items()}


def prepared(source: Path, folder: Path, **settings: Any) -> TokenStream:
    config = DataConfig(source=str(source), **settings)
    return prepare(find_source(config), config, folder=folder, processes=1)


def read(stream: TokenStream, split: str) -> list[str]:
    return ["".join(parts) for parts in texts_of(stream, split)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    DOCUMENTS, st.sampled_from(["bpe:258", "char", "word", "both", "begin", "none"]), st.integers(1, 9),
    st.integers(1, 30), st.integers(5, 200),
)  # fmt: skip
def test_documents_are_those_of_the_source(
    tmp_path_factory: pytest.TempPathFactory, written: dict[str, str],
    documents: list[str], spec: str, part: int, shard: int, task: int,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("documents")
    documents = [f"{i} {text}" for i, text in enumerate(documents)]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in documents)
    (folder / "a.jsonl").write_text(rows, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading_back, "CHUNK_TOKENS", part)
        patch.setattr(encoding, "SHARD_TOKENS", shard)
        patch.setattr(tasks, "MAX_TASK_BYTES", task)
        stream = prepared(folder / "a.jsonl", folder / "out", tokenizer=written.get(spec, spec), val_fraction=0.4)
        train, val = read(stream, "train"), read(stream, "val")
    assert sorted(train + val) == sorted(documents)
    for texts, validates in ((train, False), (val, True)):
        assert texts == [text for text in documents if text in texts], "in the order of the source"
        wrong = [text for text in texts if in_validation([text], 0.4) != validates]
        assert len(wrong) <= (len(texts) == 1), "one may have been moved, for no split to be empty"


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=30).map("".join), st.integers(1, 9), st.integers(1, 20))
def test_a_single_text_is_one_document(
    tmp_path_factory: pytest.TempPathFactory, content: str, part: int, task: int
) -> None:
    folder = tmp_path_factory.mktemp("text")
    content = "a text " + content.replace("\0", "")
    (folder / "a.txt").write_bytes(content.encode("utf-8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading_back, "CHUNK_TOKENS", part)
        patch.setattr(tasks, "MAX_TASK_BYTES", task)
        stream = prepared(folder / "a.txt", folder / "out", tokenizer="bpe:258", val_fraction=0.3)
        (train,), (val,) = read(stream, "train"), read(stream, "val")
    assert train + val == content and len(val) == round(0.3 * len(content))


def test_validation_documents_that_do_not_count_are_not_read(tmp_path: Path) -> None:
    documents = [f"{i} document" for i in range(200)]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in documents)
    (tmp_path / "a.jsonl").write_text(rows, encoding="utf-8")
    stream = prepared(tmp_path / "a.jsonl", tmp_path / "out", tokenizer="bpe:300", val_fraction=0.3)
    everything = read(stream, "val")
    changed = {**vars(stream.manifest), "settings": {**stream.manifest.settings, "max_val_tokens": 100}}
    some = TokenStream(stream.folder, Manifest(**changed))
    count = some.info.documents["val"]
    assert 0 < count < len(everything) and read(some, "val") == everything[:count]
    assert sum(map(len, everything[:count])) <= 100 < sum(map(len, everything[: count + 1]))


def test_a_document_comes_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_back, "CHUNK_TOKENS", 100)
    (tmp_path / "a.txt").write_text("é" * 1000, encoding="utf-8")
    stream = prepared(tmp_path / "a.txt", tmp_path / "out")
    (parts,) = texts_of(stream, "train")
    lengths = [len(part) for part in parts]
    assert sum(lengths) == 900 and max(lengths) == 100

"""The manifest is checked before a corpus is used, and its numbers are those of the text."""

import copy
import functools
import itertools
import json
import operator
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glassgpt.config import DataConfig
from glassgpt.data import TokenStream, find_source, open_stream, prepare
from glassgpt.data.corpus import building, encoding, manifest, tasks
from glassgpt.data.corpus.shards import FORMAT_VERSION
from glassgpt.errors import DataError
from glassgpt.glass.corpus import corpus_sizes, corpus_statistics

CONTENT = "".join(chr(97 + i * i % 23) + ("é🦊\n" if i % 7 == 0 else "") for i in range(300))

pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "my.txt").write_bytes(CONTENT.encode("utf-8"))
    return tmp_path / "my.txt"


def prepared(file: Path, folder: Path | None = None, **settings: Any) -> TokenStream:
    config = DataConfig(source=str(file), **settings)
    return prepare(find_source(config), config, folder=folder)


def whole(stream: TokenStream) -> str:
    return stream.tokenizer.decode([*stream.train.tolist(), *stream.val.tolist()])


# --- an edited description -------------------------------------------------------------------------------------------

Edit = Callable[[dict[str, Any]], Any]
EDITS: dict[str, Edit] = {
    "another format version": lambda content: content.update(format_version=FORMAT_VERSION + 1),
    "no format version": lambda content: content.pop("format_version"),
    "a missing field": lambda content: content.pop("shards"),
    "an unknown field": lambda content: content.update(extra=1),
    "another checksum": lambda content: content["shards"][0].update(sha256="0" * 64),
    "no checksum": lambda content: content["shards"][1].pop("sha256"),
    "no shard of a split": lambda content: content["shards"].pop(),
    "shards as an object": lambda content: content.update(shards={"train": 1}),
    "a shard elsewhere": lambda content: content["shards"][0].update(file="../" + content["shards"][0]["file"]),
    "a shard of another name": lambda content: content["shards"][0].update(file="train-7.safetensors"),
    "a shard of no split": lambda content: content["shards"][0].update(split="test"),
    "splits exchanged": lambda content: [entry.update(split=split) for entry, split in zip(
        content["shards"], ("val", "train"), strict=True)],
    "a smaller vocabulary": lambda content: content.update(vocab_size=3),
    "a larger vocabulary": lambda content: content.update(vocab_size=1000),
    "a vocabulary that is no number": lambda content: content.update(vocab_size="27"),
    "another number of tokens": lambda content: content["shards"][0].update(tokens=7),
    "a negative number of tokens": lambda content: content["shards"][0].update(tokens=-1),
    "no number of tokens": lambda content: content["shards"][1].pop("tokens"),
    "another number of documents": lambda content: content["shards"][1].update(documents=2),
    "bytes that are no number": lambda content: content["shards"][1].update(bytes=1.5),
    "no settings": lambda content: content.update(settings={}),
    "no tokenizer": lambda content: content.update(tokenizer_sha256={}),
    "another tokenizer": lambda content: content["tokenizer_sha256"].update({"tokenizer.json": "0" * 64}),
    "another text": lambda content: content.update(text_sha256="0" * 64),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_description_is_refused_and_healed(name: str, text: Path) -> None:
    stream = prepared(text, max_val_tokens=301)
    path = stream.folder / "manifest.json"
    original = path.read_bytes()
    content = json.loads(original)
    EDITS[name](content)
    path.write_text(json.dumps(content), encoding="utf-8")
    if name != "another text":  # which only prepare can see: it has the text
        with pytest.raises(DataError) as caught:
            open_stream(stream.folder)
        assert str(stream.folder) in str(caught.value)
    assert whole(prepared(text, max_val_tokens=301)) == CONTENT
    assert path.read_bytes() == original


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"3", b"\xff\xfe", b"{}"])
def test_a_description_that_is_none_is_refused_and_healed(content: bytes, text: Path) -> None:
    stream = prepared(text)
    (stream.folder / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match="is not a valid prepared corpus") as caught:
        open_stream(stream.folder)
    assert str(stream.folder) in str(caught.value)
    assert whole(prepared(text)) == CONTENT


#: What may be in place of any value: other types, numbers out of range, half a surrogate pair.
WRONG_VALUES = [None, [], {}, "x", -1, 1.5, 10**400, True, "\udcff", [1], {"a": 1}, "removed"]


def edits(content: Any) -> Iterator[tuple[str, Any]]:
    """Put each wrong value in each place of some JSON."""

    def places(part: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        yield from [path] if path else []
        for key in part if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ():
            yield from places(part[key], (*path, key))

    for (*outer, last), wrong in itertools.product(places(content, ()), WRONG_VALUES):
        edited = copy.deepcopy(content)
        part = functools.reduce(operator.getitem, outer, edited)
        if wrong == "removed":
            del part[last]
        else:
            part[last] = wrong
        yield f"{outer} {last}: {wrong}"[:80], edited


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    rows = [json.dumps({"text": f"document {i}"}) for i in range(9)]
    (tmp_path / "a.jsonl").write_text("\n".join([*rows, '{"text": null}']), encoding="utf-8")
    return tmp_path / "a.jsonl"


def use(folder: Path) -> None:
    """Read all of a corpus that a run or `data show` reads."""
    stream = open_stream(folder)
    json.dumps([corpus_sizes(stream), corpus_statistics(stream), vars(stream.info), stream.tokens_per_byte])
    assert len(stream.val) == len(stream.val.tolist()) and len(stream.train) == len(stream.train.tolist())
    assert sum(stream.manifest.left_out.values()) >= 0 and isinstance(stream.manifest.data_sha256, str)


def test_any_wrong_value_in_a_description_or_a_shard_is_one_error_or_harmless(documents: Path, tmp_path: Path) -> None:
    folder = prepared(documents, tmp_path / "ready", val_fraction=0.4, max_val_tokens=20).folder
    refused = 0
    path = folder / "manifest.json"
    original = path.read_bytes()
    for label, edited in edits(json.loads(original)):
        path.write_text(json.dumps(edited), encoding="utf-8")
        try:
            use(folder)
        except DataError as error:
            refused += 1
            assert "\n" not in str(error) and str(folder) in str(error), label
    path.write_bytes(original)
    path = folder / "train-00000.safetensors"
    original = path.read_bytes()
    end = 8 + int.from_bytes(original[:8], "little")
    for label, edited in edits(json.loads(original[8:end])):
        header = json.dumps(edited).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + original[end:])
        with pytest.raises(DataError, match=r"train-00000\.safetensors") as caught:
            use(folder)
        assert "\n" not in str(caught.value), label
    assert refused > 200


@pytest.mark.parametrize(
    "content", [None, b"", b"[]", b"null", b"[" * 100_000, b"\0\xff" * 99, b"1" * 5000, Path.mkdir]
)
def test_any_file_that_is_replaced_is_one_error_and_the_cache_is_healed(
    content: Any, documents: Path, tmp_path: Path, empty_cache: Path
) -> None:
    names = sorted(path.name for path in prepared(documents).folder.iterdir())
    expected = whole(prepared(documents))
    for name in names:
        for folder in (tmp_path / "ready", None):
            path = prepared(documents, folder).folder / name
            path.unlink()
            if content is Path.mkdir:
                path.mkdir()
            elif content is not None:
                path.write_bytes(content)
            with pytest.raises(DataError) as caught:
                use(path.parent)
            assert "\n" not in str(caught.value) and str(path.parent) in str(caught.value)
            if folder is None:
                assert whole(prepared(documents)) == expected
            shutil.rmtree(tmp_path / "ready", ignore_errors=True)


def test_any_wrong_value_in_a_finished_task_is_harmless(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = tmp_path / "ready", whole(prepared(documents))

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(building, "write_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            prepared(documents, folder)
    result = folder / "done" / "00000.json"
    original = result.read_bytes()
    for edited in (b"", b"[]", b"[" * 100_000, *(json.dumps(edit).encode() for _, edit in edits(json.loads(original)))):
        result.write_bytes(edited)
        found = building._finished_result(result, folder)
        assert found is None or all(type(found[name]) is type(json.loads(original)[name]) for name in found)
    for damage in (b"[[1]]", b'{"shards": 3}'):
        result.write_bytes(damage)
    assert whole(prepared(documents, folder)) == expected


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def swap_two_characters(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("named", [False, True], ids=["cache", "folder"])
@pytest.mark.parametrize("damage", [Path.unlink, empty, cut_byte, swap_two_characters], ids=lambda f: f.__name__)
def test_prepare_heals_a_damaged_tokenizer(
    damage: Callable[[Path], Any], named: bool, text: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "ready" if named else None
    stream = prepared(text, folder)
    path = stream.folder / "tokenizer.json"
    original = path.read_bytes()
    damage(path)
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        open_stream(stream.folder)
    assert whole(prepared(text, folder)) == CONTENT
    assert path.read_bytes() == original


def test_no_stream_at_all(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="is not a valid prepared corpus"):
            open_stream(folder)


# --- what is large is not read each time -----------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[TokenStream, list[str]]:
    """A corpus of several shards that counts as large, and the shards that are read from now on."""
    monkeypatch.setattr(manifest, "_LARGE", 0)
    monkeypatch.setattr(tasks, "MAX_TASK_BYTES", 400)
    (tmp_path / "long.txt").write_text("a b c d e f g h " * 200, encoding="utf-8")
    stream = prepared(tmp_path / "long.txt", tmp_path / "ready")
    read: list[str] = []
    sha256_of = manifest.sha256_of

    def noted(path: Path) -> str:
        if path.suffix == ".safetensors":
            read.append(path.name)
        return str(sha256_of(path))

    monkeypatch.setattr(manifest, "sha256_of", noted)
    return stream, read


def test_only_changed_shards_of_a_large_corpus_are_read_again(
    large: tuple[TokenStream, list[str]], empty_cache: Path
) -> None:
    stream, read = large
    names = [entry.file for entry in stream.manifest.shards]
    assert len(names) > 5
    open_stream(stream.folder)
    assert read == []
    touched = stream.folder / names[3]
    touched.write_bytes(touched.read_bytes())
    os.utime(touched, ns=(1, 1))
    open_stream(stream.folder)
    assert read == [names[3]]
    content = bytearray(touched.read_bytes())
    content[-1] ^= 1
    touched.write_bytes(content)
    for _ in range(2):  # what was found wrong is not remembered as right
        with pytest.raises(DataError, match=names[3]):
            open_stream(stream.folder)
    content[-1] ^= 1
    touched.write_bytes(content)
    (record,) = (empty_cache / "checked").iterdir()
    for damage in (b"", b"[]", b"{", b'{"%s": 3}' % names[0].encode()):
        record.write_bytes(damage)
        read.clear()
        open_stream(stream.folder)
        assert read == names
    read.clear()
    os.replace(stream.folder, stream.folder.with_name("moved"))
    open_stream(stream.folder.with_name("moved"))
    assert read == names, "elsewhere they may be other files"


def test_a_small_corpus_is_read_each_time(large: tuple[TokenStream, list[str]], monkeypatch: Any) -> None:
    stream, read = large
    monkeypatch.setattr(manifest, "_LARGE", 1 << 30)
    open_stream(stream.folder)
    assert len(read) == len(stream.manifest.shards)


def test_checking_works_where_the_cache_cannot_be_written(
    large: tuple[TokenStream, list[str]], empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, read = large
    (empty_cache.parent / "file").write_bytes(b"")
    monkeypatch.setenv("GLASSGPT_CACHE", str(empty_cache.parent / "file"))
    open_stream(stream.folder)
    assert len(read) == len(stream.manifest.shards)


# --- the part of the validation documents that counts ----------------------------------------------------------------


@pytest.mark.parametrize("shard", [1 << 24, 150, 40])
def test_validation_ends_at_a_document(tmp_path: Path, shard: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For any limit: as many full documents as fit, and at least one (or a part of it)."""
    monkeypatch.setattr(encoding, "SHARD_TOKENS", shard)
    monkeypatch.setattr(encoding, "CHUNK_CHARS", 16)
    monkeypatch.setattr(tasks, "MAX_TASK_BYTES", 900)
    documents = [f"{number} " + "word " * (number * 7 % 30) + "é" for number in range(60)]
    lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    full = prepared(tmp_path / "a.jsonl", tokenizer="bpe:270", val_fraction=0.4, max_val_tokens=10**9)
    marker = full.tokenizer.eos_token_id
    ids = full.val.tolist()
    begins = [i for i, token in enumerate(ids) if token == marker] + [len(ids)]
    texts = [full.tokenizer.decode(ids[a + 1 : b]) for a, b in itertools.pairwise(begins)]
    assert set(texts) <= set(documents) and len(texts) > 15
    ends = np.cumsum([len(text.encode()) for text in texts])
    assert (full.info.bytes["val"], full.info.documents["val"]) == (ends[-1], len(texts))
    kept = full.manifest
    for most in [2, *(int(end) + by for end in ends for by in (-1, 0, 1))]:
        cut = TokenStream(full.folder, manifest.Manifest(**{**vars(kept), "settings": {"max_val_tokens": most}}))
        count = max(1, int(np.searchsorted(ends, most, side="right")))
        if shard == 40:  # a document that begins within the limit may go on in the next shard, and beyond it
            count = min(max(count, cut.info.documents["val"]), count + 1)
        assert cut.info.documents["val"] == count
        if count > 1 or shard > 1000:
            assert cut.info.bytes["val"] == ends[count - 1] and len(cut.val) == begins[count], most
            assert cut.val.tolist() == ids[: begins[count]]
        else:  # the first document may go on in the next shard
            assert 0 < len(cut.val) <= begins[1] and cut.info.bytes["val"] <= ends[0]
        assert cut.info.tokens["val"] == len(cut.val)
        assert cut.train.tolist() == full.train.tolist()
        assert cut.tokens_per_byte == pytest.approx(len(cut.val) / cut.info.bytes["val"])

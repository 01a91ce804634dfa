"""Token shards: many files as one array, nothing of a text lost, prepared once, not trusted when they have changed."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from glassgpt.config import DataConfig
from glassgpt.data import Tokens, TokenStream, find_source, open_stream, prepare
from glassgpt.data.corpus.shards import FORMAT_VERSION, check_ids, open_shard, write_shard
from glassgpt.errors import DataError
from glassgpt.tokenizer import CharTokenizer

CONTENT = "".join(chr(97 + i * i % 23) + ("é🦊\n" if i % 7 == 0 else "") for i in range(300))
ANY_TEXT = (
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=80)
    .map(lambda text: text.removeprefix("\ufeff"))  # of a file it would be a mark
    .filter(lambda text: text and not text.isspace())
)

pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "my.txt").write_bytes(CONTENT.encode("utf-8"))
    return tmp_path / "my.txt"


def prepared(file: Path, fraction: float = 0.1, most: int = 1000, **other: Any) -> TokenStream:
    config = DataConfig(source=str(file), val_fraction=fraction, max_val_tokens=most, **other)
    return prepare(find_source(config), config)


def decoded(stream: TokenStream) -> tuple[str, str]:
    return stream.tokenizer.decode(stream.train.tolist()), stream.tokenizer.decode(stream.val.tolist())


def identity(folder: Path) -> dict[str, tuple[int, int]]:
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in folder.iterdir()}


# --- one array over many files ---------------------------------------------------------------------------------------


@st.composite
def arrays(draw: st.DrawFn) -> list[tuple[list[int], list[int]]]:
    """Ids of some shards, and where documents begin in each: the first not later than the first id."""
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any))
    shards, first = [], True
    for length in lengths:
        ids = draw(st.lists(st.integers(0, 65535), min_size=length, max_size=length))
        starts = draw(st.sets(st.integers(0, length - 1))) if length else set()
        shards.append((ids, sorted(starts | ({0} if first and length else set()))))
        first = first and not length
    return shards


def made(folder: Path, shards: list[tuple[list[int], list[int]]], length: int | None = None) -> Tokens:
    for number, (ids, starts) in enumerate(shards):
        parts = [np.array(ids, dtype="<u2"), np.array(starts, dtype="<i8"), np.full(len(starts), 3, dtype="<i8")]
        write_shard(folder / f"{number}.safetensors", "train", "t", parts)
    return Tokens([open_shard(folder / f"{number}.safetensors") for number in range(len(shards))], length)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(arrays(), st.data())
def test_tokens_are_the_array_of_their_shards(
    tmp_path_factory: pytest.TempPathFactory, shards: list[tuple[list[int], list[int]]], data: st.DataObject
) -> None:
    whole = np.concatenate([np.array(ids, dtype=np.uint16) for ids, _ in shards])
    length = data.draw(st.integers(1, len(whole)))
    tokens, whole = made(tmp_path_factory.mktemp("s"), shards, length), whole[:length]
    assert (len(tokens), tokens.shape, tokens.size, tokens.dtype) == (length, (length,), length, np.dtype("<u2"))
    assert np.array_equal(np.asarray(tokens), whole) and tokens.tolist() == whole.tolist() == list(tokens)
    assert np.asarray(tokens, dtype=np.int64).dtype == np.int64
    place = data.draw(st.integers(-length, length - 1))
    assert tokens[place] == whole[place] and np.ndim(tokens[place]) == 0
    cut = data.draw(st.slices(length))
    assert np.array_equal(tokens[cut], whole[cut]) and tokens[cut].dtype == whole.dtype
    index = data.draw(st.lists(st.lists(st.integers(-length, length - 1), min_size=3, max_size=3), max_size=4))
    places = np.array(index, dtype=np.int64).reshape(-1, 3)
    assert np.array_equal(tokens[places], whole[places]) and tokens[places].shape == places.shape
    for beyond in (length, -length - 1, np.array([0, length])):
        with pytest.raises(IndexError):
            tokens[beyond]
    again = pickle.loads(pickle.dumps(tokens))  # noqa: S301  # as a loader's worker process is given them
    assert again.tolist() == whole.tolist() and len(pickle.dumps(tokens)) < 1500 * len(shards)
    # which document: one more at each place where one begins
    begins = np.concatenate([np.isin(np.arange(len(ids)), starts) for ids, starts in shards])[:length]
    everywhere = np.arange(length).reshape(1, -1)
    assert np.array_equal(tokens.document_of(everywhere), np.cumsum(begins)[None] - 1)


def test_a_shard_is_a_safetensors_file_that_tells_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    digest = write_shard(
        path, "val", "abc", [np.array([5, 6, 700], "<u4"), np.array([0, 2], "<i8"), np.array([9, 4], "<i8")]
    )
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    with safe_open(path, "numpy") as theirs:
        header = theirs.metadata()
        found = {name: theirs.get_tensor(name) for name in theirs.keys()}  # noqa: SIM118
    assert found["tokens"].tolist() == [5, 6, 700] and found["tokens"].dtype == np.uint32
    assert (found["starts"].tolist(), found["bytes"].tolist()) == ([0, 2], [9, 4])
    arrays = b"".join(found[name].tobytes() for name in ("tokens", "starts", "bytes"))
    assert header.keys() == {"glassgpt"} and json.loads(header["glassgpt"]) == {
        "format_version": FORMAT_VERSION, "split": "val", "tokenizer": "abc",
        "tokens": 3, "documents": 2, "sha256": hashlib.sha256(arrays).hexdigest(),
    }  # fmt: skip
    shard = open_shard(path)
    assert (len(shard), shard.split, shard.tokens.tolist(), shard.starts.tolist()) == (3, "val", [5, 6, 700], [0, 2])
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    shard.check(701)
    assert [(shard.layout[name][2]) % 4 for name in shard.layout] == [0, 0, 0], "mapped arrays are aligned"
    with pytest.raises(ValueError, match="read-only"):
        shard.tokens[0] = 1


def test_a_shard_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_shard(
            tmp_path / "a.safetensors", "val", "t", [np.zeros(3, "<u2"), np.zeros(1, "<i8"), np.zeros(1, "<i8")]
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [0, 6, (1 << 24) - 1, 1 << 24, (1 << 24) + 5])
def test_an_id_beyond_the_vocabulary_is_found_across_parts(place: int) -> None:
    ids = np.zeros((1 << 24) + 9, dtype=np.uint16)
    ids[place] = 300
    check_ids(ids, 301, "x")
    with pytest.raises(DataError, match=rf"x: id 300 at token {place} \(byte {100 + 2 * place}\) is beyond .* 300"):
        check_ids(ids, 300, "x", offset=100)


def test_no_byte_of_a_shard_can_change_unseen(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_shard(path, "train", "t" * 64, [np.arange(40, dtype="<u2"), np.arange(3, dtype="<i8"), np.ones(3, "<i8")])
    original = path.read_bytes()
    seen = 0
    for place in range(len(original)):
        for bit in (1, 32) if place % 3 else (2,):
            changed = bytearray(original)
            changed[place] ^= bit
            path.write_bytes(changed)
            try:
                shard = open_shard(path)
                shard.check(40)
            except DataError as error:
                assert str(path) in str(error)
                seen += 1
                continue
            # of what the header says, the manifest knows the split, tokenizer, numbers, and the file's checksum
            assert place < len(original) - 128 and (shard.split, len(shard)) == ("train", 40)
    assert seen > len(original) / 2
    for length in range(0, len(original), 5):
        path.write_bytes(original[:length])
        with pytest.raises(DataError, match=r"a\.safetensors is not a valid token shard"):
            open_shard(path)


def test_the_version_before_is_read_and_a_later_one_is_named(tmp_path: Path) -> None:
    path, arrays = tmp_path / "a.safetensors", {"tokens": np.arange(4, dtype="<u2"), "bytes": np.ones(1, "<i8")}
    arrays["starts"] = np.zeros(1, "<i8")
    digest = hashlib.sha256(b"".join(arrays[name].tobytes() for name in ("tokens", "starts", "bytes"))).hexdigest()
    header = {"format": "glassgpt tokens", "split": "val", "tokenizer": "t", "tokens": "4", "sha256": digest}
    save_file(arrays, path, {**header, "format_version": "3"})
    shard = open_shard(path)
    shard.check(4)
    assert (shard.split, shard.tokens.tolist()) == ("val", [0, 1, 2, 3])
    save_file(arrays, path, {"glassgpt": json.dumps({**header, "format_version": FORMAT_VERSION + 1})})
    with pytest.raises(DataError, match=f"format version {FORMAT_VERSION + 1}; this program reads"):
        open_shard(path)


# --- a single text ---------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(ANY_TEXT, st.floats(0.001, 0.5), st.integers(2, 100))
def test_the_split_is_by_position_and_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, content: str, val_fraction: float, max_val_tokens: int
) -> None:
    file = tmp_path_factory.mktemp("text") / "s.txt"
    file.write_bytes(content.encode("utf-8"))
    stream = prepared(file, val_fraction, max_val_tokens)
    train, val = decoded(stream)
    assert train + val == content
    assert len(val) <= max_val_tokens and abs(min(len(content) * val_fraction, max_val_tokens) - len(val)) <= 0.5
    assert stream.info.tokens == {"train": len(train), "val": len(val)}
    assert stream.info.bytes == {"train": len(train.encode()), "val": len(val.encode())}
    assert stream.info.documents == {"train": int(bool(train)), "val": int(bool(val))}
    assert stream.info.vocab_size == stream.tokenizer.vocab_size == len(set(content))
    assert stream.info.text_sha256 == hashlib.sha256(content.encode("utf-8")).hexdigest()


@pytest.mark.parametrize(
    ("fraction", "most", "expected"), [(0.1, 1000, 100), (0.5, 1000, 500), (0.5, 30, 30), (0.1, 2, 2)]
)
def test_the_size_of_the_validation_split(tmp_path: Path, fraction: float, most: int, expected: int) -> None:
    (tmp_path / "s.txt").write_bytes(b"ab" * 500)
    stream = prepared(tmp_path / "s.txt", fraction, most)
    assert (len(stream.train), len(stream.val)) == (1000 - expected, expected)


def test_a_byte_order_mark_is_no_token_and_hides_no_document(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_bytes(b"\xef\xbb\xbf" + b"ab" * 500)
    stream = prepared(tmp_path / "s.txt")
    assert "".join(decoded(stream)) == "ab" * 500
    assert stream.train.document_of(np.arange(900)).tolist() == [0] * 900
    assert stream.info.documents == {"train": 1, "val": 1}


def test_files_are_shards_described_by_a_manifest(empty_cache: Path, text: Path) -> None:
    stream = prepared(text)
    assert stream.folder.parent == empty_cache / "streams"
    assert sorted(path.name for path in stream.folder.parent.iterdir()) == [stream.folder.name]  # no leftovers
    names = ["manifest.json", "tokenizer.json", "tokenizer_config.json", "train-00000.safetensors"]
    assert sorted(path.name for path in stream.folder.iterdir()) == [*names, "val-00001.safetensors"]
    content = json.loads((stream.folder / "manifest.json").read_text(encoding="utf-8"))
    assert (content["tokenizer"], content["split"], content["lossless"]) == ("char", "position", True)
    assert [entry["split"] for entry in content["shards"]] == ["train", "val"]
    for entry in content["shards"]:
        raw = (stream.folder / entry["file"]).read_bytes()
        assert hashlib.sha256(raw).hexdigest() == entry["sha256"]
        with safe_open(stream.folder / entry["file"], "numpy") as theirs:
            ids = theirs.get_tensor("tokens")
        assert ids.tolist() == getattr(stream, entry["split"]).tolist() and len(ids) == entry["tokens"]
        assert ids.tobytes() in raw and ids.dtype == np.dtype("<u2")  # little-endian, whatever the machine
    for name, digest in content["tokenizer_sha256"].items():
        assert hashlib.sha256((stream.folder / name).read_bytes()).hexdigest() == digest


def test_prepared_twice_is_opened_not_rewritten(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepared(text)
    before = identity(first.folder)
    monkeypatch.setattr(CharTokenizer, "train", lambda *texts: pytest.fail("tokenised again"))
    shutil.copy(text, tmp_path / "other.txt")
    second = prepared(tmp_path / "other.txt")
    assert second.folder == first.folder and identity(second.folder) == before
    assert decoded(second) == decoded(first)


def test_other_text_and_other_splits_get_other_folders(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(CONTENT, encoding="utf-8")
    (tmp_path / "b.txt").write_text(CONTENT + "a", encoding="utf-8")
    streams = [
        prepared(tmp_path / name, fraction, most)
        for name in ("a.txt", "b.txt")
        for fraction in (0.1, 0.2)
        for most in (10, 20)
    ]
    assert len({stream.folder for stream in streams}) == 8
    assert all("".join(decoded(stream)).startswith(CONTENT) for stream in streams)


def test_a_stream_that_another_process_just_prepared_is_kept(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be open there, its tokenizer not yet read: the folder must not be pulled away."""
    train = CharTokenizer.train
    seen: dict[str, Any] = {}

    def interrupted(*texts: Any) -> CharTokenizer:
        monkeypatch.setattr(CharTokenizer, "train", train)
        other = prepared(text)
        seen.update(folder=other.folder, files=identity(other.folder))
        return train(*texts)

    monkeypatch.setattr(CharTokenizer, "train", interrupted)
    stream = prepared(text)
    assert stream.folder == seen["folder"] and "".join(decoded(stream)) == CONTENT
    assert [path.name for path in stream.folder.parent.iterdir()] == [stream.folder.name]
    assert identity(stream.folder) == seen["files"]


@pytest.mark.parametrize(("symbols", "dtype"), [(2**16, "<u2"), (2**16 + 1, "<u4"), (70_000, "<u4")])
def test_the_width_of_ids_follows_the_vocabulary(tmp_path: Path, symbols: int, dtype: str) -> None:
    codes = [code for code in range(1, symbols + 2049) if not 0xD800 <= code < 0xE000][:symbols]
    content = "".join(map(chr, reversed(codes)))
    (tmp_path / "s.txt").write_bytes(content.encode("utf-8"))
    stream = prepared(tmp_path / "s.txt")
    assert (stream.info.vocab_size, stream.info.dtype, stream.train.dtype) == (symbols, dtype, np.dtype(dtype))
    assert int(stream.train[0]) == symbols - 1  # the largest id did not wrap round
    assert np.array_equal(np.concatenate([stream.train, stream.val]), np.arange(symbols)[::-1])
    assert decoded(open_stream(stream.folder))[1] == content[-1000:]


def test_a_text_too_short_to_split_has_an_empty_validation_stream(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_bytes(b"abc")
    stream = prepared(tmp_path / "s.txt")
    assert (stream.train.shape, stream.val.shape, stream.val.dtype) == ((3,), (0,), np.uint16)
    assert stream.val.tolist() == [] == stream.val[:5].tolist()


def test_a_lost_or_half_deleted_cache_is_made_again(empty_cache: Path, text: Path) -> None:
    stream = prepared(text)
    shutil.rmtree(empty_cache)
    assert "".join(decoded(prepared(text))) == CONTENT
    for path in stream.folder.iterdir():
        if path.name != "val-00001.safetensors":
            path.unlink()
    assert "".join(decoded(prepared(text))) == CONTENT


# --- what is damaged -------------------------------------------------------------------------------------------------


def cut_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def cut_token(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0\0")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 4 * 3] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def edit_header(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"split', b'"spilt', 1))


def other_split(path: Path) -> None:
    """As if it had been renamed: a valid shard of the other split."""
    names = ["train-00000.safetensors", "val-00001.safetensors"]
    shutil.copy(path.parent / names[path.name == names[0]], path)


def another_text(path: Path) -> None:
    """A valid shard of the same split, size and tokenizer, with other ids."""
    shard = open_shard(path)
    ids = np.array(shard.tokens)
    ids[0], ids[1] = ids[1], ids[0]
    arrays = [ids, np.array(shard.starts), np.array(shard.bytes)]
    write_shard(path, shard.split, shard.tokenizer, arrays)


DAMAGE = [cut_byte, cut_token, append, flip, empty, edit_header, other_split, another_text, Path.unlink]


@pytest.mark.parametrize("name", ["train-00000.safetensors", "val-00001.safetensors"])
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
def test_a_damaged_shard_is_named_and_prepare_heals_it(damage: Callable[[Path], Any], name: str, text: Path) -> None:
    stream = prepared(text)
    before = {path.name: path.read_bytes() for path in stream.folder.iterdir()}
    damage(stream.folder / name)
    with pytest.raises(DataError) as caught:
        open_stream(stream.folder)
    assert str(stream.folder / name) in str(caught.value)
    assert "".join(decoded(prepared(text))) == CONTENT
    assert {path.name: path.read_bytes() for path in stream.folder.iterdir()} == before


@pytest.mark.parametrize("second", [0, 60_000])
@pytest.mark.parametrize("name", ["train-00000.safetensors", "val-00001.safetensors"])
def test_an_id_beyond_the_vocabulary_is_found_with_file_and_byte(name: str, second: int, text: Path) -> None:
    """Also where every checksum is that of the wrong ids, as a faulty program would write them."""
    stream = prepared(text)
    path, shard = stream.folder / name, open_shard(stream.folder / name)
    ids = np.array(shard.tokens)
    ids[5], ids[9] = stream.info.vocab_size, second
    digest = write_shard(path, shard.split, shard.tokenizer, [ids, np.array(shard.starts), np.array(shard.bytes)])
    manifest = stream.folder / "manifest.json"
    content = json.loads(manifest.read_text(encoding="utf-8"))
    for entry in content["shards"]:
        if entry["file"] == name:
            entry["sha256"] = digest
    manifest.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        open_stream(stream.folder)
    message = str(caught.value)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    begin = json.loads(path.read_bytes()[8 : 8 + length])["tokens"]["data_offsets"][0]
    assert f"{path}: id {stream.info.vocab_size} at token 5 (byte {8 + length + begin + 10})" in message
    assert f"vocabulary of {stream.info.vocab_size}" in message
    assert "".join(decoded(prepared(text))) == CONTENT

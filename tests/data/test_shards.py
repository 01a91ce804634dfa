"""The token stream on disk: nothing lost, prepared once, and never trusted when it has changed."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glassgpt.config import DataConfig
from glassgpt.data import Text, TokenStream, open_stream, prepare
from glassgpt.data.shards import FORMAT_VERSION
from glassgpt.errors import DataError
from glassgpt.tokenizer import CharTokenizer

CONTENT = "".join(chr(97 + i * i % 23) + ("é🦊\n" if i % 7 == 0 else "") for i in range(300))
TEXT = Text("/somewhere/my.txt", "my", CONTENT)
SPLIT = DataConfig(max_val_tokens=1000)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLASSGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def split(fraction: float, most: int, tokenizer: str = "char") -> DataConfig:
    return DataConfig(val_fraction=fraction, max_val_tokens=most, tokenizer=tokenizer)


def decoded(stream: TokenStream) -> tuple[str, str]:
    return stream.tokenizer.decode(stream.train.tolist()), stream.tokenizer.decode(stream.val.tolist())


def identity(folder: Path) -> dict[str, tuple[int, int]]:
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in folder.iterdir()}


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change stream.json by a function of its content."""
    path = folder / "stream.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def put_ids(folder: Path, split: str, ids: np.ndarray) -> None:
    """Write a split's ids, and the checksum that belongs to them."""
    (folder / f"{split}.bin").write_bytes(ids.tobytes())
    digest = hashlib.sha256(ids.tobytes()).hexdigest()
    edit(folder, lambda content: content["sha256"].update({f"{split}.bin": digest}))


# --- what is written -------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(ANY_TEXT, st.floats(0.001, 0.5), st.integers(2, 100))
def test_the_split_is_by_position_and_loses_nothing(content: str, val_fraction: float, max_val_tokens: int) -> None:
    stream = prepare(Text("s", "n", content), split(val_fraction, max_val_tokens))
    train, val = decoded(stream)
    assert train + val == content
    assert len(val) <= max_val_tokens and abs(min(len(content) * val_fraction, max_val_tokens) - len(val)) <= 0.5
    assert stream.info.tokens == {"train": len(train), "val": len(val)}
    assert stream.info.bytes == {"train": len(train.encode()), "val": len(val.encode())}
    assert stream.info.vocab_size == stream.tokenizer.vocab_size == len(set(content))
    assert stream.info.text_sha256 == hashlib.sha256(content.encode("utf-8")).hexdigest()


@pytest.mark.parametrize(
    ("fraction", "most", "expected"), [(0.1, 1000, 100), (0.5, 1000, 500), (0.5, 30, 30), (0.1, 2, 2)]
)
def test_the_size_of_the_validation_split(fraction: float, most: int, expected: int) -> None:
    stream = prepare(Text("s", "n", "ab" * 500), split(fraction, most))
    assert (len(stream.train), len(stream.val)) == (1000 - expected, expected)


def test_files_are_flat_ids_described_by_stream_json(cache: Path) -> None:
    stream = prepare(TEXT, SPLIT)
    assert stream.folder.parent == cache / "streams"
    assert sorted(path.name for path in stream.folder.parent.iterdir()) == [stream.folder.name]  # no leftovers
    content = json.loads((stream.folder / "stream.json").read_text(encoding="utf-8"))
    assert content["tokenizer"] == "char"
    assert content["dtype"] == "<u2"
    for split in ("train", "val"):
        raw = (stream.folder / f"{split}.bin").read_bytes()
        assert hashlib.sha256(raw).hexdigest() == content["sha256"][f"{split}.bin"]
        ids = [raw[i] + 256 * raw[i + 1] for i in range(0, len(raw), 2)]  # little-endian, whatever the machine
        assert ids == getattr(stream, split).tolist() and len(ids) == content["tokens"][split]
    with pytest.raises(ValueError, match="read-only"):
        stream.train[0] = 1


def test_prepared_twice_is_opened_not_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(TEXT, SPLIT)
    before = identity(first.folder)
    monkeypatch.setattr(CharTokenizer, "train", lambda text: pytest.fail("tokenised again"))
    second = prepare(Text("elsewhere", "other", CONTENT), SPLIT)
    assert second.folder == first.folder and identity(second.folder) == before
    assert decoded(second) == decoded(first)


def test_other_text_and_other_splits_get_other_folders() -> None:
    streams = [
        prepare(Text("s", "n", content), split(fraction, most))
        for content in (CONTENT, CONTENT + "a")
        for fraction in (0.1, 0.2)
        for most in (10, 20)
    ]
    assert len({stream.folder for stream in streams}) == 8
    assert all("".join(decoded(stream)).startswith(CONTENT) for stream in streams)


def test_a_stream_that_another_process_just_prepared_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be open there, its tokenizer not yet read: the folder must not be pulled away."""
    train = CharTokenizer.train
    seen: dict[str, Any] = {}

    def interrupted(text: str) -> CharTokenizer:
        monkeypatch.setattr(CharTokenizer, "train", train)
        other = prepare(TEXT, SPLIT)
        seen.update(folder=other.folder, files=identity(other.folder))
        return train(text)

    monkeypatch.setattr(CharTokenizer, "train", interrupted)
    stream = prepare(TEXT, SPLIT)
    assert stream.folder == seen["folder"] and decoded(stream)[0] + decoded(stream)[1] == CONTENT
    assert [path.name for path in stream.folder.parent.iterdir()] == [stream.folder.name]
    assert identity(stream.folder) == seen["files"]


@pytest.mark.parametrize(("symbols", "dtype"), [(2**16, "<u2"), (2**16 + 1, "<u4"), (70_000, "<u4")])
def test_the_width_of_ids_follows_the_vocabulary(symbols: int, dtype: str) -> None:
    codes = [code for code in range(1, symbols + 2049) if not 0xD800 <= code < 0xE000][:symbols]
    content = "".join(map(chr, reversed(codes)))
    stream = prepare(Text("s", "n", content), SPLIT)
    assert (stream.info.vocab_size, stream.info.dtype, stream.train.dtype) == (symbols, dtype, np.dtype(dtype))
    assert int(stream.train[0]) == symbols - 1  # the largest id did not wrap round
    assert np.array_equal(np.concatenate([stream.train, stream.val]), np.arange(symbols)[::-1])
    assert decoded(open_stream(stream.folder))[1] == content[-1000:]


def test_a_text_too_short_to_split_has_an_empty_validation_stream() -> None:
    stream = prepare(Text("s", "n", "abc"), SPLIT)
    assert (stream.train.shape, stream.val.shape, stream.val.dtype) == ((3,), (0,), np.uint16)


# --- what is refused -------------------------------------------------------------------------------------------------


def cut_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def cut_token(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0\0")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 4 * 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("damage", [cut_byte, cut_token, append, flip, empty, Path.unlink], ids=lambda f: f.__name__)
def test_a_damaged_file_is_named_and_prepare_heals_it(damage: Callable[[Path], Any], split: str) -> None:
    stream = prepare(TEXT, SPLIT)
    before = {path.name: path.read_bytes() for path in stream.folder.iterdir()}
    damage(stream.folder / f"{split}.bin")
    with pytest.raises(DataError) as caught:
        open_stream(stream.folder)
    assert str(stream.folder / f"{split}.bin") in str(caught.value)
    assert "".join(decoded(prepare(TEXT, SPLIT))) == CONTENT
    assert {path.name: path.read_bytes() for path in stream.folder.iterdir()} == before


@pytest.mark.parametrize("second", [0, 60_000])
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_id_beyond_the_vocabulary_is_found_with_file_and_position(split: str, second: int) -> None:
    stream = prepare(TEXT, SPLIT)
    ids = np.array(getattr(stream, split))
    ids[5], ids[9] = stream.info.vocab_size, second
    put_ids(stream.folder, split, ids)
    with pytest.raises(DataError) as caught:
        open_stream(stream.folder)
    message = str(caught.value)
    assert str(stream.folder / f"{split}.bin") in message
    assert (
        f"id {stream.info.vocab_size} at token 5 " in message and f"vocabulary of {stream.info.vocab_size}" in message
    )
    assert "".join(decoded(prepare(TEXT, SPLIT))) == CONTENT


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another format version": lambda content: content.update(format_version=FORMAT_VERSION + 1),
    "a missing field": lambda content: content.pop("dtype"),
    "an unknown field": lambda content: content.update(extra=1),
    "another checksum": lambda content: content["sha256"].update({"train.bin": "0" * 64}),
    "no checksums": lambda content: content.update(sha256={}),
    "checksums of a split only": lambda content: content["sha256"].pop("val.bin"),
    "checksums as a list": lambda content: content.update(sha256=["train", "val"]),
    "a smaller vocabulary": lambda content: content.update(vocab_size=3),
    "a larger vocabulary": lambda content: content.update(vocab_size=1000),
    "a vocabulary that is no number": lambda content: content.update(vocab_size="27"),
    "a wider dtype": lambda content: content.update(dtype="<u4"),
    "a narrower dtype": lambda content: content.update(dtype="<u1"),
    "no dtype": lambda content: content.update(dtype="banana"),
    "another number of tokens": lambda content: content["tokens"].update(train=7),
    "no tokens": lambda content: content["tokens"].update(train=0),
    "no number of tokens": lambda content: content["tokens"].pop("val"),
    "another text": lambda content: content.update(text_sha256="0" * 64),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_description_is_refused_and_healed(name: str) -> None:
    stream = prepare(TEXT, split(0.1, 301))
    original = (stream.folder / "stream.json").read_bytes()
    edit(stream.folder, EDITS[name])
    if name != "another text":  # which only prepare can see: it has the text
        with pytest.raises(DataError) as caught:
            open_stream(stream.folder)
        assert str(stream.folder) in str(caught.value)
    assert "".join(decoded(prepare(TEXT, split(0.1, 301)))) == CONTENT
    assert (stream.folder / "stream.json").read_bytes() == original


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"3", b"\xff\xfe", b"{}"])
def test_a_description_that_is_none_is_refused_and_healed(content: bytes) -> None:
    stream = prepare(TEXT, SPLIT)
    (stream.folder / "stream.json").write_bytes(content)
    with pytest.raises(DataError, match="holds no token stream") as caught:
        open_stream(stream.folder)
    assert str(stream.folder) in str(caught.value)
    assert "".join(decoded(prepare(TEXT, SPLIT))) == CONTENT


def swap_two_characters(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("damage", [Path.unlink, empty, cut_byte, swap_two_characters], ids=lambda f: f.__name__)
def test_prepare_heals_a_damaged_tokenizer(damage: Callable[[Path], Any]) -> None:
    stream = prepare(TEXT, SPLIT)
    path = stream.folder / "tokenizer.json"
    original = path.read_bytes()
    damage(path)
    assert "".join(decoded(prepare(TEXT, SPLIT))) == CONTENT
    assert path.read_bytes() == original or damage is cut_byte  # only the line end


def test_no_stream_at_all(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="holds no token stream"):
            open_stream(folder)


def test_a_lost_or_half_deleted_cache_is_made_again(cache: Path) -> None:
    stream = prepare(TEXT, SPLIT)
    shutil.rmtree(cache)
    assert "".join(decoded(prepare(TEXT, SPLIT))) == CONTENT
    for path in stream.folder.iterdir():
        if path.name != "val.bin":
            path.unlink()
    assert "".join(decoded(prepare(TEXT, SPLIT))) == CONTENT

"""Texts are read as they are: every byte of UTF-8, on every platform, or a message that says where it breaks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from glassgpt import assets
from glassgpt.data import read
from glassgpt.errors import DataError

AWKWARD = "ä\r\nb\rc\n\u2028\x00\x85 🦊e\u0301\t\x1a end\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLASSGPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def message_of(source: str) -> str:
    with pytest.raises(DataError) as caught:
        read(source)
    return str(caught.value)


def test_content_is_kept_to_the_byte(folder: Path) -> None:
    path = folder / "my text.v2.txt"
    path.write_bytes(AWKWARD.encode("utf-8"))
    for source in ("my text.v2.txt", str(path), "../here/my text.v2.txt"):
        text = read(source)
        assert text.content == AWKWARD and text.content.encode("utf-8") == path.read_bytes()
        assert (text.source, text.name) == (str(path), "my text.v2")


def test_home_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    (folder / "a.txt").write_bytes(b"abc")
    assert read("~/a.txt").content == "abc"


def test_one_byte_order_mark_is_dropped(folder: Path) -> None:
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbfa\xef\xbb\xbfb\r\n")
    assert read("a.txt").content == "a\ufeffb\r\n"


@pytest.mark.parametrize(
    ("content", "byte", "offset", "line"),
    [
        (b"caf\xe9", 0xE9, 3, 1),
        (b"\xff\xfea\0b\0", 0xFF, 0, 1),  # UTF-16
        (b"one\ntwo\r\nthree \x80\n", 0x80, 15, 3),
        (b"a\n\xf0\x9f\xa6", 0xF0, 2, 2),  # cut in the middle of a character
        (b"\n\n\xed\xa0\x80", 0xED, 2, 3),  # a surrogate
        (b"\n\n\xc0\xaf", 0xC0, 2, 3),  # overlong
        (b"\xef\xbb\xbfa\n\xff", 0xFF, 5, 2),  # counted from the start of the file, mark included
    ],
)
def test_other_encodings_are_refused_with_the_place(
    content: bytes, byte: int, offset: int, line: int, folder: Path
) -> None:
    (folder / "a.txt").write_bytes(content)
    message = message_of("a.txt")
    assert f"byte 0x{byte:02x} at offset {offset} (line {line})" in message
    assert "a.txt is not UTF-8" in message and "iconv" in message


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"  \n\t\r\n "])
def test_an_empty_file_is_refused(content: bytes, folder: Path) -> None:
    (folder / "a.txt").write_bytes(content)
    assert "a.txt is empty" in message_of("a.txt")


def test_a_folder_is_refused_with_the_remedy(folder: Path) -> None:
    (folder / "texts").mkdir()
    message = message_of("texts")
    assert "texts is a folder" in message and "cat texts/*.txt" in message


def test_an_unreadable_file_is_one_message(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a.txt").write_bytes(b"abc")

    def refuse(path: Path) -> bytes:  # root may read everything, so a chmod would not do
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "a.txt cannot be read: Permission denied" in message_of("a.txt")


def test_a_missing_file_suggests_a_corpus_or_lists_them() -> None:
    message = message_of("shakespear")
    assert "no file 'shakespear'" in message and "did you mean the corpus 'shakespeare'?" in message
    message = message_of("zzz/my.txt")
    assert "no file 'zzz/my.txt'" in message and all(name in message for name in assets.names("corpus"))
    assert "gpt2-bpe" not in message_of("gpt2-bp")  # an asset, and no text


@pytest.mark.parametrize(
    "source",
    ["To be, or not to be, that is the question. " * 8, "~no-such-user-here/a.txt", "a\0b", "x" * 5000],
    ids=["a text itself", "unknown home", "a zero byte", "far too long"],
)
def test_what_cannot_be_a_path_is_one_message_too(source: str) -> None:
    assert "no file" in message_of(source)


def test_a_file_wins_over_a_corpus_of_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = folder.parent / "corpus.txt"
    corpus.write_bytes(b"\xef\xbb\xbfthe corpus\r\n")
    monkeypatch.setattr(assets, "path", {"shakespeare": corpus}.__getitem__)
    text = read("shakespeare")
    assert (text.source, text.name, text.content) == ("shakespeare", "shakespeare", "the corpus\r\n")
    (folder / "shakespeare").write_bytes(b"a file")
    assert read("shakespeare").content == "a file"
    assert read("shakespeare").source == str(folder / "shakespeare")


def test_works_in_the_c_locale_without_utf8_mode(folder: Path) -> None:
    """Every text file is opened with its encoding named: read, prepare, save and load of non-ASCII text."""
    (folder / "a.txt").write_bytes(AWKWARD.encode("utf-8") * 20)
    script = (
        "import locale\n"
        "from pathlib import Path\n"
        "from glassgpt import config\n"
        "from glassgpt.config import DataConfig\n"
        "from glassgpt.data import open_stream, prepare, read\n"
        "assert locale.getpreferredencoding(False).upper() in ('ANSI_X3.4-1968', 'US-ASCII', 'ASCII', '646'), locale\n"
        "text = read('a.txt')\n"
        f"assert text.content == {AWKWARD!a} * 20\n"
        "stream = open_stream(prepare(text, DataConfig(max_val_tokens=100)).folder)\n"
        "ids = [*stream.train.tolist(), *stream.val.tolist()]\n"
        "assert stream.tokenizer.decode(ids) == text.content\n"
        f"run = config.build('', [{{'data': {{'source': {AWKWARD!a}}}}}])\n"
        f"config.write_toml(Path('run.toml'), run, {{'text': {AWKWARD!a}}})\n"
        "assert config.build('', [config.read_toml(Path('run.toml'))[1]]) == run\n"
    )
    plain = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"} | plain
    result = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", script],
        env=environment, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr.decode("utf-8", "replace")
    assert b"glassgpt" not in result.stderr, result.stderr  # no EncodingWarning from our own files

"""Texts are read as they are: every byte of UTF-8, on every platform, or a message that says where it breaks."""

import gzip
import hashlib
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glassgpt import assets
from glassgpt.config import DataConfig
from glassgpt.data import find_source, prepare, read_text
from glassgpt.data.sources import source as readers
from glassgpt.errors import DataError
from glassgpt.tokenizer.pretokenize import PATTERNS, PreTokenizer
from glassgpt.tokenizer.word import PATTERN as WORDS

AWKWARD = "ä\r\nb\rc\n\u2028\x85 🦊e\u0301\t\x1a end\n"
MARK = b"\xef\xbb\xbf"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLASSGPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def message_of(source: str) -> str:
    with pytest.raises(DataError) as caught:
        read_text(source)
    return str(caught.value)


def test_content_is_kept_to_the_byte(folder: Path) -> None:
    path = folder / "my text.v2.txt"
    path.write_bytes(AWKWARD.encode("utf-8"))
    for source in ("my text.v2.txt", str(path), "../here/my text.v2.txt"):
        text = read_text(source)
        assert text.content == AWKWARD and text.content.encode("utf-8") == path.read_bytes()
        assert (text.source, text.name) == (str(path), "my text.v2")
        assert find_source(DataConfig(source=source)).single


def test_home_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    (folder / "a.txt").write_bytes(b"abc")
    assert read_text("~/a.txt").content == "abc"


def test_one_byte_order_mark_is_dropped(folder: Path) -> None:
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbfa\xef\xbb\xbfb\r\n")
    assert read_text("a.txt").content == "a\ufeffb\r\n"


@pytest.mark.parametrize(
    ("content", "byte", "offset", "line"),
    [
        (b"caf\xe9", 0xE9, 3, 1),
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
    with pytest.raises(DataError) as caught:
        prepare(find_source(DataConfig(source="a.txt")), DataConfig())
    assert str(caught.value) == message


def test_utf16_is_refused_with_the_remedy(folder: Path) -> None:
    (folder / "a.txt").write_bytes("ab".encode("utf-16"))
    assert "UTF-16" in message_of("a.txt") and "iconv" in message_of("a.txt")


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"  \n\t\r\n "])
def test_an_empty_file_is_refused(content: bytes, folder: Path) -> None:
    (folder / "a.txt").write_bytes(content)
    said = r"a\.txt holds only white space" if content.isspace() else r"a\.txt is empty"
    assert re.search(said, message_of("a.txt"))
    with pytest.raises(DataError, match=said):
        prepare(find_source(DataConfig(source="a.txt")), DataConfig())


def test_a_folder_is_its_documents(folder: Path) -> None:
    (folder / "texts").mkdir()
    assert "texts holds no file that can be read" in message_of("texts")
    (folder / "texts" / "b.txt").write_bytes(b"second")
    (folder / "texts" / "a.jsonl").write_text('{"text": "first"}\n{"text": " "}\n', encoding="utf-8")
    assert read_text("texts").content == "first\n\nsecond" and read_text("texts").name == "texts"
    found = find_source(DataConfig(source="texts"))
    assert not found.single and [file.name for file in found.files] == ["a.jsonl", "b.txt"]
    assert read_text("texts/*.txt").content == "second"


def test_one_plain_file_is_one_text_unless_a_separator_divides_it(folder: Path) -> None:
    (folder / "a.txt").write_bytes(b"one--two\n--\n")
    assert find_source(DataConfig(source="a.txt")).single
    divided = find_source(DataConfig(source="a.txt", separator="--"))
    assert not divided.single and [document.text for document in divided.documents()] == ["one", "two"]


def test_an_unreadable_file_is_one_message(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a.txt").write_bytes(b"abc")

    def refuse(path: Path, *arguments: object, **named: object) -> None:  # root may read everything: no chmod would do
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
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
    monkeypatch.setattr(assets, "corpus", lambda name, **named: assets.Corpus(name, [corpus], "", ""))
    text = read_text("shakespeare")
    assert (text.source, text.name, text.content) == ("shakespeare", "shakespeare", "the corpus\r\n")
    (folder / "shakespeare").write_bytes(b"a file")
    assert read_text("shakespeare").content == "a file"
    assert read_text("shakespeare").source == str(folder / "shakespeare")


def test_a_corpus_says_how_its_documents_are_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "stories.txt").write_bytes(b"once\n<|endoftext|>\ntwice")
    stories = assets.Corpus("tinystories", [folder / "stories.txt"], "<|endoftext|>", "")
    monkeypatch.setattr(assets, "corpus", lambda name, **named: stories)
    found = find_source(DataConfig(source="tinystories"))
    assert (found.source, found.single) == ("tinystories", False)
    assert [document.text for document in found.documents()] == ["once", "twice"]
    own = find_source(DataConfig(source="tinystories", separator="\n"))
    assert [document.text for document in own.documents()] == ["once", "<|endoftext|>", "twice"]


def test_a_prepared_corpus_is_no_text(folder: Path) -> None:
    (folder / "a.txt").write_bytes(b"abc" * 100)
    prepare(find_source(DataConfig(source="a.txt")), DataConfig(), folder=folder / "ready")
    found = find_source(DataConfig(source="ready"))
    assert (found.prepared, found.files, found.name) == (folder / "ready", (), "ready")
    assert "ready is a prepared corpus" in message_of("ready")


# --- the first look at a text ----------------------------------------------------------------------------------------

PIECES = ["a b", "é", "🦊", " ", "\n", "word", "中文", "\u0301", "...", "1 2", "\ufeff", "ſ ſ"]
LONG_TEXT = st.lists(st.sampled_from(PIECES), min_size=1, max_size=60).map("".join).filter(lambda text: text.strip())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(LONG_TEXT, st.booleans(), st.booleans(), st.integers(1, 12), st.sampled_from([8, 70, 1 << 16]), st.data())
def test_a_survey_counts_and_divides(
    tmp_path_factory: pytest.TempPathFactory,
    content: str, mark: bool, packed: bool, size: int, window: int, data: st.DataObject,
) -> None:  # fmt: skip
    """Characters are found by number, and a text is cut where encoding the parts equals encoding the full text."""
    here = tmp_path_factory.mktemp("survey")
    raw = (MARK if mark else b"") + content.encode("utf-8")
    content = content if mark else content.removeprefix("\ufeff")  # a mark that was drawn is a mark
    file = here / ("a.txt.gz" if packed else "a.txt")
    file.write_bytes(gzip.compress(raw) if packed else raw)
    if not content.strip():
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_WINDOW", window)
        survey = find_source(DataConfig(source=str(file))).survey(here)
        assert survey.sha256 == hashlib.sha256(content.encode("utf-8")).hexdigest()
        assert (survey.bytes, survey.characters) == (len(content.encode("utf-8")), len(content))
        plain = survey.plain.read_bytes()
        assert plain[survey.begin : survey.end].decode("utf-8") == content
        places = [survey.byte_of(i) for i in range(len(content) + 1)]
        assert places == [survey.begin + len(content[:i].encode("utf-8")) for i in range(len(content) + 1)]
        begin = data.draw(st.sampled_from(places))
        ranges = survey.divide(begin, survey.end, size)
    assert ranges[0][0] == begin and ranges[-1][1] == survey.end
    assert all(first[1] == second[0] for first, second in itertools.pairwise(ranges))
    parts = [plain[first:last].decode("utf-8") for first, last in ranges]
    for pattern in (*PATTERNS.values(), WORDS):
        splitter = PreTokenizer([pattern])
        assert [piece for part in parts for piece in splitter.split(part)] == splitter.split("".join(parts))
    assert all(last - first >= size for first, last in ranges[:-1]), "parts are not smaller than asked"


def test_a_text_is_divided_wherever_it_may_be(tmp_path: Path) -> None:
    """Parts have about the given size, even if safe cuts are rare and at the borders of windows."""
    content = ("x" * 997 + " y") * 300
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    survey = find_source(DataConfig(source=str(tmp_path / "a.txt"))).survey(tmp_path)
    ranges = survey.divide(0, survey.end, 10_000)
    assert all(10_000 <= last - first < 11_000 for first, last in ranges[:-1]) and len(ranges) > 25
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_WINDOW", 100)
        assert survey.divide(0, survey.end, 10_000) == ranges


def test_of_several_files_each_counts(tmp_path: Path) -> None:
    for name, content in (("a.txt", "ab"), ("b.txt", "c")):
        (tmp_path / name).write_text(content, encoding="utf-8")
    first = find_source(DataConfig(source=str(tmp_path / "*.txt"))).survey(tmp_path)
    assert first.bytes == 3
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    (tmp_path / "b.txt").write_text("bc", encoding="utf-8")
    assert find_source(DataConfig(source=str(tmp_path / "*.txt"))).survey(tmp_path).sha256 != first.sha256


def test_works_in_the_c_locale_without_utf8_mode(folder: Path) -> None:
    """Every text file is opened with its encoding named: read, prepare, save and load of non-ASCII text."""
    (folder / "a.txt").write_bytes(AWKWARD.encode("utf-8") * 20)
    script = (
        "import locale\n"
        "from pathlib import Path\n"
        "from glassgpt import config\n"
        "from glassgpt.config import DataConfig\n"
        "from glassgpt.data import find_source, open_stream, prepare, read_text\n"
        "assert locale.getpreferredencoding(False).upper() in ('ANSI_X3.4-1968', 'US-ASCII', 'ASCII', '646'), locale\n"
        "text = read_text('a.txt')\n"
        f"assert text.content == {AWKWARD!a} * 20\n"
        "data = DataConfig(source='a.txt', max_val_tokens=100)\n"
        "stream = open_stream(prepare(find_source(data), data, folder=Path('ready')).folder)\n"
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

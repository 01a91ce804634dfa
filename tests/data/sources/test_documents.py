"""A file's documents do not depend on its segments, and a source always gives the same files."""

import gzip
import itertools
import json
import os
import random
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glassgpt.data.sources import textfiles
from glassgpt.data.sources.documents import Document, Segment, files, is_single, read_segment, segments
from glassgpt.data.sources.textfiles import text_parts
from glassgpt.errors import DataError

BOM = b"\xef\xbb\xbf"
SEPARATORS = ["<|endoftext|>", "\n\n", "\n---\n", "aa", "aba", "é", "\r\n", "🦊", "\n", " "]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("documents")


def read(parts: Iterable[Segment], text_field: str = "", separator: str = "") -> list[Document]:
    return [document for part in parts for document in read_segment(part, text_field, separator)]


def whole(file: Path, separator: str = "") -> list[Document]:
    return read(segments(file, 1 << 40, separator), separator=separator)


def message_of(source: object) -> str:
    with pytest.raises(DataError) as caught:
        files(str(source))
    return str(caught.value)


# --- division --------------------------------------------------------------------------------------------------------


@st.composite
def separated(draw: st.DrawFn) -> tuple[str, bytes]:
    """A separator, also one that overlaps itself, and a file in which it is frequent, also overlapping."""
    separator = draw(st.sampled_from(SEPARATORS) | st.text("ab\né🦊", min_size=1, max_size=4))
    parts = [separator, separator[:1], separator[-1:], "a", "b", "\n", "\r\n", " ", "é", "🦊", "\ufeff", "long piece "]
    content = "".join(draw(st.lists(st.sampled_from(parts), max_size=40)))
    return separator, (BOM if draw(st.booleans()) else b"") + content.encode("utf-8")


@settings(max_examples=400, deadline=None)
@given(separated(), st.integers(1, 40), st.integers(2, 9) | st.just(1 << 18))
def test_any_parts_of_a_separated_file_hold_its_documents(
    folder: Path, made: tuple[str, bytes], size: int, buffer: int
) -> None:
    separator, content = made
    file = folder / "a.txt"
    file.write_bytes(content)
    texts = content.removeprefix(BOM).decode("utf-8").split(separator)
    expected = [text.strip("\r\n") for text in texts if text.strip()]
    with mock.patch.object(textfiles, "_BUFFER", buffer):
        parts = segments(file, size, separator)
        documents = read(parts, separator=separator)
    assert [document.text for document in documents] == expected
    assert documents == whole(file, separator)
    assert [part.begin for part in parts] == list(range(0, max(1, len(content)), size))
    assert all(one.end == other.begin for one, other in itertools.pairwise(parts))
    for document in documents:  # each is where it says
        assert content[document.place :].startswith(document.text.encode("utf-8"))
    assert all(one.place < other.place for one, other in itertools.pairwise(documents))


@st.composite
def json_lines(draw: st.DrawFn) -> tuple[list[str], bytes]:
    """Texts, and JSON lines with them: escaped or not, blank lines, both line ends, with or without a last one."""
    texts, lines = [], []
    for text in draw(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=12)):
        row = {"id": 1, "text": text, "meta": {"text": "no"}}
        texts.append(text)
        lines.append(json.dumps(row, ensure_ascii=draw(st.booleans())))
        lines += draw(st.lists(st.sampled_from(["", " ", "\t"]), max_size=2))
    ends = draw(st.lists(st.sampled_from(["\n", "\r\n"]), min_size=len(lines), max_size=len(lines)))
    content = "".join(line + end for line, end in zip(lines, ends, strict=True))
    content = content.rstrip("\r\n") if draw(st.booleans()) else content
    return texts, (BOM if draw(st.booleans()) else b"") + content.encode("utf-8")


@settings(max_examples=200, deadline=None)
@given(json_lines(), st.integers(1, 300), st.integers(2, 40) | st.just(1 << 18))
def test_any_parts_of_json_lines_hold_their_rows(
    folder: Path, made: tuple[list[str], bytes], size: int, buffer: int
) -> None:
    texts, content = made
    file = folder / "a.jsonl"
    file.write_bytes(content)
    with mock.patch.object(textfiles, "_BUFFER", buffer):
        documents = read(segments(file, size))
    assert [document.text for document in documents] == [text for text in texts if text.strip()]
    assert documents == whole(file)
    for document in documents:
        line = content[document.place :].split(b"\n")[0]
        assert json.loads(line)["text"] == document.text


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.booleans(), st.integers(1, 9), st.booleans())
def test_text_parts_joined_are_the_file(folder: Path, text: str, mark: bool, size: int, packed: bool) -> None:
    content = (BOM if mark else b"") + text.encode("utf-8")
    if b"\0" in content or content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return
    file = folder / ("parts.txt.gz" if packed else "parts.txt")
    file.write_bytes(gzip.compress(content, 1) if packed else content)
    parts = list(text_parts(file, size))
    assert "".join(parts) == content.removeprefix(BOM).decode("utf-8") and all(parts)
    assert all(len(part.encode("utf-8")) <= size + 3 for part in parts)


def test_a_part_inside_a_document_reads_no_more_than_itself(folder: Path) -> None:
    """A document longer than memory costs the parts within it nothing."""
    file = folder / "huge.txt"
    with file.open("wb") as stream:
        stream.write(b"first<|endoftext|>")
        stream.truncate(1 << 33)  # 8 GB of NUL bytes, none of them on the disk
        stream.seek(0, os.SEEK_END)
        stream.write(b"<|endoftext|>last")
    parts = segments(file, 1 << 20, "<|endoftext|>")
    with mock.patch.object(textfiles, "_HEAD", 16):  # which would see the NUL bytes
        assert read(parts[1:20], separator="<|endoftext|>") == []
        assert [document.text for document in read(parts[-2:], separator="<|endoftext|>")] == ["last"]


def test_a_file_without_a_separator_is_one_document(folder: Path) -> None:
    content = "\n one\r\n\ntwo <|endoftext|> 🦊\n"
    for name in ("a.txt", "b.MD", "c.py", "d", "e.tex"):
        (folder / name).write_bytes(BOM + content.encode("utf-8"))
        parts = segments(folder / name, 1)
        assert parts == [Segment(folder / name, 0, 3 + len(content.encode("utf-8")))]
        assert read(parts) == [Document(content, folder / name, 0, "file")]
        assert is_single(folder / name) and not is_single(folder / name, "\n")
    for name in ("a.jsonl", "a.csv", "a.parquet", "a.JSONL.gz", "a.ndjson"):
        assert not is_single(folder / name)
    assert is_single(folder / "a.py.gz") and not is_single(folder / "a.py.zst", "\n\n")


def test_a_document_says_where_it_is() -> None:
    assert str(Document("x", Path("a.csv"), 3, "row")) == "a.csv, row 3"
    assert str(Document("x", Path("a.jsonl"), 0, "byte")) == "a.jsonl, byte 0"
    assert str(Document("x", Path("a.txt"), 0, "file")) == "a.txt"


def test_empty_files_hold_no_documents(folder: Path) -> None:
    for name, content in (
        ("e.txt", b""),
        ("e.jsonl", b""),
        ("f.jsonl", BOM),
        ("g.txt", b" \n\xc2\xa0\r\n"),
        ("h.csv", b"text\n"),
    ):
        (folder / name).write_bytes(content)
        assert whole(folder / name) == whole(folder / name, "|") == []


def test_a_separator_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "a.txt").write_bytes(b"a")
    with pytest.raises(DataError, match="half a surrogate pair"):
        read([Segment(folder / "a.txt", 0, 1)], separator="\ud83e")


def test_size_is_at_least_a_byte(folder: Path) -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        segments(folder / "a.txt", 0)


# --- sources ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of many files, made in an order that is not theirs."""
    names = [
        *(
            "b.txt",
            "B.TXT",
            "a/z.md",
            "a/deep/er/x.py",
            "a-b.jsonl",
            "ä.csv",
            "c.parquet",
            "d.txt.gz",
            "e.jsonl.ZST",
            "f.ndjson",
        ),
        *(".hidden.txt", ".git/a.txt", "a/.cache/b.md", "notes.pdf", "table.xlsx", "f.json", "noending", "g.tar.gz"),
    ]
    random.Random(1).shuffle(names)
    for name in names:
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_bytes(b"x")
    (tmp_path / "texts" / "looks-like.txt").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "texts"


def names_of(source: str) -> list[str]:
    return [file.as_posix().removeprefix("texts/") for file in files(source)]


def test_a_folder_is_its_known_files_sorted(tree: Path) -> None:
    expected = [
        "B.TXT",
        "a/deep/er/x.py",
        "a/z.md",
        "a-b.jsonl",
        "b.txt",
        "c.parquet",
        "d.txt.gz",
        "e.jsonl.ZST",
        "f.ndjson",
        "ä.csv",
    ]
    assert names_of("texts") == expected
    assert files(str(tree)) == [tree / name for name in expected]
    assert files(f"{tree}/") == files(str(tree))


def test_links_to_folders_are_followed_once(tree: Path) -> None:
    (tree.parent / "other").mkdir()
    (tree.parent / "other" / "o.txt").write_bytes(b"x")
    (tree / "link").symlink_to(tree.parent / "other", target_is_directory=True)
    (tree / "a" / "loop").symlink_to(tree, target_is_directory=True)
    found = names_of("texts")
    assert "link/o.txt" in found and len(found) == 11
    (tree / "broken.txt").symlink_to(tree / "nowhere")
    with pytest.raises(DataError, match=r"broken\.txt cannot be read: No such file"):
        segments(tree / "broken.txt", 1)
    assert "broken.txt" in names_of("texts")


def test_patterns(tree: Path) -> None:
    assert names_of("texts/*.txt") == ["b.txt"]
    assert names_of("texts/**/*.[mp][dy]") == ["a/deep/er/x.py", "a/z.md"]
    assert names_of("texts/?.ndjson") == ["f.ndjson"]
    assert names_of("texts/no*") == ["noending", "notes.pdf"]  # what is asked for by name is not judged by its ending
    (tree / "a[1].txt").write_bytes(b"x")
    assert names_of("texts/a[1].txt") == ["a[1].txt"]


def test_home_is_expanded(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree))
    monkeypatch.setenv("USERPROFILE", str(tree))
    assert files("~/b.txt") == files("~/b.tx?") == [tree / "b.txt"]


def test_what_is_not_there_is_told_with_what_is(tree: Path) -> None:
    assert message_of("texts/c.parqet") == "there is no file 'texts/c.parqet'; did you mean 'texts/c.parquet'?"
    assert "nor a folder 'text'" in message_of("text/b.txt")
    assert message_of("qqqqqqq").startswith("there is no file 'qqqqqqq' in ")
    assert message_of("texts/*.rst") == "no file matches the pattern 'texts/*.rst'"
    assert message_of("texts/loo*") == "no file matches the pattern 'texts/loo*' (1 folders match)"
    (tree / "empty").mkdir()
    assert "holds no file that can be read (known endings: .txt .md .py .jsonl" in message_of("texts/empty")
    assert "is not read: JSON is read as lines" in message_of("texts/f.json")
    assert "is not read: unpack it first" in message_of("texts/*.tar.gz")
    assert "cannot be read: File name too long" in message_of("x" * 5000)
    assert "there is no file 'a\\x00b'" in message_of("a\0b")
    assert "cannot be read" in message_of("~nobody-of-that-name/x")


@pytest.mark.skipif(os.name != "posix", reason="needs a pipe with a name")
def test_a_pipe_is_no_file(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    assert message_of("texts/pipe") == "'texts/pipe' is neither a file nor a folder"
    assert "texts/pipe" not in names_of("texts")


def test_what_vanishes_or_may_not_be_read_is_named(tree: Path) -> None:
    gone = tree / "gone.jsonl"
    with pytest.raises(DataError, match=r"gone\.jsonl cannot be read: No such file"):
        segments(gone, 10)
    for name in ("gone.jsonl", "gone.csv", "gone.parquet", "gone.txt", "gone.txt.gz", "gone.txt.zst"):
        with pytest.raises(DataError, match=rf"{name} cannot be read: No such file"):
            read([Segment(tree / name, 0, 10)])
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        list(text_parts(tree))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_named(tree: Path) -> None:
    (tree / "a" / "deep").chmod(0)
    try:
        assert "deep' cannot be read: Permission denied" in message_of("texts")
    finally:
        (tree / "a" / "deep").chmod(0o755)

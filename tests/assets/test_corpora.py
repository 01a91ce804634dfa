"""Corpora: recorded, zipped, divided, in several files, placed by hand; and the verbs list and fetch."""

import hashlib
import io
import json
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving import COMMIT, cache, offer, site  # noqa: F401  # fixtures

from glassgpt import assets
from glassgpt.assets import Asset, AssetFile, web
from glassgpt.assets.articles import SEPARATOR, separate_articles
from glassgpt.assets.asset import HUB, HubFile
from glassgpt.errors import AssetError

TEXT = b"one<|endoftext|>two"
ARTICLES = b" \n = Rome = \n \n Built in a day , x \n = 1 = \n y . \n \n = = History = = \n \n Long . \n \n"
ARTICLES += b" = Oslo = \n \n Cold . \n"
DIVIDED = ARTICLES.replace(b" = Oslo = \n", b"<|endoftext|>\n = Oslo = \n")


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def zipped(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(f"wiki/{name}.raw"), content)
    return out.getvalue()


ZIP = zipped(train=ARTICLES, valid=ARTICLES[2:])
MANY = f"/datasets/org/many/resolve/{COMMIT}"
PARTS = [random.Random(i).randbytes(5_000) for i in range(3)]


@pytest.fixture(autouse=True)
def table(offer: Any) -> None:
    archive = AssetFile("wiki.zip", sha(ZIP), len(ZIP), urls=(f"{HUB}/wiki.zip",))

    def articles(part: str) -> AssetFile:
        return AssetFile(f"wiki-{part}.txt", None, None, f"wiki/{part}.raw", archive=archive, convert=separate_articles)

    many = tuple(
        AssetFile(f"part-{i}.parquet", sha(part), len(part), hub=HubFile("org/many", COMMIT, f"{i}.parquet"))
        for i, part in enumerate(PARTS)
    )
    text = AssetFile("text.txt", sha(TEXT), len(TEXT), urls=(f"{HUB}/text.txt",))
    mark = "<|endoftext|>"
    offer(
        Asset("text", "corpus", "MIT", "by URL", (text,), separator=mark),
        Asset("wiki", "corpus", "CC", "zipped", (articles("train"),), separator=mark, held_out=("wiki-valid",)),
        Asset("wiki-valid", "corpus", "CC", "zipped", (articles("valid"),), separator=mark),
        Asset("many", "corpus", "ODC", "several", many, text_field="body", default_count=1),
        Asset("words", "vocabulary", "MIT", "no corpus", (text,)),
    )


@pytest.fixture
def filled(site: Any) -> Any:
    site.files = {"/wiki.zip": ZIP, "/text.txt": TEXT} | {f"{MANY}/{i}.parquet": part for i, part in enumerate(PARTS)}
    return site


# --- recorded when first made ----------------------------------------------------------------------------


def test_a_file_that_is_not_pinned_is_recorded_as_sha256sum_does(filled: Any, cache: Path) -> None:
    corpus = assets.corpus("wiki")
    assert corpus == assets.Corpus("wiki", [cache / "wiki-train.txt"], "<|endoftext|>", "text")
    assert (cache / "wiki-train.txt.sha256").read_text() == f"{sha(DIVIDED)}  wiki-train.txt\n"
    assert assets.available("wiki") == "cache"


def test_a_file_that_changed_here_is_named_with_both_checksums(filled: Any, cache: Path) -> None:
    assets.path("wiki").write_bytes(TEXT)
    record = cache / "wiki-train.txt.sha256"
    with pytest.raises(AssetError) as caught:
        assets.path("wiki")
    for part in (cache / "wiki-train.txt", sha(DIVIDED), record, sha(TEXT), "Delete both files"):
        assert str(part) in str(caught.value)
    record.unlink()
    assert assets.path("wiki").read_bytes() == TEXT  # with the user's consent
    record.write_text("what?\n")
    with pytest.raises(AssetError, match=r"train\.txt\.sha256 should begin with a SHA-256 and begins with 'what"):
        assets.path("wiki")


def test_a_file_placed_by_hand_is_recorded_too(cache: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("GLASSGPT_OFFLINE", "1")
    monkeypatch.setenv("GLASSGPT_ASSETS", str(tmp_path))
    (tmp_path / "wiki-train.txt").write_bytes(TEXT)
    assert assets.path("wiki") == tmp_path / "wiki-train.txt"
    (tmp_path / "wiki-train.txt").write_bytes(b"edited")
    with pytest.raises(AssetError, match="has changed since it was first fetched"):
        assets.path("wiki")


# --- zipped, and divided into articles -------------------------------------------------------------------


def test_members_of_a_zip_are_written_with_their_articles_divided(filled: Any, cache: Path) -> None:
    assert assets.available("wiki") is None
    assert assets.corpus("wiki").files == [cache / "wiki-train.txt"]
    assert (cache / "wiki-train.txt").read_bytes() == DIVIDED
    assert assets.path("wiki-valid").read_bytes() == DIVIDED[2:]
    assert [path for path, _ in filled.requests] == ["/wiki.zip"]
    (cache / "wiki-train.txt").unlink()
    assert assets.available("wiki") == "cache" and assets.path("wiki").read_bytes() == DIVIDED
    assert len(filled.requests) == 1


def test_a_zip_placed_by_hand_is_enough(cache: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("GLASSGPT_OFFLINE", "1")
    with pytest.raises(AssetError) as caught:
        assets.path("wiki")
    assert str(caught.value) == (
        "the asset 'wiki' was not found: wiki.zip. Tried, in order:\n"
        f"  - the cache {cache} (GLASSGPT_CACHE): wiki.zip is not in {cache}\n"
        "  - the folder named by GLASSGPT_ASSETS: GLASSGPT_ASSETS is not set\n"
        f"  - the public URL: {HUB}/wiki.zip: skipped, because GLASSGPT_OFFLINE=1\n"
        "What to do, one of:\n"
        f"  - download {HUB}/wiki.zip in another way, and save it as wiki.zip in {cache}, "
        "or in a folder that GLASSGPT_ASSETS names"
    )
    monkeypatch.setenv("GLASSGPT_ASSETS", str(tmp_path))
    (tmp_path / "wiki.zip").write_bytes(ZIP)
    assert assets.path("wiki").read_bytes() == DIVIDED


def test_titles_stand_between_blank_lines_and_have_one_pair_of_signs() -> None:
    chance = random.Random(5)
    pieces = [b" \n", b" = A title = \n", b" \n", b" = = A section = = \n", b" text = x = \n", b" = 2 = \n", b" = \n"]
    for _ in range(300):
        lines = [chance.choice(pieces) for _ in range(chance.randrange(40))]
        out = list(separate_articles(lines))
        marks = [i for i, line in enumerate(out) if line.startswith(SEPARATOR)]
        assert [line for line in out if not line.startswith(SEPARATOR)] == lines
        blank = [not line.strip() for line in lines]
        titles = [
            i
            for i, line in enumerate(lines[:-1])
            if line in (pieces[1], pieces[5]) and (i == 0 or blank[i - 1]) and blank[i + 1]
        ]
        starts = [i - marks.index(i) for i in marks]  # where the lines after the marks were
        assert starts == [i for i in titles if not all(blank[:i])]


# --- several files ---------------------------------------------------------------------------------------


def test_by_default_the_first_of_several_files_or_those_here(filled: Any, cache: Path) -> None:
    corpus = assets.corpus("many")
    assert ([path.name for path in corpus.files], corpus.text_field) == (["0.parquet"], "body")
    assert assets.available("many") == "Hugging Face cache (1 of 3 files)"
    assert [path.read_bytes() for path in assets.corpus("many", files=2).files] == PARTS[:2]
    assert len(assets.corpus("many").files) == 2  # once fetched, they are of it
    assert len(assets.corpus("many", files=1).files) == 1
    assert len(assets.paths("many", files=3)) == 3 and len(filled.requests) == 3
    for wrong in (0, 4):
        with pytest.raises(AssetError, match=f"'many' has 3 files, not {wrong}"):
            assets.corpus("many", files=wrong)
    with pytest.raises(AssetError, match="'text' has 1 file, not 2"):
        assets.paths("text", files=2)


def test_the_first_file_that_fails_ends_it_and_the_others_stay(filled: Any, cache: Path) -> None:
    del filled.files[f"{MANY}/1.parquet"]
    with pytest.raises(
        AssetError, match=r"not found: part-1\.parquet and part-2\.parquet.*\n.*\n.*\n.*1\.parquet: .*404"
    ):
        assets.corpus("many", files=3)
    assert [path for path, _ in filled.requests] == [f"{MANY}/0.parquet"]
    assert assets.available("many") == "Hugging Face cache (1 of 3 files)"


def test_another_kind_of_asset_is_not_a_corpus() -> None:
    with pytest.raises(AssetError, match="'words' is not a corpus but vocabulary; the corpora are text, wiki, "):
        assets.corpus("words")


# --- the verbs -------------------------------------------------------------------------------------------


def test_list_shows_location_size_and_documents(filled: Any, cli: Callable[..., Any]) -> None:
    assets.path("text")
    rows = {row["name"]: row for row in json.loads(cli("data", "list", "--json")[1])}
    assert list(rows) == ["text", "wiki", "wiki-valid", "many"]
    assert (rows["text"]["here"], rows["wiki"]["here"]) == ("cache", None)
    assert rows["wiki"]["held_out"] == ["wiki-valid"] and rows["wiki"]["download_size"] == len(ZIP)
    assert rows["many"]["documents"] == "rows of parquet, field body"
    code, out, _ = cli("data", "list")
    assert code == 0
    assert re.search(r"^many +not here +5\.0 kB +rows of parquet, field body +ODC +several$", out, re.MULTILINE)
    assert re.search(r"^text +cache +19 bytes +divided by <\|endoftext\|> ", out, re.MULTILINE)


def test_fetch_prints_paths(filled: Any, cache: Path, cli: Callable[..., Any]) -> None:
    parts = [str(cache.parent / f"hub/datasets--org--many/snapshots/{COMMIT}/{i}.parquet") for i in (0, 1)]
    code, out, _ = cli("data", "fetch", "many", "--files", 2)
    assert (code, out.splitlines()) == (0, parts)
    code, out, err = cli("data", "fetch", "wiki")
    assert (code, out) == (0, f"{cache / 'wiki-train.txt'}\n") and "glassgpt data fetch wiki-valid" in err
    answer = json.loads(cli("data", "fetch", "many", "--json")[1])
    expected = {"name": "many", "files": parts, "bytes": 10_000}
    assert answer == {**expected, "separator": "", "text_field": "body"}
    code, _, err = cli("data", "fetch", "many", "--files", 9)
    assert (code, err) == (2, "error: 'many' has 3 files, not 9\n")


def test_fetch_offline_says_what_it_tried_and_where_to_put_the_file(
    cache: Path, cli: Callable[..., Any], monkeypatch: Any
) -> None:
    monkeypatch.setenv("GLASSGPT_OFFLINE", "1")
    code, out, err = cli("data", "fetch", "text")
    assert (code, out) == (2, "")
    assert f"{HUB}/text.txt: skipped, because GLASSGPT_OFFLINE=1" in err
    assert f"save it as text.txt in {cache}, or in a folder that GLASSGPT_ASSETS names" in err


def test_an_interrupted_fetch_says_how_to_start_again(filled: Any, cli: Callable[..., Any], monkeypatch: Any) -> None:
    def interrupt(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(web, "urlopen", interrupt)
    code, out, err = cli("data", "fetch", "text")
    assert (code, out, err) == (130, "", "stopped; to start again: glassgpt data fetch text\n")

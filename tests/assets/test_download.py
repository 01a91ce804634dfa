"""Downloads: the right file is used, or none."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from serving import COMMIT, cache, offer, site  # noqa: F401  # fixtures

from glassgpt import assets
from glassgpt.assets import Asset, AssetFile
from glassgpt.assets.asset import HUB, HubFile
from glassgpt.errors import AssetError

CONTENT, OTHER = random.Random(1).randbytes(300_000), random.Random(2).randbytes(300_000)
PIN = (hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
SOURCE = HubFile("org/texts", COMMIT, "large.txt")
LARGE, SMALL, SECOND = f"/datasets/org/texts/resolve/{COMMIT}/large.txt", "/small.txt", "/second.txt"
#: Both kinds: through huggingface_hub, and by a plain URL. With the path on the server.
BOTH = pytest.mark.parametrize(("name", "path"), [("large", LARGE), ("small", SMALL)], ids=["hub", "url"])


@pytest.fixture(autouse=True)
def table(offer: Any) -> None:
    offer(
        Asset("large", "corpus", "MIT", "on the hub", (AssetFile("large.txt", *PIN, hub=SOURCE),)),
        Asset("small", "corpus", "MIT", "by URL", (AssetFile("small.txt", *PIN, urls=(HUB + SMALL, HUB + SECOND)),)),
    )


def refused(name: str) -> str:
    with pytest.raises(AssetError) as caught:
        assets.path(name)
    assert assets.available(name) is None
    return str(caught.value)


@BOTH
def test_a_download_is_checked_and_kept(site: Any, cache: Path, monkeypatch: Any, name: str, path: str) -> None:
    site.files[path] = CONTENT
    events: list[tuple[str, int, int]] = []
    found = assets.path(name, progress=lambda *event: events.append(event))
    assert found.read_bytes() == CONTENT
    assert found.parent == (cache if name == "small" else cache.parent / "hub/datasets--org--texts/snapshots" / COMMIT)
    coming = [event for event in events if event[0] == f"{name}.txt"]
    assert coming == sorted(coming) and len(coming) > 1 and coming[-1] == (f"{name}.txt", 300_000, 300_000)
    monkeypatch.setenv("GLASSGPT_OFFLINE", "1")
    assert assets.path(name) == found and len(site.requests) == 1
    assert assets.available(name) == ("cache" if name == "small" else "Hugging Face cache")


@BOTH
def test_another_content_is_refused_with_both_checksums(site: Any, name: str, path: str) -> None:
    site.files[path] = OTHER
    expected = f"{site.url}{path}: expected 300,000 bytes with SHA-256 {PIN[0]}, found 300,000 bytes with "
    with pytest.raises(AssetError, match=expected + hashlib.sha256(OTHER).hexdigest()):
        assets.path(name)
    site.files[path] = CONTENT
    with pytest.warns(UserWarning, match="damaged") if name == "large" else pytest.MonkeyPatch.context():
        assert assets.path(name).read_bytes() == CONTENT


@BOTH
def test_a_damaged_file_is_downloaded_again(site: Any, monkeypatch: Any, name: str, path: str) -> None:
    site.files[path] = CONTENT
    assets.path(name).write_bytes(OTHER)
    with pytest.warns(UserWarning, match=rf"{name}\.txt is damaged .* and will be replaced"):
        assert assets.path(name).read_bytes() == CONTENT
    assets.path(name).write_bytes(CONTENT[:-1])
    monkeypatch.setenv("GLASSGPT_OFFLINE", "1")
    with pytest.warns(UserWarning, match="damaged"):
        assert (
            f"{site.url}{path}" in (message := refused(name)) and ": skipped, because GLASSGPT_OFFLINE=1\n" in message
        )


@BOTH
def test_what_a_killed_process_leaves_is_not_taken_for_the_file(site: Any, name: str, path: str) -> None:
    site.files[path], site.pace = CONTENT, 0.1
    file = f"AssetFile('{name}.txt', {PIN[0]!r}, {PIN[1]}"
    file += f", hub={SOURCE!r})" if name == "large" else f", urls=({HUB + path!r},))"
    script = "from glassgpt.assets import hub, web\nfrom glassgpt.assets.asset import AssetFile, HubFile\n"
    script += f"file, progress = {file}, lambda *counts: print(flush=True)\n"
    script += "hub.download(file, file.hub, progress) if file.hub else web.download(file, progress)"
    with subprocess.Popen([sys.executable, "-c", script], env=dict(os.environ), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"\n"
        process.send_signal(signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)
    assert assets.available(name) is None
    site.pace = 0.0
    assert assets.path(name).read_bytes() == CONTENT


@BOTH
def test_two_at_once_do_no_harm(site: Any, name: str, path: str) -> None:
    site.files[path], site.pace = CONTENT, 0.005
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(assets.path(name).read_bytes())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 2


@BOTH
def test_an_interruption_leaves_nothing(site: Any, cache: Path, name: str, path: str) -> None:
    site.files[path] = CONTENT

    def stop(doing: str, done: int, total: int) -> None:
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assets.path(name, progress=stop)
    assert assets.available(name) is None
    assert assets.path(name).read_bytes() == CONTENT


def test_a_broken_connection_to_the_hub_is_resumed(site: Any) -> None:
    site.files[LARGE], site.drops = CONTENT, [100_000]
    assert assets.path("large").read_bytes() == CONTENT
    assert [wanted for _, wanted in site.requests] == [None, "bytes=100000-"]


def test_the_next_url_is_tried_if_the_first_fails(site: Any) -> None:
    site.files[SMALL], site.files[SECOND], site.drops = CONTENT, CONTENT, [100_000]
    assert assets.path("small").read_bytes() == CONTENT
    assert [path for path, _ in site.requests] == [SMALL, SECOND]


@BOTH
def test_each_failure_gives_one_plain_message(site: Any, name: str, path: str) -> None:
    assert f"{site.url}{path}: " in (message := refused(name)) and "404" in message
    assert f"download {site.url}{path} in another way, and save it as {name}.txt in " in message
    site.stop()
    began = time.monotonic()
    assert f"{site.url}{path}: " in refused(name)
    assert time.monotonic() - began < 5, "it does not try for a minute"


def test_a_web_page_is_not_the_file(site: Any) -> None:
    site.files[SMALL] = b"\n<!DOCTYPE html><html>Welcome to our hotel</html>"
    assert "small.txt: a web page came instead of the file: perhaps this network requires a login" in refused("small")


def test_without_the_library_the_message_has_the_command(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = refused("large")
    assert "the Hugging Face hub: downloading https://" in message and "[hf]'" in message


def test_a_full_disk_is_an_error_before_the_download(site: Any, cache: Path, monkeypatch: Any) -> None:
    site.files[LARGE] = CONTENT
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(1 << 40, 1 << 40, 1000))
    expected = rf"300\.0 kB are needed in {cache.parent / 'hub'}, where 1\.0 kB are free.*HF_HOME"
    with pytest.raises(AssetError, match=expected):
        assets.path("large")
    assert site.requests == []

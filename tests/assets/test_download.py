"""Downloads from a server with faults: the right file is written, or none."""

import errno
import hashlib
import os
import random
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path
from typing import Any
from urllib.error import URLError

import filelock
import pytest
from misbehaving import cache, offer, other_site, site  # noqa: F401  # fixtures

from glassgpt import files
from glassgpt.assets.asset import AssetUnavailable
from glassgpt.assets.download import HUB, download

CONTENT = random.Random(1).randbytes(300_000)
NEWER = random.Random(2).randbytes(300_000)
PATH = "/datasets/someone/something/resolve/main/text.txt"
URL = HUB + PATH


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def fetch(cache: Path, content: bytes | None = None, **others: Any) -> str:
    """Fetch PATH as a file pinned to ``content``, or not pinned."""
    pin = (sha(content), len(content)) if content else (None, None)
    return download((URL,), cache / "text.txt", *pin, **others)


def left(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()}


@pytest.mark.parametrize("pinned", [True, False])
def test_a_complete_download(site: Any, cache: Path, pinned: bool) -> None:
    site.files[PATH] = CONTENT
    events: list[tuple[str, int, int]] = []
    digest = fetch(cache, CONTENT if pinned else None, progress=lambda *event: events.append(event))
    assert digest == sha(CONTENT)
    assert (cache / "text.txt").read_bytes() == CONTENT
    assert left(cache) == {"text.txt"}
    assert site.header(0, "Range") is None and site.header(0, "User-Agent").startswith("glassgpt/")
    on_its_way = [event for event in events if event[0] == "text.txt"]
    assert on_its_way == sorted(on_its_way) and on_its_way[-1] == ("text.txt", 300_000, 300_000)
    assert events[-1] == ("checking text.txt", 300_000, 300_000)


@pytest.mark.parametrize("pinned", [True, False])
def test_a_dropped_connection_is_resumed_with_exactly_the_missing_bytes(site: Any, cache: Path, pinned: bool) -> None:
    site.files[PATH], site.faults = CONTENT, [{"drop": 100_000}, {"drop": 1}, {"drop": 0}]
    fetch(cache, CONTENT if pinned else None)
    assert (cache / "text.txt").read_bytes() == CONTENT
    ranges = [site.header(i, "Range") for i in range(len(site.requests))]
    assert ranges == [None, "bytes=100000-", "bytes=100001-", "bytes=100001-"]
    assert [site.header(i, "If-Range") for i in (1, 2, 3)] == ['"first"'] * 3
    assert site.sent == [100_000, 1, 0, 199_999]


def test_the_next_process_resumes_after_a_kill(site: Any, cache: Path) -> None:
    site.files[PATH], site.pace = CONTENT, 0.02
    script = "import sys; from pathlib import Path; from glassgpt.assets.download import download\n"
    script += "download((sys.argv[1],), Path(sys.argv[2]), None, None)"
    command = [sys.executable, "-c", script, URL, str(cache / "text.txt")]
    process = subprocess.Popen(command, env={**os.environ, "HF_ENDPOINT": site.url})
    part, patience = cache / "text.txt.part", time.monotonic() + 30
    while not (part.exists() and part.stat().st_size > 50_000) and time.monotonic() < patience:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)
    process.wait()
    had = part.stat().st_size
    assert 50_000 < had < 300_000
    site.pace = 0.0
    assert fetch(cache) == sha(CONTENT)
    assert site.header(1, "Range") == f"bytes={had}-" and site.sent[1] == 300_000 - had
    assert left(cache) == {"text.txt"}


def test_an_interruption_keeps_the_part(site: Any, cache: Path) -> None:
    site.files[PATH] = CONTENT

    def stop(doing: str, done: int, total: int) -> None:
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(cache, CONTENT, progress=stop)
    assert left(cache) == {"text.txt.part", "text.txt.part.json"}
    had = (cache / "text.txt.part").stat().st_size
    fetch(cache, CONTENT)
    assert site.header(1, "Range") == f"bytes={had}-"
    assert (cache / "text.txt").read_bytes() == CONTENT


def test_a_complete_part_is_not_fetched_again(site: Any, cache: Path) -> None:
    site.files[PATH] = CONTENT

    def stop(doing: str, done: int, total: int) -> None:
        if doing.startswith("checking"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(cache, progress=stop)
    assert fetch(cache) == sha(CONTENT)
    assert len(site.requests) == 1


@pytest.mark.parametrize("newer", [NEWER, NEWER[:200_000], NEWER[:50_000]])
def test_a_file_that_changed_during_the_download_is_sent_in_full(site: Any, cache: Path, newer: bytes) -> None:
    def change() -> None:
        site.files[PATH], site.etag = newer, '"second"'

    site.files[PATH], site.faults = CONTENT, [{"drop": 100_000}, {"call": change}]
    assert fetch(cache) == sha(newer)
    assert site.header(1, "If-Range") == '"first"' and site.sent == [100_000, len(newer)]
    assert (cache / "text.txt").read_bytes() == newer


@pytest.mark.parametrize("newer", [NEWER, NEWER[:200_000], NEWER[:50_000]])
def test_a_server_that_ignores_if_range_gives_no_mixture(site: Any, cache: Path, newer: bytes) -> None:
    def change() -> None:
        site.files[PATH] = newer

    site.files[PATH], site.faults = CONTENT, [{"drop": 100_000}, {"call": change, "ignore_if_range": True}]
    assert fetch(cache, newer if len(newer) == len(CONTENT) else None) == sha(newer)
    assert (cache / "text.txt").read_bytes() == newer


def test_a_server_without_ranges_sends_it_all_again(site: Any, cache: Path) -> None:
    site.files[PATH], site.ranges, site.faults = CONTENT, False, [{"drop": 100_000}, {"drop": 250_000}]
    fetch(cache, CONTENT)
    assert (cache / "text.txt").read_bytes() == CONTENT
    assert site.sent == [100_000, 250_000, 300_000]


def test_without_an_etag_or_a_date_a_part_is_not_trusted(site: Any, cache: Path) -> None:
    site.files[PATH], site.etag, site.faults = CONTENT, "", [{"drop": 100_000}]
    fetch(cache, CONTENT)
    assert site.header(1, "Range") is None
    site.headers, site.faults = {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}, [{"drop": 100_000}]
    (cache / "text.txt").unlink()
    fetch(cache, CONTENT)
    assert site.header(3, "If-Range") == "Wed, 21 Oct 2015 07:28:00 GMT"


@pytest.mark.parametrize("seed", range(25))
def test_random_faults_give_one_complete_version(site: Any, cache: Path, seed: int) -> None:
    chance = random.Random(seed)
    versions = [chance.randbytes(chance.choice([20_000, 20_000, 30_000])) for _ in range(4)]
    now = [0]

    def change() -> None:
        now[0] += chance.random() < 0.4
        site.files[PATH], site.etag = versions[now[0]], f'"{now[0]}"'
        site.ranges = chance.random() < 0.8

    change()
    for _ in range(chance.randrange(5)):
        fault = chance.choice([{"drop": chance.randrange(30_000)}, {"status": 503}, {"drop": 5_000}])
        site.faults.append({**fault, "call": change if len(site.faults) < 3 else None})
    digest = fetch(cache)
    assert digest == sha((cache / "text.txt").read_bytes()) == sha(versions[now[0]])
    assert left(cache) == {"text.txt"}


def test_a_wrong_file_is_refused_with_both_checksums_and_deleted(site: Any, cache: Path) -> None:
    site.files[PATH] = NEWER
    with pytest.raises(
        AssetUnavailable, match=f"expected 300,000 bytes with SHA-256 {sha(CONTENT)}, found 300,000 .*{sha(NEWER)}"
    ):
        fetch(cache, CONTENT)
    assert left(cache) == set() and len(site.requests) == 1


def test_a_file_of_another_size_is_refused_before_the_download(site: Any, cache: Path) -> None:
    site.files[PATH] = NEWER[:-1]
    with pytest.raises(AssetUnavailable, match="another file is there now: 299,999 bytes, expected 300,000"):
        fetch(cache, CONTENT)
    assert left(cache) == set()


def test_the_next_url_is_tried_if_the_first_fails(site: Any, other_site: Any, cache: Path) -> None:
    other_site.files["/text.txt"] = CONTENT
    urls = (URL, other_site.url + "/text.txt")
    assert download(urls, cache / "text.txt", sha(CONTENT), len(CONTENT)) == sha(CONTENT)
    other_site.files["/text.txt"] = NEWER
    with pytest.raises(
        AssetUnavailable, match=r"text\.txt: the server answered 404 .*; http.*/text\.txt: expected 300,000"
    ):
        download(urls, cache / "again.txt", sha(CONTENT), len(CONTENT))


# --- the hub ---------------------------------------------------------------------------------------------


def test_the_token_is_sent_only_to_the_hub(site: Any, other_site: Any, cache: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    site.moved = {PATH: "/elsewhere", "/elsewhere": other_site.url + "/content"}
    site.headers = {"X-Linked-Etag": f'"{sha(CONTENT)}"', "ETag": '"hub"'}
    other_site.files["/content"], other_site.faults = CONTENT, [{"drop": 100_000}]
    assert fetch(cache) == sha(CONTENT)
    assert [site.header(i, "Authorization") for i in (0, 1)] == ["Bearer secret"] * 2  # the same host
    assert [other_site.header(i, "Authorization") for i in (0, 1)] == [None, None]
    assert other_site.header(1, "Range") == "bytes=100000-"
    assert other_site.header(1, "If-Range") is None  # the SHA-256 that the hub gave says that it is the same file
    download((other_site.url + "/content",), cache / "other.txt", None, None)
    assert other_site.header(2, "Authorization") is None


def test_the_checksum_that_the_hub_sends_is_checked(site: Any, other_site: Any, cache: Path) -> None:
    site.moved = {PATH: other_site.url + "/content"}
    site.headers = {"X-Linked-Etag": f'"{sha(CONTENT)}"'}
    other_site.files["/content"] = NEWER
    with pytest.raises(
        AssetUnavailable, match=f"expected SHA-256 {sha(CONTENT)}, found 300,000 bytes with {sha(NEWER)}"
    ):
        fetch(cache)
    with pytest.raises(
        AssetUnavailable, match=f"another file is there now: SHA-256 {sha(CONTENT)}, expected {sha(NEWER)}"
    ):
        fetch(cache, NEWER)  # pinned to what is not what the hub has
    assert left(cache) == set()


def test_a_new_file_on_the_hub_is_not_appended_to_the_old(site: Any, other_site: Any, cache: Path) -> None:
    def change() -> None:
        site.headers = {"X-Linked-Etag": f'"{sha(NEWER)}"'}
        other_site.files["/content"], other_site.etag = NEWER, '"second"'

    site.moved, site.headers = {PATH: other_site.url + "/content"}, {"X-Linked-Etag": f'"{sha(CONTENT)}"'}
    other_site.files["/content"], other_site.faults = CONTENT, [{"drop": 100_000}]
    site.faults = [{}, {"call": change}]
    assert fetch(cache) == sha(NEWER)
    assert other_site.header(1, "If-Range") == '"first"'


# --- permanent failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "requests", "message"),
    [
        ({"status": 404}, 1, "the server answered 404 .*: it is no longer there"),
        ({"status": 403}, 1, r"403 .*may not be fetched without permission \(HF_TOKEN is not set\)"),
        ({"status": 401}, 1, "401 .*permission"),
        ({"status": 400}, 1, "the server answered 400 Bad Request$"),
        ({"status": 503}, 6, "the server answered 503 .*; given up after 6 tries in a row"),
        ({"status": 429, "headers": {"Retry-After": "0"}}, 6, "429 .*given up"),
        ({"drop": 0}, 6, "the connection broke after 0 of 300,000 bytes; given up"),
        ({"headers": {"Content-Type": "text/html; charset=utf-8"}}, 1, "a web page came instead of the file"),
        ({"headers": {"Content-Encoding": "gzip"}}, 1, "it came compressed"),
        ({"unmeasured": True}, 1, "the server does not say how long it is"),
    ],
)
def test_each_server_error_gives_one_message(site: Any, cache: Path, fault: Any, requests: int, message: str) -> None:
    site.files[PATH], site.faults = CONTENT, [dict(fault) for _ in range(7)]
    with pytest.raises(AssetUnavailable, match=message) as caught:
        fetch(cache)
    assert len(site.requests) == requests
    assert str(caught.value).startswith(f"{site.url}{PATH}: ")
    assert left(cache) == set()


def test_without_a_length_the_pinned_size_detects_truncation(site: Any, cache: Path) -> None:
    site.files[PATH], site.faults = CONTENT, [{"unmeasured": True, "drop": 100_000}, {"unmeasured": True}]
    assert fetch(cache, CONTENT) == sha(CONTENT)
    assert site.header(1, "Range") == "bytes=100000-"


def test_a_web_page_is_detected_by_its_content(site: Any, cache: Path) -> None:
    site.files[PATH] = b"\n<!DOCTYPE html><html>Welcome to our hotel</html>"
    with pytest.raises(AssetUnavailable, match="a web page came instead of the file"):
        fetch(cache)
    assert left(cache) == set()


def test_a_part_longer_than_the_file_is_discarded(site: Any, cache: Path) -> None:
    site.files[PATH], site.faults = CONTENT, [{"drop": 100_000}, {"call": lambda: site.files.update({PATH: b"short"})}]
    assert fetch(cache) == sha(b"short")  # the second answer was 416
    assert len(site.requests) == 3


def test_after_the_last_try_the_part_is_kept_and_mentioned(site: Any, cache: Path) -> None:
    site.files[PATH], site.faults = CONTENT, [{"drop": 100_000}] + [{"drop": 0}] * 6
    with pytest.raises(AssetUnavailable, match=r"the 100\.0 kB that came are kept; the next try resumes there"):
        fetch(cache, CONTENT)
    site.faults = []
    fetch(cache, CONTENT)
    assert site.sent[-1] == 200_000


def test_an_unreachable_server_is_an_error_at_once(cache: Path, monkeypatch: Any) -> None:
    with pytest.raises(AssetUnavailable, match=r"http://127\.0\.0\.1:9/x: it cannot be reached: .*refused"):
        download(("http://127.0.0.1:9/x",), cache / "x", None, None)
    monkeypatch.setenv("HF_ENDPOINT", "mirror.example")
    with pytest.raises(AssetUnavailable, match="HF_ENDPOINT must begin with https://"):
        fetch(cache)

    class Distrusting:
        def open(self, request: Any, timeout: float) -> Any:
            error = ssl.SSLCertVerificationError(1, "certificate verify failed")
            error.verify_message = "self-signed certificate in certificate chain"
            raise URLError(error)

    monkeypatch.setattr("glassgpt.assets.download.build_opener", lambda *handlers: Distrusting())
    with pytest.raises(AssetUnavailable, match=r"certificate of \S+ is not trusted \(self-signed .*SSL_CERT_FILE"):
        download(("https://host.invalid/x",), cache / "x", None, None)


def test_a_full_disk_is_an_error_before_the_download(site: Any, cache: Path, monkeypatch: Any) -> None:
    site.files[PATH] = CONTENT
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(1 << 40, 1 << 40, 1000))
    with pytest.raises(
        AssetUnavailable, match=r"300\.0 kB are needed in .*cache, where 1\.0 kB are free.*GLASSGPT_CACHE"
    ):
        fetch(cache)
    assert left(cache) == set()


# --- two at once -----------------------------------------------------------------------------------------


def together(number: int, work: Any) -> list[Any]:
    results: list[Any] = [None] * number

    def run(i: int) -> None:
        results[i] = work(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_two_at_once_download_it_once(site: Any, cache: Path) -> None:
    site.files[PATH], site.pace = CONTENT, 0.01
    events: list[list[str]] = [[], []]
    digests = together(2, lambda i: fetch(cache, progress=lambda doing, *counts: events[i].append(doing)))
    assert digests == [sha(CONTENT)] * 2
    assert site.sent == [300_000] and left(cache) == {"text.txt"}
    assert sum("text.txt, by another process" in doing for doing in events) == 1


def test_where_files_cannot_be_locked_two_at_once_do_no_harm(site: Any, cache: Path, monkeypatch: Any) -> None:
    def refuse(*arguments: Any, **named: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    site.files[PATH], site.pace, site.faults = CONTENT, 0.005, [{"drop": 100_000}, {}, {}]
    assert together(2, lambda i: fetch(cache)) == [sha(CONTENT)] * 2
    assert (cache / "text.txt").read_bytes() == CONTENT
    assert left(cache) == {"text.txt"}


def test_many_at_once_exclude_each_other(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def work(i: int) -> None:
        for _ in range(10):
            with files.exclusive_lock(tmp_path / "file.lock", lambda holder: None):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.0005)
                inside[0] -= 1

    lock_pause = 0.002
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "PAUSE", lock_pause)
        together(6, work)
    assert most == [1] and left(tmp_path) == set()

"""A local web server with configurable faults, and an empty cache."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from glassgpt import assets
from glassgpt.assets import Asset, download, table


@dataclass
class Site:
    """The server's files and behaviour; ``requests`` and ``sent`` record the traffic."""

    files: dict[str, bytes] = field(default_factory=dict)
    etag: str = '"first"'
    ranges: bool = True
    faults: list[dict[str, Any]] = field(default_factory=list)  # one for each answer, then none
    headers: dict[str, str] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    pace: float = 0.0  # seconds between pieces of 16 KiB
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)  # bytes of each answer with content
    url: str = ""

    def header(self, number: int, name: str) -> str | None:
        """Give a header of a request."""
        return self.requests[number][1].get(name)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        site = self.site
        site.requests.append((self.path, dict(self.headers.items())))
        fault = site.faults.pop(0) if site.faults else {}
        if call := fault.get("call"):
            call()
        content, start, total = site.files.get(self.path, b""), 0, len(site.files.get(self.path, b""))
        wanted, unchanged = self.headers.get("Range", ""), self.headers.get("If-Range") in (None, site.etag)
        if "status" in fault or self.path in site.moved or self.path not in site.files:
            status, content = fault.get("status", 302 if self.path in site.moved else 404), fault.get("body", b"no")
        elif wanted and (fault.get("ignore_if_range") or (site.ranges and unchanged)):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            status, content = (206, content[start:]) if start < total else (416, b"no")
        else:
            status = 200
        self.send_response(status)
        headers = {"Content-Length": str(len(content)), "ETag": site.etag} | site.headers | fault.get("headers", {})
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        if status == 416:
            headers["Content-Range"] = f"bytes */{total}"
        if status == 302:
            headers["Location"] = site.moved[self.path]
        if fault.get("unmeasured"):
            del headers["Content-Length"]
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        content = content[: fault.get("drop", len(content))]
        if status < 300:
            site.sent.append(len(content))
        self.close_connection = True
        pieces = [content[i : i + (1 << 14)] for i in range(0, len(content), 1 << 14)] if site.pace else [content]
        for piece in pieces:
            try:
                self.wfile.write(piece)
                self.wfile.flush()
            except OSError:  # the other side has gone
                return
            threading.Event().wait(site.pace)


def serve() -> Iterator[Site]:
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"site": site}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    yield site
    server.shutdown()
    server.server_close()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The server that HF_ENDPOINT names."""
    for site in serve():
        monkeypatch.setenv("HF_ENDPOINT", site.url + "/")
        yield site


@pytest.fixture
def other_site() -> Iterator[Site]:
    """A server that is not the hub."""
    yield from serve()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; online, without proxies and tokens, and with short pauses."""
    for variable in ("GLASSGPT_ASSETS", "GLASSGPT_OFFLINE", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("GLASSGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "PAUSE", 0.001)
    return tmp_path / "cache"


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replace the table of assets."""

    def offer(*offered: Asset) -> None:
        entries = {asset.name: asset for asset in offered}
        monkeypatch.setattr(table, "ASSETS", entries)
        monkeypatch.setattr(assets, "ASSETS", entries)

    return offer

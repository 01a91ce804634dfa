"""A local web server, which is the hub too, and empty caches."""

import hashlib
import importlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from glassgpt import assets
from glassgpt.assets import Asset, table

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Site:
    """The server's files by path, and its faults.

    Attributes:
        drops: for each answer with content, the bytes after which the connection breaks; then none breaks.
        pace: seconds between pieces of 16 KiB.
        requests: the path and the range of each request that was answered with content.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    drops: list[int] = field(default_factory=list)
    pace: float = 0.0
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""
    stop: Callable[[], None] = lambda: None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        site, content, wanted = self.site, self.site.files.get(self.path), self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(404 if content is None else 206 if wanted else 200)
        content = content or b""
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        headers = {"ETag": etag, "X-Repo-Commit": COMMIT, "Content-Length": str(len(content) - start)}
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD" or not content:
            return
        site.requests.append((self.path, wanted))
        self.close_connection = True
        content = content[start:][: site.drops.pop(0) if site.drops else None]
        for i in range(0, len(content), 1 << 14):
            try:
                self.wfile.write(content[i : i + (1 << 14)])
            except OSError:  # the other side has gone
                return
            threading.Event().wait(site.pace)


@pytest.fixture
def site(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The server that HF_ENDPOINT names; the hub's library reads from it in small pieces."""
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"site": site}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    importlib.reload(huggingface_hub.constants)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 20_000)

    def stop() -> None:
        server.shutdown()
        server.server_close()

    site.stop = stop
    yield site
    stop()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Empty caches; online, and without proxies and tokens."""
    for variable in ("GLASSGPT_ASSETS", "GLASSGPT_OFFLINE", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("GLASSGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("no_proxy", "*")
    importlib.reload(huggingface_hub.constants)
    yield tmp_path / "cache"
    monkeypatch.undo()
    importlib.reload(huggingface_hub.constants)


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replace the table of assets."""

    def offer(*offered: Asset) -> None:
        entries = {asset.name: asset for asset in offered}
        monkeypatch.setattr(table, "ASSETS", entries)
        monkeypatch.setattr(assets, "ASSETS", entries)

    return offer

"""A local server with the part of the hub's protocol that its library uses."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """The server's files, its behaviour, and the requests it received.

    Attributes:
        repos: files by name, by repository. Safetensors and .bin files are large ones, kept elsewhere (as with LFS).
        gated: repositories that only this token may read.
        token: that one.
        break_after: bytes of each large file after which the connection is dropped, once per file.
        cut: bytes after which large files end as if they were whole, every time.
        requests: every request: method, path, and the range it asked for.
    """

    repos: dict[str, dict[str, bytes]]
    gated: tuple[str, ...] = ()
    token: str = "hf_secret"
    break_after: int | None = None
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    cut: int | None = None
    broken: set[str] = field(default_factory=set)
    url: str = ""
    cdn: str = ""

    def fetched(self) -> list[str]:
        """The files of which content was sent, in order."""
        return [path.split("/")[-1] for method, path, _ in self.requests if method == "GET" and "/api/" not in path]


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve it on a free port of this machine."""

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    hub.cdn = f"http://localhost:{server.server_address[1]}/cdn"  # another host, as on the real hub
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.state, unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, self.headers.get("Range")))
        parts = path.strip("/").split("/")
        if parts[0] == "cdn":
            return self._content(hub.repos["/".join(parts[1:-1])][parts[-1]], path)
        is_api = parts[:2] == ["api", "models"]
        parts = parts[2:] if is_api else parts
        repo = next((name for name in hub.repos if parts[: name.count("/") + 1] == name.split("/")), None)
        if repo is None:
            return self._send(401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        rest = parts[repo.count("/") + 1 :]
        if repo in hub.gated and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": f"{repo} is gated"})
        if len(rest) > 1 and rest[1] not in ("main", "v1", COMMIT):
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        if is_api:
            return self._describe(repo, rest)
        return self._file(repo, rest[2:])

    def _describe(self, repo: str, rest: list[str]) -> None:
        files = self.state.repos[repo]
        if rest[:1] == ["tree"]:
            answer: object = [{"type": "file", "path": n, "size": len(c), "oid": _sha(c)} for n, c in files.items()]
        else:
            siblings = [{"rfilename": name} for name in files]
            answer = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, repo: str, rest: list[str]) -> None:
        name = "/".join(rest)
        content = self.state.repos[repo].get(name)
        commit = {"X-Repo-Commit": COMMIT}
        if content is None:
            return self._send(
                404, b"", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"} | commit
            )
        if name.endswith((".safetensors", ".bin")):
            linked = {"X-Linked-Etag": f'"{_sha(content)}"', "X-Linked-Size": str(len(content))}
            return self._send(302, b"", {"Location": f"{self.state.cdn}/{repo}/{name}"} | linked | commit)
        self._content(content, name, commit | {"ETag": f'"{_sha(content)}"'})

    def _content(self, content: bytes, path: str, headers: dict[str, str] | None = None) -> None:
        hub, headers = self.state, headers or {}
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start:
            headers = headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        if path.startswith("/cdn/") and self.command == "GET":
            content = content[: hub.cut]
        drop = hub.break_after if path.startswith("/cdn/") and path not in hub.broken else None
        if drop is not None and self.command == "GET":
            hub.broken.add(path)
            self._send(206 if start else 200, content[start:], headers, sent=drop)
            self.close_connection = True
            return
        self._send(206 if start else 200, content[start:], headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, sent: int | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:sent])


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

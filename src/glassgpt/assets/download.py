"""Download one file over HTTP, atomically and checked. An interrupted download resumes where it stopped.

During the download the file is ``NAME.part``, and the server's description of it is in ``NAME.part.json``. A part is
resumed with ``Range`` and ``If-Range`` (RFC 9110, sections 13.1.5 and 14), so that a file that has changed meanwhile is
sent in full. One process at a time writes a part; others wait. Proxies are read from the environment by urllib.
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, build_opener

from glassgpt import __version__
from glassgpt.assets import web
from glassgpt.assets.asset import AssetUnavailable, describe_mismatch, format_bytes
from glassgpt.assets.cache import setting
from glassgpt.assets.table import HUB
from glassgpt.files import Progress, exclusive_lock, sha256_of, sync_to_disk

TIMEOUT = 30.0  # seconds without a byte
MAX_FAILURES = 6  # tries in a row that bring less than MIN_PROGRESS
MIN_PROGRESS = 1 << 20
PAUSE = 0.5  # seconds before the second try, doubled before each further one
MIN_FREE_DISK = 64 << 20  # bytes that should stay free
CHUNK = 1 << 18
_WEB_PAGE = "a web page came instead of the file: perhaps this network requires a login in a browser first"


@dataclass(frozen=True)
class _ServerInfo:
    """The server's description of the file that the part belongs to."""

    url: str = ""
    etag: str = ""
    modified: str = ""
    linked: str = ""  # the SHA-256 that the hub sends
    total: int = 0

    @property
    def validator(self) -> str:
        """The value for If-Range: a strong ETag, or else the date."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


def download(
    urls: tuple[str, ...], path: Path, sha256: str | None, size: int | None, progress: Progress | None = None
) -> str:
    """Download the file from the first of ``urls`` that has it to ``path``, and return its SHA-256.

    The SHA-256 and the size are checked if given; the SHA-256 that the Hugging Face hub sends is checked too.
    ``HF_ENDPOINT`` replaces the hub's address, and ``HF_TOKEN`` is sent only to the hub.

    Raises:
        AssetUnavailable: with each URL and its problem. The bytes that came are kept for the next call.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")

    def report_other(holder: str) -> None:
        if progress:
            progress(f"{path.name}, by another process", part.stat().st_size if part.exists() else 0, 0)

    with contextlib.ExitStack() as held:
        if not held.enter_context(exclusive_lock(path.with_name(f".{path.name}.lock"), report_other)):
            folder = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)  # not mixed with another's
            part = Path(held.enter_context(folder)) / part.name
        if path.is_file() and (digest := sha256_of(path, progress)) == (sha256 or digest):
            return digest  # another process has downloaded it
        reasons = []
        for url in map(resolve_url, urls):
            try:
                return _Transfer(url, path, part, sha256, size, progress).run()
            except AssetUnavailable as error:
                reasons.append(f"{url}: {error}")
        raise AssetUnavailable("; ".join(reasons))


def resolve_url(url: str) -> str:
    """Replace the hub's address in a URL by ``HF_ENDPOINT``, if that is set."""
    endpoint = setting("HF_ENDPOINT").rstrip("/")
    return endpoint + url.removeprefix(HUB) if endpoint and url.startswith(HUB + "/") else url


class _Transfer:
    """The download of one file from one URL."""

    def __init__(
        self, url: str, path: Path, part: Path, sha256: str | None, size: int | None, progress: Progress | None
    ):
        if urlsplit(url).scheme not in ("http", "https"):
            raise AssetUnavailable("this is not a web address: HF_ENDPOINT must begin with https://")
        self.url, self.path, self.part = url, path, part
        self.sha256, self.size, self.progress = sha256, size, progress
        self.info_path = part.with_name(part.name + ".json")
        self.info = self._read_info()
        self.resumed = self._part_size() > 0  # whether the part consists of several answers
        self.reached = False  # whether the server has answered

    def run(self) -> str:
        """Fetch the file, check it and move it to its path; return its SHA-256."""
        failures = 0
        try:
            while True:
                before = self._part_size()
                try:
                    if not (self.info.total and before == self.info.total):
                        self._fetch(before)
                    return self._finish()
                except web.RetryableError as error:
                    failures = 0 if self._part_size() - before >= MIN_PROGRESS else failures + 1
                    if failures >= MAX_FAILURES:
                        raise AssetUnavailable(f"{error}; given up after {MAX_FAILURES} tries in a row") from None
                    time.sleep(max(min(PAUSE * 2 ** (failures - 1), web.MAX_PAUSE), error.wait))
        except AssetUnavailable as error:
            kept = self._part_size()
            note = f" (the {format_bytes(kept)} that came are kept; the next try resumes there)" if kept else ""
            raise AssetUnavailable(f"{error}{note}") from None
        finally:
            if not self._part_size():
                self._discard()

    def _fetch(self, start: int) -> None:
        """Request the file from byte ``start`` on; the server sends all of it if it has changed, or has no ranges."""
        headers = {"User-Agent": f"glassgpt/{__version__}", "Accept-Encoding": "identity"}
        if start and self.info.validator:
            headers |= {"Range": f"bytes={start}-", "If-Range": self.info.validator}
        redirects = web.Redirects(self.info.linked)
        with self._open(Request(self.url, headers=headers), redirects) as response:
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else self.size or 0
            if response.status == 206:
                first, total = web.content_range(response.headers)
                if first != start or total != self.info.total:
                    self._discard()
                    raise web.RetryableError("the file changed on the server")
            else:
                start = 0
            linked = redirects.linked_sha256 or web.linked_sha256(response.headers)
            self._check_answer(response, total, linked)
            self._check_disk_space(total - start)
            self.resumed = start > 0
            if not self.resumed:
                self._write_info(response, total, linked)
            self._copy(response, start, total)

    def _open(self, request: Request, redirects: web.Redirects) -> Any:
        """Send a request, and return the answer if it has content."""
        hub, token = setting("HF_ENDPOINT") or HUB, setting("HF_TOKEN")
        if token and web.origin(self.url) == web.origin(hub):
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        try:
            response = build_opener(redirects).open(request, timeout=TIMEOUT)
        except HTTPError as error:
            self.reached = True
            with error:
                raise self._out_of_range(error) if error.code == 416 else web.status_error(error, bool(token)) from None
        except URLError as error:
            raise web.connection_error(error.reason, urlsplit(self.url).hostname, self.reached) from None
        except ValueError as error:
            raise AssetUnavailable(f"this is not a web address: {error}") from None
        except (HTTPException, OSError) as error:
            raise _broken(error) from None
        self.reached = True
        return response

    def _out_of_range(self, error: HTTPError) -> web.RetryableError:
        """Handle status 416: the part is complete, or belongs to another file."""
        answer = f"the server answered {error.code} {error.reason}"
        if web.content_range(error.headers)[1] == self._part_size() == self.info.total:
            return web.RetryableError(answer)
        self._discard()
        return web.RetryableError(f"{answer}: the file changed on the server")

    def _check_answer(self, response: Any, total: int, linked: str) -> None:
        """Refuse an answer that cannot be the file, before any of it is written."""
        if response.headers.get_content_type() == "text/html" and self.path.suffix != ".html":
            raise AssetUnavailable(_WEB_PAGE)
        if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
            raise AssetUnavailable(f"it came compressed ({encoding}), although that was not requested")
        if linked and self.sha256 and linked != self.sha256:
            raise AssetUnavailable(f"another file is there now: SHA-256 {linked}, expected {self.sha256}")
        if total and self.size and total != self.size:
            raise AssetUnavailable(f"another file is there now: {total:,} bytes, expected {self.size:,}")
        if not (total or self.sha256 or linked or response.chunked):
            raise AssetUnavailable("the server does not say how long it is, so a truncated file could not be detected")

    def _check_disk_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.part.parent).free
        if needed > 0 and free < needed + MIN_FREE_DISK:
            raise AssetUnavailable(
                f"{format_bytes(needed)} are needed in {self.part.parent}, where {format_bytes(free)} are free. "
                "Make room, or name a folder on another disk in GLASSGPT_CACHE"
            )

    def _copy(self, response: Any, start: int, total: int) -> None:
        """Append the answer to the part, from byte ``start`` on."""
        written = start
        with self.part.open("r+b" if start else "wb") as out:
            out.seek(start)
            while True:
                try:
                    chunk = response.read1(CHUNK)
                except (HTTPException, OSError) as error:
                    raise _broken(error) from None
                if not chunk:
                    break
                if written == 0 and chunk.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
                    raise AssetUnavailable(_WEB_PAGE)
                try:
                    out.write(chunk)
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
                        raise
                    raise AssetUnavailable(f"the disk of {self.part.parent} is full") from None
                written += len(chunk)
                if self.progress:
                    self.progress(self.path.name, written, total)
        if written < total:
            raise web.RetryableError(f"the connection broke after {written:,} of {total:,} bytes")

    def _finish(self) -> str:
        """Check the complete part and move it to its path."""
        digest, size = sha256_of(self.part, self.progress), self._part_size()
        expected = self.sha256 or self.info.linked
        if not size:
            raise AssetUnavailable("it is empty")
        if expected and digest != expected:
            self._discard()
            problem = describe_mismatch(expected, self.size, digest, size)
            if not self.resumed:
                raise AssetUnavailable(problem)
            self.resumed = False  # perhaps parts of different files: fetch all of it once more
            raise web.RetryableError(problem)
        sync_to_disk(self.part)
        os.replace(self.part, self.path)
        self.info_path.unlink(missing_ok=True)
        return digest

    def _part_size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _read_info(self) -> _ServerInfo:
        """Read the part's description; discard a part without one, or of another URL."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            info = _ServerInfo(**json.loads(self.info_path.read_text(encoding="utf-8")))
            if info.url == self.url and info.validator and 0 < self._part_size() <= (info.total or self._part_size()):
                return info
        self._discard()
        return _ServerInfo()

    def _write_info(self, response: Any, total: int, linked: str) -> None:
        headers = response.headers
        self._discard()
        self.info = _ServerInfo(self.url, headers.get("ETag", ""), headers.get("Last-Modified", ""), linked, total)
        self.info_path.write_text(json.dumps(asdict(self.info)), encoding="utf-8")

    def _discard(self) -> None:
        """Delete the part and its description."""
        self.part.unlink(missing_ok=True)
        self.info_path.unlink(missing_ok=True)
        self.info = _ServerInfo()


def _broken(error: Exception) -> web.RetryableError:
    return web.RetryableError(f"the connection broke: {str(error) or type(error).__name__}")

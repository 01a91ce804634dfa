"""Bring one file over HTTP: whole and checked, or not at all. What was interrupted goes on where it stopped.

On its way the file is ``NAME.part``, and what the server said of it is in ``NAME.part.json``. A part is continued with
``Range`` and ``If-Range`` (RFC 9110, sections 13.1.5 and 14), so that a file that has changed meanwhile comes whole.
One process writes a part at a time; others wait for it. Proxies apply as urllib reads them from the environment.
"""

import contextlib
import errno
import json
import os
import shutil
import ssl
import time
from dataclasses import asdict, dataclass
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from glassgpt import __version__
from glassgpt.assets.lock import alone
from glassgpt.assets.table import HUB, readable
from glassgpt.files import Progress, sha256_of

TIMEOUT = 30.0  # seconds without a byte
TRIES = 6  # in a row that bring less than ENOUGH
ENOUGH = 1 << 20
PAUSE = 0.5  # seconds before the second try, doubled before each further one
LONGEST_PAUSE = 30.0
SPARE = 64 << 20  # bytes that a disk should keep free
CHUNK = 1 << 18


class Unfit(Exception):
    """A place does not have a file as it should be; ``str`` is the reason, shown to the user."""


class _Dropped(Exception):
    """A try failed in a way that the next one may mend, not sooner than in ``wait`` seconds."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class _Known:
    """What the server said of the file whose first bytes are in the part."""

    url: str = ""
    etag: str = ""
    modified: str = ""
    linked: str = ""  # the SHA-256 that the hub gives
    total: int = 0

    @property
    def validator(self) -> str:
        """What If-Range can carry: a strong ETag, or else the date."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


def download(
    urls: tuple[str, ...], place: Path, sha256: str | None, size: int | None, progress: Progress | None = None
) -> str:
    """Bring the file at the first of ``urls`` that has it to ``place``; its SHA-256 is returned.

    The SHA-256 and the size are checked where they are given; so is the SHA-256 that the Hugging Face hub sends.
    ``HF_ENDPOINT`` replaces the hub's address, and ``HF_TOKEN`` goes to the hub alone.

    Raises:
        Unfit: with each URL and what was wrong there. What came is kept for the next time.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with alone(place, progress) as part:
        if place.is_file() and (digest := sha256_of(place, progress)) == (sha256 or digest):
            return digest  # another process was faster
        reasons = []
        for url in map(resolved, urls):
            try:
                return _Transfer(url, place, part, sha256, size, progress).run()
            except Unfit as error:
                reasons.append(f"{url}: {error}")
        raise Unfit("; ".join(reasons))


def resolved(url: str) -> str:
    """The URL that is asked: of a file on the hub, the one below ``HF_ENDPOINT``."""
    endpoint = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/")
    return endpoint + url.removeprefix(HUB) if endpoint and url.startswith(HUB + "/") else url


def mismatch(sha256: str | None, size: int | None, digest: str, found: int) -> str:
    """The sentence about a file that is not the one expected."""
    expected = f"{size:,} bytes with SHA-256 {sha256}" if size else f"SHA-256 {sha256}"
    return f"expected {expected}, found {found:,} bytes with {digest}"


class _Redirects(HTTPRedirectHandler):
    """Follows redirects: the token stays with its host, and what the hub says of the file on the way is kept."""

    def __init__(self, known: _Known):
        self.known = known
        self.linked = ""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        """As urllib does, which repeats no header that was added as "unredirected"."""
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is None:
            return None
        self.linked = _linked(headers) or self.linked
        if self.linked and self.linked == self.known.linked:
            new.remove_header("If-range")  # same SHA-256, same file, whatever its next host calls it
        if _origin(newurl) == _origin(req.full_url) and (token := req.get_header("Authorization")):
            new.add_unredirected_header("Authorization", token)
        return new


class _Transfer:
    """One file on its way from one URL."""

    def __init__(
        self, url: str, place: Path, part: Path, sha256: str | None, size: int | None, progress: Progress | None
    ):
        if urlsplit(url).scheme not in ("http", "https"):
            raise Unfit("this is no web address: HF_ENDPOINT must begin with https://")
        self.url, self.place, self.part = url, place, part
        self.sha256, self.size, self.progress = sha256, size, progress
        self.notes = part.with_name(part.name + ".json")
        self.known = self._read_notes()
        self.pieced = self._have() > 0  # whether the bytes come of more than one answer
        self.answered = False

    def run(self) -> str:
        """Fetch, check, and give it its name; the SHA-256 is returned."""
        failures = 0
        try:
            while True:
                before = self._have()
                try:
                    if not (self.known.total and before == self.known.total):
                        self._fetch(before)
                    return self._finish()
                except _Dropped as dropped:
                    failures = 0 if self._have() - before >= ENOUGH else failures + 1
                    if failures >= TRIES:
                        raise Unfit(f"{dropped}; given up after {TRIES} tries in a row{self._kept()}") from None
                    time.sleep(max(min(PAUSE * 2 ** (failures - 1), LONGEST_PAUSE), dropped.wait))
        finally:
            if not self._have():
                self._drop()

    def _fetch(self, start: int) -> None:
        """One request: the file's bytes from ``start`` on, or all of them if the server cannot or it has changed."""
        headers = {"User-Agent": f"glassgpt/{__version__}", "Accept-Encoding": "identity"}
        if start and self.known.validator:
            headers |= {"Range": f"bytes={start}-", "If-Range": self.known.validator}
        redirects = _Redirects(self.known)
        with self._open(Request(self.url, headers=headers), redirects) as response:
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else self.size or 0
            if response.status == 206:
                first, total = _range(response.headers.get("Content-Range", ""))
                if first != start or total != self.known.total:
                    self._drop()
                    raise _Dropped("the file changed on the server")
            else:
                start = 0
            linked = redirects.linked or _linked(response.headers)
            self._judge(response, total, linked)
            self._make_room(total - start)
            if start == 0:
                self.pieced = False
                self._note(response, total, linked)
            else:
                self.pieced = True
            self._copy(response, start, total)

    def _copy(self, response: Any, start: int, total: int) -> None:
        have = start
        with self.part.open("r+b" if start else "wb") as out:
            out.seek(start)
            while True:
                try:
                    chunk = response.read1(CHUNK)
                except (HTTPException, OSError) as error:
                    raise _Dropped(f"the connection broke: {str(error) or type(error).__name__}") from None
                if not chunk:
                    break
                if have == 0 and chunk.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
                    raise Unfit(_WEB_PAGE)
                try:
                    out.write(chunk)
                except OSError as error:
                    raise self._disk_full(error) from None
                have += len(chunk)
                if self.progress:
                    self.progress(self.place.name, have, total)
        if have < total:
            raise _Dropped(f"the connection broke after {have:,} of {total:,} bytes")

    def _finish(self) -> str:
        digest, found = sha256_of(self.part, self.progress), self._have()
        expected = self.sha256 or self.known.linked
        if not found:
            raise Unfit("it is empty")
        if expected and digest != expected:
            self._drop()
            if self.pieced:  # pieces of different files, perhaps: all of it once more
                self.pieced = False
                raise _Dropped(mismatch(expected, self.size, digest, found))
            raise Unfit(mismatch(expected, self.size, digest, found))
        with self.part.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(self.part, self.place)
        self.notes.unlink(missing_ok=True)
        return digest

    def _open(self, request: Request, redirects: _Redirects) -> Any:
        """The answer, once it is one with content."""
        hub = os.environ.get("HF_ENDPOINT", "").strip() or HUB
        if (token := os.environ.get("HF_TOKEN", "").strip()) and _origin(self.url) == _origin(hub):
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        try:
            response = build_opener(redirects).open(request, timeout=TIMEOUT)
        except HTTPError as error:
            with error:
                self.answered = True
                raise self._refused(error) from None
        except URLError as error:
            raise self._unreachable(error.reason) from None
        except ValueError as error:
            raise Unfit(f"this is no web address: {error}") from None
        except (HTTPException, OSError) as error:
            raise _Dropped(f"the connection broke: {str(error) or type(error).__name__}") from None
        self.answered = True
        return response

    def _refused(self, error: HTTPError) -> Exception:
        code, said = error.code, f"the server answered {error.code} {error.reason}"
        if code == 416:  # there is nothing after what is here: it is whole, or of another file
            if _range(error.headers.get("Content-Range", ""))[1] == self._have() == self.known.total:
                return _Dropped(said)
            self._drop()
            return _Dropped(f"{said}: the file changed on the server")
        if code in (401, 403):
            token = "the token in HF_TOKEN does not open it" if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set"
            return Unfit(f"{said}: it may not be fetched without permission ({token})")
        if code in (404, 410):
            return Unfit(f"{said}: it is no longer there")
        if code in (408, 429) or code >= 500:
            wait = error.headers.get("Retry-After") or ""
            return _Dropped(said, min(float(wait), 2 * LONGEST_PAUSE) if wait.isdecimal() else 0.0)
        return Unfit(said)

    def _unreachable(self, reason: str | BaseException) -> Exception:
        if isinstance(reason, ssl.SSLCertVerificationError):
            return Unfit(
                f"the certificate of {urlsplit(self.url).hostname} is not trusted ({reason.verify_message}). Where a "
                "proxy looks into the traffic, name its certificate in SSL_CERT_FILE"
            )
        dropped = isinstance(reason, ConnectionResetError | ssl.SSLEOFError) or self.answered
        said = f"it cannot be reached: {str(reason) or type(reason).__name__}"
        return _Dropped(said) if dropped else Unfit(said + self._kept())

    def _judge(self, response: Any, total: int, linked: str) -> None:
        """Refuse what cannot be the file, before any of it is written."""
        if response.headers.get_content_type() == "text/html" and self.place.suffix != ".html":
            raise Unfit(_WEB_PAGE)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise Unfit(f"it came compressed ({response.headers['Content-Encoding']}), which was not asked for")
        if linked and self.sha256 and linked != self.sha256:
            raise Unfit(f"another file is there now: SHA-256 {linked}, expected {self.sha256}")
        if total and self.size and total != self.size:
            raise Unfit(f"another file is there now: {total:,} bytes, expected {self.size:,}")
        if not (total or self.sha256 or linked or response.chunked):
            raise Unfit("the server does not say how long it is: nothing would tell the whole file from a part")

    def _make_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.part.parent).free
        if needed > 0 and free < needed + SPARE:
            raise Unfit(
                f"{readable(needed)} are needed in {self.part.parent}, where {readable(free)} are free. "
                f"Make room, or name a folder on another disk in GLASSGPT_CACHE{self._kept()}"
            )

    def _disk_full(self, error: OSError) -> Exception:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
            return Unfit(f"the disk of {self.part.parent} is full{self._kept()}")
        return error

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _kept(self) -> str:
        have = self._have()
        return f" (the {readable(have)} that came are kept; the next try goes on from there)" if have else ""

    def _read_notes(self) -> _Known:
        """What is known of the part; one of another URL, or of which nothing is known, is thrown away."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            known = _Known(**json.loads(self.notes.read_text(encoding="utf-8")))
            if known.url == self.url and known.validator and 0 < self._have() <= (known.total or self._have()):
                return known
        self._drop()
        return _Known()

    def _note(self, response: Any, total: int, linked: str) -> None:
        headers = response.headers
        self._drop()
        self.known = _Known(self.url, headers.get("ETag", ""), headers.get("Last-Modified", ""), linked, total)
        self.notes.write_text(json.dumps(asdict(self.known)), encoding="utf-8")

    def _drop(self) -> None:
        """Throw the part away, and what is known of it."""
        self.part.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)
        self.known = _Known()


_WEB_PAGE = "a web page came instead of the file: perhaps this network wants you to log in with a browser first"


def _linked(headers: Any) -> str:
    """The SHA-256 that the hub gives for a large file; empty if this is none."""
    etag = (headers.get("X-Linked-Etag") or "").strip().removeprefix("W/").strip('"').lower()
    return etag if len(etag) == 64 and set(etag) <= set("0123456789abcdef") else ""


def _range(header: str) -> tuple[int, int]:
    """First byte and total of a Content-Range such as ``bytes 5-9/10`` or ``bytes */10``; -1 for what it lacks."""
    numbers, _, total = header.removeprefix("bytes ").partition("/")
    first = numbers.split("-")[0]
    return int(first) if first.isdecimal() else -1, int(total) if total.isdecimal() else -1


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port

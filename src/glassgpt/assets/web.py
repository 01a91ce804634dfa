"""HTTP for downloads: redirects, headers, and the errors after which another try may succeed."""

import ssl
from http.client import HTTPMessage
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request

from glassgpt.assets.asset import AssetUnavailable

MAX_PAUSE = 30.0  # seconds between two tries


class RetryableError(Exception):
    """A try failed, and another one may succeed after at least ``wait`` seconds."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


class Redirects(HTTPRedirectHandler):
    """Follows redirects, keeps the token from other hosts, and notes the SHA-256 that the hub sends on the way."""

    def __init__(self, part_sha256: str):
        self.part_sha256 = part_sha256  # of the file that the existing part belongs to; empty if unknown
        self.linked_sha256 = ""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        """As in urllib, which does not repeat headers that were added as "unredirected"."""
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is None:
            return None
        self.linked_sha256 = linked_sha256(headers) or self.linked_sha256
        if self.linked_sha256 and self.linked_sha256 == self.part_sha256:
            new.remove_header("If-range")  # the same file, even if the next host has another ETag for it
        if origin(newurl) == origin(req.full_url) and (token := req.get_header("Authorization")):
            new.add_unredirected_header("Authorization", token)
        return new


def linked_sha256(headers: Any) -> str:
    """Read the SHA-256 that the hub sends for a large file; empty if there is none."""
    etag = (headers.get("X-Linked-Etag") or "").strip().removeprefix("W/").strip('"').lower()
    return etag if len(etag) == 64 and set(etag) <= set("0123456789abcdef") else ""


def content_range(headers: Any) -> tuple[int, int]:
    """Parse first byte and total from a Content-Range such as ``bytes 5-9/10`` or ``bytes */10``; -1 if missing."""
    numbers, _, total = headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    first = numbers.split("-")[0]
    return int(first) if first.isdecimal() else -1, int(total) if total.isdecimal() else -1


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Give scheme, host and port of a URL."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def status_error(error: HTTPError, token_is_set: bool) -> Exception:
    """Convert an HTTP error status other than 416 to AssetUnavailable or RetryableError."""
    code, answer = error.code, f"the server answered {error.code} {error.reason}"
    if code in (401, 403):
        token = "the token in HF_TOKEN does not give access" if token_is_set else "HF_TOKEN is not set"
        return AssetUnavailable(f"{answer}: it may not be fetched without permission ({token})")
    if code in (404, 410):
        return AssetUnavailable(f"{answer}: it is no longer there")
    if code in (408, 429) or code >= 500:
        wait = error.headers.get("Retry-After") or ""
        return RetryableError(answer, min(float(wait), 2 * MAX_PAUSE) if wait.isdecimal() else 0.0)
    return AssetUnavailable(answer)


def connection_error(reason: str | BaseException, host: str | None, reached_before: bool) -> Exception:
    """Convert a failure to connect to AssetUnavailable, or to RetryableError if the server could be reached before."""
    if isinstance(reason, ssl.SSLCertVerificationError):
        return AssetUnavailable(
            f"the certificate of {host} is not trusted ({reason.verify_message}). If a proxy inspects the traffic, "
            "name its certificate in SSL_CERT_FILE"
        )
    message = f"it cannot be reached: {str(reason) or type(reason).__name__}"
    if isinstance(reason, ConnectionResetError | ssl.SSLEOFError) or reached_before:
        return RetryableError(message)
    return AssetUnavailable(message)

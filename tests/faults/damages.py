"""What can happen to a file: it is cut, overwritten, removed, replaced; or it is JSON or TOML of other content."""

import copy
import json
import random
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

REMOVED, FOLDER, UNREADABLE = object(), object(), object()
#: Whole JSON files that are not what any reader expects.
OTHER_JSON = {
    "a list": b"[]", "a list of lists": b"[[1, 2]]", "a string": b'"text"', "null": b"null", "a number": b"7",
    "no fields": b"{}", "NaN": b"NaN", "an open object": b'{"step": 1,', "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "a long number": b"9" * 5000,
    "not UTF-8": b'{"a": "\xff"}', "half a surrogate": b'{"\\ud800": "\\ud800"}',
}  # fmt: skip
OTHER_TOML = {
    "no fields": b"", "a number": b"model = 7\n", "a preset of no name": b"preset = 3\n", "not UTF-8": b"a = '\xff'\n",
    "deep lists": b"a = " + b"[" * 5000 + b"]" * 5000 + b"\n", "a long number": b"a = " + b"9" * 5000 + b"\n",
}  # fmt: skip
#: Values for a single field; REMOVED takes it out.
OTHER_VALUES = {
    "removed": REMOVED, "null": None, "a list": [], "a list of lists": [[1]], "no fields": {}, "a string": "x",
    "an empty string": "", "true": True, "-1": -1, "0.5": 0.5, "10**18": 10**18, "10**400": 10**400, "1e308": 1e308,
    "inf": float("inf"), "nan": float("nan"),
}  # fmt: skip


@dataclass(frozen=True)
class Damage:
    """A damage to a file of a folder.

    Args:
        file: relative to the folder.
        name: what is done to it.
        content: the new content, or REMOVED, FOLDER, UNREADABLE.
        well_formed: checksums beside it are removed, so that the content reaches its reader.
    """

    file: str
    name: str
    content: Any
    well_formed: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"

    def apply(self, folder: Path) -> list[str]:
        """Damage the file; return the names of all files that are no longer what they were."""
        path, changed = folder / self.file, [self.file]
        if self.content is UNREADABLE:
            path.chmod(0)
            return changed
        path.unlink()
        if self.content is FOLDER:
            path.mkdir()
        elif self.content is not REMOVED:
            path.write_bytes(self.content)
        if self.well_formed:
            for sums in (path.parent / "SHA256SUMS", path.parent.parent / "SHA256SUMS"):
                sums.unlink(missing_ok=True)
                changed.append(sums.relative_to(folder).as_posix())
        return changed


def whole_damages(file: str, content: bytes) -> Iterator[Damage]:
    """Damages to the file as a whole."""
    middle, rng = len(content) // 2, random.Random(file)
    yield Damage(file, "removed", REMOVED)
    yield Damage(file, "a folder", FOLDER)
    yield Damage(file, "unreadable", UNREADABLE)
    if not content:
        return
    yield Damage(file, "empty", b"")
    yield Damage(file, "half", content[:middle])
    yield Damage(file, "without its last bytes", content[:-3])
    yield Damage(file, "zeros", bytes(len(content)))
    yield Damage(file, "random bytes", rng.randbytes(len(content)))
    yield Damage(file, "a byte changed", content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    yield Damage(file, "twice", content * 2)
    others = OTHER_JSON if Path(file).suffix in (".json", ".jsonl") else OTHER_TOML if file.endswith(".toml") else {}
    for name, other in others.items():
        yield Damage(file, name, other, well_formed=True)


def field_damages(file: str, content: bytes) -> Iterator[Damage]:
    """Each field of a JSON, JSON lines or TOML file, or of a safetensors header, with each other value."""
    suffix = Path(file).suffix
    if suffix == ".json":
        yield from _mutations(file, json.loads(content), lambda value: json.dumps(value).encode())
    elif suffix == ".toml":
        yield from _mutations(file, tomllib.loads(content.decode()), lambda value: tomli_w.dumps(value).encode())
    elif suffix == ".jsonl":
        lines = content.splitlines(keepends=True)
        for number in (0, 1, 2, len(lines) - 1):

            def rejoin(row: Any, number: int = number) -> bytes:
                return b"".join([*lines[:number], json.dumps(row).encode() + b"\n", *lines[number + 1 :]])

            for name, value in OTHER_VALUES.items():
                if value is not REMOVED:
                    yield Damage(file, f"line {number} is {name}", rejoin(value))
            yield from _mutations(file, json.loads(lines[number]), rejoin, f"line {number}, ")
    elif suffix == ".safetensors":
        length = int.from_bytes(content[:8], "little")

        def with_header(header: Any) -> bytes:
            text = json.dumps(header).encode()
            return len(text).to_bytes(8, "little") + text + content[8 + length :]

        yield from _mutations(file, json.loads(content[8 : 8 + length]), with_header, longest=2)
        yield Damage(file, "a header of 2**63 bytes", (2**63).to_bytes(8, "little") + content[8:], well_formed=True)


def _mutations(file: str, content: Any, encode: Any, where: str = "", longest: int = 40) -> Iterator[Damage]:
    for path in _fields(content, longest):
        for name, value in OTHER_VALUES.items():
            changed = copy.deepcopy(content)
            parent = changed
            for key in path[:-1]:
                parent = parent[key]
            if value is REMOVED:
                del parent[path[-1]]
            elif repr(value) == repr(parent[path[-1]]):
                continue  # no damage
            else:
                parent[path[-1]] = value
            try:
                new = encode(changed)
            except (TypeError, ValueError):  # TOML has no null
                continue
            yield Damage(file, f"{where}{'.'.join(map(str, path))}: {name}", new, well_formed=True)


def _fields(content: Any, longest: int, path: tuple = ()) -> Iterator[tuple]:
    """The paths of the fields; of a list or a long table (a vocabulary), those of its first and last entry."""
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    if isinstance(content, list) or len(keys) > longest:
        keys = keys[:1] + keys[1:][-1:]
    for key in keys:
        yield (*path, key)
        if isinstance(content[key], dict | list):
            yield from _fields(content[key], 40, (*path, key))

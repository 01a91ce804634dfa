"""Which lessons were read to their end, and which exercises were solved, on this machine."""

import json
from pathlib import Path
from typing import Any

from glassgpt.assets.cache import cache_dir
from glassgpt.files import write_text


def _path() -> Path:
    return cache_dir() / "lessons.json"


def load() -> dict[str, Any]:
    """Return {"read": [numbers], "solved": {number: [names]}}; empty if there is no file, or a damaged one."""
    try:
        found = json.loads(_path().read_text(encoding="utf-8"))
        return {
            "read": [int(number) for number in found["read"]],
            "solved": {number: [str(name) for name in names] for number, names in found["solved"].items()},
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {"read": [], "solved": {}}


def mark_read(number: int) -> None:
    """Remember that a lesson was read to its end."""
    progress = load()
    progress["read"] = sorted({*progress["read"], number})
    _save(progress)


def mark_solved(number: int, names: list[str]) -> None:
    """Remember solved exercises."""
    progress = load()
    progress["solved"][str(number)] = sorted({*progress["solved"].get(str(number), []), *names})
    _save(progress)


def _save(progress: dict[str, Any]) -> None:
    _path().parent.mkdir(parents=True, exist_ok=True)
    write_text(_path(), json.dumps(progress))

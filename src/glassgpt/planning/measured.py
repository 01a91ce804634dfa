"""What was measured on this machine: each thing once, and kept for a day with the conditions under which it holds.

It is kept in ``measured.json`` in the cache. A file that is damaged or cannot be written is as good as none.
"""

import dataclasses
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

import glassgpt
from glassgpt.assets import cache_dir
from glassgpt.files import parse_json, write_text

#: How long a measurement holds, in seconds.
KEPT_SECONDS = 24 * 3600.0
_T = TypeVar("_T")


class Measurements:
    """Measures each thing once, and keeps it for later runs. A thing is a dataclass of numbers, texts and truth values.

    What has a false field ``steady`` was measured on a busy machine: it serves this process, and is not kept.

    Args:
        anew: use nothing that was kept before.
        before_first: called before the first measurement.
    """

    def __init__(self, *, anew: bool = False, before_first: Callable[[], None] = lambda: None):
        self._anew, self._before_first = anew, before_first
        self._here: dict[str, Any] = {}
        self._oldest, self._measured = math.inf, False

    def get(self, kind: type[_T], conditions: Mapping[str, Any], measure: Callable[[], _T]) -> _T:
        """What is known under these conditions; else measure it, and keep it."""
        found = self.known(kind, conditions)
        if found is None:
            if not self._measured:
                self._before_first()
            self._measured = True
            self.keep(found := measure(), conditions)
        return found

    def known(self, kind: type[_T], conditions: Mapping[str, Any]) -> _T | None:
        """What was measured under these conditions in this process, or within a day on this machine; None if nothing.

        The conditions are JSON values. The machine, the versions and the source code are added to them.
        """
        key = _key(kind, conditions)
        if key not in self._here and not self._anew:
            for entry in _read():
                value = _build(kind, entry["values"]) if entry["conditions"] == json.loads(key) else None
                if value is not None:
                    self._here[key], self._oldest = value, min(self._oldest, entry["time"])
        found: _T | None = self._here.get(key)
        return found

    def keep(self, value: Any, conditions: Mapping[str, Any]) -> None:
        """Keep what was measured under these conditions, now."""
        self._here[key := _key(type(value), conditions)] = value
        if KEPT_SECONDS <= 0 or not getattr(value, "steady", True):
            return
        entry = {"time": time.time(), "conditions": json.loads(key), "values": dataclasses.asdict(value)}
        entries = [other for other in _read() if other["conditions"] != entry["conditions"]]
        path = _path()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps([*entries, entry], indent=1))
        except OSError:
            pass  # it will be measured again

    @property
    def age(self) -> str:
        """The end of a note: how old the oldest measurement is that was used; empty if all are new."""
        if self._oldest == math.inf:
            return ""
        minutes = (time.time() - self._oldest) / 60
        age = f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.0f} h"
        return f" (measured {age} ago; --measure: anew)"


def _path() -> Path:
    return cache_dir() / "measured.json"


def _key(kind: type, conditions: Mapping[str, Any]) -> str:
    threads = {"threads": torch.get_num_threads()}  # which may change in a process
    return json.dumps({"what": kind.__name__, **_machine(), **threads, **conditions}, sort_keys=True)


def _read() -> list[dict[str, Any]]:
    """The entries that are whole and young enough."""
    try:
        found = parse_json(_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    entries = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    whole = [e for e in entries if isinstance(e.get("time"), int | float) and {"conditions", "values"} <= e.keys()]
    return [entry for entry in whole if 0 <= time.time() - entry["time"] < KEPT_SECONDS]


def _build(kind: type[_T], values: Any) -> _T | None:
    """The dataclass with these values; None if a value is missing, unknown, of another type, or refused."""
    expected: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, dict) or values.keys() != expected.keys():
        return None
    try:
        for name, value in values.items():
            number = isinstance(value, int | float) and expected[name] is float
            if not (math.isfinite(value) if number else isinstance(value, expected[name])):
                return None
        return kind(**values)
    except (ValueError, OverflowError):
        return None


@cache
def _machine() -> dict[str, Any]:
    """What decides how fast the same thing runs, besides the number of threads."""
    cuda = torch.cuda.is_available()
    package = Path(glassgpt.__file__).parent
    return {
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "torch": str(torch.__version__),
        "glassgpt": glassgpt.__version__,
        "source": max(file.stat().st_mtime for file in package.rglob("*.py")),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())

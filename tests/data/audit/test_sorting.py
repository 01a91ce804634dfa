"""Sorting on disk: the same as in memory, however little of it there is."""

from pathlib import Path

import numpy as np
import pytest

from glassgpt.data.audit import sorting
from glassgpt.data.audit.sorting import Sorter


@pytest.mark.parametrize(("memory", "most_runs"), [(1 << 20, 256), (64, 256), (50, 7), (7, 2), (1, 3)])
@pytest.mark.parametrize("kind", ["many values", "few values", "one value", "ascending", "large", "none"])
def test_records_come_back_in_order_once(
    kind: str, memory: int, most_runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sorting, "MEMORY", memory)
    monkeypatch.setattr(sorting, "MOST_RUNS", most_runs)
    generator = np.random.default_rng(3)
    high = {"few values": 5, "one value": 1}.get(kind, 2**64 - 1)
    records = generator.integers(0, high, (0 if kind == "none" else 300, 2), dtype=np.uint64)
    records = np.concatenate([records, records[:50]])
    if kind == "ascending":
        records = np.unique(records, axis=0)
    elif kind == "large":  # differences that doubles cannot tell
        records = records % np.uint64(5) + np.uint64(2**64 - 5)
    sorter = Sorter(tmp_path / "records")
    for part in np.array_split(records, 9):
        sorter.add(part)
    blocks = list(sorter.sorted())
    found = np.concatenate([*blocks, np.empty((0, 2), dtype=np.uint64)])
    assert found.tolist() == sorted(map(list, {tuple(record) for record in records.tolist()}))
    assert all(0 < len(block) <= 2 * max(memory, most_runs) for block in blocks)
    assert list(tmp_path.iterdir()) == []

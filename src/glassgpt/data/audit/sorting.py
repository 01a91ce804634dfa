"""Sort more records than fit in memory, by merging sorted runs on disk (external merge sort)."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

#: Most records in memory (16 bytes each); about as many while runs are merged.
MEMORY = 1 << 20
#: Most runs that are merged at a time; more take several passes.
MOST_RUNS = 256


class Sorter:
    """Collects records of two uint64 and yields them in order, without repetitions, in constant memory.

    ``file`` is a temporary file, which must not exist yet. Several passes use a second file beside it.
    """

    def __init__(self, file: Path):
        self.file = file
        self.runs: list[tuple[int, int]] = []  # of each run: its first record in the file, and the one after its last
        self.waiting: list[np.ndarray] = []
        self.size = 0

    def add(self, records: np.ndarray) -> None:
        """Add records, ``[n, 2]`` uint64."""
        for begin in range(0, len(records), MEMORY):
            part = records[begin : begin + MEMORY]
            self.waiting.append(part)
            self.size += len(part)
            if self.size >= MEMORY:
                self._spill()

    def sorted(self) -> Iterator[np.ndarray]:
        """Yield all records in ascending order, without repetitions, in blocks ``[n, 2]`` uint64. Call it once."""
        self._spill()
        while len(self.runs) > MOST_RUNS:
            self._merge_runs()
        if self.runs:
            yield from self._merged(self.runs)
            self.file.unlink()

    def _spill(self) -> None:
        if self.waiting:
            with self.file.open("ab") as stream:
                self._write(stream, [_in_order(np.concatenate(self.waiting))])
        self.waiting, self.size = [], 0

    def _write(self, stream: BinaryIO, blocks: Iterable[np.ndarray]) -> None:
        begin = stream.tell() // 16
        for block in blocks:
            stream.write(block.astype("<u8").tobytes())
        self.runs.append((begin, stream.tell() // 16))

    def _merge_runs(self) -> None:
        """Merge groups of runs into fewer, longer runs, in another file."""
        runs, self.runs = self.runs, []
        other = self.file.with_name(self.file.name + ".merged")
        with other.open("wb") as stream:
            for begin in range(0, len(runs), MOST_RUNS):
                self._write(stream, self._merged(runs[begin : begin + MOST_RUNS]))
        other.replace(self.file)

    def _merged(self, runs: list[tuple[int, int]]) -> Iterator[np.ndarray]:
        """Merge runs: in each turn, yield the records that cannot come after any unread record."""
        room = max(1, MEMORY // len(runs))
        unread = list(runs)
        buffers = [np.empty((0, 2), dtype=np.uint64)] * len(runs)
        with self.file.open("rb") as stream:
            while True:
                for number, (begin, end) in enumerate(unread):
                    if not len(buffers[number]) and begin < end:
                        stop = min(begin + room, end)
                        stream.seek(begin * 16)
                        read = np.frombuffer(stream.read((stop - begin) * 16), dtype="<u8")
                        buffers[number] = read.astype(np.uint64).reshape(-1, 2)
                        unread[number] = (stop, end)
                last_read = [buffers[n][-1].tolist() for n, (begin, end) in enumerate(unread) if begin < end]
                if not last_read:
                    break
                limit = min(last_read)
                cuts = [_count_up_to(buffer, limit) for buffer in buffers]
                yield _in_order(np.concatenate([buffer[:cut] for buffer, cut in zip(buffers, cuts, strict=True)]))
                buffers = [buffer[cut:] for buffer, cut in zip(buffers, cuts, strict=True)]
        rest = np.concatenate(buffers)
        if len(rest):
            yield _in_order(rest)


def _in_order(records: np.ndarray) -> np.ndarray:
    """Sort records, and remove repetitions."""
    records = records[np.argsort(records[:, 0])]
    tied = records[1:, 0] == records[:-1, 0]
    if not tied.any():
        return records
    is_tied = np.append(tied, False) | np.append(False, tied)
    some = records[is_tied]
    records[is_tied] = some[np.lexsort((some[:, 1], some[:, 0]))]
    return records[np.append(True, (records[1:] != records[:-1]).any(axis=1))]


def _count_up_to(records: np.ndarray, record: list[int]) -> int:
    """Count the sorted records that are not greater than one."""
    first, second = np.uint64(record[0]), np.uint64(record[1])
    begin, end = np.searchsorted(records[:, 0], first, "left"), np.searchsorted(records[:, 0], first, "right")
    return int(begin + np.searchsorted(records[begin:end, 1], second, "right"))

"""Token shards for tests: id i is at place i."""

from pathlib import Path

import numpy as np

from glassgpt.data.corpus.shards import Tokens, open_shard, write_shard


def sharded(folder: Path, lengths: list[int], document: int = 7) -> Tokens:
    """Write ids 0, 1, 2, ... into shards of these lengths; a document begins every ``document`` tokens."""
    shards, first = [], 0
    for number, length in enumerate(lengths):
        ids = np.arange(first, first + length)
        starts = np.flatnonzero(ids % document == 0)
        arrays = [ids.astype("<u4"), starts.astype("<i8"), np.full(len(starts), 3, dtype="<i8")]
        path = folder / f"train-{number:05d}.safetensors"
        write_shard(path, "train", "0" * 64, arrays)
        shards.append(open_shard(path))
        first += length
    return Tokens(shards)

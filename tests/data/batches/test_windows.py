"""Batch k is a pure function of (seed, k, batch size), and every epoch visits every window once."""

import hashlib
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import sharded

from glassgpt.config import TrainConfig
from glassgpt.data.batches.windows import Batches, permute
from glassgpt.errors import ConfigError, DataError

#: (tokens N, context T, rows B), with tiny, tight and ragged ones.
CASES = [
    (2, 1, 1),
    (2, 1, 5),
    (3, 1, 2),
    (9, 1, 3),
    (5, 4, 1),
    (8, 4, 3),
    (9, 4, 2),
    (10, 4, 7),
    (12, 4, 5),
    (13, 4, 4),
    (64, 7, 3),
    (101, 10, 64),
    (1000, 8, 16),
    (1025, 8, 1),
    (4097, 64, 7),
]


def stream(n: int) -> np.ndarray:
    """Distinct ids, so that a token tells its place."""
    return np.arange(n, dtype=np.uint16)


def make(n: int, t: int, b: int, seed: int = 0) -> Batches:
    return Batches(stream(n), t, b, seed)


def samples(batches: Batches, count: int) -> np.ndarray:
    """The starts of the first ``count`` rows, over as many batches as it takes."""
    needed = -(-count // batches.batch_size)
    return np.concatenate([batches.starts(k) for k in range(needed)])[:count]


@pytest.mark.parametrize(("n", "t", "b"), CASES)
def test_every_window_once_per_epoch(n: int, t: int, b: int) -> None:
    batches = make(n, t, b)
    windows = batches.windows
    assert max(1, (n - 1) // t - 1) <= windows <= (n - 1) // t  # at most one is given up to let the offset move
    for epoch in samples(batches, 4 * windows).reshape(4, windows):
        offset = epoch.min()
        assert 0 <= offset < n - windows * t < 2 * t
        assert np.array_equal(np.sort(epoch), offset + t * np.arange(windows))
        assert epoch.max() + t < n  # the last target is inside


SMALL = [(n, t, 1) for t in range(1, 8) for n in range(t + 1, 4 * t + 3)]


@pytest.mark.parametrize("cases", [SMALL, CASES, [(191, 64, 64)], [(4863, 256, 64)], [(7167, 1024, 64)]])
def test_every_target_occurs_and_the_first_and_the_last_least_often(cases: list[tuple[int, int, int]]) -> None:
    """Counted by brute force over one cycle of offsets; also that windows stay inside, and do not overlap."""
    for n, t, b in cases:
        batches = make(n, t, b)
        windows = batches.windows
        offsets = n - windows * t  # the epochs of a cycle
        targets = np.zeros((offsets, n), dtype=np.int8)
        for epoch, starts in enumerate(samples(batches, offsets * windows).reshape(offsets, windows)):
            np.add.at(targets[epoch], starts[:, None] + 1 + np.arange(t), 1)
        assert targets.max() == 1 and (targets.sum(axis=1) == windows * t).all()
        counts, place = targets.sum(axis=0, dtype=np.int64), np.arange(n)
        from_end = np.minimum(place, n - place)
        assert np.array_equal(counts, np.minimum(from_end, min(offsets, windows * t)))
        assert counts[1:].min() == counts[1] == counts[-1] == 1


def test_runs_that_were_begun_with_fewer_offsets_keep_their_batches(tmp_path: Path) -> None:
    """The digests are those of the program before it used all offsets."""
    for n, t, expected in (
        (191, 64, "8b54d101d4120299"),
        (1000, 8, "e1c053e405598be1"),
        (4863, 256, "9a4f7cc24d526178"),
    ):
        starts = np.concatenate([Batches(stream(n), t, 4, 7, all_offsets=False).starts(k) for k in range(40)])
        assert hashlib.sha256(starts.astype("<i8").tobytes()).hexdigest()[:16] == expected
    shards = sharded(tmp_path, [400, 3, 95, 0, 1000, 9, 257])
    starts = np.concatenate([Batches(shards, 8, 4, 7, "sequential", all_offsets=False).starts(k) for k in range(40)])
    assert hashlib.sha256(starts.astype("<i8").tobytes()).hexdigest()[:16] == "30faff142df62941"


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 400), st.integers(1, 70), st.integers(0, 2**63 - 1), st.integers(0, 10**9))
def test_rows_never_leave_the_stream(t: int, extra: int, b: int, seed: int, k: int) -> None:
    idx, targets = Batches(stream(t + extra), t, b, seed).get(k)
    assert idx.shape == targets.shape == (b, t) and idx.dtype == targets.dtype == np.int64
    assert np.array_equal(targets, idx + 1)  # one token further on
    assert np.array_equal(idx, idx[:, :1] + np.arange(t)) and idx.min() >= 0 and targets.max() < t + extra


@pytest.mark.parametrize(("n", "t", "b"), CASES)
def test_random_access_equals_sequential(n: int, t: int, b: int) -> None:
    one = [make(n, t, b, seed=7).get(k) for k in range(12)]
    other = make(n, t, b, seed=7)
    for k in np.random.default_rng(0).permutation(12):
        for mine, theirs in zip(other.get(int(k)), one[k], strict=True):
            assert np.array_equal(mine, theirs)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.sampled_from(CASES), st.integers(0, 1000), st.lists(st.integers(0, 64), max_size=6))
def test_slices_of_rows_join_to_the_whole(case: tuple[int, int, int], k: int, cuts: list[int]) -> None:
    n, t, b = case
    batches = make(n, t, b, seed=3)
    edges = [0, *sorted(cut for cut in cuts if cut < b), b]
    parts = [batches.get(k, slice(start, stop)) for start, stop in itertools.pairwise(edges)]
    for i, whole in enumerate(batches.get(k)):
        assert np.array_equal(np.concatenate([part[i] for part in parts]), whole)
        assert np.array_equal(
            np.concatenate([batches.get(k, slice(r, None, 3))[i] for r in range(3)]).sum(), whole.sum()
        )


def test_the_sequence_of_rows_does_not_depend_on_the_batch_size() -> None:
    rows = [samples(make(1000, 8, b, seed=5), 700) for b in (1, 3, 16, 512)]
    assert all(np.array_equal(row, rows[0]) for row in rows)


def test_epochs_and_seeds_differ_in_order_and_offset() -> None:
    n, t = 2001, 8
    orders, offsets = [], []
    for seed in range(4):
        batches = make(n, t, 83, seed)
        for epoch in samples(batches, 10 * batches.windows).reshape(10, -1):
            offsets.append(int(epoch.min()))
            orders.append(tuple((epoch - epoch.min()).tolist()))
    assert len(set(orders)) == len(orders) == 40
    assert set(offsets) == set(range(n - batches.windows * t)) == set(range(t + 1))
    assert max(Counter(offsets).values()) < 15


def test_the_order_is_shuffled_evenly() -> None:
    """Each window takes each place equally often; chi-squared over many epochs, at a fixed seed."""
    for size in (2, 3, 5, 8, 11):
        places = np.stack([permute(np.arange(size), size, 0, epoch) for epoch in range(300)])
        expected = 300 / size
        for place in range(size):
            counts = np.bincount(places[:, place], minlength=size)
            assert ((counts - expected) ** 2 / expected).sum() < 3 * size + 12
    order = permute(np.arange(5000), 5000, 1, 0)
    assert abs(np.corrcoef(order, np.arange(5000))[0, 1]) < 0.05
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05


@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.integers(1, 3000), st.integers(0, 2**63 - 1), st.integers(0, 2**40))
def test_permute_is_a_bijection_and_needs_no_company(size: int, seed: int, epoch: int) -> None:
    whole = permute(np.arange(size), size, seed, epoch)
    assert np.array_equal(np.sort(whole), np.arange(size))
    some = np.random.default_rng(0).integers(0, size, 5)
    assert np.array_equal(permute(some, size, seed, epoch), whole[some])


def test_permute_holds_for_sizes_beyond_memory() -> None:
    size = 10**12 + 39
    places = np.unique(np.random.default_rng(0).integers(0, size, 20_000))
    found = permute(places, size, 1, 2)
    assert len(np.unique(found)) == len(places) and found.min() >= 0 and found.max() < size


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", [0, 2**32, 2**63 - 2, 2**63, 2**64 - 1, 2**64, 10**30])
def test_every_seed_that_the_configuration_takes_works(seed: int) -> None:
    try:
        TrainConfig(seed=seed)
    except ConfigError:
        return
    one, other = (samples(make(2000, 10, 2, s), 100) for s in (seed, seed + 1))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("n", [0, 1, 7, 8])
def test_too_short_a_stream_says_numbers_and_remedy(n: int) -> None:
    with pytest.raises(DataError) as caught:
        make(n, 8, 2)
    message = str(caught.value)
    assert f"{n} tokens" in message and "at least 9" in message and "context of 8" in message
    assert f"block_size={max(1, n - 1)} " in message and "longer text" in message
    if n > 1:
        make(n, n - 1, 2)  # the remedy works


def test_reads_a_memory_map(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    stream(100).tofile(path)
    mapped = np.memmap(path, dtype="<u2", mode="r")
    for ours, theirs in zip(Batches(mapped, 8, 4, 1).get(9), make(100, 8, 4, 1).get(9), strict=True):
        assert np.array_equal(ours, theirs)

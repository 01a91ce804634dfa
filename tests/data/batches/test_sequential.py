"""The sequential order: every window of every shard once an epoch, a shard at a time, and a function of k alone."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import sharded

from glassgpt.data.batches import windows as batches_module
from glassgpt.data.batches.windows import Batches, document_positions
from glassgpt.errors import DataError

LENGTHS = [400, 3, 95, 0, 1000, 9, 257]  # some too short for a window


def starts_of(batches: Batches, epochs: int) -> np.ndarray:
    rows = batches.windows * epochs
    needed = -(-rows // batches.batch_size)
    return np.concatenate([batches.starts(k) for k in range(needed)])[:rows].reshape(epochs, -1)


@pytest.mark.parametrize("nearby", [4, 1024])
def test_every_window_once_an_epoch_one_shard_after_another(
    tmp_path: Path, nearby: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "NEARBY", nearby)
    tokens, t = sharded(tmp_path, LENGTHS), 8
    batches = Batches(tokens, t, 5, 3, "sequential")
    orders = []
    for epoch in starts_of(batches, 6):
        shard = np.searchsorted(tokens.ends, epoch, side="right")
        visits = [int(key) for key, _ in itertools.groupby(shard)]
        assert len(visits) == len(set(visits)), "a shard is left for good"
        orders.append(tuple(visits))
        for s in visits:
            inside = epoch[shard == s] - tokens.begins[s]
            assert inside.min() >= 0 and inside.max() + t < LENGTHS[s], "windows and their targets stay in the shard"
            order = (inside - inside.min()) // t
            assert np.array_equal(np.sort(inside), inside.min() + t * np.arange(len(inside)))
            assert np.abs(order - np.arange(len(order))).max(initial=0) < nearby, "shuffled nearby"
        assert len(epoch) == batches.windows
    assert len(set(orders)) > 3, "the shards are shuffled anew every epoch"


def test_every_target_of_every_shard_that_has_a_window_occurs(tmp_path: Path) -> None:
    tokens, t = sharded(tmp_path, LENGTHS), 8
    batches = Batches(tokens, t, 5, 3, "sequential")
    epochs = 2 * t - 1  # the most offsets of a shard
    seen = np.zeros(len(tokens) + 1, dtype=np.int64)
    np.add.at(seen, starts_of(batches, epochs)[:, :, None] + 1 + np.arange(t), 1)
    for begin, length in zip(tokens.begins, LENGTHS, strict=True):
        assert length <= t or seen[begin + 1 : begin + length].all()
    assert sum(seen) == epochs * batches.windows * t


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(1, 20), st.integers(0, 2**63 - 1), st.integers(0, 10**7), st.integers(0, 3))
def test_rows_are_the_same_whatever_the_batch_size(
    tmp_path_factory: pytest.TempPathFactory, t: int, b: int, seed: int, k: int, kind: int
) -> None:
    lengths = [[50], [20, 30, 40], [13] * 9, [100, 13, 64]][kind]
    tokens = sharded(tmp_path_factory.mktemp("shards"), lengths)
    one, many = Batches(tokens, t, 1, seed, "sequential"), Batches(tokens, t, b, seed, "sequential")
    idx, targets = many.get(k)
    assert np.array_equal(targets, idx + 1) and np.array_equal(idx, idx[:, :1] + np.arange(t))
    assert np.array_equal(many.starts(k), np.concatenate([one.starts(k * b + row) for row in range(b)]))


def test_auto_is_random_until_the_corpus_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = sharded(tmp_path, LENGTHS)
    assert not Batches(tokens, 8, 5, 3, "auto").sequential and not Batches(tokens, 8, 5, 3).sequential
    ids = np.asarray(tokens)
    for k in range(20):  # shards make no difference to the random order
        assert np.array_equal(Batches(tokens, 8, 5, 3).get(k), Batches(ids, 8, 5, 3).get(k))
    monkeypatch.setattr(batches_module, "LARGE", 1000)
    assert Batches(tokens, 8, 5, 3, "auto").sequential and not Batches(ids, 8, 5, 3, "auto").sequential


def test_shards_too_short_for_the_context_are_refused(tmp_path: Path) -> None:
    tokens = sharded(tmp_path, [9] * 20)
    with pytest.raises(DataError, match="order=random"):
        Batches(tokens, 9, 2, 0, "sequential")
    Batches(tokens, 9, 2, 0, "random")


def test_documents_and_positions_against_a_loop(tmp_path: Path) -> None:
    tokens, t = sharded(tmp_path, [40, 5, 60, 33], document=7), 11
    for order in ("random", "sequential"):
        batches = Batches(tokens, t, 4, 1, order)
        for k in range(30):
            idx = batches.get(k)[0]
            ids, positions = batches.documents(k)
            assert np.array_equal(ids, idx // 7)  # a token is its place, and a document begins every seven
            for row in range(4):
                for place in range(t):
                    begin = max(idx[row, 0], idx[row, place] // 7 * 7)
                    assert positions[row, place] == idx[row, place] - begin
    ids, positions = document_positions(np.arange(30), [3, 9], 5)
    assert not ids.any() and np.array_equal(positions, [range(5)] * 2), "an array is one document"

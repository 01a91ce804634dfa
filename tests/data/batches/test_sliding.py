"""The dataset of the books: its shapes, its shift by one, and what a DataLoader makes of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from glassgpt.data import SlidingWindowDataset
from glassgpt.errors import DataError


@settings(max_examples=200, deadline=None, derandomize=True)
@given(n=st.integers(2, 60), max_length=st.integers(1, 20), stride=st.integers(1, 25))
def test_windows_are_those_of_a_loop(n: int, max_length: int, stride: int) -> None:
    tokens = list(range(100, 100 + n))
    expected = [
        (tokens[i : i + max_length], tokens[i + 1 : i + max_length + 1]) for i in range(0, n - max_length, stride)
    ]
    if not expected:
        with pytest.raises(DataError, match=f"max_length={n - 1} or less"):
            SlidingWindowDataset(tokens, max_length, stride)
        return
    dataset = SlidingWindowDataset(tokens, max_length, stride)
    assert len(dataset) == len(expected)
    assert [(inputs.tolist(), targets.tolist()) for inputs, targets in (dataset[i] for i in range(len(dataset)))] == (
        expected
    )
    assert [pair[0].tolist() for pair in (dataset[-1], dataset[len(dataset) - 1])] == [expected[-1][0]] * 2
    for outside in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError):
            dataset[outside]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("drop_last", [True, False])
def test_in_a_data_loader(workers: int, drop_last: bool, tmp_path: Path) -> None:
    np.arange(1000, dtype=np.uint16).tofile(tmp_path / "train.bin")
    dataset = SlidingWindowDataset(np.memmap(tmp_path / "train.bin", dtype=np.uint16, mode="r"), 16, 16)
    loader = DataLoader(
        dataset, batch_size=8, shuffle=True, drop_last=drop_last, num_workers=workers,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    batches = list(loader)
    assert len(dataset) == 62 and len(batches) == len(loader) == (7 if drop_last else 8)
    for inputs, targets in batches[:7]:
        assert inputs.shape == targets.shape == (8, 16) and inputs.dtype == targets.dtype == torch.int64
        assert torch.equal(inputs + 1, targets)
    if not drop_last:
        assert batches[-1][0].shape == (6, 16)
        seen = torch.cat([inputs for inputs, _ in batches]).flatten()
        assert sorted(seen.tolist()) == list(range(62 * 16)), "with stride = max_length every token is an input once"
    assert not torch.equal(batches[0][0], dataset[0][0].expand(8, 16))


@pytest.mark.parametrize("tokens", [[1, 2, 3, 4], np.array([1, 2, 3, 4], dtype=np.uint32), torch.tensor([1, 2, 3, 4])])
def test_tokens_of_any_kind(tokens: Any) -> None:
    inputs, targets = SlidingWindowDataset(tokens, 3, 1)[0]
    assert (inputs.tolist(), targets.tolist()) == ([1, 2, 3], [2, 3, 4])


@pytest.mark.parametrize(("max_length", "stride"), [(0, 1), (-1, 1), (1, 0), (2, -3)])
def test_lengths_below_one_are_refused(max_length: int, stride: int) -> None:
    with pytest.raises(DataError, match="at least 1"):
        SlidingWindowDataset([1, 2, 3], max_length, stride)


def test_a_batch_of_rows_is_refused() -> None:
    with pytest.raises(DataError, match="one-dimensional"):
        SlidingWindowDataset(np.zeros((2, 10)), 2, 1)

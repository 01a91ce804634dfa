"""What the device can do at most: sizes of work are counted right, time is bounded, and the clock has no gaps."""

import time

import pytest
import torch

from glassgpt.bench import memory, roofline
from glassgpt.runtime import Stopwatch

CPU = torch.device("cpu")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """A device on which every product and copy takes a hundredth of a second; returns the shapes multiplied."""
    shapes: list[tuple[int, ...]] = []

    def fastest(work: object, device: torch.device, seconds: float) -> float:
        assert callable(work)
        result = work()
        assert isinstance(result, torch.Tensor)
        shapes.append(tuple(result.shape))
        return 0.01

    monkeypatch.setattr(roofline, "fastest", fastest)
    return shapes


def test_the_peak_is_that_of_the_best_size(counted: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(roofline.MATRIX_SIZES, "cpu", (8, 16, 32))
    assert roofline.matrix_peak(CPU, torch.float32) == 2 * 32**3 / 0.01
    assert counted == [(8, 8), (16, 16), (32, 32)]


def test_a_slow_type_stops_at_the_smallest_size(
    counted: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(roofline.MATRIX_SIZES, "cpu", (8, 16, 32))
    assert roofline.matrix_peak(CPU, torch.float32, seconds=0.1) == 2 * 8**3 / 0.01, "16 would take 0.08 s, not 0.03"
    assert counted == [(8, 8)]


def test_a_copy_counts_reading_and_writing(counted: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(roofline.COPY_BYTES, "cpu", 4096)
    assert roofline.memory_bandwidth(CPU) == 2 * 4096 / 0.01


def test_timing_ends_in_its_time() -> None:
    calls = 0

    def work() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.01)

    assert roofline.fastest(work, CPU, seconds=0.1) >= 0.01
    assert 2 <= calls <= 12
    calls = 0
    roofline.fastest(work, CPU, seconds=0.001)
    assert calls == 1, "slow already: not repeated"


def test_the_parts_between_marks_add_up() -> None:
    watch = Stopwatch(CPU)
    began = time.perf_counter()
    for pause in (0.0, 0.02, 0.01):
        time.sleep(pause)
        watch.mark()
    first, second = watch.laps()
    assert first >= 0.02
    assert second >= 0.01
    assert first + second <= time.perf_counter() - began


def test_the_peak_resident_size_is_in_bytes_and_counts_what_is_held() -> None:
    held = torch.ones(2**24)  # 64 MiB
    peak = memory.peak_resident()
    if peak is None:
        pytest.skip("this system does not tell")
    assert held.numel() * 4 < peak < 2**40

"""The self-check that chooses the compute type."""

import math
from collections.abc import Iterable
from itertools import chain, cycle, repeat

import pytest
import torch

from glassgpt.config import ModelConfig, presets
from glassgpt.planning import compute_dtype
from glassgpt.planning.compute_dtype import SelfCheck, check, choose_dtype

CPU = torch.device("cpu")
LOW = [torch.bfloat16, torch.float16]
CONFIG = ModelConfig(vocab_size=19, block_size=16, n_layer=2, n_head=2, n_embd=32, **presets.MODERN)


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_the_self_check_measures_agreement(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        compute_dtype, "matrix_flops_per_second", lambda kind, device: 1.0 if kind == torch.float32 else 9.0
    )
    found = check(dtype, CONFIG, 4, CPU)
    assert found.speedup > 0
    assert 0 < found.logits_error < compute_dtype.MAX_LOGITS_ERROR
    assert compute_dtype.MIN_GRADIENT_COSINE < found.gradient_cosine <= 1


def test_the_self_check_refuses_what_is_slow_wrong_or_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(compute_dtype, "matrix_flops_per_second", lambda dtype, device: 1e9)
        assert not check(torch.bfloat16, CONFIG, 4, CPU).passed, "no faster"
    slow = SelfCheck(torch.bfloat16, 1.05)
    wrong_logits = SelfCheck(torch.bfloat16, 3.0, logits_error=0.2)
    wrong_gradients = SelfCheck(torch.bfloat16, 3.0, gradient_cosine=0.9)
    not_a_number = SelfCheck(torch.bfloat16, 3.0, math.nan, math.nan)
    assert not any(found.passed for found in (slow, wrong_logits, wrong_gradients, not_a_number))
    assert SelfCheck(torch.bfloat16, 1.5, 0.01, 0.999).passed

    def missing(dtype: torch.dtype, device: torch.device) -> float:
        raise RuntimeError("not implemented for 'BFloat16'")

    monkeypatch.setattr(compute_dtype, "matrix_flops_per_second", missing)
    choice = choose_dtype(CONFIG, 4, CPU)
    assert choice.name == "float32"
    assert "bfloat16" in choice.why
    assert "; float16" in choice.why


def clocked(monkeypatch: pytest.MonkeyPatch, timings: Iterable[float]) -> list[float]:
    """A clock on which each product takes the next of these seconds; returns those that were taken."""
    left, taken, now = iter(timings), list[float](), [0.0]

    def clock() -> float:
        if len(taken) % 2 == 1:
            now[0] += next(left)
        taken.append(now[0])
        return now[0]

    monkeypatch.setattr(compute_dtype.time, "perf_counter", clock)
    return taken


def test_the_speed_is_not_that_of_the_first_call_nor_of_a_busy_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries prepare their kernels in the first; where timings differ by much, there are more of them."""
    flops = 2 * 256**3
    for first in (0.001, 5.0):
        with monkeypatch.context() as patch:
            taken = clocked(patch, chain([first], repeat(0.001)))
            assert compute_dtype.matrix_flops_per_second(torch.float32, CPU) == pytest.approx(flops / 0.001)
            assert 18 <= len(taken) / 2 <= 25
    with monkeypatch.context() as patch:  # for a while, every other product waits for another program
        taken = clocked(patch, chain([0.5], [0.001, 0.009] * 9, repeat(0.001)))
        assert compute_dtype.matrix_flops_per_second(torch.float32, CPU) == pytest.approx(flops / 0.001)
        assert 19 < len(taken) / 2 < 100
    with monkeypatch.context() as patch:  # another program takes the machine for a minute
        taken = clocked(patch, chain([0.5, 0.001, 60.0], repeat(0.001)))
        assert compute_dtype.matrix_flops_per_second(torch.float32, CPU) == pytest.approx(flops / 0.001)
    with monkeypatch.context() as patch:  # one that never calms down, and a very slow type
        taken = clocked(patch, cycle([0.001, 0.009]))
        assert compute_dtype.matrix_flops_per_second(torch.float32, CPU) == pytest.approx(flops / 0.001)
        assert len(taken) / 2 <= 102
    with monkeypatch.context() as patch:
        taken = clocked(patch, repeat(2.0))
        assert compute_dtype.matrix_flops_per_second(torch.float16, CPU) == pytest.approx(flops / 2.0)
        assert len(taken) / 2 == 3


def test_the_first_type_that_passes_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def passes(name: torch.dtype):  # type: ignore[no-untyped-def]
        return lambda dtype, *rest: SelfCheck(dtype, 2.0 if dtype == name else 0.5)

    for expected in LOW:
        monkeypatch.setattr(compute_dtype, "check", passes(expected))
        assert choose_dtype(CONFIG, 4, CPU).name == str(expected).removeprefix("torch.")

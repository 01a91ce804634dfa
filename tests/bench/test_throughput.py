"""Throughput and the cost of attention: the arithmetic of the figures, never the speed of the machine."""

from collections.abc import Iterator

import pytest
import torch

from conftest import thread_count
from glassgpt import api
from glassgpt import estimate as plan
from glassgpt.bench import attention, throughput
from glassgpt.bench.attention import AttentionBench, bench_attention
from glassgpt.bench.throughput import TrainBench, bench_train
from glassgpt.config import ModelConfig, RunConfig, RuntimeConfig, build, presets
from glassgpt.errors import ConfigError
from glassgpt.planning import compute_dtype, timing
from glassgpt.planning import memory as machine_memory
from glassgpt.planning.timing import StepTimes, TimedTraining
from glassgpt.runtime import Runtime, resolve

MODEL = {"vocab_size": 65, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16}


@pytest.fixture(scope="module", autouse=True)
def runtime() -> Iterator[Runtime]:
    with thread_count(1):
        yield resolve(RuntimeConfig(device="cpu", dtype="float32"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of 10 GFLOP/s and 5 GB/s, so that nothing measures it."""
    monkeypatch.setattr(throughput, "matrix_peak", lambda device, dtype: 1e10)
    monkeypatch.setattr(throughput, "memory_bandwidth", lambda device: 5e9)


def config(**train: int) -> RunConfig:
    return build("", [{"model": MODEL, "train": {"batch_size": 8, **train}}])


def test_the_figures_fit_each_other(runtime: Runtime) -> None:
    found = bench_train(config(), runtime, steps=3)
    assert (found.steps, found.tokens, found.micro_batches) == (3, 8 * 16, 1)
    assert found.tokens_per_second == found.tokens / found.step_seconds
    assert found.flops_per_token == plan.flops_per_token(config().model).training
    assert found.flops_per_second == pytest.approx(found.flops_per_token * found.tokens_per_second)
    assert found.mfu == pytest.approx(found.flops_per_second / 1e10)
    parts = found.forward_seconds, found.backward_seconds, found.update_seconds
    assert min(parts) > 0
    assert max(parts) < found.step_seconds * 3, "medians of parts, and the median of their sum"
    assert found.first_step_seconds > 0
    assert found.optimizer_flops > 0
    if found.peak_memory is not None and found.base_memory is not None:
        assert found.peak_memory >= found.base_memory > 2**24


def test_steps_are_counted_without_the_warm_up_and_reported(runtime: Runtime) -> None:
    told: list[tuple[int, int]] = []
    found = bench_train(config(), runtime, steps=5, progress=lambda label, done, all: told.append((done, all)))
    assert found.steps == 5
    assert told == [(done, 5) for done in (0, 0, 1, 2, 3, 4, 5)]


def test_without_a_number_of_steps_the_time_decides(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "SECONDS", 0.0)
    assert bench_train(config(), runtime).steps == throughput.MIN_STEPS
    monkeypatch.setattr(throughput, "SECONDS", 1e9)
    monkeypatch.setattr(throughput, "MAX_STEPS", 7)
    assert bench_train(config(), runtime).steps == 7


def test_many_micro_batches_are_timed_on_a_few(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    lap = StepTimes(2.0, 3.0, 7.0)
    monkeypatch.setattr(TimedTraining, "step", lambda timed: lap)
    found = bench_train(config(batch_size=16, micro_batch_size=2), runtime, steps=2)
    assert (found.micro_batches, found.micro_batches_timed) == (8, throughput.MICRO_BATCHES)
    assert (found.forward_seconds, found.backward_seconds, found.update_seconds) == (4.0, 6.0, 7.0)
    assert found.step_seconds == 2 * (2.0 + 3.0) + 7.0, "the update happens once however many there are"
    assert found.tokens_per_second == 16 * 16 / 17.0


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_steps_are_real_steps(runtime: Runtime, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = TimedTraining(config().replace("optim", optimizer=optimizer), runtime, 8, 4)
    before = {name: weight.clone() for name, weight in step.model.named_parameters()}
    with monkeypatch.context() as patch:
        patch.setattr(timing, "UPDATE_SCALE", 1.0)
        step.step()
    for name, weight in step.model.named_parameters():
        assert not torch.equal(weight, before[name]), name
        assert weight.grad is None
        assert bool(weight.isfinite().all())


def test_what_is_left_to_the_machine_is_chosen_as_training_does(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    bfloat16 = compute_dtype.DtypeChoice("bfloat16", "it is fast here")
    monkeypatch.setattr(compute_dtype, "choose_dtype", lambda *_: bfloat16)
    free = plan.memory(ModelConfig(**presets.MODERN | MODEL), 3, bytes_per_weight=2).total / plan.SHARE_OF_FREE + 2
    monkeypatch.setattr(machine_memory, "free_memory", lambda device: free)
    overrides = {
        "model": presets.MODERN | MODEL,
        "train": {"batch_size": 8},
        "runtime": {"device": "cpu", "attention": "fused"},
    }
    chosen = api.plan("auto", overrides=[overrides], with_text=False, measure="choices")
    assert chosen.runtime is not None
    assert (chosen.runtime.dtype, chosen.runtime.reason) == (torch.bfloat16, bfloat16.why)
    assert chosen.config.runtime.dtype == "bfloat16"
    assert chosen.config.train.micro_batch_size == 3, "8 rows as 3, 3 and 2"
    user = {"train": {"micro_batch_size": 5}, "runtime": {"dtype": "float32"}}
    chosen = api.plan("auto", overrides=[overrides, user], with_text=False, measure="choices")
    assert chosen.runtime is not None
    assert (chosen.runtime.dtype, chosen.config.train.micro_batch_size) == (torch.float32, 5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_steps_in_fewer_bits_keep_float32_masters(dtype: str) -> None:
    step = TimedTraining(config(), resolve(RuntimeConfig(device="cpu", dtype=dtype)), 8, 8)
    step.step()
    assert step.model.dtype == getattr(torch, dtype)
    assert {weight.dtype for weight in step.optimizers.named.values()} == {torch.float32}
    assert all(bool(weight.isfinite().all()) for weight in step.optimizers.named.values())


def test_running_out_of_memory_is_said(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(timed: TimedTraining) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(TimedTraining, "step", step)
    with pytest.raises(ConfigError, match="memory ran out with 8 sequences of 16 tokens"):
        bench_train(config(), runtime)


# --- attention -------------------------------------------------------------------------------------------------------


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time each pass as few times as can be."""
    monkeypatch.setattr(attention, "EACH", 0.0)


@pytest.mark.usefixtures("once")
def test_memory_grows_with_the_square_of_the_context_or_only_with_it(runtime: Runtime) -> None:
    rows = bench_attention([512, 128, 256, 512], 2, 16, runtime)
    assert [(row.context, row.kind) for row in rows] == [
        (context, kind) for context in (128, 256, 512) for kind in ("fused", "explicit")
    ]
    memory = {(row.context, row.kind): row.memory or 0 for row in rows}
    for context in (128, 256):
        assert memory[2 * context, "fused"] / memory[context, "fused"] == pytest.approx(2, rel=0.05)
        assert memory[2 * context, "explicit"] / memory[context, "explicit"] == pytest.approx(4, rel=0.25)
        assert memory[context, "explicit"] > context**2 * 2 * 4, "at least the weights, H T T float32"
    for row in rows:
        assert row.skipped == ""
        assert row.forward_seconds
        assert row.training_seconds


@pytest.mark.usefixtures("once")
def test_what_does_not_fit_into_memory_is_skipped(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "free_memory", lambda device: 2**24)
    rows = {(row.context, row.kind): row for row in bench_attention([64, 512], 2, 16, runtime)}
    assert rows[512, "explicit"].skipped.startswith("needs ")
    assert rows[512, "explicit"].memory is None
    assert [key for key, row in rows.items() if row.skipped] == [(512, "explicit")]


@pytest.mark.usefixtures("once")
def test_running_out_of_memory_ends_one_measurement(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(attention.ExplicitAttention, "forward", forward)
    fused, explicit = bench_attention([64], 2, 16, runtime)
    assert fused.forward_seconds
    assert explicit == AttentionBench(64, "explicit", skipped="out of memory")


def test_growth_stops_when_the_time_is_over(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    def measure(kind: str, shape: tuple[int, ...], runtime: Runtime) -> AttentionBench:
        nonlocal clock
        clock += 1.0 if kind == "fused" else 4.0
        return AttentionBench(shape[2], kind, 1.0, 2.0, 3)

    monkeypatch.setattr(attention.time, "perf_counter", lambda: clock)
    monkeypatch.setattr(attention, "_measure", measure)
    rows = {(row.context, row.kind): row.skipped for row in bench_attention([1, 2, 4], 1, 1, runtime, seconds=15)}
    assert rows[2, "fused"] == "", "expected to take 4 s"
    assert rows[2, "explicit"] == "time limit reached; would take about 16 s more"
    assert rows[4, "fused"] == "", "explicit is no reason to skip fused"


def test_saved_storages_count_each_once() -> None:
    x = torch.randn(10, 10, requires_grad=True)
    with attention.saved_storages() as storages:
        y = x.exp()  # saves its result
        z = y[:5] * y[5:]  # saves two views of it
    assert storages == {y.data_ptr(): 400}
    del z


def test_the_result_has_only_plain_values(runtime: Runtime) -> None:
    found = bench_train(config(), runtime, steps=1)
    assert all(isinstance(value, int | float) for value in vars(found).values())
    assert set(vars(found)) == set(TrainBench.__dataclass_fields__)

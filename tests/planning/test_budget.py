"""What fits into a time, on a machine of known speed: larger with more time, and never against the user's word."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from conftest import thread_count
from glassgpt.config import RunConfig, RuntimeConfig, build, parse_duration, parse_overrides
from glassgpt.errors import ConfigError
from glassgpt.estimate import SHARE_OF_FREE, memory
from glassgpt.model import GPT
from glassgpt.planning import budget, timing
from glassgpt.planning import memory as machine_memory
from glassgpt.planning.budget import SIZES, choose_size
from glassgpt.planning.measured import Measurements
from glassgpt.planning.run_plan import DERIVED_FROM_STEPS, RunPlan, _cost_of_muon, fill_derived_settings, plan_run
from glassgpt.planning.timing import Timing, measure_steps
from glassgpt.processes import Processes
from glassgpt.runtime import Runtime, resolve
from glassgpt.training.metrics import Reporter
from glassgpt.weights.mapping import family_of

V = 65


@pytest.fixture(scope="module", autouse=True)
def runtime() -> Iterator[Runtime]:
    with thread_count(1):
        yield resolve(RuntimeConfig(device="cpu", dtype="float32"))


def parameters(config: RunConfig) -> int:
    with torch.device("meta"):
        return GPT(config.model).num_parameters()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """A machine of 50 GFLOP/s; returns what was measured on it."""
    measured: list[RunConfig] = []

    def fake(config: RunConfig, runtime: Runtime, seconds: float = 1.5, *, world_size: int = 1) -> Timing:
        measured.append(config)
        forward = 2 * parameters(config) / 50e9
        return Timing(3 * forward * config.train.batch_size * config.model.block_size, forward)

    monkeypatch.setattr(timing, "measure_steps", fake)
    return measured


def text(tokens: int) -> Any:
    """As much of a token stream as is looked at."""
    val = min(tokens // 10, 1_000_000)
    info = SimpleNamespace(tokens={"train": tokens - val, "val": val}, bytes={}, vocab_size=V)
    return SimpleNamespace(info=info, val=np.zeros(val, dtype=np.uint16))


def chosen(runtime: Runtime, tokens: int, time: str, **asked: Any) -> tuple[RunConfig, str]:
    """As training does it: the choice below, the user's word above."""
    user: dict[str, Mapping[str, Any]] = {"model": asked, "train": {"time": time}}
    base: dict[str, Mapping[str, Any]] = {"model": {"vocab_size": V}}
    layers, why = choose_size(
        build("auto", [base, user]), set(asked), text(tokens), parse_duration(time),
        measure=lambda config: timing.measure_steps(config, runtime),
    )  # fmt: skip
    assert not set(layers["model"]) & set(asked)
    return build("auto", [base, layers, user]), why


def test_more_time_makes_a_larger_model(runtime: Runtime, machine: list[RunConfig]) -> None:
    configs = [chosen(runtime, 50_000_000, time)[0] for time in ("10s", "1m", "5m", "30m", "5h", "1000h")]
    sizes = [parameters(config) for config in configs]
    assert sizes == sorted(sizes) and len(set(sizes)) >= 4
    shapes = [
        (c.model.n_layer, c.model.n_head, c.model.n_embd, c.model.block_size, c.train.batch_size) for c in configs
    ]
    assert set(shapes) <= set(SIZES) and shapes[0] == SIZES[0] and shapes[-1] == SIZES[-1]
    for config in configs:
        assert (config.model.norm, config.model.position, config.model.mlp) == ("rmsnorm", "rope", "swiglu")


def test_a_model_that_can_be_trained_in_the_time(runtime: Runtime, machine: list[RunConfig]) -> None:
    """The chosen size sees enough text for its parameters; the next one would not."""
    config, why = chosen(runtime, 50_000_000, "10m")
    assert f"{parameters(config):,} parameters" in why and "10m" in why

    def tokens_per_parameter(candidate: RunConfig) -> float:
        step = 6 * parameters(candidate) / 50e9  # seconds for a token
        return 600 * 0.85 / step / parameters(candidate)

    assert tokens_per_parameter(config) > budget.TOKENS_PER_PARAMETER
    assert parameters(machine[-1]) > parameters(config)
    assert tokens_per_parameter(machine[-1]) < 1.3 * budget.TOKENS_PER_PARAMETER


@pytest.mark.parametrize("tokens", [30, 1000, 5000, 60_000, 500_000])
def test_small_texts_stay_small(tokens: int, runtime: Runtime, machine: list[RunConfig]) -> None:
    config, why = chosen(runtime, tokens, "1000h")
    train = text(tokens).info.tokens["train"]
    shape = (config.model.n_layer, config.model.n_head, config.model.n_embd)
    assert shape == SIZES[0][:3] or parameters(config) <= budget.PARAMETERS_PER_TEXT_TOKEN * train
    assert config.model.block_size <= train - 1
    assert f"{train:,} tokens" in why and "overfit" in why


def test_too_little_time_still_chooses_the_smallest(runtime: Runtime, machine: list[RunConfig]) -> None:
    config, _ = chosen(runtime, 10**6, "1s")
    assert (config.model.n_layer, config.model.n_head, config.model.n_embd) == SIZES[0][:3]


@pytest.mark.parametrize(
    "asked",
    [
        {"n_layer": 3},
        {"n_embd": 64},
        {"n_embd": 128},
        {"n_embd": 256},
        {"n_head": 2},
        {"n_head": 8},
        {"n_head": 5, "head_dim": 16},
        {"n_kv_head": 2},
        {"block_size": 100},
        {"dropout": 0.2},
        {"tie_embeddings": True},
        {"n_layer": 5, "n_head": 4, "n_embd": 96, "block_size": 32},
        {"n_embd": 128, "n_head": 8, "qk_norm": False, "rope_theta": 5e5},
    ],
    ids=lambda asked: " ".join(f"{k}={v}" for k, v in asked.items()),
)
@pytest.mark.parametrize("time", ["10s", "5m", "100h"])
def test_what_the_user_asked_for_stays(
    asked: dict[str, Any], time: str, runtime: Runtime, machine: list[RunConfig]
) -> None:
    config, why = chosen(runtime, 5_000_000, time, **asked)
    for name, value in asked.items():
        assert getattr(config.model, name) == value
        assert all(getattr(measured.model, name) == value for measured in machine)
    assert f"{parameters(config):,} parameters" in why
    assert f"{config.model.n_layer} layers, {config.model.n_embd} wide, context {config.model.block_size}" in why


@pytest.mark.parametrize(
    "asked",
    [{"n_head": 3}, {"n_head": 6}, {"n_head": 12}, {"position": "learned"}, {"mlp": "swiglu"}],
    ids=lambda asked: " ".join(f"{k}={v}" for k, v in asked.items()),
)
def test_training_asks_for_a_size_that_goes_with_the_users_word(
    asked: dict[str, Any], text_file: Path, machine: list[RunConfig]
) -> None:
    """From the text file on: there is a size with six heads, and what is chosen can be saved."""
    layers = [
        {"model": asked, "data": {"source": str(text_file)}, "train": {"time": "10m"}, "runtime": {"dtype": "float32"}}
    ]
    try:
        config = plan_run("auto", layers).config
    except ConfigError as error:  # a family that has not what was asked for may be refused: then by that name
        assert next(iter(asked)) in str(error) and "n_head" not in asked
    else:
        assert all(getattr(config.model, name) == value for name, value in asked.items())
        assert family_of(config.model)


def test_what_no_size_goes_with_is_a_clear_error(runtime: Runtime, machine: list[RunConfig]) -> None:
    with pytest.raises(ConfigError, match="n_embd"):  # an odd width of the heads in every size
        chosen(runtime, 10**6, "5m", n_embd=100)


@pytest.mark.parametrize("time", ["10s", "1m", "5m", "30m", "5h", "1000h"])
@pytest.mark.parametrize("share", [0.5, 1.0, 1.9])
def test_a_machine_of_known_speed_is_measured_only_around_the_size_that_fits(
    time: str, share: float, runtime: Runtime, machine: list[RunConfig]
) -> None:
    """The same size is chosen, and the expensive ones that are out of the question are not measured."""
    base: dict[str, Mapping[str, Any]] = {"model": {"vocab_size": V}, "train": {"time": time}}
    arguments: Any = (build("auto", [base]), set(), text(50_000_000), parse_duration(time))

    def measure(config: RunConfig) -> Timing:
        return timing.measure_steps(config, runtime)

    expected = choose_size(*arguments, measure=measure)
    largest = max(parameters(config) for config in machine)
    machine.clear()
    assert choose_size(*arguments, measure=measure, flops_per_second=share * 50e9) == expected
    different = [config for i, config in enumerate(machine) if config not in machine[:i]]
    assert len(different) <= 3
    assert all(parameters(config) <= largest for config in different)


def test_a_size_that_the_user_set_is_one_candidate(runtime: Runtime, machine: list[RunConfig]) -> None:
    user = {"n_layer": 3, "n_head": 4, "n_embd": 128, "block_size": 64}
    layer: dict[str, Mapping[str, Any]] = {"model": user | {"vocab_size": V}, "train": {"batch_size": 8}}
    config = build("auto", [layer])
    choose_size(config, {*user, "batch_size"}, text(10**6), 60.0, measure=lambda _: pytest.fail("nothing to choose"))


# --- validation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 105, 1000, 30_000])
@pytest.mark.parametrize("batch_size", [1, 16, 512])
@pytest.mark.parametrize("interval", [0, 7])
@pytest.mark.parametrize("cost", [0.2, 0.35, 0.5])
def test_validations_cost_at_most_a_tenth_of_the_training(
    steps: int, batch_size: int, interval: int, cost: float
) -> None:
    """Of the time of the steps, for every machine on which validating a token costs at most half of training on it."""
    config = fill_derived_settings(small(steps=steps, batch_size=batch_size, eval_interval=interval))
    count = 1 + math.ceil(steps / config.train.eval_interval)
    found = config.train.eval_tokens
    assert budget.MIN_VALIDATION_TOKENS <= found <= budget.MAX_VALIDATION_TOKENS
    if found > budget.MIN_VALIDATION_TOKENS:
        assert count * found * cost <= 0.1 * steps * config.tokens_per_step
    if found < budget.MAX_VALIDATION_TOKENS:
        assert count * found * 0.5 >= 0.09 * steps * config.tokens_per_step
    assert fill_derived_settings(small(steps=steps, eval_tokens=77)).train.eval_tokens == 77


# --- steps -----------------------------------------------------------------------------------------------------------


def small(time: str = "5m", **train: Any) -> RunConfig:
    return build("small", [{"model": {"vocab_size": V}, "train": {"time": time, **train}}])


def steps(speed: Timing, time: str, tokens: int = 10**6, **train: Any) -> int:
    values, final, why = budget.fit_steps(small(time, **train), text(tokens), speed, parse_duration(time))
    assert final == pytest.approx(text(tokens).info.tokens["val"] * speed.seconds_per_val_token)
    assert f"{values['steps']:,} steps of 4,096 tokens" in why and time in why
    assert f"{16 * 256 / speed.seconds_per_step:,.0f} tokens/s" in why
    return values["steps"]


@pytest.mark.parametrize("time", ["2m", "10m", "2h"])
@pytest.mark.parametrize("step", [0.01, 0.3])
@pytest.mark.parametrize("validation_token", [1e-7, 1e-5])
@pytest.mark.parametrize("eval_tokens", [1000, 100_000])
def test_a_run_fits_its_time_and_uses_it(time: str, step: float, validation_token: float, eval_tokens: int) -> None:
    seconds = parse_duration(time)
    found = steps(Timing(step, validation_token), time, eval_tokens=eval_tokens)
    validating = (11 * min(eval_tokens, 100_000) + 100_000) * validation_token  # ten of them, one before, one of it all
    assert found * step + validating < 0.9 * seconds  # some is left for a machine that slows down
    assert found * step + validating > 0.6 * seconds


def test_steps_follow_the_speed() -> None:
    base = steps(Timing(0.1, 1e-6), "10m")
    assert steps(Timing(0.05, 1e-6), "10m") in (2 * base, 2 * base + 1)
    assert 2 * base <= steps(Timing(0.1, 1e-6), "20m") <= 2.2 * base
    assert steps(Timing(0.1, 1e-4), "10m") < base  # slow validation
    assert steps(Timing(0.1, 1e-6), "10m", sample_tokens=0) > base  # no samples
    assert steps(Timing(0.1, 1e-5), "10m", tokens=10**7) < base  # a long validation text


@pytest.mark.parametrize(("time", "step"), [("1s", 0.001), ("30s", 5.0), ("5m", 60.0)])
def test_too_short_a_time_is_a_clear_error(time: str, step: float) -> None:
    with pytest.raises(ConfigError) as caught:
        steps(Timing(step, 1e-6), time)
    message = str(caught.value)
    assert f"train.time: {time} is too short" in message and f"{step:.2f} s" in message
    assert "more time" in message and "smaller model" in message


def refitted(times: float, *, seconds: float = 240.0, **user: Any) -> tuple[RunConfig, RunConfig | None]:
    """The plan of a run of five minutes, and what it becomes after 20 steps that were so many times as fast."""
    draft, stream, machine = small(**user), text(10**6), Timing(1.0, 1e-6)
    derived = frozenset(key for key in DERIVED_FROM_STEPS if key not in user) | {"warmup_steps"}
    values, final_seconds, _ = budget.fit_steps(draft, stream, machine, 300.0)
    config = fill_derived_settings(draft.replace("train", **values))
    plan = RunPlan(config, "x", None, stream, machine, timed=True, derived=derived, final_seconds=final_seconds)
    assert plan.tokens_per_second
    return config, plan.refit(20, times * plan.tokens_per_second, seconds)


@pytest.mark.parametrize("times", [0.5, 2.0, 17.4])
def test_a_run_is_fitted_to_the_speed_of_its_first_steps(times: float) -> None:
    config, found = refitted(times, save_interval=7)
    assert found is not None
    left = (found.train.steps - 20) / times
    assert 0.6 * 240 < left < 0.8 * 240
    assert (found.train.eval_tokens, found.train.save_interval) == (config.train.eval_tokens, 7)
    assert found.train.eval_interval == found.train.steps // 10
    assert found.train.sample_interval == max(50, 2 * found.train.eval_interval)
    assert found.optim.warmup_steps == min(200, found.train.steps // 20)
    user = refitted(times, eval_interval=11, sample_interval=3, log_interval=2)[1]
    assert user is not None
    kept = user.train.eval_interval, user.train.save_interval, user.train.sample_interval, user.train.log_interval
    assert kept == (11, 11, 3, 2)


@pytest.mark.parametrize(("times", "seconds"), [(0.7, 240.0), (1.0, 240.0), (1.33, 240.0), (0.01, 240.0), (5.0, 1.0)])
def test_a_run_of_about_the_predicted_speed_or_without_time_left_stays(times: float, seconds: float) -> None:
    assert refitted(times, seconds=seconds)[1] is None


# --- compiling -------------------------------------------------------------------------------------------------------


class Told(Reporter):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def compiling(
    monkeypatch: pytest.MonkeyPatch, runtime: Runtime, asked: str, *, step: float = 1.0, compiled: Any = 0.5,
    seconds: float = 3600.0, steps: int = 0, found: bool = True,
) -> tuple[Runtime, Timing, str, int, list[str]]:  # fmt: skip
    """What is chosen where a step takes ``step`` seconds, and ``compiled`` if compiled; and how often it was tried."""
    eager, measured, told = Timing(step, 1e-6), [0], Told()

    def fake(config: RunConfig, place: Runtime, *_: Any, world_size: int = 1) -> Timing:
        assert place == dataclasses.replace(runtime, compile=True)
        assert (config.model.vocab_size, world_size) == (V, 3)
        measured[0] += 1
        if isinstance(compiled, Exception):
            raise compiled
        return Timing(compiled, 2e-6)

    monkeypatch.setattr(timing, "measure_steps", fake)
    monkeypatch.setattr(timing, "compiler_found", lambda device: found)
    config = small(steps=steps).replace("runtime", compile=asked)
    chosen = timing._choose_compile(config, eager, seconds, runtime, told, 3, Measurements())
    place, speed, why = chosen.runtime, chosen.timing, "".join(chosen.notes)
    assert speed == (Timing(compiled, 2e-6) if place.compile else eager), "the speed is that of what was chosen"
    return place, speed, why, measured[0], told.notes


@pytest.mark.parametrize("steps", [0, 10_000])
def test_compiling_is_measured_where_the_run_is_long(
    steps: int, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _, why, measured, notes = compiling(monkeypatch, runtime, "auto", steps=steps)
    assert (place.compile, measured, len(notes)) == (True, 1, 1)
    assert "2.00x as fast" in why
    for as_slow in (1.0, 2.0):
        place, _, why, measured, _ = compiling(monkeypatch, runtime, "auto", steps=steps, compiled=as_slow)
        assert (place.compile, measured) == (False, 1)
        assert f"{1 / as_slow:.2f}x" in why
        assert "not worth it" in why


@pytest.mark.parametrize(("seconds", "steps"), [(10.0, 0), (3600.0, 10), (10.0, 10)])
def test_a_short_run_does_not_try_to_compile_unless_asked(
    seconds: float, steps: int, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps decide, where they are given: an hour allowed for ten steps of a second is no long run."""
    place, _, why, measured, notes = compiling(monkeypatch, runtime, "auto", seconds=seconds, steps=steps)
    assert (place.compile, why, measured, notes) == (False, "", 0, [])
    place, _, why, measured, _ = compiling(monkeypatch, runtime, "true", seconds=seconds, steps=steps, compiled=2.0)
    assert (place.compile, measured) == (True, 1), "asked for is asked for, even if it is slower"
    assert "0.50x" in why


def test_no_compiling_where_it_is_not_wanted_or_not_possible(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    place, _, why, measured, _ = compiling(monkeypatch, runtime, "false")
    assert (place.compile, why, measured) == (False, "", 0)
    for asked in ("true", "auto"):
        place, _, why, measured, _ = compiling(monkeypatch, runtime, asked, found=False)
        assert (place.compile, measured) == (False, 0)
        assert "not compiled: torch.compile needs a C++ compiler" in why


@pytest.mark.parametrize("asked", ["true", "auto"])
def test_a_compiler_that_does_not_work_is_found_out_before_training(
    asked: str, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.exc import InductorError

    broken = InductorError(ValueError("gcc said\nno"), None)
    place, _, why, measured, _ = compiling(monkeypatch, runtime, asked, compiled=broken)
    assert (place.compile, measured) == (False, 1)
    assert why.startswith("not compiled: torch.compile does not work here (") and "gcc said" in why
    assert "\n" not in why
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        compiling(monkeypatch, runtime, asked, compiled=RuntimeError("shapes cannot be multiplied"))


def test_a_long_run_is_shorter_on_a_gpu() -> None:
    """The same seconds are worth compiling for on a GPU before they are on a CPU."""
    config = small(steps=1)

    def first(kind: str) -> int:
        device = torch.device(kind)
        return next(n for n in range(1, 2000) if timing.worth_trying_to_compile(config, Timing(n, 0), 0.0, device))

    assert 30 < first("cuda") < first("cpu") < 900


# --- the plan --------------------------------------------------------------------------------------------------------


def planned(text_file: Path, *settings: str, processes: Processes | None = None) -> RunPlan:
    layer = parse_overrides([f"source={text_file}", "dtype=float32", "compile=false", *settings])
    return plan_run("tiny", [layer], processes=processes)


@pytest.mark.parametrize("length", ["steps=20", "time=1m"])
@pytest.mark.parametrize("batch_size", [8, 32])
def test_the_plan_predicts_the_speed_that_it_measured(
    length: str, batch_size: int, text_file: Path, machine: list[RunConfig]
) -> None:
    made = planned(text_file, length, f"batch_size={batch_size}")
    (config,) = machine
    step = 6 * parameters(config) / 50e9 * batch_size * 64
    assert made.tokens_per_second == pytest.approx(batch_size * 64 / step)
    assert any(f"predicted: {made.tokens_per_second:,.0f} tokens/s" in note for note in made.notes)
    assert made.timed == (length == "time=1m")
    assert any(f"{made.config.train.steps:,} steps of" in note for note in made.notes)
    if not made.timed:
        assert made.config.train.steps == 20
    else:
        assert 0.3 * 60 < made.config.train.steps * step < 60


@pytest.mark.parametrize("rows_that_fit", [1, 2, 3, 5, 7, 15, 31, 32, 1000])
@pytest.mark.parametrize("settings", [[], ["optimizer=adamw"], ["activation_checkpointing=true"]])
def test_the_micro_batch_is_what_fits_in_as_few_passes_as_can_be(
    rows_that_fit: int, settings: list[str], text_file: Path, machine: list[RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def needed(config: RunConfig, rows: int) -> int:
        recompute = config.train.activation_checkpointing
        return memory(config.model, rows, optimizer=config.optim.optimizer, recompute=recompute).total

    whole = planned(text_file, "steps=2", "micro_batch_size=32", *settings).config
    free = int(needed(whole, rows_that_fit) / SHARE_OF_FREE) + 1
    most = max(rows for rows in range(1, 33) if needed(whole, rows) <= SHARE_OF_FREE * free)  # one by one
    assert most >= min(rows_that_fit, 32)
    monkeypatch.setattr(machine_memory, "free_memory", lambda device: free)
    made = planned(text_file, "steps=2", *settings)
    rows, batch_size = made.config.train.micro_batch_size, made.config.train.batch_size
    assert batch_size == 32, "the step stays what it is"
    assert 1 <= rows <= most
    assert -(-32 // rows) == -(-32 // most), "as few passes as can be"
    assert rows == 1 or -(-32 // (rows - 1)) > -(-32 // rows), "and no pass larger than need be"
    notes = [note for note in made.notes if "sequences at a time" in note]
    assert len(notes) == (rows < 32)
    assert all(note.startswith(f"{rows} sequences") and note.endswith("a step is still 32") for note in notes)
    assert machine[-1].train.micro_batch_size == rows, "what is measured is what will run"


def test_a_micro_batch_that_was_asked_for_stays(
    text_file: Path, machine: list[RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_memory, "free_memory", lambda device: 1)
    assert planned(text_file, "steps=2", "micro_batch_size=20").config.train.micro_batch_size == 20
    assert planned(text_file, "steps=2", "micro_batch_size=20", "batch=auto").config.train.micro_batch_size == 1


def test_processes_share_the_memory_and_the_time_of_a_batch(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    def fake(*_: Any, world_size: int = 1) -> Timing:
        counts.append(world_size)
        return Timing(0.01, 1e-6)

    monkeypatch.setattr(timing, "measure_steps", fake)
    made = planned(text_file, "steps=2", processes=Processes(0, 5))
    assert counts == [5]
    assert made.config.train.micro_batch_size == 7, "32 rows on five processes: 6 or 7 each"


def test_measure_times_the_real_model(runtime: Runtime) -> None:
    config = build("tiny", [{"model": {"n_layer": 1, "n_embd": 8, "block_size": 8}, "train": {"batch_size": 4}}])
    config = config.replace("model", vocab_size=7)
    found = measure_steps(config, runtime, seconds=0.0)
    assert found.seconds_per_step > 0 and found.seconds_per_val_token > 0
    huge = measure_steps(
        config.replace("train", batch_size=1 << 20), runtime, seconds=0.0
    )  # a part is timed, and scaled
    assert huge.seconds_per_step > 50 * found.seconds_per_step
    shared = measure_steps(config.replace("train", batch_size=1 << 20), runtime, seconds=0.0, world_size=64)
    assert shared.seconds_per_step < huge.seconds_per_step / 8
    recomputed = measure_steps(config.replace("train", activation_checkpointing=True), runtime, seconds=0.0)
    assert recomputed.seconds_per_step > 0


def test_a_costly_update_of_muon_is_said() -> None:
    costly, cheap = Timing(1.0, 1e-6, update_share=0.6), Timing(1.0, 1e-6, update_share=0.1)
    assert "Muon's update takes 60% of a step" in _cost_of_muon(small(), costly)
    assert _cost_of_muon(small(), cheap) == ""
    assert _cost_of_muon(small().replace("optim", optimizer="adamw"), costly) == ""

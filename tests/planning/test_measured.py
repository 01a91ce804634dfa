"""What was measured is kept for a day: found under the same conditions only, and never a reason to fail."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import thread_count
from glassgpt.config import RunConfig, RuntimeConfig, build, parse_overrides
from glassgpt.planning import attention_choice, compute_dtype, measured, timing
from glassgpt.planning.measured import Measurements
from glassgpt.planning.run_plan import Measure, RunPlan, plan_run
from glassgpt.planning.timing import Timing
from glassgpt.runtime import resolve
from glassgpt.training.metrics import Reporter

DAY = 24 * 3600.0


@pytest.fixture(autouse=True)
def file(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a cache that keeps."""
    monkeypatch.setattr(measured, "KEPT_SECONDS", DAY)
    return empty_cache / "measured.json"


@dataclass(frozen=True)
class Thing:
    """A thing that is measured."""

    seconds: float
    why: str = "because"
    steady: bool = True


def measure(value: Thing, calls: list[Thing]) -> Callable[[], Thing]:
    def now() -> Thing:
        calls.append(value)
        return value

    return now


def test_a_thing_is_measured_once_and_kept(file: Path) -> None:
    calls: list[Thing] = []
    one = Measurements()
    for _ in range(3):
        assert one.get(Thing, {"rows": 3}, measure(Thing(0.5), calls)) == Thing(0.5)
    assert one.age == ""
    later = Measurements()
    assert later.get(Thing, {"rows": 3}, measure(Thing(9.0), calls)) == Thing(0.5)
    assert later.age == " (measured 0 min ago; --measure: anew)"
    assert calls == [Thing(0.5)]
    anew = Measurements(anew=True)
    for _ in range(2):
        assert anew.get(Thing, {"rows": 3}, measure(Thing(7.0), calls)) == Thing(7.0)
    assert (len(calls), anew.age) == (2, "")
    assert Measurements().known(Thing, {"rows": 3}) == Thing(7.0), "the newer one replaces the older"
    assert len(json.loads(file.read_text(encoding="utf-8"))) == 1


def test_it_says_when_it_begins_to_measure() -> None:
    begun: list[str] = []
    found = Measurements(before_first=lambda: begun.append("measuring"))
    found.keep(Thing(1.0), {"rows": 1})
    found.get(Thing, {"rows": 1}, lambda: pytest.fail("it is known"))
    assert begun == []
    for rows in (2, 3):
        found.get(Thing, {"rows": rows}, lambda: Thing(2.0))
    assert begun == ["measuring"]


@pytest.mark.parametrize("changed", ["conditions", "threads", "kind", "machine", "source"])
def test_other_conditions_are_measured_for_themselves(changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with thread_count(1):
        Measurements().keep(Thing(0.5), {"rows": 3, "model": {"n_layer": 2}})
        assert Measurements().known(Thing, {"model": {"n_layer": 2}, "rows": 3}) == Thing(0.5)
    kind: type = Thing
    rows, threads, machine = 3, 1, measured._machine()
    if changed == "conditions":
        rows = 4
    elif changed == "threads":
        threads = 2
    elif changed == "kind":
        kind = Timing
    else:
        key = {"machine": "cpu", "source": "source"}[changed]
        monkeypatch.setattr(measured, "_machine", lambda: machine | {key: "another"})
    with thread_count(threads):
        assert Measurements().known(kind, {"rows": rows, "model": {"n_layer": 2}}) is None


def test_what_a_busy_machine_measured_is_not_kept(file: Path) -> None:
    busy, here = Thing(0.5, steady=False), Measurements()
    assert here.get(Thing, {}, lambda: busy) == busy
    assert here.known(Thing, {}) == busy, "it serves this process"
    assert Measurements().known(Thing, {}) is None
    assert not file.exists()


@pytest.mark.parametrize(("hours", "age"), [(-1, None), (0.5, "30 min"), (2, "2 h"), (23.9, "24 h"), (24.1, None)])
def test_it_holds_for_a_day(hours: float, age: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(measured.time, "time", lambda: now - 3600 * hours)
    Measurements().keep(Thing(0.5), {})
    monkeypatch.setattr(measured.time, "time", lambda: now)
    found = Measurements()
    assert (found.known(Thing, {}) is not None) == (age is not None)
    assert found.age == (f" (measured {age} ago; --measure: anew)" if age else "")


def damage(entry: Any, **values: Any) -> str:
    return json.dumps([entry | {"values": entry["values"] | values}])


DAMAGES: dict[str, Callable[[Any], str | bytes]] = {
    "empty": lambda entry: "",
    "no JSON": lambda entry: json.dumps([entry])[:-9],
    "no UTF-8": lambda entry: b"\xff\xfe\x00",
    "no list": lambda entry: json.dumps(entry),
    "no objects": lambda entry: "[1, null, []]",
    "no time": lambda entry: json.dumps([entry | {"time": "noon"}]),
    "no values": lambda entry: json.dumps([entry | {"values": 7}]),
    "a text for a number": lambda entry: damage(entry, seconds="fast"),
    "a number for a text": lambda entry: damage(entry, why=3),
    "not a number": lambda entry: damage(entry, seconds=math.nan),
    "an unknown value": lambda entry: damage(entry, more=1),
    "deep": lambda entry: "[" * 100_000,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_as_good_as_none(name: str, file: Path) -> None:
    Measurements().keep(Thing(0.5), {})
    (entry,) = json.loads(file.read_text(encoding="utf-8"))
    content = DAMAGES[name](entry)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert Measurements().known(Thing, {}) is None
    assert Measurements().get(Thing, {}, lambda: Thing(0.7)) == Thing(0.7)
    assert Measurements().known(Thing, {}) == Thing(0.7), "and is replaced"


def test_a_cache_that_cannot_be_written_is_no_error(empty_cache: Path) -> None:
    empty_cache.write_text("a file where the folder should be", encoding="utf-8")
    assert Measurements().get(Thing, {}, lambda: Thing(0.7)) == Thing(0.7)
    assert Measurements().known(Thing, {}) is None


# --- plans


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A fast machine on which a step takes a second, and bfloat16 is chosen; returns what was measured on it.

    Its times never disagree, for what disagrees is not kept.
    """
    done: list[str] = []

    def steps(config: RunConfig, runtime: Any, seconds: float = 0.0, **settings: Any) -> Timing:
        done.append(f"steps of {config.model.n_embd} in {runtime.resolved()['dtype']}")
        return Timing(1.0, 1e-6)

    def dtype(*arguments: object) -> compute_dtype.DtypeChoice:
        done.append("dtype")
        return compute_dtype.DtypeChoice("bfloat16", "as if it had been measured")

    monkeypatch.setattr(timing, "measure_steps", steps)
    monkeypatch.setattr(compute_dtype, "choose_dtype", dtype)
    monkeypatch.setattr(attention_choice, "_seconds", lambda *arguments: [1.0] * 3)
    monkeypatch.setattr(timing, "matrix_flops_per_second", lambda *arguments: 1e12)
    return done


class Notes(Reporter):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def planned(text: Path, *settings: str, preset: str = "tiny", measure: Measure = "speed") -> tuple[RunPlan, list[str]]:
    layer, told = parse_overrides([f"source={text}", "compile=false", "device=cpu", *settings]), Notes()
    return plan_run(preset, [layer], measure=measure, reporter=told), told.notes


@pytest.mark.parametrize("preset", ["tiny", "auto"])
def test_a_plan_measures_nothing_twice_and_the_next_one_nothing(
    preset: str, text_file: Path, machine: list[str]
) -> None:
    first, notes = planned(text_file, preset=preset)
    assert len(machine) == len(set(machine)) + (machine.count("dtype") or 1) - 1, "each thing once"
    assert "measuring the speed of this machine" in notes
    assert not any("ago" in note for note in first.notes)
    count = len(machine)
    again, notes = planned(text_file, preset=preset)
    assert len(machine) == count
    assert "measuring the speed of this machine" not in notes
    assert any(note.endswith("tokens/s (measured 0 min ago; --measure: anew)") for note in again.notes)
    assert again.config.model == first.config.model
    assert again.config.runtime == first.config.runtime
    assert again.timing == first.timing
    planned(text_file, preset=preset, measure="anew")
    assert len(machine) == 2 * count
    planned(text_file, "n_head=2", "n_embd=32", preset=preset)
    assert len(machine) > 2 * count, "another model"


@pytest.mark.parametrize(
    "setting",
    ["batch_size=3", "micro_batch_size=2", "optimizer=adamw", "dtype=float32", "activation_checkpointing=true"],
)
def test_what_changes_a_step_is_a_condition(setting: str, text_file: Path, machine: list[str]) -> None:
    planned(text_file)
    count = machine.count("steps of 64 in bfloat16")
    planned(text_file, setting)
    assert len([what for what in machine if what.startswith("steps")]) == count + 1
    planned(text_file, setting, "seed=3", "muon_learning_rate=0.1", "sample_tokens=0")
    assert len([what for what in machine if what.startswith("steps")]) == count + 1, "these change no step's time"


def test_an_unknown_dtype_in_the_file_is_measured_again(text_file: Path, machine: list[str], file: Path) -> None:
    planned(text_file)
    file.write_text(file.read_text(encoding="utf-8").replace('"name": "bfloat16"', '"name": "nn"'), encoding="utf-8")
    assert planned(text_file)[0].config.runtime.dtype == "bfloat16"
    assert machine.count("dtype") == 2


# --- compiling


@pytest.mark.parametrize(
    ("steps", "compiled", "expected"), [(3, 0.5, False), (50, 0.5, True), (50, 0.95, False), (10**6, 0.99, False)]
)
def test_compiling_that_was_tried_before_is_weighed_with_its_cost(
    steps: int, compiled: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs a quarter of what it took the first time: 4 s here, of eager steps of a second."""
    runtime = replace(resolve(RuntimeConfig(device="cpu", dtype="float32")), compile=True)
    config = build("small", [{"train": {"steps": steps}}])
    monkeypatch.setattr(timing, "compiler_found", lambda device: True)
    monkeypatch.setattr(timing, "measure_steps", lambda *_, **__: Timing(compiled, 1e-6, compile_seconds=16.0))
    timing.timing_of(config, runtime, Measurements())
    monkeypatch.setattr(timing, "measure_steps", lambda *_, **__: pytest.fail("it is known"))
    eager = Timing(1.0, 1e-6)
    chosen = timing._choose_compile(config, eager, 60.0, replace(runtime, compile=False), Reporter(), 1, Measurements())
    assert chosen.runtime.compile == expected
    assert chosen.timing == (Timing(compiled, 1e-6, compile_seconds=4.0) if expected else eager)
    assert f"{1 / compiled:.2f}x as fast; compiling again takes some 4 s" in chosen.notes[0]
    assert chosen.notes[0].endswith("not compiled") != expected


def test_a_try_at_compiling_is_compared_with_the_speed_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The eager steps were measured while the machine was idle; now it is not, and compiled steps are faster."""
    runtime = resolve(RuntimeConfig(device="cpu", dtype="float32"))
    config = build("small", [{"train": {"steps": 10**6}}])
    monkeypatch.setattr(timing, "compiler_found", lambda device: True)
    monkeypatch.setattr(timing, "measure_steps", lambda *_, **__: Timing(0.5, 1e-6))
    monkeypatch.setattr(timing, "matrix_flops_per_second", lambda *_: 1e12)
    timing.measure_eager(config, runtime, Measurements())
    busy = {True: Timing(1.0, 1e-6, compile_seconds=16.0), False: Timing(2.0, 1e-6)}
    monkeypatch.setattr(timing, "measure_steps", lambda config, runtime, *_, **__: busy[runtime.compile])
    for _ in range(2):  # the second time, both are known
        chosen = timing.measure_speed(config, runtime, 0.5, time_left=60.0, measurements=Measurements())
        assert chosen.runtime.compile
        assert "2.00x as fast" in chosen.notes[0]


def test_the_time_of_compiling_again_is_taken_off(
    text_file: Path, machine: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "compiler_found", lambda device: True)
    settings = ["dtype=float32", "time=100s", "sample_tokens=0", "compile=auto"]
    eager = planned(text_file, *settings)[0].config
    assert eager.runtime.compile == "false", "nobody knows whether it pays, and the run is short"
    resolved = replace(resolve(eager.runtime), compile=True)
    fast = Timing(0.5, 1e-6, compile_seconds=80.0)
    Measurements().keep(fast, timing._conditions(eager, resolved, 1))
    found = planned(text_file, *settings)[0].config
    assert found.runtime.compile == "true"
    assert found.train.steps == pytest.approx((0.75 * 80 - 3) / 0.5, abs=3)


def test_a_measured_machine_has_a_name() -> None:
    machine = measured._machine()
    assert machine["cpu"] and machine["cpus"] >= 1
    assert machine["torch"] == str(torch.__version__)

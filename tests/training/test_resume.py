"""A run that is killed and resumed writes what the uninterrupted one writes, bit for bit."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from glassgpt import api
from glassgpt.config import parse_overrides
from glassgpt.errors import CheckpointError
from glassgpt.planning import compute_dtype, opening, run_plan, timing
from glassgpt.planning import memory as machine_memory
from glassgpt.training.checkpoint import Run, read_state
from glassgpt.training.metrics import Reporter, SpeedCheck, StepEvent
from glassgpt.training.pretraining import Pretraining

pytestmark = pytest.mark.usefixtures("quick_measuring")

# 1,700 training tokens in windows of 16, four at a time: an epoch is 26.25 steps, so its edge lies inside batch 26.
SETTINGS = (
    "n_layer=2 n_head=2 n_embd=32 block_size=16 batch_size=4 dropout=0.1 steps=60 eval_interval=6 save_interval=5"
)
SETTINGS += " log_interval=1 sample_tokens=8 sample_interval=7 eval_tokens=100"
SETTINGS += " dtype=float32 compile=false"

WORKER = """
import os, signal, sys
from pathlib import Path
from glassgpt import api
from glassgpt.config import parse_overrides
from glassgpt.planning import opening
from glassgpt.training.metrics import Reporter

mode, target, kill_at, preset, *settings = sys.argv[1:]

class Killer(Reporter):
    def on_step(self, event):
        if event.step == int(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)

if mode == "start":
    plan = api.plan(preset, overrides=[parse_overrides(settings)])
    trainer = opening.start_run(plan, "run", Path(target), reporter=Killer())
else:
    trainer = opening.resume_run(Path(target) / "run", reporter=Killer())
trainer.train()
"""


def train(folder: Path, mode: str, kill_at: int, *settings: str, preset: str = "tiny-modern") -> int:
    """Train in a process of its own, which kills itself right after a step (-1: never)."""
    command = [sys.executable, "-c", WORKER, mode, str(folder), str(kill_at), preset, *settings]
    return subprocess.run(command, check=False, stderr=subprocess.PIPE).returncode


def written(run: Run) -> dict[str, Any]:
    """Everything of a run that must not depend on interruptions."""
    files = {
        path.relative_to(run.path).as_posix(): path.read_bytes()
        for path in run.path.rglob("*")
        if path.is_file() and path.name not in ("metrics.jsonl", "run.toml")
    }
    timeless = [{k: v for k, v in row.items() if not k.startswith(("perf/", "time/"))} for row in run.metrics]
    return {"files": files, "metrics": timeless}


@pytest.mark.parametrize(
    "optim",
    [
        "optimizer=muon ema=0.8",
        "optimizer=adamw",
        pytest.param("optimizer=adamw ema=0.99 dtype=bfloat16", marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, prose: str, optim: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text(prose[:1889], encoding="utf-8")
    settings = [*SETTINGS.split(), f"source={text}", *optim.split(), "keep_every=25"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(whole, "start", -1, *settings) == 0
    # Before the first checkpoint, in the middle, at an epoch's edge, and right after a save.
    assert train(broken, "start", 3, *settings) == -signal.SIGKILL
    for kill_at in (17, 27, 50):
        assert train(broken, "resume", kill_at) == -signal.SIGKILL
    text.unlink()  # the tokens are kept
    assert train(broken, "resume", -1) == 0
    expected, found = written(Run(whole / "run")), written(Run(broken / "run"))
    assert found["metrics"] == expected["metrics"]
    assert found["files"].keys() == expected["files"].keys()
    assert [name for name in expected["files"] if found["files"][name] != expected["files"][name]] == []
    steps = [row["step"] for row in expected["metrics"] if "train/loss" in row]
    assert steps == list(range(1, 61))
    assert list(Run(broken / "run").kept()) == [0, 25, 50, 60]


def start(folder: Path, text: Path, *extra: str) -> Run:
    """A short finished run."""
    settings = [*SETTINGS.split(), f"source={text}", "steps=6", *extra]
    return opening.start_run(run_plan.plan_run("tiny", [parse_overrides(settings)]), "run", folder).train().run


def test_a_changed_run_is_refused_with_the_difference(tmp_path: Path, text_file: Path) -> None:
    run = start(tmp_path, text_file)
    with pytest.raises(CheckpointError) as refused:
        opening.resume_run(run.path, parse_overrides(["n_layer=3", "batch_size=8", "val_fraction=0.2", "steps=20"]))
    message = str(refused.value)
    assert "model.n_layer: 2 in the run, 3 asked for" in message
    assert "train.batch_size: 4 in the run, 8 asked for" in message
    assert "data.val_fraction: 0.1 in the run, 0.2 asked for" in message
    assert "steps" not in message


class Notes(Reporter):
    """Keeps the notes and the warnings."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    warn = note


def test_a_finished_run_shows_its_end_again_and_trains_for_more_steps(tmp_path: Path, text_file: Path) -> None:
    run = start(tmp_path, text_file)
    rows, reporter = written(run)["metrics"], Notes()
    result = api.resume(run.path, reporter=reporter)
    assert (result.reason, result.step) == ("finished", 6)
    assert result.final is not None and result.final.loss == rows[-1]["final/val_loss"]
    assert any("has finished its 6 steps; to train it longer, add steps=12" in note for note in reporter.notes)
    assert written(run)["metrics"] == rows
    result = api.resume(run.path, parse_overrides(["steps=9"]))
    assert (result.reason, result.step) == ("finished", 9)
    assert [row["step"] for row in run.metrics if "train/loss" in row] == list(range(1, 10))
    assert sum("final/val_loss" in row for row in run.metrics) == 1


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("kind", ["text", "folder"])
def test_another_text_is_refused_and_the_same_or_none_is_not(
    kind: str, cached: bool, tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, old = text_file, text_file.read_text(encoding="utf-8")
    if kind == "folder":
        source = tmp_path / "texts"
        source.mkdir()
        for i in range(4):
            (source / f"{i}.txt").write_text(old[i * 3000 : (i + 1) * 3000], encoding="utf-8")
    run = start(tmp_path, source, f"source={source}", "tokenizer=bpe:300")
    if not cached:
        monkeypatch.setenv("GLASSGPT_CACHE", str(tmp_path / "empty"))
    changed = source if kind == "text" else source / "added.txt"
    changed.write_text(old[:-50], encoding="utf-8")
    before = (run.path / "run.toml").read_bytes()
    with pytest.raises(CheckpointError, match="has changed since"):
        opening.resume_run(run.path, parse_overrides(["steps=9"]))
    assert (run.path / "run.toml").read_bytes() == before
    if kind == "text":
        changed.write_text(old, encoding="utf-8")
    else:
        changed.unlink()
    assert opening.resume_run(run.path, parse_overrides(["steps=9"])).state.step == 6
    source.rename(tmp_path / "moved")
    assert opening.resume_run(run.path, parse_overrides(["steps=9"])).state.step == 6, "the tokens are cached by now"


def test_a_run_goes_on_with_the_offsets_of_windows_that_it_began_with(tmp_path: Path, text_file: Path) -> None:
    run = start(tmp_path, text_file)
    assert isinstance(task := opening.resume_run(run.path, parse_overrides(["steps=9"])).task, Pretraining)
    assert task.loader.batches.all_offsets
    text = (run.path / "run.toml").read_text(encoding="utf-8")
    (run.path / "run.toml").write_text(text.replace("all_offsets = true\n", ""), encoding="utf-8")  # as older versions
    for _ in range(2):
        assert isinstance(task := opening.resume_run(run.path, parse_overrides(["steps=9"])).task, Pretraining)
        assert not task.loader.batches.all_offsets


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, text_file: Path) -> None:
    run = start(tmp_path, text_file, "save_interval=2", "keep_checkpoints=2")
    assert [path.name for path in run.numbered()] == ["step-000004", "step-000006"]
    for folder in (run.last, run.path / "step-000006"):
        weights = folder / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.unlink()  # last/ and its number share their files
        weights.write_bytes(bytes(content))
    assert run.recover_and_find_latest() == run.path / "step-000004"
    state = json.loads((run.path / "step-000004" / "trainer" / "state.json").read_text(encoding="utf-8"))
    assert state["step"] == 4
    assert opening.resume_run(run.path, parse_overrides(["steps=8"])).state.step == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_measured_choices_are_reused(
    tmp_path: Path, text_file: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured_again(*arguments: object, **named: object) -> NoReturn:
        pytest.fail("a run that goes on measures nothing")

    choice = compute_dtype.DtypeChoice(str(dtype).removeprefix("torch."), "as if it had been measured")
    monkeypatch.setattr(compute_dtype, "choose_dtype", lambda *_: choice)
    run = start(tmp_path, text_file, "threads=1", "dtype=auto", "compile=auto", "batch=auto")
    config = run.config()
    assert config.runtime.device == "cpu"
    assert config.runtime.dtype == str(dtype).removeprefix("torch.")
    assert config.runtime.compile == "false", "too short a run to compile"
    assert config.runtime.threads == 1
    assert config.train.steps == 6
    assert config.train.micro_batch_size == 4, "all of so small a batch fits"
    assert "as if it had been measured" in run.provenance()["notes"]
    monkeypatch.setattr(compute_dtype, "choose_dtype", measured_again)
    monkeypatch.setattr(machine_memory, "largest_micro_batch", measured_again)
    monkeypatch.setattr(timing, "measure_steps", measured_again)
    again = opening.resume_run(run.path, parse_overrides(["steps=8"]))
    assert (again.model.dtype, again.state.micro_batch_size) == (dtype, 4)
    assert again.train().step == 8
    assert run.config().runtime == config.runtime
    assert "provenance" in (run.path / "run.toml").read_text(encoding="utf-8")
    assert "auto" not in [value for part in ("train", "runtime") for value in vars(getattr(config, part)).values()]
    assert text_file.samefile(config.data.source)


def test_best_survives_a_death_between_two_checkpoints(tmp_path: Path, text_file: Path) -> None:
    """best/ is newer than the checkpoint that training goes on from: it is not replaced by something worse."""
    settings = [*SETTINGS.split(), f"source={text_file}", "steps=40", "save_interval=40", "eval_interval=5"]
    assert train(tmp_path, "start", 32, *settings) == -signal.SIGKILL
    run = Run(tmp_path / "run")
    kept, weights = run.best_loss(), (run.best / "model.safetensors").read_bytes()
    assert kept is not None
    assert not run.last.exists()
    assert train(tmp_path, "resume", 11) == -signal.SIGKILL
    assert run.best_loss() == kept
    assert (run.best / "model.safetensors").read_bytes() == weights
    assert train(tmp_path, "resume", -1) == 0
    losses = [row["val/loss"] for row in run.metrics if "val/loss" in row]
    assert run.best_loss() == min(losses)


def test_what_a_resume_was_asked_is_remembered(tmp_path: Path, text_file: Path) -> None:
    run = start(tmp_path, text_file)
    assert opening.resume_run(run.path, parse_overrides(["steps=30", "micro_batch_size=2"])).state.micro_batch_size == 2
    assert run.config().train.steps == 30
    assert api.resume(run.path, parse_overrides(["time=1h"])).step == 30
    for asked, named in (("steps=3", "has finished its 30 steps"), ("optimizer=adamw", "optim.optimizer: muon in")):
        with pytest.raises(CheckpointError, match=named):
            opening.resume_run(run.path, parse_overrides([asked]))


def test_readers_change_nothing_beside_a_writer(tmp_path: Path, text_file: Path) -> None:
    run = start(tmp_path, text_file)
    half_written = run.path / ".best.glassgpt-new"
    half_written.mkdir()
    assert api.open_source(run.path).path == run.best
    assert half_written.exists()
    waiting = run.path / ".best.glassgpt-old"
    run.best.rename(waiting)  # the instant between the two renames of a save
    assert api.open_source(run.path).path == waiting
    assert api.open_source(run.best).path == waiting
    assert waiting.exists()
    api.load(run.path)


# --- a timed run that is fitted anew

REFITTED = (
    SETTINGS.replace("steps=60", "time=1m")
    .replace("eval_interval=6 ", "")
    .replace("sample_tokens=8", "sample_tokens=0")
)
MACHINE = timing.Timing(seconds_per_step=1.0, seconds_per_val_token=1e-9)


class KilledAt(Reporter):
    """Stops the run after a step, as a kill would: nothing more is written."""

    def __init__(self, step: int = -1) -> None:
        self.step, self.notes = step, list[str]()

    def on_step(self, event: StepEvent) -> None:
        if event.step == self.step:
            raise KeyboardInterrupt

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def refit(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A machine that is predicted to take a second for a step; the steps are then measured as so many times faster."""
    monkeypatch.setattr(timing, "measure_steps", lambda *_, **__: MACHINE)
    measured = run_plan.RunPlan.refit

    monkeypatch.setattr(run_plan.RunPlan, "refit", lambda plan, step, speed, _: measured(plan, step, speed, 30.0))

    def faster(times: float) -> None:
        monkeypatch.setattr(SpeedCheck, "median", lambda self: times * self.predicted)

    return faster


def timed(folder: Path, text: Path, kill_at: int, *settings: str) -> tuple[Run, list[str]]:
    """A run that ends by itself, or is killed and then resumed."""
    plan = run_plan.plan_run("tiny-modern", [parse_overrides([*REFITTED.split(), f"source={text}", *settings])])
    reporter, never = KilledAt(kill_at), time.monotonic() + 3600
    trainer = opening.start_run(plan, "run", folder, reporter=reporter, deadline=never)
    if kill_at < 0:
        return trainer.train().run, reporter.notes
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    return opening.resume_run(folder / "run").train().run, reporter.notes


@pytest.mark.parametrize(
    ("saving", "kills"),
    [
        ("save_interval=100", (3, 23)),
        pytest.param("save_interval=4", (20, 21), marks=pytest.mark.slow),
    ],
)
def test_a_refitted_run_that_is_killed_equals_the_uninterrupted_one(
    saving: str, kills: tuple[int, int], tmp_path: Path, text_file: Path, refit: Callable[[float], None]
) -> None:
    """Also if the newest checkpoint is from before the refit, or there is none."""
    refit(1.0)
    plain = written(timed(tmp_path / "plain", text_file, -1, saving)[0])
    refit(2.0)
    run, notes = timed(tmp_path / "whole", text_file, -1, saving)
    assert [note for note in notes if "steps instead of" in note] == [
        "the steps run at 128 tokens/s instead of 64: 58 steps instead of 41 fit into 1m"
    ]
    train, expected = run.config().train, written(run)
    assert (train.steps, train.eval_interval, train.save_interval) == (58, 5, int(saving.split("=")[1]))
    assert run.config().optim.warmup_steps == 2 and run.metrics[-1]["step"] == 58
    rates = {row["step"]: row["opt/adamw_lr"] for row in run.metrics if "opt/adamw_lr" in row}
    assert rates != {row["step"]: row["opt/adamw_lr"] for row in plain["metrics"] if "opt/adamw_lr" in row}
    # killed before the refit, which is then left out; and after it
    for kill_at, same in zip(kills, (plain, expected), strict=True):
        found = written(timed(tmp_path / str(kill_at), text_file, kill_at, saving)[0])
        assert found["metrics"] == same["metrics"], kill_at
        assert found["files"] == same["files"], kill_at


def test_fewer_steps_than_before_the_refit_are_trained_exactly(
    tmp_path: Path, text_file: Path, refit: Callable[[float], None]
) -> None:
    """A run may be made shorter than its refit if it was killed before it saved or logged anything."""
    refit(2.0)
    settings = [*REFITTED.split(), f"source={text_file}", "save_interval=50", "eval_interval=50", "log_interval=50"]
    plan = run_plan.plan_run("tiny-modern", [parse_overrides(settings)])
    trainer = opening.start_run(plan, "run", tmp_path, reporter=KilledAt(23), deadline=time.monotonic() + 3600)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    run = opening.resume_run(trainer.run.path, parse_overrides(["steps=10"])).train().run
    assert read_state(run.last).step == 10

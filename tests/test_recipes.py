"""Recipes and the curves they ship with; profiles; TensorBoard."""

import dataclasses
import json
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import Cli
from glassgpt.config import build, presets
from glassgpt.config.presets import Curve, expected_curve, measured_curve
from glassgpt.training.checkpoint import Run
from glassgpt.weights.mapping import family_of

MEASURED = [name for name in presets.names() if measured_curve(name) is not None]
QUICK = ["preset=tiny", "n_layer=1", "n_embd=32", "block_size=16", "batch_size=4", "compile=false", "dtype=float32"]
QUICK += ["keep_checkpoints=0", "sample_tokens=0", "eval_tokens=400"]
RECIPES = ["shakespeare-char-fast", "shakespeare-char-a100", "shakespeare-char-best", "gpt2-124m"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_everything_and_opens_in_transformers(name: str) -> None:
    config = build(name, [presets.get(name).layer])
    assert config.train.steps > 0
    assert config.train.eval_interval > 0
    assert config.optim.warmup_steps > 0
    family_of(config.model)  # or a ConfigError
    if name not in MEASURED:
        assert "not run here" in presets.get(name).description


@pytest.mark.parametrize("name", MEASURED)
def test_a_shipped_curve_is_that_of_its_recipe(name: str) -> None:
    curve, config = measured_curve(name), build(name, [presets.get(name).layer])
    assert curve is not None
    assert f"preset={name}" in curve.command
    assert len(curve.final) == len(curve.seconds) == 3, "three seeds"
    assert max(curve.losses) == config.train.steps
    assert all(step % config.train.eval_interval == 0 for step in curve.losses)
    for step, losses in curve.losses.items():
        low, high = curve.band(step) or (0.0, 0.0)
        assert low < min(losses) <= max(losses) < high
        assert (high - low) / 2 >= 0.0099 * statistics.fmean(losses)
    assert curve.band(config.train.steps + 1) is None


def test_the_band_is_shown_only_to_a_run_that_follows_the_recipe() -> None:
    assert MEASURED
    for name in MEASURED:
        curve = measured_curve(name)
        assert curve is not None
        config = build(name, [presets.get(name).layer])
        assert expected_curve(config, curve.text_sha256) is curve
        assert expected_curve(config.replace("train", seed=5, keep_checkpoints=2), curve.text_sha256) is curve
        assert expected_curve(config.replace("runtime", threads=1), curve.text_sha256) is curve
        assert expected_curve(config, "0" * 64) is None
        for section, change in (
            ("train", {"steps": 3}),
            ("train", {"batch_size": 3}),
            ("model", {"dropout": 0.4}),
            ("optim", {"momentum": 0.1}),
        ):
            assert expected_curve(config.replace(section, **change), curve.text_sha256) is None
        assert expected_curve(dataclasses.replace(config, preset="tiny"), curve.text_sha256) is None


def test_a_run_is_held_against_its_band_at_each_evaluation(
    cli: Cli, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planted(config: object, text_sha256: str) -> Curve:
        losses = {0: (3.9, 3.9, 3.9), 2: (0.5, 0.5, 0.5), 4: (9.0, 9.0, 9.0)}
        return Curve("", "a machine", "bfloat16", text_sha256, losses, (1.0,), (1.0,))

    monkeypatch.setattr(presets, "expected_curve", planted)
    code, out, _ = cli("train", text_file, *QUICK, "steps=6", "eval_interval=2")
    assert code == 0
    assert "the recipe took 1 s in bfloat16 on a machine; here, in float32, it takes some " in out
    lines = {line.split()[1]: line for line in out.splitlines() if "  validation " in line}
    assert "expected (3.861 to 3.939)" in lines["0"]
    assert "ABOVE what is expected (0.495 to 0.505)" in lines["2"]
    assert "better than expected (8.910 to 9.090)" in lines["4"]
    assert "expected" not in lines["6"]


def test_a_profile_names_the_costliest_operations_and_leaves_a_trace(cli: Cli, text_file: Path, tmp_path: Path) -> None:
    code, out, _ = cli("train", text_file, *QUICK, "steps=9", "--profile")
    assert code == 0
    assert "the ten costliest operations of 5 steps" in out and "Self CPU %" in out and "aten::" in out
    trace = json.loads((tmp_path / "runs/prose/profile/trace.json").read_text(encoding="utf-8"))
    assert len(trace["traceEvents"]) > 100


def test_a_run_too_short_for_a_profile_ends_well(cli: Cli, text_file: Path) -> None:
    for steps, expected in (
        (3, "no profile: it needs more than 3 steps, and there were 3"),
        (4, "operations of 1 steps"),
    ):
        code, out, _ = cli("train", text_file, *QUICK, f"steps={steps}", "--profile")
        assert code == 0
        assert expected in out


def test_tensorboard_has_what_metrics_has(cli: Cli, text_file: Path, tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = [*QUICK, "eval_interval=2", "tensorboard=true", "log_interval=1"]
    assert cli("train", text_file, *settings, "steps=4")[0] == 0
    assert cli("train", "--resume", "prose", "steps=6")[0] == 0
    events = event_accumulator.EventAccumulator(str(tmp_path / "runs/prose/tensorboard"))
    events.Reload()
    rows = Run(tmp_path / "runs/prose").metrics
    for key in ("train/loss", "val/loss", "opt/adamw_lr"):
        expected = {row["step"]: row[key] for row in rows if key in row}
        found = {event.step: event.value for event in events.Scalars(key)}
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_tracker_that_is_not_installed(
    name: str, module: str, cli: Cli, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    code, _, err = cli("train", text_file, "preset=tiny", "steps=2", f"{name}=true")
    assert code == 2
    assert f"[{name}]" in err
    assert len(err.strip().splitlines()) == 1


class FakeRun:
    """What the library's ``init`` returns."""

    def __init__(self, **settings: Any):
        self.settings = settings
        self.rows: list[dict[str, float]] = []
        self.finished = False
        (Path(settings["dir"]) / f"wandb/offline-run-2026-{settings['id'] or 'abc'}").mkdir(parents=True, exist_ok=True)

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, row: dict[str, float]) -> None:
        self.rows.append(row)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb_runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    runs: list[FakeRun] = []

    def init(**settings: Any) -> FakeRun:
        runs.append(FakeRun(**settings))
        return runs[-1]

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return runs


def test_wandb_has_what_metrics_has(
    wandb_runs: list[FakeRun], cli: Cli, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*QUICK, "eval_interval=2", "wandb=true", "log_interval=1"]
    assert cli("train", text_file, *settings, "steps=4")[0] == 0
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert cli("train", "--resume", "prose", "steps=6")[0] == 0
    first, second = wandb_runs
    assert (first.settings["mode"], first.settings["id"], first.settings["project"]) == ("offline", None, "glassgpt")
    assert (second.settings["mode"], second.settings["id"]) == (None, "abc"), "the user's mode, the same run"
    assert first.settings["config"]["train"]["eval_interval"] == 2
    assert first.finished and second.finished
    for key in ("train/loss", "val/loss", "opt/adamw_lr"):
        expected = {row["step"]: row[key] for row in Run(tmp_path / "runs/prose").metrics if key in row}
        assert {row["step"]: row[key] for run in wandb_runs for row in run.rows if key in row} == expected


def test_without_being_asked_nothing_goes_to_wandb(wandb_runs: list[FakeRun], cli: Cli, text_file: Path) -> None:
    assert cli("train", text_file, *QUICK, "steps=2")[0] == 0
    assert wandb_runs == []


def test_an_error_of_wandb_is_one_message(cli: Cli, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**settings: Any) -> None:
        raise RuntimeError("api_key not configured (no-tty).")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    code, _, err = cli("train", text_file, *QUICK, "steps=2", "wandb=true")
    assert code == 2
    assert err.count("error: ") == 1 and "train.wandb: api_key not configured" in err and "WANDB_MODE=offline" in err

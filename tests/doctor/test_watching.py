"""The watcher of a training run: it notices what is wrong, is silent otherwise, and changes no number."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from glassgpt.config import ModelConfig
from glassgpt.doctor.checks import MODEL_CHECKS
from glassgpt.doctor.watching import QUIET, Watcher, look_inside
from glassgpt.loss import Evaluation
from glassgpt.model import GPT
from glassgpt.training.metrics import EvaluationEvent, Reporter, StepEvent

TINY = "n_layer=1 n_head=2 n_embd=8 block_size=8 batch_size=4 device=cpu dtype=float32 compile=false threads=1"


class Warnings(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.notes: list[str] = []

    def warn(self, message: str) -> None:
        self.lines.append(message)

    def note(self, message: str) -> None:
        self.notes.append(message)


def watched(losses: Sequence[float], norms: Sequence[float] = (), speeds: Sequence[float] = ()) -> Warnings:
    """What is warned of for a run with these losses, gradient norms and speeds."""
    watcher = Watcher(warnings := Warnings())
    for i, loss in enumerate(losses):
        norm, speed = norms[i] if norms else 1.0, speeds[i] if speeds else 1000.0
        watcher.on_step(StepEvent(i + 1, len(losses), loss, {}, norm, speed, 0.0))
    watcher.on_end()
    return warnings


def falling(steps: int, noise: float) -> list[float]:
    generator = random.Random(0)
    return [1.5 + 2.7 * math.exp(-i / 60) + generator.gauss(0, noise) for i in range(steps)]


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.15])
def test_it_is_silent_about_a_right_run(noise: float) -> None:
    steps, generator = 1000, random.Random(1)
    norms = [math.exp(generator.gauss(0, 0.4)) for _ in range(steps)]
    speeds = [1000 * generator.uniform(0.8, 1.2) for _ in range(steps)]
    warnings = watched(falling(steps, noise), norms, speeds)
    assert warnings.lines == []
    assert warnings.notes == ["doctor: nothing was noticed during training"]


def test_a_loss_spike_is_one_line() -> None:
    losses = falling(600, 0.02)
    losses[300] += 2.0
    (line,) = watched(losses).lines
    assert "step 301" in line
    assert "loss spike" in line


def test_a_loss_above_its_first_values_is_noticed() -> None:
    assert "loss rises: the loss is 6.000, above its first value of 4.200" in watched([4.2] * 5 + [6.0] * 90).lines[-1]


def test_a_kind_of_event_is_shown_once_in_a_hundred_steps() -> None:
    losses = falling(600, 0.02)
    losses[300:310] = [5.0] * 10
    losses[300 + QUIET + 1] = 5.0
    warnings = watched(losses)
    assert len(warnings.lines) == 2
    assert "11 times" in warnings.notes[-1]


def test_a_gradient_spike_and_a_drop_of_speed_are_noticed() -> None:
    steps = 300
    norms = [1.0] * steps
    norms[150] = 50.0
    speeds = [1000.0] * 200 + [400.0] * 100
    lines = watched(falling(steps, 0.01), norms, speeds).lines
    assert ["gradient spike" in lines[0], "slower" in lines[1], len(lines)] == [True, True, 2]


def test_overfitting_is_noticed() -> None:
    watcher = Watcher(warnings := Warnings())
    for step in range(1, 401):
        watcher.on_step(StepEvent(step, 400, 3.0 / (1 + step / 50), {}, 1.0, 1000.0, 0.0))
        if step % 50 == 0:
            validation = Evaluation(2.0 if step < 200 else 2.0 + step / 400, 0.0, 1)
            watcher.on_eval(EvaluationEvent(step, validation, False))
    assert "overfitting" in warnings.lines[0]


def model(**settings: Any) -> GPT:
    config = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 32, "vocab_size": 40} | settings
    built = GPT(ModelConfig(**config))
    built.init_weights(0)
    return built


IDX = torch.arange(64).view(2, 32) % 40


def test_a_look_finds_nothing_in_a_new_model_and_leaves_it_as_it_was() -> None:
    examined = model(dropout=0.1).train()
    state, weights = torch.get_rng_state(), [p.clone() for p in examined.parameters()]
    look = look_inside(examined, IDX)
    assert look.nonfinite == ""
    assert look.largest_logit < 10
    assert max(look.dead.values()) < 0.1
    assert min(look.entropy.values()) > 0.5
    assert examined.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(map(torch.equal, weights, examined.parameters()))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in examined.modules())


def test_the_first_tensor_that_is_not_finite_is_named() -> None:
    examined = model()
    with torch.no_grad():
        examined.blocks[1].mlp.up.weight[3, 2] = math.inf
    watcher = Watcher(warnings := Warnings())
    watcher.look_into(examined, IDX)
    watcher.on_step(StepEvent(1, 10, math.nan, {}, math.nan, 1000.0, 0.0))
    assert warnings.lines == ["doctor, step 1: non-finite: the first tensor that is not finite is up of block 1"]


def test_large_logits_dead_units_and_collapsed_attention_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    examined = model()
    with torch.no_grad():
        examined.head.weight *= 1e4
        examined.blocks[0].mlp.up.weight.zero_()
        q_and_k = examined.blocks[1].attention.qkv.weight[:32]
        q_and_k *= 1e4
    monkeypatch.setattr("glassgpt.doctor.watching.LOOK_SHARE", math.inf)
    watcher = Watcher(warnings := Warnings())
    watcher.look_into(examined, IDX)
    for step in range(1, 21):
        watcher.on_step(StepEvent(step, 20, 1.0, {}, 1.0, 1000.0, 0.0))
    kinds = [line.split(": ")[1] for line in warnings.lines]
    assert kinds == ["large logits", "dead units", "attention collapse"]


def rows(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(("perf/", "time/"))} for line in lines]


@pytest.mark.usefixtures("quick_measuring")
def test_a_watched_run_computes_the_same_numbers(
    cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glassgpt.doctor.watching.LOOK_SHARE", math.inf)  # look as often as it can
    monkeypatch.setattr("glassgpt.doctor.before_training.MODEL_CHECKS", MODEL_CHECKS[:2])
    train = ["train", text_file, *TINY.split(), "steps=25", "dropout=0.1", "eval_interval=10", "sample_tokens=0"]
    assert cli(*train, "--name", "plain")[0] == 0
    code, out, err = cli(*train, "--name", "watched", "--doctor", "--json")
    assert code == 0, err
    assert rows(tmp_path / "runs" / "plain") == rows(tmp_path / "runs" / "watched")
    found = json.loads(out)["doctor"]
    assert found["events"] == []
    assert not [check for check in found["checks"] if check["status"] in ("FAIL", "WARN")]

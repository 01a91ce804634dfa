"""The average of the weights against slow arithmetic, and as a candidate for best/."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from glassgpt import api
from glassgpt.cli.printing.display import PlainReporter
from glassgpt.config import ModelConfig, OptimConfig, TuneConfig, parse_overrides, presets
from glassgpt.estimate import memory
from glassgpt.loss import Evaluation
from glassgpt.model import GPT
from glassgpt.planning import budget, opening, run_plan
from glassgpt.training.average import WeightAverage
from glassgpt.training.checkpoint import Run
from glassgpt.training.metrics import EvaluationEvent
from glassgpt.training.optim import Optimizers
from glassgpt.training.precision import MasterWeights
from glassgpt.transforms.lora import add_lora
from glassgpt.weights.folder import read_tensors

pytestmark = pytest.mark.usefixtures("quick_measuring")

SHAPE = ModelConfig(13, 8, 2, 2, n_embd=16, **presets.MODERN)


def trained(dtype: torch.dtype = torch.float32, ema: float = 0.7, lora: bool = False) -> tuple[GPT, Optimizers]:
    model = GPT(SHAPE)
    model.init_weights(1)
    if lora:
        add_lora(model, TuneConfig(method="lora", lora_rank=2), seed=0)
    weights = MasterWeights(model, dtype)
    return model, Optimizers(model, OptimConfig(ema=ema), weights)


def update(optimizers: Optimizers, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in optimizers.named.values():
        weight.grad = torch.randn(weight.shape, generator=generator)
    optimizers.step(1.0)


def average_of(optimizers: Optimizers) -> WeightAverage:
    assert optimizers.average is not None
    return optimizers.average


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_is_the_average_of_the_weights_that_are_trained(dtype: torch.dtype, lora: bool) -> None:
    _, optimizers = trained(dtype, lora=lora)
    average = average_of(optimizers)
    expected = {name: weight.detach().double() for name, weight in optimizers.named.items()}
    for t in range(1, 30):
        update(optimizers, t)
        decay = min(0.7, (1 + t) / (10 + t))
        for name, weight in optimizers.named.items():
            expected[name] = decay * expected[name] + (1 - decay) * weight.detach().double()
    assert all("lora" in name for name in average.named) == lora
    assert average.named.keys() == optimizers.named.keys()
    for name, value in expected.items():
        assert average.named[name].dtype == torch.float32
        torch.testing.assert_close(average.named[name].double(), value, rtol=1e-5, atol=1e-6)
        assert not torch.equal(average.named[name], optimizers.named[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_model_has_it_for_a_while_and_then_its_own_weights_again(dtype: torch.dtype) -> None:
    model, optimizers = trained(dtype)
    for t in range(3):
        update(optimizers, t)
    average, own = average_of(optimizers), {name: p.detach().clone() for name, p in model.named_parameters()}
    masters = {name: weight.detach().clone() for name, weight in optimizers.named.items()}
    with pytest.raises(KeyboardInterrupt), average.in_model():  # noqa: PT012
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, average.named[name].to(dtype))
        state = optimizers.weights.state_dict()  # what is saved
        assert all(torch.equal(state[name], value) for name, value in average.named.items())
        raise KeyboardInterrupt
    assert all(torch.equal(p, own[name]) for name, p in model.named_parameters())
    assert all(torch.equal(weight, masters[name]) for name, weight in optimizers.named.items())


def test_it_is_restored_and_begins_anew_where_there_is_none() -> None:
    (_, optimizers), (_, again), (_, without) = trained(), trained(), trained(ema=0.0)
    for t in range(5):
        update(optimizers, t)
        update(without, t)
    again.load_state_dict(optimizers.state_dict())
    average, restored = average_of(optimizers), average_of(again)
    assert restored.updates == average.updates == 5
    assert all(torch.equal(restored.named[name], value) for name, value in average.named.items())
    _, fresh = trained()
    fresh.load_state_dict(without.state_dict())
    assert average_of(fresh).updates == 0
    without.load_state_dict(optimizers.state_dict())
    assert without.average is None
    assert not any(name.startswith("ema/") for name in without.state_dict())


# --- runs

SETTINGS = "n_layer=2 n_head=2 n_embd=32 block_size=16 batch_size=8 sample_tokens=0 eval_interval=10 steps=40"
SETTINGS += " dtype=float32 compile=false eval_tokens=100000 warmup_steps=1 schedule=trapezoid decay_fraction=0"


def run(folder: Path, text: Path, *settings: str) -> Run:
    overrides = parse_overrides([*SETTINGS.split(), f"source={text}", *settings])
    return opening.start_run(run_plan.plan_run("tiny-modern", [overrides]), "run", folder).train().run


@pytest.mark.parametrize(
    ("ema", "rates", "average_wins"),
    [
        (0.7, "adamw_learning_rate=0.02 muon_learning_rate=0.1", True),  # noisy steps
        (0.9999, "adamw_learning_rate=0.0002 muon_learning_rate=0.0002", False),  # all steps go one way
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_best_is_the_better_of_the_weights_and_their_average(
    tmp_path: Path, text_file: Path, ema: float, rates: str, average_wins: bool, dtype: str
) -> None:
    made = run(tmp_path, text_file, f"ema={ema}", *rates.split(), f"dtype={dtype}")
    rows = [row for row in made.metrics if "val/loss" in row]
    assert "val/ema_loss" not in rows[0], "at step 0 there is no average yet"
    found = {row["step"]: (row["val/loss"], row["val/ema_loss"]) for row in rows[1:]}
    assert list(found) == [10, 20, 30, 40]
    best = json.loads((made.best / "validation.json").read_text(encoding="utf-8"))
    own, average = found[best["step"]]
    assert best["loss"] == min(map(min, found.values())) == (average if average_wins else own)
    assert made.metrics[-1]["final/val_loss"] == pytest.approx(best["loss"], rel=1e-6 if dtype == "float32" else 1e-2)
    if best["step"] == 40:
        saved, last = (read_tensors(folder / "model.safetensors") for folder in (made.best, made.last))
        assert saved.keys() == last.keys()
        assert all(torch.equal(saved[name], last[name]) for name in saved) != average_wins


def test_validating_the_average_changes_no_step(tmp_path: Path, text_file: Path) -> None:
    losses = []
    for ema in (0.0, 0.9):
        made = run(tmp_path / str(ema), text_file, f"ema={ema}", "log_interval=1", "dropout=0.1")
        losses.append([row[key] for row in made.metrics for key in ("train/loss", "val/loss") if key in row])
    assert losses[0] == losses[1]


def test_it_can_begin_and_end_with_a_resume(tmp_path: Path, text_file: Path) -> None:
    made = run(tmp_path, text_file, "steps=10", "eval_interval=5")
    for steps, ema in ((20, 0.9), (30, 0)):
        api.resume(made.path, parse_overrides([f"steps={steps}", f"ema={ema}"]))
    averaged = {row["step"]: "val/ema_loss" in row for row in made.metrics if "val/loss" in row}
    assert averaged == {0: False, 5: False, 10: False, 15: True, 20: True, 25: False, 30: False}


def test_the_line_says_which_is_best(capsys: pytest.CaptureFixture[str]) -> None:
    reporter, found = PlainReporter(), Evaluation(2.0, 0.1, 100, 3.0)
    for is_best, ema_loss in ((True, 1.5), (True, 2.5), (False, 1.5), (True, None)):
        reporter.on_eval(EvaluationEvent(7, found, is_best, None, ema_loss))
    assert capsys.readouterr().out.splitlines() == [
        "step 7  validation 2.0000  3.000 bits/byte  EMA 1.5000 (best so far)",
        "step 7  validation 2.0000  3.000 bits/byte (best so far)  EMA 2.5000",
        "step 7  validation 2.0000  3.000 bits/byte  EMA 1.5000",
        "step 7  validation 2.0000  3.000 bits/byte (best so far)",
    ]


def test_its_memory_and_its_validations_are_planned() -> None:
    without, with_average = (memory(SHAPE, 4, bytes_per_weight=2, ema=ema) for ema in (False, True))
    parameters = sum(p.numel() for p in GPT(SHAPE).parameters())
    assert with_average.total - without.total == 4 * parameters
    config = presets.build("tiny", [presets.get("tiny").layer])
    averaged = dataclasses.replace(config, optim=OptimConfig(ema=0.99))
    tokens = [budget.eval_tokens(c, 1000) for c in (config, averaged)]
    assert math.isclose(tokens[0], 2 * tokens[1], rel_tol=0.1)

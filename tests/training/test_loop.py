"""The loop: accumulation, what is best, when it stops, and what it survives."""

import math
import re
import statistics
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from glassgpt import api
from glassgpt.config import parse_overrides
from glassgpt.data import IGNORE_INDEX
from glassgpt.data.batch import Batch
from glassgpt.errors import TrainingStopped
from glassgpt.loss import evaluate
from glassgpt.model import GPT
from glassgpt.planning import opening, run_plan
from glassgpt.training.loop import Trainer
from glassgpt.training.metrics import EvaluationEvent, Reporter
from glassgpt.training.objective import LossFn, ModelWithLoss, next_token_loss
from glassgpt.training.step import StepResult, train_step

pytestmark = pytest.mark.usefixtures("quick_measuring")

TINY = "n_layer=2 n_head=2 n_embd=32 block_size=16 batch_size=8 sample_tokens=0 eval_tokens=400 log_interval=1"
TINY += " dtype=float32 compile=false"


class Listener(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.evaluations: list[EvaluationEvent] = []
        self.samples: list[str] = []
        self.ended = 0

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def on_eval(self, event: EvaluationEvent) -> None:
        self.evaluations.append(event)

    def on_sample(self, step: int, text: str) -> None:
        self.samples.append(text)

    def on_end(self) -> None:
        self.ended += 1


def trainer(
    folder: Path, text: Path, *settings: str, preset: str = "tiny-modern", objective: LossFn = next_token_loss,
    listener: Reporter | None = None, deadline: float | None = None,
) -> Trainer:  # fmt: skip
    layer = parse_overrides([*TINY.split(), f"source={text}", *settings])
    plan = run_plan.plan_run(preset, [layer])
    made = opening.start_run(plan, "run", folder, reporter=listener, deadline=deadline)
    made.loss_module = ModelWithLoss(made.model, objective)
    return made


def step(made: Trainer, batch: Batch, micro_batch_size: int) -> StepResult:
    """A step that changes no weight."""
    return train_step(
        made.loss_module, made.optimizers, batch, batch.num_loss_tokens(), micro_batch_size=micro_batch_size,
        lr_multiplier=0.0, grad_clip=0.0, device=made.runtime.device,
    )  # fmt: skip


def gradients(made: Trainer, batch: Batch, micro_batch_size: int) -> dict[str, Tensor]:
    step(made, batch, micro_batch_size)
    return {name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("preset", ["tiny", "tiny-modern"])
def test_accumulation_equals_the_full_batch_on_ragged_masked_data(tmp_path: Path, text_file: Path, preset: str) -> None:
    made = trainer(tmp_path, text_file, "steps=1", preset=preset)
    whole = made._batch(0)
    targets = whole.targets.clone()
    for row in range(len(targets)):  # rows count between 0 and 14 targets
        targets[row, row * 2 :] = IGNORE_INDEX
    batch = Batch(whole.idx, targets)
    logits = made.model.double()(batch.idx)  # the mean over what counts in the whole batch, in float64
    mean = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX)
    mean.backward()
    exact = {name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None}
    made.model.float()
    expected = gradients(made, batch, 8)
    assert step(made, batch, 8).loss == pytest.approx(mean.item(), rel=1e-6)
    assert expected.keys() == exact.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradient.double(), exact[name], rtol=1e-4, atol=1e-6, msg=name)
    for micro_batch_size in (1, 3, 4):
        found = gradients(made, batch, micro_batch_size)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_best_is_the_lowest_validation_and_is_never_overwritten_by_a_worse_one(tmp_path: Path, text_file: Path) -> None:
    settings = ["steps=40", "eval_interval=4", "adamw_learning_rate=0.5", "muon_learning_rate=0.5", "optimizer=adamw"]
    made = trainer(tmp_path, text_file, *settings, "warmup_steps=39")  # gets worse once the rate is high
    result = made.train()
    losses = {row["step"]: row["val/loss"] for row in result.run.metrics if "val/loss" in row}
    assert max(losses, key=lambda step: step) == 40
    assert min(losses.values()) < losses[40], "the end is not the best"
    model, _ = api.load(result.run.best)
    again = evaluate(model, made.task.stream.val, 16, made.runtime.device, starts=made.task.validation_windows)
    assert again.loss == pytest.approx(min(losses.values()), rel=1e-9)
    assert result.run.best_loss() == min(losses.values())
    assert result.final is not None
    assert result.final.tokens == len(made.task.stream.val) - 1


def test_patience_stops_the_run(tmp_path: Path, text_file: Path) -> None:
    settings = ["steps=400", "eval_interval=2", "patience=3", "adamw_learning_rate=0", "muon_learning_rate=0"]
    result = trainer(tmp_path, text_file, *settings).train()
    assert (result.reason, result.step) == ("patience", 6)


def test_a_deadline_stops_the_run_with_everything_saved(tmp_path: Path, text_file: Path) -> None:
    result = trainer(tmp_path, text_file, "steps=100000", deadline=time.monotonic() + 0.5).train()
    assert result.reason == "time"
    assert 0 < result.step < 100_000
    assert opening.resume_run(result.run.path).state.step == result.step


def poison(steps: set[int]) -> LossFn:
    """An objective whose gradient is NaN in one tensor at some steps."""
    calls = [0]

    def objective(model: GPT, batch: Batch) -> Tensor:
        loss = next_token_loss(model, batch)
        if model.training:
            calls[0] += 1
            if calls[0] in steps:
                loss = loss + model.get_parameter("blocks.1.mlp.down.weight").sum() * math.nan
        return loss

    return objective


def test_a_nonfinite_gradient_skips_the_step_and_names_the_tensor(tmp_path: Path, text_file: Path) -> None:
    listener = Listener()
    made = trainer(tmp_path, text_file, "steps=8", objective=poison({3, 5, 6}), listener=listener)
    result = made.train()
    assert result.step == 8
    assert all(bool(torch.isfinite(p).all()) for p in made.model.parameters())
    assert [warning.split(":")[0] for warning in listener.warnings] == ["step 3", "step 5", "step 6"]
    assert all("blocks.1.mlp.down.weight" in warning for warning in listener.warnings)
    assert listener.ended == 1


def test_nonfinite_gradients_in_a_row_stop_with_the_last_good_checkpoint(tmp_path: Path, text_file: Path) -> None:
    made = trainer(tmp_path, text_file, "steps=50", "save_interval=4", objective=poison(set(range(10, 99))))
    with pytest.raises(TrainingStopped, match=r"5 times in a row; at step 14.*blocks\.1\.mlp\.down.*learning rate"):
        made.train()
    resumed = opening.resume_run(made.run.path)
    assert resumed.state.step == 12
    assert all(bool(torch.isfinite(p).all()) for p in resumed.model.parameters())


@pytest.mark.parametrize(
    "message", ["gpu", "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"]
)
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(
    tmp_path: Path, text_file: Path, message: str
) -> None:
    def short_of_memory(model: GPT, batch: Batch) -> Tensor:
        if len(batch.idx) > 3:
            raise torch.OutOfMemoryError(message) if message == "gpu" else RuntimeError(message)
        return next_token_loss(model, batch)

    listener = Listener()
    made = trainer(tmp_path / "a", text_file, "steps=5", objective=short_of_memory, listener=listener)
    made.train()
    assert made.state.micro_batch_size == 2
    assert len(listener.warnings) == 2
    plain = trainer(tmp_path / "b", text_file, "steps=5")
    plain.train()
    for ours, theirs in zip(made.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert opening.resume_run(made.run.path, {"train": {"steps": 6}}).state.micro_batch_size == 2


def test_other_errors_pass(tmp_path: Path, text_file: Path) -> None:
    def broken(model: GPT, batch: Batch) -> Tensor:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        trainer(tmp_path, text_file, "steps=5", objective=broken).train()


def test_a_bad_start_is_warned_of(tmp_path: Path, text_file: Path) -> None:
    listener = Listener()
    made = trainer(tmp_path, text_file, "steps=1", listener=listener)
    with torch.no_grad():
        made.model.head.weight.mul_(100)
    made.train()
    assert any("ln(V)" in warning for warning in listener.warnings)
    quiet = Listener()
    trainer(tmp_path, text_file, "steps=1", listener=quiet).train()
    assert quiet.warnings == []


def test_the_objective_is_a_sum_and_training_divides_it_by_what_counts(tmp_path: Path, text_file: Path) -> None:
    """However the batch is cut, each target pulls as hard as any other: the loss logged is their mean."""

    def ones(model: GPT, batch: Batch) -> Tensor:
        return next_token_loss(model, batch) * 0 + 3.0 * batch.num_loss_tokens()

    for micro_batch_size in (1, 3, 8):
        made = trainer(tmp_path, text_file, "steps=1", f"micro_batch_size={micro_batch_size}", objective=ones)
        (row,) = [row for row in made.train().run.metrics if "train/loss" in row]
        assert row["train/loss"] == pytest.approx(3.0)


@pytest.mark.parametrize("schedule", ["cosine", "trapezoid"])
def test_the_learning_rate_is_that_of_the_schedule(tmp_path: Path, text_file: Path, schedule: str) -> None:
    settings = ["steps=12", "warmup_steps=3", f"schedule={schedule}", "decay_fraction=0.5", "min_lr_ratio=0"]
    made = trainer(tmp_path, text_file, *settings, "adamw_learning_rate=0.01")
    rates = [row["opt/adamw_lr"] / 0.01 for row in made.train().run.metrics if "opt/adamw_lr" in row]
    if schedule == "trapezoid":
        expected = [1 / 3, 2 / 3, *[1.0] * 5, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    else:
        expected = [1 / 3, 2 / 3, 1.0, *[0.5 + 0.5 * math.cos(math.pi * k / 9) for k in range(9)]]
    assert rates == pytest.approx(expected)


def test_recomputing_activations_changes_nothing(tmp_path: Path, text_file: Path) -> None:
    settings = ["steps=4", "dropout=0.2", "micro_batch_size=3"]
    runs = [
        trainer(tmp_path, text_file, *settings, f"activation_checkpointing={asked}").train().run
        for asked in ("true", "false")
    ]
    one, other = ((run.last / "model.safetensors").read_bytes() for run in runs)
    assert one == other


def test_after_twenty_steps_the_prediction_is_held_against_what_was_measured(tmp_path: Path, text_file: Path) -> None:
    def said(made: Trainer) -> list[str]:
        assert isinstance(made.reporter, Listener)
        made.train()
        return [note for note in made.reporter.notes if "predicted" in note]

    seldom = ["keep_checkpoints=0", "eval_interval=100", "save_interval=100"]
    assert said(trainer(tmp_path, text_file, *seldom, "steps=19", listener=Listener())) == []
    made = trainer(tmp_path, text_file, *seldom, "steps=45", listener=Listener())
    predicted_speed = made.speed_check.predicted
    assert predicted_speed is not None
    (note,) = said(made)
    measured, predicted, difference = re.findall(r"[+-]?[\d,]+", note.removeprefix("measured over 20 steps: "))
    assert predicted == f"{predicted_speed:,.0f}"
    speeds = [row["perf/tok_per_s"] for row in made.run.metrics if "perf/tok_per_s" in row][:20]
    speed = int(measured.replace(",", ""))
    assert speed == pytest.approx(statistics.median(speeds), abs=1)
    assert int(difference.replace(",", "")) == pytest.approx(100 * (speed / predicted_speed - 1), abs=1)
    again = opening.resume_run(made.run.path, {"train": {"steps": 70}}, reporter=Listener())
    assert said(again) == [], "a run that goes on was predicted before"


def test_it_learns_and_shows_samples(tmp_path: Path, text_file: Path) -> None:
    listener = Listener()
    settings = ["steps=60", "eval_interval=20", "sample_tokens=20", "sample_interval=30", "block_size=32"]
    result = trainer(tmp_path, text_file, *settings, listener=listener).train()
    losses = [event.evaluation.loss for event in listener.evaluations]
    floor = next(row for row in result.run.metrics if "baseline/unigram" in row)
    assert losses[-1] < floor["baseline/unigram"] < losses[0]
    assert {event.expected for event in listener.evaluations} == {None}, "it follows no recipe"
    assert [len(text) for text in listener.samples] == [20, 20]


def test_the_same_settings_give_the_same_run(tmp_path: Path, text_file: Path) -> None:
    weights = [
        (
            trainer(tmp_path, text_file, "steps=5", "dropout=0.2", *extra).train().run.last / "model.safetensors"
        ).read_bytes()
        for extra in ((), (), ("seed=2",))
    ]
    assert weights[0] == weights[1] != weights[2]

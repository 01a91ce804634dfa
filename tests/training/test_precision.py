"""Computing in fewer bits: masters, gradients in float32, the loss scale, the self-check, and exact resuming."""

from pathlib import Path

import pytest
import torch

from glassgpt.config import ModelConfig, OptimConfig, parse_overrides, presets
from glassgpt.data.batch import Batch
from glassgpt.model import GPT
from glassgpt.planning import opening, run_plan
from glassgpt.training.loop import Trainer
from glassgpt.training.objective import next_token_loss
from glassgpt.training.optim import Optimizers
from glassgpt.training.precision import LossScale, MasterWeights

CONFIG = ModelConfig(vocab_size=19, block_size=16, n_layer=2, n_head=2, n_embd=32, **presets.MODERN)
TIED = ModelConfig(vocab_size=19, block_size=16, n_layer=2, n_head=2, n_embd=32)
LOW = [torch.bfloat16, torch.float16]
CPU = torch.device("cpu")


def made(config: ModelConfig, dtype: torch.dtype) -> tuple[GPT, MasterWeights]:
    model = GPT(config)
    model.init_weights(1)
    return model, MasterWeights(model, dtype)


def batch(rows: int) -> Batch:
    ids = torch.randint(19, (rows, 17), generator=torch.Generator().manual_seed(5))
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())


def test_in_float32_there_is_one_copy() -> None:
    model, weights = made(CONFIG, torch.float32)
    assert all(weights.named[name] is p for name, p in model.named_parameters())


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["modern", "tied"])
def test_gradients_add_up_in_float32_and_the_model_follows_its_masters(config: ModelConfig, dtype: torch.dtype) -> None:
    model, weights = made(config, dtype)
    exact, _ = made(config, torch.float32)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model(batch(1).idx).dtype == dtype
    if config.position == "rope":
        assert model.rope_cos.dtype == torch.float32
    optimizers = Optimizers(model, OptimConfig(), weights)
    for part in range(4):
        one = batch(4).micro_batch(part, part + 1, CPU)
        next_token_loss(model, one).backward()
        next_token_loss(exact, one).backward()
        weights.accumulate_into_master_grads()
        if part == 2:  # as before an exchange with other processes
            weights.master_grads_to_model()
    for (name, master), (_, reference) in zip(weights.named.items(), exact.named_parameters(), strict=True):
        assert master.grad is not None
        assert reference.grad is not None
        assert master.grad.dtype == torch.float32
        error = (master.grad - reference.grad).norm() / reference.grad.norm()
        assert error < 0.05, name
    before = {name: weight.clone() for name, weight in weights.named.items()}
    optimizers.step(1.0)
    for name, p in model.named_parameters():
        assert weights.named[name].dtype == torch.float32
        assert not torch.equal(weights.named[name], before[name]), name
        assert torch.equal(p, weights.named[name].to(dtype)), name
    state = weights.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert (state["head.weight"] is state["token_embedding.weight"]) == config.tie_embeddings


def test_updates_too_small_for_the_compute_type_are_not_lost() -> None:
    model, weights = made(CONFIG, torch.bfloat16)
    optimizers = Optimizers(model, OptimConfig(optimizer="adamw", adamw_learning_rate=1e-5, weight_decay=0.0), weights)
    start = {name: weight.clone() for name, weight in weights.named.items()}
    norm = model.final_norm.weight
    for _ in range(30):
        next_token_loss(model, batch(4)).backward()
        weights.accumulate_into_master_grads()
        optimizers.step(1.0)
        optimizers.zero_grad()
    moved = (weights.named["final_norm.weight"] - start["final_norm.weight"]).abs().max()
    assert 1e-5 < float(moved) < 2**-8, "in bfloat16, 1 + 1e-5 is 1"
    assert torch.equal(norm, torch.ones_like(norm))


def test_the_loss_scale() -> None:
    scale = LossScale.for_dtype(torch.float16)
    scale.growth_interval = 3
    assert scale.value == 65536.0
    for finite in (False, True, True, False, True, True, True, True):
        scale.update(finite)
    assert (scale.value, scale.growth_tracker) == (65536.0 / 4 * 2, 1)
    for dtype in (torch.float32, torch.bfloat16):
        still = LossScale.for_dtype(dtype)
        still.update(False)
        assert (still.value, still.active) == (1.0, False)
    while scale.can_decrease:
        scale.update(False)
    assert (scale.value, scale.active) == (1.0, True), "from here on a bad gradient counts"
    for _ in range(3):
        scale.update(True)
    assert scale.value == 2.0, "and it can rise again"
    assert LossScale.for_dtype(torch.float16, 8.0, 2) == LossScale(8.0, 2, active=True)
    assert LossScale.for_dtype(torch.bfloat16, 8.0, 2) == LossScale()


SETTINGS = "n_layer=1 n_head=2 n_embd=32 block_size=16 batch_size=8 micro_batch_size=3 sample_tokens=0 eval_interval=4"
SETTINGS += " log_interval=1 keep_checkpoints=0 save_interval=4 compile=false"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_run_in_fewer_bits_learns_resumes_exactly_and_saves_float32(
    tmp_path: Path, text_file: Path, dtype: str
) -> None:
    def start(name: str, *settings: str) -> Trainer:
        layer = parse_overrides([*SETTINGS.split(), f"source={text_file}", *settings])
        return opening.start_run(run_plan.plan_run("tiny-modern", [layer]), name, tmp_path)

    whole = start("whole", "steps=12", f"dtype={dtype}").train()
    reference = start("float32", "steps=12", "dtype=float32").train()
    assert whole.final is not None
    assert reference.final is not None
    assert whole.final.loss == pytest.approx(reference.final.loss, rel=0.03)
    first = start("broken", "steps=12", f"dtype={dtype}")
    first.deadline = 0.0  # one step, then it is saved
    assert first.train().step == 1
    changed = opening.resume_run(first.run.path)
    assert changed.model.dtype == getattr(torch, dtype), "the choice is the run's"
    again = changed.train()
    for file in ("model.safetensors", "trainer/optimizer.safetensors", "trainer/state.json"):
        assert (whole.run.last / file).read_bytes() == (again.run.last / file).read_bytes(), file
    saved = (whole.run.last / "config.json").read_text(encoding="utf-8")
    assert '"float32"' in saved


def test_float16_skips_overflows_and_goes_on(tmp_path: Path, text_file: Path) -> None:
    layer = parse_overrides([*SETTINGS.split(), f"source={text_file}", "steps=12", "dtype=float16"])
    trainer = opening.start_run(run_plan.plan_run("tiny-modern", [layer]), "run", tmp_path)
    trainer.loss_scale.value = 2.0**28
    result = trainer.train()
    assert result.reason == "finished"
    rows = [row for row in result.run.metrics if "opt/grad_norm" in row]
    skipped = [row["step"] for row in rows if row["opt/grad_norm"] is None]
    assert len(skipped) > 5, "more than max_nonfinite in a row, and no failure"
    assert skipped == list(range(1, len(skipped) + 1))
    assert trainer.state.loss_scale == 2.0 ** (28 - len(skipped))

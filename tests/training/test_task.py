"""The loop trains any task, and never splits rows that belong together."""

from pathlib import Path

import pytest
import torch
from pairs import PreferencePairs

from glassgpt.config import build, presets
from glassgpt.errors import ConfigError
from glassgpt.model import GPT
from glassgpt.processes import Processes
from glassgpt.runtime import resolve
from glassgpt.training.checkpoint import TrainState, create_run, load_training_state
from glassgpt.training.loop import Trainer
from glassgpt.training.optim import Optimizers
from glassgpt.weights.folder import load_weights

SHAPE = {"vocab_size": 8, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 16}
TRAIN = {"steps": 30, "batch_size": 8, "eval_interval": 10, "save_interval": 10, "sample_interval": 10} | {
    "log_interval": 1
}


def pairs_trainer(folder: Path, **train: int) -> Trainer:
    runtime = {"dtype": "float32", "device": "cpu", "compile": "false"}
    config = build("", [{"model": presets.MODERN | SHAPE, "train": TRAIN | train, "runtime": runtime}])
    config = config.replace("optim", warmup_steps=2)
    model = GPT(config.model)
    model.init_weights(1)
    task = PreferencePairs(config.train.batch_size, config.model.block_size)
    run = create_run(folder, "pairs", config, {})
    return Trainer(run, config, model, Optimizers(model, config.optim), task, resolve(config.runtime), TrainState())


@pytest.mark.parametrize("micro_batch_size", [1, 3, 5, 8])
def test_a_task_other_than_pre_training_learns_validates_and_saves(tmp_path: Path, micro_batch_size: int) -> None:
    trainer = pairs_trainer(tmp_path, micro_batch_size=micro_batch_size)
    result = trainer.train()
    losses = [row["train/loss"] for row in result.run.metrics if "train/loss" in row]
    assert 0.4 < losses[0] < 1.5, "about ln 2 for each pair, and the mean over pairs"
    assert result.final is not None
    assert result.final.loss < losses[0] / 4
    assert not any("baseline/uniform" in row for row in result.run.metrics)
    assert isinstance(trainer.task, PreferencePairs)
    assert trainer.task.closed
    again = GPT(trainer.model.config)
    load_weights(result.run.last, again)
    assert load_training_state(result.run.last, Optimizers(again, trainer.config.optim)).step == 30


def test_cutting_pairs_into_micro_batches_changes_only_rounding(tmp_path: Path) -> None:
    curves = []
    for size in (2, 3, 8):
        run = pairs_trainer(tmp_path / str(size), micro_batch_size=size, steps=5).train().run
        curves.append([row["train/loss"] for row in run.metrics if "train/loss" in row])
    assert curves[0] == pytest.approx(curves[2], rel=1e-5)
    assert curves[1] == curves[0], "three rows at a time are one pair at a time"


def test_out_of_memory_never_splits_a_pair(tmp_path: Path) -> None:
    trainer = pairs_trainer(tmp_path, steps=2)
    loss = trainer.task.loss

    def short_of_memory(model: GPT, batch: object) -> torch.Tensor:
        if len(batch.idx) > 2:  # type: ignore[attr-defined]
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(model, batch)  # type: ignore[arg-type]

    trainer.loss_module.objective = short_of_memory
    assert trainer.train().step == 2
    assert trainer.recovery.micro_batch_size == 2
    assert isinstance(trainer.task, PreferencePairs)
    assert trainer.task.max_rows[0] is None, "before memory ran out"
    assert trainer.task.max_rows[-1] == 2, "after it"


def test_processes_share_pairs() -> None:
    for world_size in (1, 2, 3, 4):
        parts = [Processes(rank, world_size).share(8, group=2) for rank in range(world_size)]
        assert [row for part in parts for row in range(8)[part]] == list(range(8))
        assert all(part.start % 2 == part.stop % 2 == 0 and part.start < part.stop for part in parts)
    with pytest.raises(ConfigError, match="cannot be shared by 5 processes"):
        Processes(0, 5).share(8, group=2)
    with pytest.raises(ConfigError, match="5 sequences do not divide into groups of 2"):
        Processes().share(5, group=2)

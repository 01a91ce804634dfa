"""Passes as CUDA graphs: the same numbers as without. What needs a GPU is skipped where there is none."""

from typing import Any

import pytest
import torch

from glassgpt.config import RunConfig, build
from glassgpt.data.batch import Batch, random_batch
from glassgpt.model import GPT
from glassgpt.runtime import Runtime
from glassgpt.training.graphs import MAX_FORMS, GraphedLoss, with_graphs
from glassgpt.training.objective import ModelWithLoss, answer_loss, next_token_loss
from glassgpt.training.optim import Optimizers
from glassgpt.training.precision import MasterWeights
from glassgpt.training.step import train_step
from glassgpt.transforms.blocks import prepare_blocks

V, T = 61, 32


def config(**train: Any) -> RunConfig:
    model = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": T, "vocab_size": V, "dropout": 0.2}
    return build("", [{"model": model, "train": train}])


def ignore(note: str) -> None:
    pytest.fail(note)


def losses_and_weights(device: torch.device, graphs: bool, compile: bool) -> tuple[list[float], list[torch.Tensor]]:
    """Train five steps of three micro-batches, the last of which is smaller."""
    runtime = Runtime(device, torch.bfloat16, 1, compile, "")
    model = GPT(config().model)
    model.init_weights(0)
    model = model.to(device).train()
    optimizers = Optimizers(model, config().optim, MasterWeights(model, torch.bfloat16))
    prepare_blocks(model, recompute=False, compile=compile)
    plain = ModelWithLoss(model, next_token_loss)
    loss_module = with_graphs(plain, config(), runtime, ignore) if graphs else plain
    assert isinstance(loss_module, GraphedLoss) == graphs
    found = []
    for step in range(5):
        ids = torch.randint(V, (8, T + 1), generator=torch.Generator().manual_seed(step))
        batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        torch.manual_seed(step)  # dropout
        result = train_step(
            loss_module, optimizers, batch, batch.num_loss_tokens(), micro_batch_size=3, lr_multiplier=1.0,
            grad_clip=1.0, device=device,
        )  # fmt: skip
        found.append(result.loss)
    return found, [weight.detach().cpu() for weight in model.parameters()]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("compile", [False, True])
def test_training_gives_the_same_numbers_as_without_graphs(compile: bool) -> None:
    device = torch.device("cuda", 0)
    losses, weights = losses_and_weights(device, True, compile)
    plain_losses, plain_weights = losses_and_weights(device, False, compile)
    assert losses == plain_losses
    assert all(torch.equal(a, b) for a, b in zip(weights, plain_weights, strict=True))


@pytest.mark.parametrize(
    ("device", "dtype", "objective", "train"),
    [
        ("cpu", torch.bfloat16, next_token_loss, {}),
        ("cuda", torch.float32, next_token_loss, {}),
        ("cuda", torch.bfloat16, answer_loss, {}),
        ("cuda", torch.bfloat16, next_token_loss, {"activation_checkpointing": True}),
    ],
)
def test_what_cannot_be_recorded_is_left_as_it_is(device: str, dtype: torch.dtype, objective: Any, train: Any) -> None:
    loss_module = ModelWithLoss(GPT(config().model), objective)
    runtime = Runtime(torch.device(device), dtype, 1, False, "")
    assert with_graphs(loss_module, config(**train), runtime, ignore) is loss_module


def test_a_recording_that_fails_is_noted_once_and_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, with a recorder that fails; also, forms beyond the limit are not recorded."""
    asked = []

    def fail(passes: torch.nn.Module, tensors: tuple[torch.Tensor, ...]) -> None:
        asked.append(tensors[0].shape)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: torch.no_grad())
    model, notes = GPT(config().model).eval(), []
    model.init_weights(0)
    plain = ModelWithLoss(model, next_token_loss)
    graphed = GraphedLoss(plain, notes.append)
    for rows in (4, 4, 3, 2, 2):
        batch = random_batch(V, rows, T)
        assert torch.equal(graphed(batch), plain(batch))
    assert asked == [(4, T), (3, T)]
    assert len(notes) == MAX_FORMS
    assert "stream is capturing" in notes[0]

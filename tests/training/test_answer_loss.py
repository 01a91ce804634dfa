"""The loss of answers is the next-token loss, computed where a target counts; a frozen head costs nothing."""

import pytest
import torch
from torch import Tensor

from glassgpt.config import ModelConfig, presets
from glassgpt.data.batch import IGNORE_INDEX, Batch
from glassgpt.estimate import LARGE_VOCABULARY
from glassgpt.model import GPT
from glassgpt.training import objective
from glassgpt.training.objective import answer_loss, next_token_loss

SIZES = [31, LARGE_VOCABULARY + 7]


def made(vocab_size: int, tied: bool) -> GPT:
    shape = {"vocab_size": vocab_size, "block_size": 20, "n_layer": 2, "n_head": 2, "n_embd": 16}
    model = GPT(ModelConfig(**shape, **presets.MODERN | {"tie_embeddings": tied}))
    model.init_weights(0)
    return model


def batch(vocab_size: int, counts: float) -> Batch:
    """Two documents in each row; a share of the targets counts."""
    generator = torch.Generator().manual_seed(3)
    idx, targets = (torch.randint(vocab_size, (3, 20), generator=generator) for _ in range(2))
    targets[torch.rand(3, 20, generator=generator) >= counts] = IGNORE_INDEX
    document_ids = (torch.arange(20) >= 8).long().expand(3, -1)
    return Batch(idx, targets, document_ids, torch.cat([torch.arange(8), torch.arange(12)]).expand(3, -1))


def loss_and_gradients(model: GPT, loss_fn: objective.LossFn, one: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = loss_fn(model, one)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("vocab_size", SIZES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("counts", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("frozen", ["nothing", "head", "all but one matrix"])
def test_loss_and_gradients_are_those_of_the_next_token_loss(
    vocab_size: int, tied: bool, counts: float, frozen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective, "LOGITS_AT_A_TIME", 7 * vocab_size)  # several chunks
    model, one = made(vocab_size, tied), batch(vocab_size, counts)
    for name, p in model.named_parameters():
        p.requires_grad_(
            {"nothing": True, "head": p is not model.head.weight}.get(frozen, name == "blocks.0.mlp.up.weight")
        )
    loss, gradients = loss_and_gradients(model, answer_loss, one)
    expected_loss, expected = loss_and_gradients(model, next_token_loss, one)
    assert gradients.keys() == expected.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    assert bool(loss) == any(gradient.any() for gradient in gradients.values()) == (counts > 0)


def test_a_frozen_head_takes_no_matrix_product(monkeypatch: pytest.MonkeyPatch) -> None:
    model, one = made(SIZES[1], tied=True), batch(SIZES[1], 0.5)
    products = list[int]()
    monkeypatch.setattr(Tensor, "addmm_", lambda self, *_: products.append(1))
    for trained in (True, False):
        model.token_embedding.weight.requires_grad_(trained)
        products.clear()
        answer_loss(model, one)
        assert bool(products) == trained

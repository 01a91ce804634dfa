"""The chunked cross-entropy against float64 and torch's own, and what it keeps in memory."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glassgpt.config import ModelConfig
from glassgpt.data import IGNORE_INDEX
from glassgpt.data.batch import Batch
from glassgpt.model import GPT
from glassgpt.training import objective
from glassgpt.training.objective import next_token_loss, summed_cross_entropy

N, C, V = 23, 8, 101


@pytest.fixture(params=[1, 5, 23, 1000], ids="rows{}".format)
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(objective, "LOGITS_AT_A_TIME", request.param * V)
    return request.param


def example(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(N, C, generator=generator).to(dtype).requires_grad_()
    weight = (2 * torch.randn(V, C, generator=generator)).to(dtype).requires_grad_()
    targets = torch.randint(V, (N,), generator=generator)
    targets[::4] = IGNORE_INDEX
    return features, weight, targets


def in_float64(features: Tensor, weight: Tensor, targets: Tensor, factor: float) -> list[Tensor]:
    x, w = features.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    loss = F.cross_entropy(x @ w.T, targets, ignore_index=IGNORE_INDEX, reduction="sum")
    (loss * factor).backward()
    assert x.grad is not None
    assert w.grad is not None
    return [loss.detach(), x.grad, w.grad]


@pytest.mark.parametrize("fused", [False, True], ids=["eager", "fused"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)], ids=str)
def test_equals_float64(
    chunk: int, dtype: torch.dtype, tolerance: float, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective, "_fused_chunk", lambda: objective._pointwise_chunk)  # what is compiled on a GPU
    features, weight, targets = example(dtype)
    loss = summed_cross_entropy(features, weight, targets, IGNORE_INDEX, fused)
    (loss * 0.37).backward()
    found = [loss.detach(), features.grad, weight.grad]
    for mine, exact in zip(found, in_float64(features, weight, targets, 0.37), strict=True):
        assert mine is not None
        assert float((mine.double() - exact).norm() / exact.norm()) < tolerance
    assert features.grad is not None
    assert not features.grad[::4].any(), "targets that do not count pull at nothing"


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="needs torch 2.13")
def test_equals_that_of_torch(chunk: int) -> None:
    results = []
    for ours in (True, False):
        features, weight, targets = example(torch.float32)
        if ours:
            loss = summed_cross_entropy(features, weight, targets, IGNORE_INDEX)
        else:
            options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=5, chunking_method=None)
            loss = F.linear_cross_entropy(
                features, weight, targets, reduction="sum", ignore_index=IGNORE_INDEX, options=options
            )
        loss.backward()
        results.append((loss.detach(), features.grad, weight.grad))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_without_gradients_it_is_the_same_number(chunk: int) -> None:
    features, weight, targets = example(torch.float32)
    with torch.no_grad():
        loss = summed_cross_entropy(features, weight, targets, IGNORE_INDEX)
    assert loss == summed_cross_entropy(features, weight, targets, IGNORE_INDEX).detach()


def test_no_target_counts(chunk: int) -> None:
    features, weight, targets = example(torch.float32)
    loss = summed_cross_entropy(features, weight, torch.full_like(targets, IGNORE_INDEX), IGNORE_INDEX)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert weight.grad is not None
    assert not weight.grad.any()


def largest_temporary(monkeypatch: pytest.MonkeyPatch, large_vocabulary: int) -> tuple[Tensor, list[Tensor], int]:
    """Loss, gradients, and the elements of the largest result of a matrix product in a training pass."""
    monkeypatch.setattr(objective, "LARGE_VOCABULARY", large_vocabulary)
    model = GPT(ModelConfig(vocab_size=1009, block_size=32, n_layer=1, n_head=2, n_embd=16))
    model.init_weights(0)
    ids = torch.randint(1009, (8, 33), generator=torch.Generator().manual_seed(0))

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                self.largest = max(self.largest, result.numel())
            return result

    with Watch() as watch:
        loss = next_token_loss(model, Batch(ids[:, :-1], ids[:, 1:]))
        loss.backward()
    return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None], watch.largest


def test_a_large_vocabulary_never_has_all_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "LOGITS_AT_A_TIME", 20_000)
    plain = largest_temporary(monkeypatch, 10**9)
    chunked = largest_temporary(monkeypatch, 1)
    assert plain[2] >= 8 * 32 * 1009
    assert chunked[2] < 8 * 32 * 1009 / 5
    torch.testing.assert_close(chunked[0], plain[0], rtol=1e-6, atol=0)
    for mine, theirs in zip(chunked[1], plain[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)

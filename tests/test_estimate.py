"""What is planned by arithmetic is what there is: parameters, FLOP counters, autograd's tensors, the allocator."""

import dataclasses
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from conftest import thread_count
from glassgpt import estimate as plan
from glassgpt.config import ModelConfig, OptimConfig, presets
from glassgpt.data.batch import Batch
from glassgpt.estimate import (
    activations,
    count_parameters,
    flops_per_token,
    largest_micro_batch,
    memory,
    optimizer_flops,
)
from glassgpt.model import GPT, ExplicitAttention
from glassgpt.training.objective import next_token_loss
from glassgpt.training.optim import Optimizers, orthogonalise
from glassgpt.training.precision import MasterWeights
from glassgpt.transforms.blocks import recompute_blocks

SMALL = {"n_layer": 3, "n_head": 4, "n_embd": 64, "block_size": 48}


def shape(modern: bool = False, **values: Any) -> ModelConfig:
    return ModelConfig(**{**SMALL, **(presets.MODERN if modern else {}), **values})


CONFIGS = {
    "classic": shape(),
    "classic with dropout": shape(dropout=0.1, mlp="gelu"),
    "modern": shape(modern=True),
    "modern with dropout": shape(modern=True, dropout=0.1),
    "grouped queries": shape(modern=True, n_kv_head=2, head_dim=24, intermediate_size=96),
    "q and k norm alone": shape(qk_norm=True, tie_embeddings=False),
    "rotary alone, one key head": shape(position="rope", n_kv_head=1),
    "sliding windows": shape(modern=True, sliding_window=10, block_size=192),
    "a window in the last block": shape(sliding_window=100, first_window_layer=2, block_size=256),
    "one layer": shape(n_layer=1, n_embd=128),
    "many tokens in the vocabulary": shape(vocab_size=4000),
    "GPT-2's vocabulary": shape(vocab_size=50257, dropout=0.1),
    "a vocabulary in chunks": shape(modern=True, vocab_size=9000, n_embd=32, block_size=16),
}
ROWS = 8


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with thread_count(1):
        yield


class Subject:
    """A model with its batch, as training holds it."""

    def __init__(self, config: ModelConfig, bytes_per_weight: int = 4, recompute: bool = False):
        self.model = GPT(config)
        self.model.init_weights(0)
        dtype = torch.bfloat16 if bytes_per_weight == 2 else torch.float32
        weights = MasterWeights(self.model, dtype)
        self.optimizers = Optimizers(self.model, OptimConfig(), weights)
        if recompute:
            recompute_blocks(self.model)
        ids = torch.randint(config.vocab_size, (ROWS, config.block_size + 1))
        self.batch = Batch(ids[:, :-1], ids[:, 1:])

    def loss(self) -> Tensor:
        return next_token_loss(self.model, self.batch)

    def backward(self) -> None:
        self.loss().backward()
        self.optimizers.weights.accumulate_into_master_grads()

    def saved(self) -> int:
        """Bytes of the distinct storages that autograd saves, parameters and buffers apart."""
        own = {t.untyped_storage().data_ptr() for t in (*self.model.parameters(), *self.model.buffers())}
        seen: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.loss()  # kept, so that no address is used twice
        assert loss.requires_grad
        return sum(seen.values())


def allocated(work: Callable[[], object]) -> tuple[int, int]:
    """Bytes that some work has allocated when it is done, its result included, and at its peak."""
    gc.collect()  # what earlier work has left is not this one's to free
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = work()
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    del result
    return now, peak


@pytest.mark.parametrize("config", [*(presets.get(name).model for name in presets.names()), *CONFIGS.values()])
def test_parameters_are_the_models(config: ModelConfig) -> None:
    with torch.device("meta"):
        assert sum(count_parameters(config).values()) == GPT(config).num_parameters()


def test_parameters_by_group() -> None:
    groups = count_parameters(CONFIGS["grouped queries"])
    with torch.device("meta"):
        model = GPT(CONFIGS["grouped queries"])
    found = dict.fromkeys(groups, 0)
    for name, weight in model.named_parameters():
        group = next((g for g in ("token embedding", "head", "attention", "mlp") if g.replace(" ", "_") in name), "")
        found["norms" if "norm" in name else group] += weight.numel()
    assert groups == found
    assert count_parameters(shape(tie_embeddings=True))["head"] == 0


@pytest.mark.parametrize("name", ["classic", "modern", "grouped queries", "one layer", "many tokens in the vocabulary"])
def test_flops_are_what_is_counted(name: str) -> None:
    """Counters see the whole square of scores, forward and backward; half of it, and the diagonal, is needed."""
    config = CONFIGS[name]
    with torch.device("meta"):
        model = GPT(config)
        for block in model.blocks:
            block.attention.attend = ExplicitAttention()  # type: ignore[union-attr]
        idx = torch.zeros(2, config.block_size, dtype=torch.long)
    flops, T = flops_per_token(config), config.block_size
    expected = 2 * T * (flops.matrices + flops.head + flops.attention * 2 * T / (T + 1))
    with FlopCounterMode(display=False) as counter:
        logits = model(idx)
        assert counter.get_total_flops() == expected
        logits.sum().backward()
    assert counter.get_total_flops() == 3 * expected
    assert flops.training == 3 * flops.forward == 3 * (flops.matrices + flops.attention + flops.head)


def test_flops_of_a_context() -> None:
    config = CONFIGS["classic"]
    short, whole = flops_per_token(config, 1), flops_per_token(config)
    assert whole == flops_per_token(config, config.block_size)
    assert short.attention == 4 * config.n_layer * config.n_embd  # one query, one key
    assert (short.matrices, short.head) == (whole.matrices, whole.head)


@pytest.mark.parametrize("context", [1, 9, 10, 11, 192])
def test_flops_behind_a_window_are_those_of_the_keys_it_leaves(context: int) -> None:
    config = shape(sliding_window=10, first_window_layer=1, block_size=192)
    seen = sum(
        min(p, 10) * 2 + p for p in range(1, context + 1)
    )  # of the two blocks with a window, and the one without
    expected = 4 * config.n_head * config.head_dim * seen / context
    assert flops_per_token(config, context).attention == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("name", ["classic", "modern", "grouped queries"])
def test_optimizer_flops_are_what_is_counted(name: str) -> None:
    config = CONFIGS[name]
    with torch.device("meta"):
        model = GPT(config)
    counted = 0
    for parameter, weight in model.named_parameters():
        if weight.dim() == 2 and parameter.startswith("blocks."):
            sizes = config.qkv_sizes if parameter.endswith("qkv.weight") else (weight.size(0),)
            for part in weight.split(sizes):
                with FlopCounterMode(display=False) as counter:
                    orthogonalise(part.detach().unsqueeze(0), iterations=3)
                counted += counter.get_total_flops()
    assert optimizer_flops(config, "muon", 3) == counted
    assert optimizer_flops(config, "adamw", 3) == 0


@pytest.mark.parametrize("name", CONFIGS)
def test_activations_are_what_is_held(name: str) -> None:
    config = CONFIGS[name]
    subject, planned = Subject(config), activations(config, ROWS)
    subject.backward()  # the gradients are there, as from the second micro-batch on
    held, _ = allocated(subject.loss)
    assert planned.kept == pytest.approx(held, rel=0.02)
    if config.vocab_size < plan.LARGE_VOCABULARY:  # else the loss keeps gradients that autograd knows nothing of
        assert planned.kept == pytest.approx(subject.saved(), rel=0.02)
    _, peak = allocated(subject.backward)
    assert planned.peak == pytest.approx(peak, rel=0.15)


@pytest.mark.parametrize(
    "name", ["classic with dropout", "grouped queries", "sliding windows", "a vocabulary in chunks"]
)
@pytest.mark.parametrize(("bytes_per_weight", "recompute"), [(2, False), (4, True)])
def test_in_16_bits_and_recomputed(name: str, bytes_per_weight: int, recompute: bool) -> None:
    config, how = CONFIGS[name], {"bytes_per_weight": bytes_per_weight, "recompute": recompute}
    subject, planned = Subject(config, bytes_per_weight, recompute), activations(config, ROWS, **how)
    subject.backward()
    held, _ = allocated(subject.loss)
    assert planned.kept == pytest.approx(held, rel=0.03)
    _, peak = allocated(subject.backward)
    newest = 2 * subject.model.num_parameters() if bytes_per_weight == 2 else 0  # gradients in that type
    assert planned.peak + newest == pytest.approx(peak, rel=0.15)


@pytest.mark.parametrize("name", ["classic", "grouped queries", "a vocabulary in chunks"])
@pytest.mark.parametrize("bytes_per_weight", [4, 2])
def test_what_lasts_and_the_update(name: str, bytes_per_weight: int) -> None:
    config = CONFIGS[name]
    subject, planned = Subject(config, bytes_per_weight), memory(config, ROWS, bytes_per_weight=bytes_per_weight)
    subject.backward()
    subject.optimizers.step(0.0)
    state = sum(t.numel() * t.element_size() for t in subject.optimizers.state_dict().values())
    assert planned.optimizer == pytest.approx(state, rel=0.01)
    weights = [*subject.model.parameters()]
    assert planned.weights == sum(w.numel() * w.element_size() for w in weights)
    collected = sum(gradient.numel() for gradient in subject.optimizers.weights.gradients())
    assert planned.gradients == collected * (4 if bytes_per_weight == 4 else 6)
    masters = {id(w): w for w in subject.optimizers.named.values()}.values()
    separate = sum(w.numel() * w.element_size() for w in masters) if bytes_per_weight == 2 else 0
    assert planned.masters == separate
    subject.backward()
    _, peak = allocated(lambda: subject.optimizers.step(0.0))
    assert planned.update == pytest.approx(peak, rel=0.15)
    lasting = planned.weights + planned.masters + planned.gradients + planned.optimizer
    assert planned.total == lasting + max(planned.activations, planned.update)


def test_adamw_has_two_moments_and_no_temporaries() -> None:
    planned = memory(CONFIGS["classic"], ROWS, optimizer="adamw")
    assert (planned.optimizer, planned.update) == (2 * planned.weights, 0)


def test_memory_grows_with_rows_and_context_and_less_on_a_gpu() -> None:
    config = CONFIGS["modern with dropout"]
    one, two = activations(config, 1), activations(config, 2)
    assert two.kept == 2 * one.kept
    assert activations(config, 2, context=config.block_size // 2).kept == one.kept
    assert activations(config, 1, device="cuda").kept < one.kept


@pytest.mark.parametrize("batch_size", [1, 7, 10, 64])
def test_the_largest_micro_batch(batch_size: int) -> None:
    config = CONFIGS["modern"]
    totals = [memory(config, rows).total for rows in range(1, batch_size + 1)]
    assert largest_micro_batch(config, batch_size, totals[0] - 1) == 1
    for fits, free in enumerate(totals, start=1):
        rows = largest_micro_batch(config, batch_size, free)
        passes = -(-batch_size // rows)
        assert rows <= fits
        assert passes == -(-batch_size // fits), "no more passes than with all that fit"
        assert rows * passes - batch_size < passes, "and as even as can be"


def test_seven_of_ten_are_two_fives() -> None:
    config = CONFIGS["classic"]
    assert largest_micro_batch(config, 10, memory(config, 7).total) == 5


def test_what_a_block_keeps_is_told_by_operation() -> None:
    config = CONFIGS["classic"]
    deeper = dataclasses.replace(config, n_layer=config.n_layer + 1)
    block = sum(plan.block_activations(config).values())
    assert activations(deeper, 1).kept - activations(config, 1).kept == block * config.block_size

"""LoRA: nothing changes at first, only A and B are trained, and merging changes how the model computes, not what."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch._dynamo.utils
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from glassgpt.config import ModelConfig, OptimConfig, TuneConfig, presets
from glassgpt.data.batch import IGNORE_INDEX, Batch
from glassgpt.errors import ConfigError
from glassgpt.model import GPT
from glassgpt.recording import record
from glassgpt.training.objective import ModelWithLoss, answer_loss
from glassgpt.training.optim import Optimizers
from glassgpt.training.precision import MasterWeights
from glassgpt.training.step import train_step
from glassgpt.transforms.blocks import prepare_blocks
from glassgpt.transforms.lora import adapters, add_lora, is_lora, lora_layers, merge, remove_lora, unmerge

SHAPE = {"vocab_size": 31, "block_size": 24, "n_layer": 4, "n_head": 4, "n_embd": 32}
CLASSIC = ModelConfig(**SHAPE)  # GPT-2's names: one matrix for q, k and v
MODERN = ModelConfig(**SHAPE, **presets.MODERN, n_kv_head=2)  # Qwen 3's: three
NATIVE = dataclasses.replace(MODERN, norm="layernorm")  # no published family's
LORA = TuneConfig(method="lora", lora_rank=3, lora_alpha=5.0)
IDS = torch.randint(31, (3, 24), generator=torch.Generator().manual_seed(0))


def plain(config: ModelConfig) -> GPT:
    model = GPT(config)
    model.init_weights(0)
    return model.eval()


def with_lora(config: ModelConfig, lora: TuneConfig = LORA, b: float = 0.3) -> GPT:
    """A model with LoRA, whose B is random and not zero."""
    model, generator = plain(config), torch.Generator().manual_seed(1)
    add_lora(model, lora, seed=7)
    for name, matrix in adapters(model).items():
        if "lora_B" in name:
            matrix.copy_(b * torch.randn(matrix.shape, generator=generator))
    return model


def frozen(model: GPT) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("config", [CLASSIC, MODERN, NATIVE], ids=["classic", "modern", "native"])
@pytest.mark.parametrize("targets", ["all", "one"])
def test_at_first_it_computes_the_very_same_and_only_a_and_b_are_trained(config: ModelConfig, targets: str) -> None:
    model, again = plain(config), plain(config)
    names, logits, recorded = [*model.state_dict()], model(IDS), record(model, IDS)
    one = {CLASSIC: "c_attn", MODERN: "q_proj,v_proj", NATIVE: "qkv"}[config]
    lora = dataclasses.replace(LORA, lora_targets=targets if targets == "all" else one)
    add_lora(model, lora, seed=7)
    assert torch.equal(model(IDS), logits)
    assert all(torch.equal(t, recorded.tensors[key]) for key, t in record(model, IDS).tensors.items())
    pairs = adapters(model)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert (
        len(trained)
        == len(pairs)
        == {"all": 2 * 4 * {CLASSIC: 4, MODERN: 7, NATIVE: 5}[config]}.get(targets, 2 * 4 * len(one.split(",")))
    )
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {*model.state_dict()} - {*names}
    add_lora(again, LORA, seed=7)
    assert all(torch.equal(a, adapters(again)[name]) for name, a in pairs.items()), "A depends on seed and name only"
    a = torch.cat([a.flatten() * a.size(1) ** 0.5 for name, a in pairs.items() if "lora_A" in name])
    assert 0.95 < a.abs().max() <= 1 and abs(a.std() - 3**-0.5) < 0.05  # uniform in 1 / sqrt(in)
    remove_lora(model)
    assert [*model.state_dict()] == names and not is_lora(model) and torch.equal(model(IDS), logits)


@pytest.mark.parametrize("targets", ["all", "v_proj,down_proj"])
@pytest.mark.parametrize("rslora", [False, True])
def test_gradients_are_those_of_the_merged_weights_by_the_chain_rule(targets: str, rslora: bool) -> None:
    lora = dataclasses.replace(LORA, lora_targets=targets, rslora=rslora)
    model = with_lora(MODERN, lora).double()
    merged = with_lora(MODERN, lora).double()
    merge(merged)
    remove_lora(merged)  # with LoRA in its weights
    logits, expected = model(IDS), merged(IDS)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    for each in (logits, expected):
        each.square().sum().backward()
    scale = 5 / (3**0.5 if rslora else 3)
    names = {name for name, p in model.named_parameters() if p.grad is not None}
    assert len(names) == len(adapters(model))
    for name, module in model.named_modules():
        if module in lora_layers(model):
            d_weight = merged.get_submodule(name).weight.grad.split([*module.parts.values()])
            for part, d_w in zip(module.parts, d_weight, strict=True):
                if part in module.targets:
                    a, b = module.pair(part)
                    torch.testing.assert_close(b.grad, scale * d_w @ a.T, rtol=1e-9, atol=1e-11)
                    torch.testing.assert_close(a.grad, scale * b.T @ d_w, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("config", [CLASSIC, MODERN, NATIVE], ids=["classic", "modern", "native"])
def test_merging_changes_nothing_and_unmerging_restores_every_bit(config: ModelConfig) -> None:
    model = with_lora(config)
    before, logits = frozen(model), model(IDS)
    assert (logits - plain(config)(IDS)).abs().max() > 0.01
    for _ in range(2):
        merge(model)
        torch.testing.assert_close(model(IDS), logits, rtol=0, atol=1e-5)
    unmerge(model)
    assert torch.equal(model(IDS), logits)
    assert all(torch.equal(p, before[name]) for name, p in frozen(model).items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_steps_change_a_and_b_alone_which_alone_have_masters_and_state(dtype: torch.dtype, optimizer: str) -> None:
    model = with_lora(dataclasses.replace(MODERN, tie_embeddings=True), b=0.0).train()
    weights = MasterWeights(model, dtype)
    before, start = frozen(model), {name: master.clone() for name, master in weights.named.items()}
    optimizers = Optimizers(model, OptimConfig(optimizer=optimizer, adamw_learning_rate=0.01), weights)  # type: ignore
    assert {p.dtype for p in model.parameters()} == {dtype}
    targets = IDS.roll(-1, 1).clone()
    targets[0] = IGNORE_INDEX  # a micro-batch in which nothing counts
    losses = [
        train_step(
            ModelWithLoss(model, answer_loss), optimizers, batch := Batch(IDS, targets), batch.num_loss_tokens(),
            micro_batch_size=1, lr_multiplier=1.0, grad_clip=1.0, device=torch.device("cpu"),
        ).loss
        for _ in range(8)
    ]  # fmt: skip
    assert losses[-1] < losses[0] - 0.02
    assert all(torch.equal(p, before[name]) for name, p in frozen(model).items())
    assert not any(torch.equal(master, start[name]) for name, master in weights.named.items())
    assert {name.rpartition("/")[0] for name in optimizers.state_dict()} == {*weights.named}
    assert len(weights.named) == len(adapters(model))
    state = weights.state_dict()
    assert {state[name].dtype for name in weights.named} == {torch.float32}
    assert torch.equal(state["head.weight"], before["token_embedding.weight"])


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_recomputed_and_compiled_it_computes_the_same(compile: bool) -> None:
    gradients = []
    torch._dynamo.utils.counters.clear()
    for fast in (False, True):
        model = with_lora(MODERN, dataclasses.replace(LORA, lora_targets="q_proj,v_proj,up_proj")).train()
        prepare_blocks(model, recompute=fast, compile=fast and compile)
        answer_loss(model, Batch(IDS, IDS.roll(-1, 1))).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    if compile:  # the input of the first block needs no gradient; all others share a graph
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_ddp_gets_every_gradient_even_if_no_target_counts(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        ddp = DistributedDataParallel(ModelWithLoss(with_lora(MODERN), answer_loss))
        for _ in range(2):  # in the second pass, DDP complains about a gradient that was missing in the first
            loss = ddp(Batch(IDS, torch.full_like(IDS, IGNORE_INDEX)))
            loss.backward()
        assert float(loss.detach()) == 0
        assert all(p.grad is not None and not p.grad.any() for p in ddp.parameters() if p.requires_grad)
    finally:
        dist.destroy_process_group()


def test_dropout_is_of_the_input_of_lora_and_only_in_training() -> None:
    model = with_lora(MODERN, dataclasses.replace(LORA, lora_dropout=0.5))
    logits = model(IDS)
    assert torch.equal(model(IDS), logits)
    assert not torch.equal(model.train()(IDS), logits)


@pytest.mark.parametrize("targets", ["q_prj", "c_attn", "q_proj,", "", "head", "norm_1", "proj", "layers.0"])
def test_a_matrix_that_is_not_there_is_named_with_those_that_are(targets: str) -> None:
    with pytest.raises(ConfigError, match="they have q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"):
        add_lora(plain(MODERN), dataclasses.replace(LORA, lora_targets=targets), seed=0)

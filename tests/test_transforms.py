"""Recomputing and compiling change how the blocks run, never what they compute."""

import pytest
import torch
import torch._dynamo.utils
from torch import Tensor

from glassgpt.config import ModelConfig, presets
from glassgpt.model import GPT
from glassgpt.transforms.blocks import prepare_blocks, recompute_blocks

SHAPE = {"vocab_size": 31, "block_size": 24, "n_layer": 4, "n_head": 2, "n_embd": 32}
CLASSIC = ModelConfig(**SHAPE, dropout=0.2)
MODERN = ModelConfig(**SHAPE, **presets.MODERN, dropout=0.2)
IDS = torch.randint(31, (3, 24), generator=torch.Generator().manual_seed(0))


def passed(config: ModelConfig, *, recompute: bool, compile: bool = False) -> tuple[Tensor, dict[str, Tensor], int]:
    """The logits, the gradients by name, and the bytes kept for the backward pass."""
    model = GPT(config)
    model.init_weights(0)
    prepare_blocks(model.train(), recompute=recompute, compile=compile)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(IDS)
    logits.square().mean().backward()
    return (
        logits.detach(),
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        sum(kept.values()),
    )


@pytest.mark.parametrize("config", [CLASSIC, MODERN], ids=["classic", "modern"])
def test_recomputing_is_exact_with_dropout_and_keeps_less(config: ModelConfig) -> None:
    plain, recomputed = passed(config, recompute=False), passed(config, recompute=True)
    assert torch.equal(plain[0], recomputed[0])
    assert plain[1].keys() == recomputed[1].keys()
    for name, gradient in plain[1].items():
        assert torch.equal(gradient, recomputed[1][name]), name
    assert recomputed[2] < plain[2] / 3


def test_recomputing_keeps_names_and_inference() -> None:
    model = GPT(MODERN)
    model.init_weights(0)
    names, expected = list(model.state_dict()), model.eval()(IDS)
    recompute_blocks(model)
    assert list(model.state_dict()) == names
    with torch.no_grad():
        torch.testing.assert_close(model(IDS), expected, rtol=0, atol=0)


def test_compiled_and_recomputed_equals_plain() -> None:
    config = ModelConfig(**SHAPE, **presets.MODERN)  # compiled dropout draws other numbers
    torch._dynamo.utils.counters.clear()
    plain, compiled = passed(config, recompute=False), passed(config, recompute=True, compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "the blocks share one compiled graph"
    torch.testing.assert_close(compiled[0], plain[0], rtol=1e-4, atol=1e-6)
    for name, gradient in plain[1].items():
        torch.testing.assert_close(compiled[1][name], gradient, rtol=1e-3, atol=1e-7, msg=name)

"""A recorded pass computes the same numbers as a plain one, and leaves the model as it was."""

import pytest
import torch

from glassgpt.config import ModelConfig
from glassgpt.model import GPT, FusedAttention
from glassgpt.recording import AXES, axes_of, record, watch

SMALL = {"vocab_size": 23, "block_size": 16, "n_layer": 2, "n_embd": 32, "dropout": 0.3}
MODELS = {
    "learned positions": ModelConfig(**SMALL, n_head=4),
    "grouped queries": ModelConfig(
        **SMALL, n_head=4, n_kv_head=2, position="rope", norm="rmsnorm", norm_bias=False, mlp="swiglu"
    ),
    "normed queries": ModelConfig(**SMALL, n_head=2, head_dim=8, position="rope", qk_norm=True, tie_embeddings=False),
    "a sliding window": ModelConfig(**SMALL, n_head=4, position="rope", sliding_window=3, first_window_layer=1),
}  # fmt: skip


@pytest.fixture(params=MODELS, ids=str)
def model(request: pytest.FixtureRequest) -> GPT:
    model = GPT(MODELS[request.param])
    model.init_weights(1)
    for parameter in model.parameters():  # so that biases and norms matter
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return model.train()


@pytest.mark.parametrize("T", [1, 9])
def test_a_recorded_pass_has_the_logits_of_a_plain_one(model: GPT, T: int) -> None:
    idx = torch.arange(2 * T).view(2, T) % 23
    with torch.no_grad():
        plain = model.eval()(idx)
    model.train()
    fused, explicit = record(model, idx, attention="fused"), record(model, idx)
    assert torch.equal(fused.logits, plain)
    assert (explicit.logits - plain).abs().max() < 1e-5
    assert_untouched(model)


def assert_untouched(model: GPT) -> None:
    assert all(module.training for module in model.modules())
    assert all(isinstance(block.attention.attend, FusedAttention) for block in model.blocks)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_pass_that_fails_leaves_the_model_as_it_was(model: GPT) -> None:
    def see(name: str, layer: int | None, tensor: torch.Tensor) -> None:
        if (name, layer) == ("attention weights", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), watch(model, see):
        model(torch.ones(1, 9, dtype=torch.long))
    with pytest.raises(ValueError, match="do not fit"):
        record(model, torch.ones(1, 17, dtype=torch.long))
    assert_untouched(model)


def test_every_tensor_has_the_sizes_of_its_axes(model: GPT) -> None:
    config, (B, T) = model.config, (2, 9)
    sizes = {
        "B": B, "T": T, "C": config.n_embd, "H": config.n_head, "KV": config.n_kv_head, "D": config.head_dim,
        "I": config.intermediate_size, "V": config.vocab_size, "A": config.n_head * config.head_dim,
        "P": (config.n_head + 2 * config.n_kv_head) * config.head_dim,
    }  # fmt: skip
    recorded = record(model, torch.ones(B, T, dtype=torch.long))
    for (name, _), tensor in recorded.tensors.items():
        assert tuple(tensor.shape) == tuple(sizes[axis] for axis in axes_of(name, config)), name
    names = [name for name, _ in recorded.tensors]
    assert [name for name in AXES if name in names] == list(dict.fromkeys(names))  # in the order of AXES
    assert len(recorded.layers("attention weights")) == config.n_layer


def test_each_step_follows_from_the_one_before(model: GPT) -> None:
    config = model.config
    get = record(model, torch.arange(9)[None]).get
    for layer in range(config.n_layer):
        weights = get("attention weights", layer)
        assert (weights.sum(-1) - 1).abs().max() < 1e-6
        before = get("residual after mlp", layer - 1) if layer else get("embeddings")
        after = get("residual after attention", layer)
        assert torch.equal(before + get("attention output", layer), after)
        assert torch.equal(after + get("mlp output", layer), get("residual after mlp", layer))
        assert torch.equal(get("masked scores", layer).isfinite(), weights > 0)

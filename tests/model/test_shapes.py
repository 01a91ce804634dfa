"""The shape trace: its content, and that it leaves the model unchanged."""

import dataclasses
import gc
from collections.abc import Iterator

import pytest
import torch

from conftest import thread_count
from glassgpt.config import ModelConfig
from glassgpt.config.presets import MODERN
from glassgpt.model import GPT, ExplicitAttention
from glassgpt.shapes import trace_shapes

CLASSIC = ModelConfig(vocab_size=23, block_size=16, n_layer=2, n_head=4, n_embd=32, dropout=0.2)
GROUPED = dataclasses.replace(CLASSIC, **MODERN, n_kv_head=2, head_dim=12, intermediate_size=40)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with thread_count(1):
        yield


def build(config: ModelConfig) -> GPT:
    model = GPT(config)
    model.init_weights(0)
    return model


def snapshot(model: GPT) -> list[object]:
    """Everything about a model that tracing could have changed."""
    return [
        (
            name,
            id(module),
            module.training,
            *(list(getattr(module, hooks).values()) for hooks in vars(module) if hooks.endswith("_hooks")),
            {
                key: (id(p), p.requires_grad, p._version, id(p.grad))
                for key, p in module._parameters.items()
                if p is not None
            },
            {key: id(b) for key, b in module._buffers.items()},
        )
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize(("config", "kv", "heads"), [(CLASSIC, "H", 4), (GROUPED, "KV", 2)], ids=["classic", "grouped"])
@pytest.mark.parametrize(("B", "T"), [(2, 9), (1, 1), (3, 16)])
def test_shapes(config: ModelConfig, kv: str, heads: int, B: int, T: int) -> None:
    H, D, C, V, hidden = 4, config.head_dim, 32, 23, config.intermediate_size
    shapes = trace_shapes(build(config), torch.zeros(B, T, dtype=torch.long))
    assert [(shape.name, shape.symbols, shape.sizes) for shape in shapes] == [
        ("idx", "[B, T]", (B, T)),
        ("embeddings", "[B, T, C]", (B, T, C)),
        ("q", "[B, H, T, D]", (B, H, T, D)),
        ("k", f"[B, {kv}, T, D]", (B, heads, T, D)),
        ("v", f"[B, {kv}, T, D]", (B, heads, T, D)),
        ("scores", "[B, H, T, T]", (B, H, T, T)),
        ("attention output", "[B, H, T, D]", (B, H, T, D)),
        ("MLP hidden", "[B, T, I]", (B, T, hidden)),
        ("block output", "[B, T, C]", (B, T, C)),
        ("logits", "[B, T, V]", (B, T, V)),
    ]
    assert str(shapes[0]).split() == ["idx", "[B,", "T]", f"[{B},", f"{T}]"]


@pytest.mark.parametrize("config", [CLASSIC, GROUPED], ids=["classic", "grouped"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_exactly_as_it_was(config: ModelConfig, training: bool, fails: bool) -> None:
    model = build(config)
    model.blocks[0].attention.attend = ExplicitAttention()
    model.train(training)
    handle = model.head.register_forward_hook(lambda module, inputs, output: None)  # a hook of someone else's
    idx = torch.arange(32).view(2, 16) % 23
    torch.manual_seed(0)
    before, generator, expected = snapshot(model), torch.get_rng_state(), model(idx)
    torch.set_rng_state(generator)
    if fails:
        with pytest.raises(ValueError, match="do not fit"):
            trace_shapes(model, torch.zeros(1, 17, dtype=torch.long))
    else:
        trace_shapes(model, idx)
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(model(idx), expected)
    handle.remove()


def test_parts_in_another_mode_stay_in_it() -> None:
    """A model in training with one frozen block, as in fine-tuning."""
    model = build(CLASSIC).train()
    model.blocks[0].eval()
    before = snapshot(model)
    trace_shapes(model, torch.zeros(1, 4, dtype=torch.long))
    assert snapshot(model) == before


def test_no_tensor_is_held_until_the_end() -> None:
    model, held = build(CLASSIC), []

    def look(*_: object) -> None:
        held.extend(thing.shape for thing in gc.get_objects() if type(thing) is torch.Tensor)

    handle = model.head.register_forward_hook(look)
    trace_shapes(model, torch.zeros(3, 13, dtype=torch.long))
    handle.remove()
    assert (3, 13, 32) in held and (3, 4, 13, 13) not in held


def test_tracing_needs_no_gradient_memory() -> None:
    model = build(CLASSIC)
    outputs = []
    handle = model.head.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    trace_shapes(model, torch.zeros(1, 4, dtype=torch.long))
    handle.remove()
    assert not outputs[0].requires_grad

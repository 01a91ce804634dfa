"""The shape of every tensor on its way through a model, observed by hooks on a real forward pass."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glassgpt.model import GPT, Block, ExplicitAttention


@dataclass(frozen=True)
class Shape:
    """One tensor: where it is, its dimensions by name, and their sizes."""

    name: str
    symbols: str
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name:<18} {self.symbols:<14} {list(self.sizes)}"


def trace_shapes(model: GPT, idx: Tensor) -> list[Shape]:
    """The shapes of one batch ``idx [B, T]`` through the embeddings, the first block, and the head.

    The first block's attention is done by the explicit path, so that the scores exist to be seen.
    """
    seen: list[Shape] = [Shape("idx", "[B, T]", tuple(idx.shape))]

    def watch(name: str, symbols: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, inputs, output: seen.append(Shape(name, symbols, tuple(output.shape)))

    def watch_attention(module: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        for name, tensor in zip("qkv", inputs, strict=False):
            heads = "H" if tensor.size(1) == model.config.n_head else "KV"
            seen.append(Shape(name, f"[B, {heads}, T, D]", tuple(tensor.shape)))
        seen.append(Shape("scores", "[B, H, T, T]", tuple(output[1].shape)))
        seen.append(Shape("attention output", "[B, H, T, D]", tuple(output[0].shape)))

    block = model.blocks[0]
    assert isinstance(block, Block)
    attention = block.attention
    fused, attention.attend = attention.attend, ExplicitAttention()
    hooks = [
        model.dropout.register_forward_hook(watch("embeddings", "[B, T, C]")),
        attention.attend.register_forward_hook(watch_attention),
        block.mlp.down.register_forward_pre_hook(
            lambda module, inputs: seen.append(Shape("MLP hidden", "[B, T, I]", tuple(inputs[0].shape)))
        ),
        block.register_forward_hook(watch("block output", "[B, T, C]")),
        model.head.register_forward_hook(watch("logits", "[B, T, V]")),
    ]
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()(idx)
    finally:
        for hook in hooks:
            hook.remove()
        attention.attend = fused
        for module, training in modes:
            module.training = training
    return seen

"""The exercises of lesson 13."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from glassgpt.learn.exercises import Exercise, Wrong


def _compare(call: str, layer: object, x: Tensor, right: Tensor, bias: bool) -> None:
    if not isinstance(layer, nn.Linear):
        raise Wrong(f"{call} should be an nn.Linear, and is a {type(layer).__name__}")
    if (layer.bias is not None) != bias:
        raise Wrong(f"{call} should have {'a' if bias else 'no'} bias")
    if (shape := list(layer.weight.shape)) != [right.size(-1), x.size(-1)]:
        raise Wrong(f"{call}: its weight should have the shape {[right.size(-1), x.size(-1)]}, and has {shape}")
    if (layer.in_features, layer.out_features) != (x.size(-1), right.size(-1)):
        raise Wrong(
            f"{call} should say in_features={x.size(-1)}, out_features={right.size(-1)}, "
            f"and says {layer.in_features}, {layer.out_features}"
        )
    if not torch.allclose(layer(x), right, atol=1e-5):
        raise Wrong(f"{call}: its outputs differ from the right ones by up to {(layer(x) - right).abs().max():.3g}")


def check_to_linear(answer: Callable[[Tensor, Tensor | None], nn.Linear]) -> None:
    """Compare with the product, also for square matrices and without a bias."""
    generator = torch.Generator().manual_seed(0)
    for C, D, bias in ((3, 5, True), (4, 4, True), (4, 4, False), (1, 2, False)):
        W, b = torch.randn(C, D, generator=generator), torch.randn(D, generator=generator) if bias else None
        x = torch.randn(2, 3, C, generator=generator)
        right = x @ W if b is None else x @ W + b
        call = f"to_linear(W, b) for W of shape [{C}, {D}]" + ("" if bias else " and b = None")
        _compare(call, answer(W, b), x, right, bias)


def check_fuse(answer: Callable[[nn.Linear, nn.Linear, nn.Linear], nn.Linear]) -> None:
    """Compare with the three layers."""
    for C, sizes, bias in ((6, (4, 4, 4), True), (5, (5, 5, 5), False), (8, (8, 2, 2), True), (3, (4, 2, 1), False)):
        layers = [nn.Linear(C, size, bias=bias) for size in sizes]
        x = torch.randn(2, 3, C)
        right = torch.cat([layer(x) for layer in layers], dim=-1)
        call = f"fuse(q, k, v) of {C} inputs and {sizes} outputs, " + ("with biases" if bias else "without biases")
        _compare(call, answer(*layers), x, right, bias)


EXERCISES = (
    Exercise("to_linear", "An nn.Linear that computes x @ W + b.", check_to_linear,
             "Make the layer with the right sizes first. Which shape does its weight have, and which has W?"),
    Exercise("fuse", "One nn.Linear in place of three.", check_fuse,
             "A row of a weight belongs to one output. Along which dimension do you join the three weights?"),
)  # fmt: skip

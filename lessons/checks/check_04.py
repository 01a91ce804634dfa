"""The exercises of lesson 4."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from glassgpt.learn.compare import compare
from glassgpt.learn.exercises import Exercise, Wrong


def _layers(sizes: list[int], bias: bool) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(i, o, bias=bias) for i, o in pairwise(sizes)))


def check_mlp(answer: Callable[[Tensor, list[Tensor], list[Tensor]], Tensor]) -> None:
    """Compare with layers of torch."""
    for sizes, shape in (
        ([4, 3], (2,)),
        ([4, 8, 3], (5,)),
        ([6, 6, 6, 6], (2, 3)),
        ([3, 5, 1], ()),
        ([2, 9, 9, 2], (1,)),
    ):
        layers = _layers(sizes, bias=True)
        x = torch.randn(*shape, sizes[0])
        right = x
        for place, layer in enumerate(layers):
            right = layer(right) if place == len(layers) - 1 else layer(right).relu()
        weights, biases = [layer.weight.detach() for layer in layers], [layer.bias.detach() for layer in layers]
        before, found = x.clone(), answer(x, weights, biases)
        where = f"sizes {sizes}, x of shape {list(x.shape)}"
        if not torch.equal(x, before):
            raise Wrong(f"{where}: x itself was changed")
        compare(f"the output for {where}", found, right.detach())


def check_count_parameters(answer: Callable[[list[int], bool], int]) -> None:
    """Compare with counting."""
    for sizes in ([4, 3], [4, 64, 3], [768, 3072, 768], [5, 5, 5, 5], [1, 1], [7]):
        for bias in (True, False):
            right = sum(parameter.numel() for parameter in _layers(sizes, bias).parameters())
            if (found := answer(list(sizes), bias)) != right:
                raise Wrong(f"count_parameters({sizes}, {bias}) should be {right}, and is {found!r}")


EXERCISES = (
    Exercise("mlp", "The forward pass of a network with ReLU.", check_mlp,
             "Weights are [out, in]; which of the two meets the last dimension of x? Which layers have a ReLU?"),
    Exercise("count_parameters", "The number of parameters of a network.", check_count_parameters,
             "A layer from a to b has a matrix, and one bias for each output."),
)  # fmt: skip

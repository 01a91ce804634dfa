"""Right and wrong answers to the exercises of lesson 13."""

import torch
from torch import nn


def to_linear(W, b):
    layer = nn.Linear(*W.shape, bias=b is not None)
    layer.weight.data = W.T
    if b is not None:
        layer.bias.data = b
    return layer


def fuse(*layers):
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers]).detach()
    return to_linear(torch.cat([layer.weight for layer in layers]).detach().T, bias)


def not_transposed(W, b):
    layer = to_linear(W, b)
    layer.weight.data = W
    return layer


def zero_bias(W, b):
    return to_linear(W, torch.zeros(W.size(1)) if b is None else b)


RIGHT = {"to_linear": to_linear, "fuse": fuse}


WRONG = {
    "to_linear": [
        not_transposed,
        zero_bias,
        lambda W, b: to_linear(W, None),  # no bias
        lambda W, b: lambda x: x @ W + (0 if b is None else b),  # a function, no layer
    ],
    "fuse": [
        lambda q, k, v: fuse(k, q, v),  # another order
        lambda q, k, v: fuse(q, k, k),
        lambda q, k, v: to_linear(torch.cat([layer.weight for layer in (q, k, v)]).detach().T, None),  # no bias
        lambda q, k, v: to_linear(torch.cat([q.weight, k.weight, v.weight], dim=1).detach().T, q.bias),  # dim 1
    ],
}

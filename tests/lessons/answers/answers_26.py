"""Right and wrong answers to the exercises of lesson 26."""

import torch


def quantize(weight, dim=1, round_=torch.round, steps=127, safe=True):
    scales = weight.abs().amax().expand(len(weight)) / steps if dim is None else weight.abs().amax(dim) / steps
    if safe:
        scales = torch.where(scales == 0, 1.0, scales)
    return round_(weight / scales[:, None]).to(torch.int8), scales


RIGHT = {"quantize": quantize, "bits_per_weight": lambda bits, group, scale: bits + scale / group}

WRONG = {
    "quantize": [
        lambda weight: quantize(weight, dim=None),  # one scale for all rows
        lambda weight: quantize(weight, round_=torch.trunc),  # cut off, not rounded
        lambda weight: quantize(weight, steps=128),  # 128 does not exist in int8
        lambda weight: quantize(weight, safe=False),  # 0 / 0 in a row of zeros
        lambda weight: (weight / (weight.abs().amax(1, keepdim=True) / 127), weight.abs().amax(1) / 127),  # still float
    ],
    "bits_per_weight": [
        lambda bits, group, scale: bits,  # the scales take nothing
        lambda bits, group, scale: bits + scale,  # a scale for each weight
        lambda bits, group, scale: (bits + scale) / group,
    ],
}

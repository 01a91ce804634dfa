"""The exercises of lesson 26."""

from collections.abc import Callable

import torch
from torch import Tensor

from glassgpt.learn.exercises import Exercise, Wrong
from glassgpt.transforms.quantize import Quantization, quantize_matrix


def check_quantize(answer: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    """Compare with the package, for ordinary rows, an outlier, and a row of zeros."""
    generator = torch.Generator().manual_seed(0)
    ordinary = torch.randn(5, 16, generator=generator)
    outlier, zeros = ordinary.clone(), ordinary.clone()
    outlier[2, 3], zeros[1] = -40.0, 0.0
    for what, weight in (("random rows", ordinary), ("one weight of -40", outlier), ("a row of zeros", zeros)):
        values, scales = quantize_matrix(weight, Quantization(8, 16))
        found, found_scales = answer(weight.clone())
        if found.dtype != torch.int8 or found.shape != weight.shape:
            raise Wrong(f"{what}: the values should be int8 [5, 16], and are {found.dtype} {list(found.shape)}")
        if found_scales.shape != (5,):
            raise Wrong(f"{what}: the scales should be [5], and are {list(found_scales.shape)}")
        if not bool((found_scales != 0).all()):
            raise Wrong(f"{what}: scale {int((found_scales == 0).nonzero()[0])} is 0; no scale may be 0")
        rows = weight.abs().amax(1) > 0  # the scale of a row of zeros may be anything else
        for row in rows.nonzero().flatten().tolist():
            if not torch.isclose(found_scales[row], scales[row, 0]):
                raise Wrong(
                    f"{what}: the scale of row {row} should be {scales[row, 0]:.5f}, and is {found_scales[row]:.5f}"
                )
        if (found.int() - values.int()).abs().max() > 1:
            raise Wrong(f"{what}: the values are not the nearest whole numbers")
        error = (found * found_scales[:, None] - weight).abs()
        if not bool((error <= 0.501 * scales + 1e-9).all()):
            raise Wrong(f"{what}: an error is {float(error.max()):.4g}, more than half a scale")


def check_bits(answer: Callable[[int, int, int], float]) -> None:
    """Compare with the definition."""
    for bits, group_size, scale_bits, right in ((8, 576, 32, 8 + 32 / 576), (4, 64, 32, 4.5), (4, 32, 16, 4.5)):
        found = answer(bits, group_size, scale_bits)
        if abs(found - right) > 1e-9:
            raise Wrong(f"bits_per_weight({bits}, {group_size}, {scale_bits}) should be {right:.4f}, and is {found!r}")


EXERCISES = (
    Exercise("quantize", "A matrix in INT8, one scale per row.", check_quantize,
             "What is 0 / 0 in a row of zeros? Look at the largest weight of each row before you divide."),
    Exercise("bits_per_weight", "Bits per weight, with the scales.", check_bits,
             "How many bits do all weights of one group take, together with their scale?"),
)  # fmt: skip

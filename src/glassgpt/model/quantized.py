"""Layers whose weights are small integers with scales: ``weight[o, i] = value[o, i] * scale[o, i // group_size]``.

Only the weights are quantised (symmetrically, so that zero stays zero); activations keep their dtype. Forward here is
the plain reference: the weight is dequantised, then used as that of any linear layer. The gain is in memory, and in
time where a decoder reads the integers in place.

Shapes: O out_features, I in_features, G groups in a row (I / group_size).
"""

from collections.abc import Callable
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Quantization(NamedTuple):
    """How a matrix is stored: bits of a value (8 or 4), and how many neighbouring inputs share a scale."""

    bits: int
    group_size: int


def pack_nibbles(values: Tensor, group_size: int) -> Tensor:
    """Pack values from -8 to 7, ``[O, I]``, into bytes ``[O, I / 2]``; each value is stored plus 8.

    In a group, byte i has input i in its low nibble and input i + group_size / 2 in its high one, as in GGUF's Q4_0.
    """
    low, high = (values + 8).to(torch.uint8).view(len(values), -1, 2, group_size // 2).unbind(2)
    return (low | (high << 4)).reshape(len(values), -1)


def unpack_nibbles(packed: Tensor, group_size: int) -> Tensor:
    """Undo :func:`pack_nibbles`: bytes ``[O, I / 2]`` to int8 ``[O, I]``."""
    groups = packed.view(*packed.shape[:-1], -1, group_size // 2)  # [O, G, group_size / 2]
    return (torch.cat([groups & 15, groups >> 4], dim=-1).to(torch.int8) - 8).flatten(-2)


def dequantize_rows(values: Tensor, scales: Tensor, kind: Quantization) -> Tensor:
    """Compute the weights of rows: values ``[..., I]`` (or packed) and scales ``[..., G]`` to float32 ``[..., I]``."""
    values = unpack_nibbles(values, kind.group_size) if kind.bits == 4 else values
    return (values.unflatten(-1, (-1, kind.group_size)) * scales.unsqueeze(-1)).flatten(-2)


class QuantizedMatrix(nn.Module):
    """A matrix of integers and their scales, which have no gradients.

    Attributes:
        values: int8 ``[O, I]``, or uint8 ``[O, I / 2]`` as :func:`pack_nibbles` has them.
        scales: float32 ``[O, G]``, in every dtype of the model.
    """

    values: Tensor
    scales: Tensor
    like: Tensor

    def __init__(self, values: Tensor, scales: Tensor, kind: Quantization, dtype: torch.dtype):
        super().__init__()
        self.bits, self.group_size = kind
        self.out_features, self.in_features = len(values), scales.size(1) * self.group_size
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)
        self.register_buffer("like", torch.empty(0, dtype=dtype, device=values.device), persistent=False)

    @property
    def kind(self) -> Quantization:
        """How the values are stored."""
        return Quantization(self.bits, self.group_size)

    @property
    def weight(self) -> Tensor:
        """The dequantised weight ``[O, I]`` in the model's dtype; a new tensor at each call."""
        return dequantize_rows(self.values, self.scales, self.kind).to(self.like.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move to another device or dtype; the scales stay float32."""
        scales = self.scales
        moved: Self = super()._apply(fn, recurse)
        self.scales = scales.to(self.values.device)
        return moved

    def extra_repr(self) -> str:
        """Describe the matrix in one line."""
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, group_size={self.group_size}"


class QuantizedLinear(QuantizedMatrix):
    """A linear layer with a quantised weight; the bias is a parameter like any other."""

    def __init__(
        self, values: Tensor, scales: Tensor, kind: Quantization, dtype: torch.dtype, bias: nn.Parameter | None = None
    ):
        super().__init__(values, scales, kind, dtype)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """``[..., I] -> [..., O]``."""
        if self.bits == 4 or self.scales.size(1) > 1:
            return F.linear(x, dequantize_rows(self.values, self.scales, self.kind).to(x.dtype), self.bias)
        y = F.linear(x, self.values.to(x.dtype)) * self.scales[:, 0]  # with one scale per row: in less time
        return (y if self.bias is None else y + self.bias).to(x.dtype)


class QuantizedEmbedding(QuantizedMatrix):
    """An embedding whose rows are quantised; a tied head has the same tensors."""

    def forward(self, idx: Tensor) -> Tensor:
        """``[...] -> [..., I]``, in the model's dtype."""
        return dequantize_rows(self.values[idx], self.scales[idx], self.kind).to(self.like.dtype)


def quantized_layers(model: nn.Module) -> dict[str, QuantizedMatrix]:
    """Give the quantised layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedMatrix)}


def is_quantized(model: nn.Module) -> bool:
    """Whether a model has quantised weights."""
    return any(isinstance(module, QuantizedMatrix) for module in model.modules())


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of the one with that name."""
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, layer.train(model.training))

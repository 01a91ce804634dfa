"""Quantise a finished model: weights as 8-bit or 4-bit integers, and back.

INT8 has one scale for each row, ``amax / 127``. INT4 has one for each group of neighbouring inputs, the one of a few
candidates that has the smallest squared error: the largest weight may be clipped, so that the others are finer. The
range is -8 to 7, and a scale may be negative, so that the largest weight of a group can take the longer side.

Norms, biases and learned positions stay as they are: they are small.
"""

import torch
from torch import Tensor, nn

from glassgpt.files import Progress
from glassgpt.model import GPT
from glassgpt.model.quantized import (
    Quantization,
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedMatrix,
    dequantize_rows,
    is_quantized,
    pack_nibbles,
    quantized_layers,
    replace_layer,
)
from glassgpt.transforms.gptq import over_blocks, quantize_with_inputs

__all__ = [
    "Quantization", "QuantizedEmbedding", "QuantizedLinear", "QuantizedMatrix", "dequantize", "is_quantized",
    "quantize", "quantize_matrix", "quantized_layers",
]  # fmt: skip

#: The default number of inputs that share a scale in INT4, and the second choice.
GROUP_SIZES = (64, 32)
#: How many steps the largest weight of a group may be from zero, among the candidates for its scale.
_STEPS = (6.0, 6.5, 7.0, 7.25, 7.5, 7.75, 8.0, 8.25, 8.5, 8.75, 9.0, 9.5, 10.0)
#: Weights that are quantised at a time; they and their candidates then fit into a cache.
_PART = 2**18
#: Layers of the blocks that are INT8 in an INT4 model: in SmolLM2, a quarter of the weights and half of the added loss.
IN_8_BITS = ("attention.qkv", "attention.out")


def choose_kind(bits: int, in_features: int, group_size: int | None = None) -> Quantization:
    """Choose how a matrix with so many inputs is stored.

    INT8 has one group by default. INT4 has groups of 64 inputs, or of 32, or of the largest even divisor below 64. A
    group size that does not divide the inputs is replaced by the default; a matrix without an even divisor is INT8.
    """
    assert bits in (4, 8), bits
    if group_size is not None and in_features % group_size == 0 and (bits == 8 or group_size % 2 == 0):
        return Quantization(bits, group_size)
    if bits == 4:
        for size in (*GROUP_SIZES, *range(62, 1, -2)):
            if in_features % size == 0:
                return Quantization(4, size)
    return Quantization(8, in_features)


def quantize_matrix(weight: Tensor, kind: Quantization) -> tuple[Tensor, Tensor]:
    """Quantise a matrix ``[O, I]`` of finite weights; returns values and scales as QuantizedMatrix has them."""
    rows = max(1, _PART // weight.size(1))
    parts = [_quantize_rows(part.float(), kind) for part in weight.detach().split(rows)]
    values, scales = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return values, scales


def _quantize_rows(weight: Tensor, kind: Quantization) -> tuple[Tensor, Tensor]:
    groups = weight.unflatten(1, (-1, kind.group_size))  # [O, G, group_size]
    if kind.bits == 8:
        scales = groups.abs().amax(-1) / 127  # [O, G]
        return _round(groups, scales, -127, 127).flatten(1), scales
    scales = find_scales(groups)
    return pack_nibbles(_round(groups, scales, -8, 7).flatten(1), kind.group_size), scales


def find_scales(groups: Tensor, importance: Tensor | float = 1.0) -> Tensor:
    """Find the scales ``[O, G]`` for 4 bits with the smallest squared error of groups ``[O, G, group_size]``.

    ``importance`` ``[G, group_size]`` weighs the squared errors.
    """
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)  # [O, G], with its sign
    best, scales = torch.full_like(largest, torch.inf), torch.zeros_like(largest)
    for steps in _STEPS:
        candidate = largest / -steps
        errors = _round(groups, candidate, -8, 7) * candidate.unsqueeze(-1) - groups
        error = (errors.square() * importance).sum(-1)  # [O, G]
        scales = torch.where(error < best, candidate, scales)
        best = torch.minimum(error, best)
    return scales


def _round(groups: Tensor, scales: Tensor, low: int, high: int) -> Tensor:
    """Round weights ``[O, G, group_size]`` to int8 multiples of their scales; zero where the scale is zero."""
    inverse = torch.where(scales == 0, 0, 1 / scales).unsqueeze(-1)
    return (groups * inverse).round().clamp(low, high).to(torch.int8)


@torch.no_grad()
def quantize(
    model: GPT,
    bits: int,
    group_size: int | None = None,
    *,
    calibration: Tensor | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Quantise a model in place; see :func:`choose_kind` for the groups.

    With 4 bits, the linear layers of the blocks but for IN_8_BITS are INT4; those, the embedding and the head are INT8.
    ``calibration`` is a text ``[B, T]`` on which INT4 is fitted (:mod:`glassgpt.transforms.gptq`); ``progress`` is
    called as its layers are.

    Returns:
        The error of each layer's weights: root mean square, relative to that of the weights.
    """
    assert not is_quantized(model), "this model is quantised already"
    errors, made = dict[str, float](), dict[str, tuple[Tensor, Tensor]]()

    def replace(name: str, layer: nn.Linear | nn.Embedding, H: Tensor | None = None) -> None:
        small = bits == 4 and name.startswith("blocks.") and not name.endswith(IN_8_BITS)
        kind = choose_kind(4 if small else 8, layer.weight.size(1), group_size if small or bits == 8 else None)
        if name == "head" and model.config.tie_embeddings:
            values, scales = made["token_embedding"]
        elif H is not None and kind.bits == 4 and H.isfinite().all():
            values, scales = quantize_with_inputs(layer.weight, H.to(layer.weight.device), kind, find_scales)
        else:
            values, scales = quantize_matrix(layer.weight, kind)
        made[name], errors[name] = (values, scales), _relative_error(layer.weight, values, scales, kind)
        if progress and H is not None:
            progress("fitting INT4", len(made), linears)
        if isinstance(layer, nn.Embedding):
            replace_layer(model, name, QuantizedEmbedding(values, scales, kind, model.dtype))
        else:
            replace_layer(model, name, QuantizedLinear(values, scales, kind, model.dtype, layer.bias))

    linears = sum(isinstance(module, nn.Linear) for module in model.blocks.modules())
    if calibration is not None and bits == 4:
        over_blocks(model, calibration, replace)
    for name, layer in [*model.named_modules()]:
        if isinstance(layer, nn.Linear | nn.Embedding) and name != "position_embedding":
            replace(name, layer)
    return errors


def _relative_error(weight: Tensor, values: Tensor, scales: Tensor, kind: Quantization) -> float:
    difference = dequantize_rows(values, scales, kind) - weight.float()
    return float(difference.norm() / weight.float().norm().clamp(min=1e-30))


@torch.no_grad()
def dequantize(model: GPT) -> None:
    """Make a quantised model plain again, in place: its weights are the dequantised ones, in the model's dtype."""
    for name, layer in [*quantized_layers(model).items()]:
        plain: nn.Module = nn.Embedding(layer.out_features, layer.in_features, device="meta")
        if isinstance(layer, QuantizedLinear):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            plain.register_parameter("bias", layer.bias)
        plain.weight = nn.Parameter(layer.weight)
        replace_layer(model, name, plain)
    if model.config.tie_embeddings:
        model.head.weight = model.token_embedding.weight

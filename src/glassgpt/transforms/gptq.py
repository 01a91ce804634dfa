"""INT4 with a text at hand: round one input after the other, and let the later ones make up for the error.

GPTQ (Frantar et al., 2022, arXiv:2210.17323). The error of a layer's output on the inputs X of a text is
``|(W - Q) X'|^2``, so rounding the weights of input i may be compensated by those of inputs that correlate with it: a
least-squares step with the inverse of ``H = X'X``. Blocks are done in order; the next one reads what the quantised ones
before give.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from glassgpt.model import GPT
from glassgpt.model.quantized import Quantization, pack_nibbles

#: Added to the diagonal of H, as a part of its mean.
DAMPING = 0.01
#: Tokens that go through a block at a time.
_TOKENS = 2048
#: Finds scales ``[O, G]`` for groups ``[O, G, group_size]``; squared errors count by a weight ``[G, group_size]``.
FindScales = Callable[[Tensor, Tensor], Tensor]


def quantize_with_inputs(
    weight: Tensor, H: Tensor, kind: Quantization, find_scales: FindScales
) -> tuple[Tensor, Tensor]:
    """Quantise a matrix ``[O, I]`` to INT4; ``H [I, I]`` is the sum of x x' over its inputs x.

    Returns:
        Values and scales, as :class:`~glassgpt.model.quantized.QuantizedMatrix` has them.
    """
    size, weight = kind.group_size, weight.detach().float().clone()
    importance = H.diagonal().clone().clamp(min=1e-12)
    H = H + (DAMPING * importance.mean()) * torch.eye(len(H), device=H.device)
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)  # [I, I]
    values = torch.empty_like(weight, dtype=torch.int8)
    scales = []
    for start in range(0, weight.size(1), size):
        stop = start + size
        group, root = weight[:, start:stop], inverse[start:stop, start:stop]
        scale = find_scales(group.unsqueeze(1), importance[None, start:stop])  # [O, 1]
        scales.append(scale)
        scale, errors = scale.squeeze(1), torch.empty_like(group)
        per_step = torch.where(scale == 0, 0, 1 / scale)
        for i in range(size):
            rounded = (group[:, i] * per_step).round().clamp(-8, 7)  # [O]
            values[:, start + i] = rounded.to(torch.int8)
            errors[:, i] = (group[:, i] - rounded * scale) / root[i, i]
            group[:, i + 1 :] -= errors[:, i, None] * root[i, i + 1 :]
        weight[:, stop:] -= errors @ inverse[start:stop, stop:]
    return pack_nibbles(values, size), torch.cat(scales, dim=1)


@torch.no_grad()
def over_blocks(model: GPT, idx: Tensor, visit: Callable[[str, nn.Linear, Tensor], None]) -> None:
    """Visit every linear layer of the blocks with the sum of x x' over its inputs, ``[I, I]``, block by block.

    Args:
        model: in eval mode.
        idx: a text ``[B, T]``. A block reads what the blocks before give after their visits.
        visit: called with the layer's name, the layer, and the sum; it may replace the layer.
    """
    states, arguments = _block_inputs(model, idx)
    parts = [*states.split(max(1, _TOKENS // idx.size(1)))]
    for number, block in enumerate(model.blocks):
        layers = {name: layer for name, layer in block.named_modules() if isinstance(layer, nn.Linear)}
        sums = {name: torch.zeros(layer.in_features, layer.in_features) for name, layer in layers.items()}
        hooks = [layer.register_forward_pre_hook(_adder(sums[name])) for name, layer in layers.items()]
        for part in parts:
            block(part, *arguments[number])
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            visit(f"blocks.{number}.{name}", layer, sums[name])
        parts = [block(part, *arguments[number]) for part in parts]


def _adder(total: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """Make a hook that adds x x' of a layer's inputs x to a sum."""

    def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].flatten(0, -2).float()
        total.add_((x.T @ x).to(total.device))

    return add


def _block_inputs(model: GPT, idx: Tensor) -> tuple[Tensor, list[tuple[Any, ...]]]:
    """Give the input of the first block ``[B, T, C]``, and the other arguments of every block, alike for all rows."""
    seen: list[tuple[Any, ...]] = []
    hooks = [block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs)) for block in model.blocks]
    model(idx[:1], apply_head=False)
    for hook in hooks:
        hook.remove()
    x = model.token_embedding(idx)
    if model.position_embedding is not None:
        x = x + model.position_embedding.weight[: idx.size(1)]
    return x, [inputs[1:] for inputs in seen]

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
#: Finds the scales of groups ``[O, G, group_size]`` with weights of their errors ``[G, group_size]``: ``[O, G]``.
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
    """Visit every linear layer of the blocks with the sum of x x' over its inputs ``[I, I]``, block by block.

    Args:
        model: in eval mode.
        idx: a text ``[B, T]``; what visit has changed in earlier blocks is used.
        visit: called with the layer's name, the layer, and the sum; it may replace the layer.
    """
    states, arguments = _block_inputs(model, idx)
    for number, block in enumerate(model.blocks):
        sums: dict[str, Tensor] = {}

        def add(name: str, module: nn.Module, inputs: tuple[Tensor, ...], sums: dict[str, Tensor] = sums) -> None:
            x = inputs[0].flatten(0, -2).float()
            sums[name] = sums.get(name, 0) + x.T @ x

        layers = {f"blocks.{number}.{n}": m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
        hooks = [
            layer.register_forward_pre_hook(lambda module, inputs, name=name: add(name, module, inputs))
            for name, layer in layers.items()
        ]
        rows = max(1, _TOKENS // idx.size(1))
        for part in states.split(rows):
            block(part, *arguments[number])
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            visit(name, layer, sums[name])
        states = torch.cat([block(part, *arguments[number]) for part in states.split(rows)])


def _block_inputs(model: GPT, idx: Tensor) -> tuple[Tensor, list[tuple[Any, ...]]]:
    """The input of the first block ``[B, T, C]``, and the other arguments of every block."""
    seen: list[tuple[Any, ...]] = []
    hooks = [b.register_forward_pre_hook(lambda _, inputs: seen.append(inputs)) for b in model.blocks]
    model(idx[:1], apply_head=False)
    arguments = [inputs[1:] for inputs in seen]
    for hook in hooks[1:]:
        hook.remove()
    seen.clear()
    x = model.token_embedding(idx)
    if model.position_embedding is not None:
        x = x + model.position_embedding.weight[: idx.size(1)]
    hooks[0].remove()
    return x, arguments

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

from glassgpt.errors import GenerationError
from glassgpt.files import Progress
from glassgpt.model import GPT, KVCache
from glassgpt.model.quantized import Quantization, pack_nibbles

#: Added to the diagonal of H, as a part of its mean.
DAMPING = 0.01
#: Tokens that go through a block at a time.
_TOKENS = 2048
#: Inputs whose errors reach the others only together, as one product.
_BLOCK = 64
#: Finds scales ``[O, G]`` for groups ``[O, G, group_size]``; squared errors count by a weight ``[G, group_size]``.
FindScales = Callable[[Tensor, Tensor], Tensor]


def quantize_with_inputs(
    weight: Tensor, H: Tensor, kind: Quantization, find_scales: FindScales
) -> tuple[Tensor, Tensor]:
    """Quantise a matrix ``[O, I]`` to INT4; ``H [I, I]`` is the sum of x x' over its inputs x.

    Returns:
        Values and scales, as :class:`~glassgpt.model.quantized.QuantizedMatrix` has them.
    """
    importance = H.diagonal().clamp(min=1e-12)  # [I]
    order = importance.argsort(descending=True)  # the most important inputs are rounded while most can make up for them
    scales = find_scales(weight.float().unflatten(1, (-1, kind.group_size)), importance.view(-1, kind.group_size))
    scale_of = scales.repeat_interleave(kind.group_size, dim=1)[:, order]  # [O, I]
    weight, H = weight.float()[:, order], H[order][:, order]
    H = H + (DAMPING * importance.mean()) * torch.eye(len(H), device=H.device)
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)  # [I, I]
    values = torch.empty_like(weight, dtype=torch.int8)
    for start in range(0, weight.size(1), _BLOCK):
        stop = min(start + _BLOCK, weight.size(1))
        block, root, errors = weight[:, start:stop], inverse[start:stop, start:stop], []
        for i, scale in enumerate(scale_of[:, start:stop].unbind(1)):
            rounded = (block[:, i] * torch.where(scale == 0, 0, 1 / scale)).round().clamp(-8, 7)  # [O]
            values[:, order[start + i]] = rounded.to(torch.int8)
            errors.append((block[:, i] - rounded * scale) / root[i, i])
            block[:, i + 1 :] -= errors[-1][:, None] * root[i, i + 1 :]
        weight[:, stop:] -= torch.stack(errors, dim=1) @ inverse[start:stop, stop:]
    return pack_nibbles(values, kind.group_size), scales


@torch.inference_mode()
def own_text(model: GPT, rows: int = 24, length: int = 256, seed: int = 0, progress: Progress | None = None) -> Tensor:
    """Let a model write the text to calibrate on, ``[B, T]``: sampled at temperature 1, after a random token each.

    Raises:
        GenerationError: if the model's logits are not numbers.
    """
    length, generator = min(length, model.config.block_size), torch.Generator().manual_seed(seed)
    cache = KVCache(model.config, rows, capacity=length, device=model.device, dtype=model.dtype)
    idx = torch.randint(model.config.vocab_size, (rows, 1), generator=generator)
    while idx.size(1) < length:
        logits = model(idx[:, -1:].to(model.device), cache=cache)[:, -1].float().cpu()
        if not logits.isfinite().all():
            raise GenerationError("the model writes nothing to calibrate on: its logits are NaN or infinite")
        idx = torch.cat([idx, torch.multinomial(logits.softmax(-1), 1, generator=generator)], dim=1)
        if progress:
            progress("generating a text to fit INT4 to", idx.numel(), rows * length)
    return idx.to(model.device)


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

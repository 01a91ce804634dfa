"""Rotary position embedding (Su et al., 2021, arXiv:2104.09864), in the rotate-half layout of Llama and Qwen.

A model adapts faster to a longer context if the frequencies are scaled down. Published models do this in four ways:
all frequencies (linear: Chen et al., 2023, arXiv:2306.15595), only the low ones (llama3: arXiv:2407.21783;
yarn: Peng et al., 2023, arXiv:2309.00071), or only beyond the original context (dynamic).
"""

import math

import torch
from torch import Tensor

from glassgpt.config import ModelConfig


def rotary_tables(
    config: ModelConfig, device: torch.device | None = None, positions: int | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the cosines and sines of every position and channel: two tensors ``[positions, head_dim]``, float32.

    Channel i and channel i + head_dim/2 form a pair, rotated by ``position * frequency[i]``. By default, these are all
    positions of the context.
    """
    positions = config.block_size if positions is None else positions
    if device is not None and device.type == "meta":  # torch.arange on meta would import torch's compiler
        table = torch.empty(positions, config.head_dim, device=device)
        return table, table.clone()
    position = torch.arange(positions, dtype=torch.float32, device=device)  # [T]
    angle = torch.outer(position, rotary_frequencies(config, device))  # [T, D/2]
    angle = torch.cat((angle, angle), dim=-1)  # [T, D]
    scale = config.rope_attention_factor if config.rope_scaling == "yarn" else 1.0
    return angle.cos() * scale, angle.sin() * scale


def rotary_frequencies(config: ModelConfig, device: torch.device | None = None) -> Tensor:
    """Compute the frequency, in radians per token, of each pair of channels: ``[head_dim / 2]``, float32, from 1 down.

    Unscaled: ``theta ** (-2 i / head_dim)``. llama3 and yarn divide by ``rope_factor`` the frequencies with fewer than
    ``rope_low_freq_factor`` rotations over the original context, keep those with more than ``rope_high_freq_factor``,
    and interpolate between: linearly in the number of rotations (llama3) or in the channel (yarn).
    """
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim  # [D/2]
    frequency = 1.0 / config.rope_theta**exponent  # [D/2]
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    if config.rope_scaling == "linear":
        return frequency / config.rope_factor
    if config.rope_scaling == "llama3":
        rotations = config.rope_original_context * frequency / (2 * math.pi)  # [D/2]
        kept = ((rotations - low) / (high - low)).clamp(0, 1)  # [D/2], 1 = unscaled
    elif config.rope_scaling == "yarn":
        first, last = math.floor(_channel(config, high)), math.ceil(_channel(config, low))
        first, last = max(first, 0), min(last, config.head_dim - 1)
        channel = torch.arange(config.head_dim // 2, dtype=torch.float32, device=device)  # [D/2]
        kept = 1 - ((channel - first) / max(last - first, 0.001)).clamp(0, 1)  # [D/2]
    else:
        return frequency  # dynamic scales beyond the context only, where this model never is
    return frequency * (kept + (1 - kept) / config.rope_factor)


def _channel(config: ModelConfig, rotations: float) -> float:
    """Return the (fractional) index of the channel pair with this many rotations over the original context."""
    wavelength = config.rope_original_context / (2 * math.pi * rotations)
    return config.head_dim * math.log(wavelength) / (2 * math.log(config.rope_theta))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair of channels of ``x [B, H, T, D]`` by the angle of its position.

    ``cos`` and ``sin`` are ``[T, D]``, or ``[B, 1, T, D]`` where rows are at different positions.
    """
    first, second = x.chunk(2, dim=-1)  # [B, H, T, D/2] each
    rotated = torch.cat((-second, first), dim=-1)  # [B, H, T, D]
    return (x * cos + rotated * sin).to(x.dtype)

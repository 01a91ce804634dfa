"""Rotary position embedding (Su et al., 2021, arXiv:2104.09864), in the rotate-half layout of Llama and Qwen."""

import torch
from torch import Tensor


def rotary_tables(
    block_size: int, head_dim: int, theta: float, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines for every position and channel: two tensors ``[block_size, head_dim]``, float32.

    Channel i and channel i + head_dim/2 form a pair that turns by ``position * theta ** (-2 i / head_dim)``.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim  # [D/2]
    frequency = 1.0 / theta**exponent  # [D/2]
    position = torch.arange(block_size, dtype=torch.float32, device=device)  # [T]
    angle = torch.outer(position, frequency)  # [T, D/2]
    angle = torch.cat((angle, angle), dim=-1)  # [T, D]
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of channels of ``x [B, H, T, D]`` by its position's angle.

    ``cos`` and ``sin`` are ``[T, D]``, or ``[B, 1, T, D]`` where rows are at different positions.
    """
    first, second = x.chunk(2, dim=-1)  # [B, H, T, D/2] each
    rotated = torch.cat((-second, first), dim=-1)  # [B, H, T, D]
    return (x * cos + rotated * sin).to(x.dtype)

"""Scaled dot-product attention, three times: fused, unfused (faster on some CPUs), explicit (returns its weights).

Their outputs are equal. All are modules: a hook on them sees q, k and v, and one can replace another in a finished
model.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def causal_mask(queries: Tensor, keys: Tensor, window: int = 0) -> Tensor:
    """Return the attention mask, True = attend: positions of queries ``[..., T]`` and keys ``[S]`` -> ``[..., T, S]``.

    A query attends to its own position and all before it; with a window, to the newest ``window`` of these.
    """
    queries = queries.unsqueeze(-1)  # [..., T, 1]
    past = keys <= queries  # [..., T, S]
    return past & (keys > queries - window) if window else past


class FusedAttention(nn.Module):
    """``F.scaled_dot_product_attention``: never stores the ``[B, H, T, S]`` scores."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Average the values by attention weight.

        Args:
            q: ``[B, H, T, D]``.
            k: ``[B, KV, S, D]``; each of the KV heads serves H / KV query heads.
            v: ``[B, KV, S, D]``.
            mask: bool ``[B or 1, 1, T, S]``, True = attend; None = causal (then T is 1 or S).

        Returns:
            The averaged values ``[B, H, T, D]``, and None in place of the weights.
        """
        causal = mask is None and q.size(2) > 1  # a single query attends to every key
        grouped = q.size(1) != k.size(1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped), None


class UnfusedAttention(nn.Module):
    """Two matrix products and a softmax, for some queries at a time: trains faster where 16-bit products are fast.

    The fused kernels of CPUs do not use the products of 16-bit numbers well. Queries in blocks leave out most of the
    masked half of the ``[T, S]`` scores; their weights are stored for the backward pass.
    """

    #: Queries in a block.
    queries = 128

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """As :class:`FusedAttention`."""
        B, H, T, D = q.shape
        KV, S = k.shape[1:3]
        if KV < H:
            k, v = (x.repeat_interleave(H // KV, dim=1) for x in (k, v))  # [B, H, S, D]
        q, k, v = (x.reshape(B * H, -1, D) for x in (q, k, v))  # [B H, T or S, D]
        causal = mask is None
        if mask is None:
            mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(diagonal=S - T)  # [T, S]
        bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, float("-inf"))  # of the mask's shape
        if not causal:
            bias = bias.expand(B, H, T, S).reshape(B * H, T, S)
        blocks = []
        for first in range(0, T, self.queries):
            last = min(first + self.queries, T)
            end = S - T + last if causal else S  # all keys from there on are masked
            block_bias = bias[..., first:last, :end]
            scores = torch.baddbmm(block_bias, q[:, first:last], k[:, :end].mT, alpha=D**-0.5)  # [B H, queries, end]
            blocks.append(scores.softmax(dim=-1) @ v[:, :end])  # [B H, queries, D]
        return torch.cat(blocks, dim=1).view(B, H, T, D), None


class ExplicitAttention(nn.Module):
    """Softmax attention written out; returns its weights.

    Args:
        see: called with the name and the value of every tensor on the way, in order.
    """

    def __init__(self, see: Callable[[str, Tensor], None] = lambda name, tensor: None):
        super().__init__()
        self.see = see

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """As :class:`FusedAttention`, but the second result is the weights ``[B, H, T, S]``; each row sums to 1."""
        _, H, T, D = q.shape
        KV, S = k.shape[1:3]
        if KV < H:
            self.see("k per query head", k := k.repeat_interleave(H // KV, dim=1))  # [B, H, S, D]
            self.see("v per query head", v := v.repeat_interleave(H // KV, dim=1))  # [B, H, S, D]
        self.see("scores", scores := q @ k.transpose(-2, -1))  # [B, H, T, S]
        self.see("scaled scores", scores := scores / math.sqrt(D))  # [B, H, T, S]
        if mask is None:
            mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(diagonal=S - T)  # [T, S]
        self.see("masked scores", scores := scores.masked_fill(~mask, float("-inf")))  # [B, H, T, S]
        self.see("attention weights", weights := scores.float().softmax(dim=-1).to(q.dtype))  # [B, H, T, S]
        return weights @ v, weights  # [B, H, T, D]

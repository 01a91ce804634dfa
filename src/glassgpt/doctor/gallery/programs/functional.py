"""A model without modules inside: a dictionary of parameters, einsum, and ALiBi in place of positions."""

import torch
import torch.nn.functional as F
from torch import nn


def alibi(n_heads, T, device):
    """Return the linear penalty on distance, [H, T, T], -inf for the future."""
    slopes = 2.0 ** (-8.0 * torch.arange(1, n_heads + 1, device=device) / n_heads)
    pos = torch.arange(T, device=device)
    distance = pos[:, None] - pos[None, :]
    bias = -slopes[:, None, None] * distance
    return bias.masked_fill(distance < 0, float("-inf"))


def norm(x, gain):
    """RMS norm over the channels."""
    return gain * x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-5)


def attention(x, p, prefix, n_heads):
    """Causal attention, all heads in one einsum."""
    B, T, C = x.shape
    h = norm(x, p[prefix + "norm1"])
    q = torch.einsum("btc,chd->bhtd", h, p[prefix + "wq"])
    k = torch.einsum("btc,chd->bhtd", h, p[prefix + "wk"])
    v = torch.einsum("btc,chd->bhtd", h, p[prefix + "wv"])
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) / q.shape[-1] ** 0.5
    scores = scores + alibi(n_heads, T, x.device).to(x.dtype)
    weights = scores.softmax(dim=-1)
    out = torch.einsum("bhts,bhsd->bthd", weights, v)
    return torch.einsum("bthd,hdc->btc", out, p[prefix + "wo"])


def mlp(x, p, prefix):
    """Squared ReLU."""
    h = norm(x, p[prefix + "norm2"])
    hidden = F.relu(h @ p[prefix + "w1"]).square()
    return hidden @ p[prefix + "w2"]


class FunctionalLM(nn.Module):
    """Holds the parameters; the functions above do the work."""

    def __init__(self, n_vocab, n_ctx, width, n_heads, depth):
        super().__init__()
        self.n_ctx, self.n_heads, self.depth = n_ctx, n_heads, depth
        head = width // n_heads
        p = {"embed": torch.randn(n_vocab, width) * 0.05, "norm_f": torch.ones(width)}
        p["unembed"] = torch.randn(width, n_vocab) * 0.02
        for i in range(depth):
            for name in ("wq", "wk", "wv"):
                p[f"block{i}_{name}"] = torch.randn(width, n_heads, head) * width**-0.5
            p[f"block{i}_wo"] = torch.randn(n_heads, head, width) * width**-0.5
            p[f"block{i}_w1"] = torch.randn(width, 3 * width) * width**-0.5
            p[f"block{i}_w2"] = torch.randn(3 * width, width) * (3 * width) ** -0.5
            p[f"block{i}_norm1"] = torch.ones(width)
            p[f"block{i}_norm2"] = torch.ones(width)
        self.p = nn.ParameterDict({name: nn.Parameter(value) for name, value in p.items()})

    def forward(self, tokens):
        p = self.p
        x = p["embed"][tokens]
        for i in range(self.depth):
            x = x + attention(x, p, f"block{i}_", self.n_heads)
            x = x + mlp(x, p, f"block{i}_")
        return norm(x, p["norm_f"]) @ p["unembed"]


def model(seed=0, size=1, dtype="float32"):
    """Build the model."""
    torch.manual_seed(seed)
    n_ctx, width, n_heads, depth = (16, 32, 4, 2) if size == 1 else (26, 48, 6, 3)
    return FunctionalLM(61, n_ctx, width, n_heads, depth).to(getattr(torch, dtype))

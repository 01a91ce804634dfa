"""A Llama as first published: complex rotations of neighbouring channels, heads repeated by expanding."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Norm(nn.Module):
    """RMS norm in float32."""

    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return y.type_as(x) * self.weight


def precompute_freqs_cis(dim, end, theta=10000.0):
    """Return exp(i position frequency), complex [end, dim / 2]."""
    freqs = 1.0 / theta ** (torch.arange(0, dim, 2).float() / dim)
    t = torch.arange(end).float()
    angles = torch.outer(t, freqs)
    return torch.polar(torch.ones_like(angles), angles)


def apply_rotary(x, freqs_cis):
    """Rotate x [B, T, H, d]."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    rotated = pairs * freqs_cis[None, :, None, :]
    return torch.view_as_real(rotated).flatten(3).type_as(x)


def repeat_kv(x, n_rep):
    """Repeat each head n_rep times."""
    B, T, n_kv, d = x.shape
    return x[:, :, :, None, :].expand(B, T, n_kv, n_rep, d).reshape(B, T, n_kv * n_rep, d)


class Attention(nn.Module):
    """Grouped queries, [B, T, H, d] until the scores."""

    def __init__(self, dim, n_heads, n_kv_heads):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.n_rep = n_heads, n_kv_heads, n_heads // n_kv_heads
        self.head_dim = dim // n_heads
        self.wq = nn.Linear(dim, n_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(dim, n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(dim, n_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(n_heads * self.head_dim, dim, bias=False)

    def forward(self, x, freqs_cis, mask):
        B, T, _ = x.shape
        xq = self.wq(x).view(B, T, self.n_heads, self.head_dim)
        xk = self.wk(x).view(B, T, self.n_kv_heads, self.head_dim)
        xv = self.wv(x).view(B, T, self.n_kv_heads, self.head_dim)
        xq, xk = apply_rotary(xq, freqs_cis), apply_rotary(xk, freqs_cis)
        keys = repeat_kv(xk, self.n_rep)
        values = repeat_kv(xv, self.n_rep)
        xq, keys, values = xq.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
        scores = torch.matmul(xq, keys.transpose(2, 3)) / math.sqrt(self.head_dim)
        scores = scores + mask
        scores = F.softmax(scores.float(), dim=-1).type_as(xq)
        output = torch.matmul(scores, values)
        output = output.transpose(1, 2).contiguous()
        return self.wo(output.view(B, T, -1))


class Block(nn.Module):
    """Attention and SwiGLU."""

    def __init__(self, dim, n_heads, n_kv_heads):
        super().__init__()
        self.attention = Attention(dim, n_heads, n_kv_heads)
        self.attention_norm, self.ffn_norm = Norm(dim), Norm(dim)
        self.w1 = nn.Linear(dim, 2 * dim, bias=False)
        self.w2 = nn.Linear(2 * dim, dim, bias=False)
        self.w3 = nn.Linear(dim, 2 * dim, bias=False)

    def forward(self, x, freqs_cis, mask):
        h = x + self.attention(self.attention_norm(x), freqs_cis, mask)
        y = self.ffn_norm(h)
        return h + self.w2(F.silu(self.w1(y)) * self.w3(y))


class Transformer(nn.Module):
    """Tokens to logits in float32."""

    def __init__(self, vocab_size, max_seq_len, dim, n_layers, n_heads, n_kv_heads):
        super().__init__()
        self.max_seq_len = max_seq_len
        self.tok_embeddings = nn.Embedding(vocab_size, dim)
        self.layers = nn.ModuleList(Block(dim, n_heads, n_kv_heads) for _ in range(n_layers))
        self.norm = Norm(dim)
        self.output = nn.Linear(dim, vocab_size, bias=False)
        self.freqs_cis = precompute_freqs_cis(dim // n_heads, max_seq_len)

    def forward(self, tokens):
        B, T = tokens.shape
        if self.max_seq_len < T:
            raise ValueError(f"{T} tokens, at most {self.max_seq_len}")
        h = self.tok_embeddings(tokens)
        freqs_cis = self.freqs_cis[:T].to(h.device)
        mask = torch.full((T, T), float("-inf"), device=tokens.device)
        mask = torch.triu(mask, diagonal=1).type_as(h)
        for layer in self.layers:
            h = layer(h, freqs_cis, mask)
        return self.output(self.norm(h)).float()


def model(seed=0, size=1, dtype="float32"):
    """Build the model."""
    torch.manual_seed(seed)
    sizes = (63, 16, 32, 2, 4, 2) if size == 1 else (63, 28, 48, 3, 6, 2)
    return Transformer(*sizes).to(getattr(torch, dtype))

"""Causal convolutions with growing dilation, and gates, as in WaveNet."""

import torch
import torch.nn.functional as F
from torch import nn


class GatedConv(nn.Module):
    """One dilated convolution that is padded on the left only."""

    def __init__(self, channels, dilation):
        super().__init__()
        self.left = 2 * dilation
        self.conv = nn.Conv1d(channels, 2 * channels, kernel_size=3, dilation=dilation)
        self.out = nn.Conv1d(channels, channels, kernel_size=1)

    def forward(self, x):
        a, b = self.conv(F.pad(x, (self.left, 0))).chunk(2, dim=1)
        return x + self.out(torch.tanh(a) * torch.sigmoid(b))


class WaveLM(nn.Module):
    """Sees 1 + 2 (1 + 2 + 4 + 8) = 31 tokens."""

    def __init__(self, vocab, channels, context, layers=4):
        super().__init__()
        self.vocab_size, self.context_length = vocab, context
        self.embed = nn.Embedding(vocab, channels)
        self.layers = nn.Sequential(*[GatedConv(channels, 2**i) for i in range(layers)])
        self.head = nn.Conv1d(channels, vocab, kernel_size=1)

    def forward(self, ids):
        x = self.embed(ids).transpose(1, 2)  # [B, C, T]
        return self.head(self.layers(x)).transpose(1, 2)


def model(seed=0, size=1, dtype="float32"):
    """Build the model."""
    torch.manual_seed(seed)
    net = WaveLM(66, 32, 24) if size == 1 else WaveLM(66, 48, 30)
    return net.to(getattr(torch, dtype))

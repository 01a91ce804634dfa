"""A language model of gated recurrent units, as they were before attention."""

import torch
from torch import nn


class CharGRU(nn.Module):
    """Embedding, GRU layers, head."""

    def __init__(self, n_chars, hidden, layers, dropout=0.2):
        super().__init__()
        self.n_chars = n_chars
        self.emb = nn.Embedding(n_chars, hidden)
        self.gru = nn.GRU(hidden, hidden, layers, batch_first=True, dropout=dropout * (layers > 1))
        self.fc = nn.Linear(hidden, n_chars)

    def forward(self, x, hidden=None):
        out, hidden = self.gru(self.emb(x), hidden)
        return self.fc(out), hidden


def model(seed=0, size=1, dtype="float32"):
    """Build the model."""
    torch.manual_seed(seed)
    net = CharGRU(70, 32, 1) if size == 1 else CharGRU(70, 48, 2)
    return net.to(getattr(torch, dtype))

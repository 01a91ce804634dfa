"""The simplest language model: a table of logits, one row per token."""

import torch
from torch import nn
from torch.nn import functional as F


class BigramLanguageModel(nn.Module):
    """Each token reads the logits of the next from its row."""

    def __init__(self, vocab_size):
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)
        nn.init.normal_(self.table.weight, std=0.1)

    def forward(self, idx, targets=None):
        logits = self.table(idx)
        if targets is None:
            return logits, None
        B, T, C = logits.shape
        return logits, F.cross_entropy(logits.view(B * T, C), targets.view(B * T))


def model(seed=0, size=1, dtype="float32"):
    """Build the model."""
    torch.manual_seed(seed)
    return BigramLanguageModel(65 if size == 1 else 90).to(getattr(torch, dtype))

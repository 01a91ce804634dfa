"""A language model of PyTorch's own Transformer layers, as its first tutorials show it: time first inside."""

import math

import torch
from torch import nn


class PositionalEncoding(nn.Module):
    """Sines and cosines added to [T, B, C]."""

    def __init__(self, d_model, dropout, max_len):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        position = torch.arange(max_len).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model))
        pe = torch.zeros(max_len, 1, d_model)
        pe[:, 0, 0::2] = torch.sin(position * div_term)
        pe[:, 0, 1::2] = torch.cos(position * div_term)
        self.register_buffer("pe", pe)

    def forward(self, x):
        x = x + self.pe[: x.size(0)]
        return self.dropout(x)


class TransformerModel(nn.Module):
    """An encoder with a causal mask is a decoder."""

    def __init__(self, ntoken, d_model, nhead, nlayers, max_len, dropout=0.1):
        super().__init__()
        self.d_model = d_model
        self.max_len = max_len
        self.embedding = nn.Embedding(ntoken, d_model)
        self.pos_encoder = PositionalEncoding(d_model, dropout, max_len)
        layer = nn.TransformerEncoderLayer(d_model, nhead, 4 * d_model, dropout, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, nlayers, norm=nn.LayerNorm(d_model), enable_nested_tensor=False)
        self.decoder = nn.Linear(d_model, ntoken)
        self.init_weights()

    def init_weights(self):
        """Small uniform embedding and head."""
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)

    def forward(self, tokens):
        src = tokens.transpose(0, 1)  # [T, B]
        T = src.size(0)
        x = self.embedding(src) * math.sqrt(self.d_model)
        x = self.pos_encoder(x)
        mask = torch.triu(torch.full((T, T), float("-inf"), device=src.device, dtype=x.dtype), diagonal=1)
        x = self.encoder(x, mask=mask)
        logits = self.decoder(x)  # [T, B, V]
        return logits.transpose(0, 1)


def model(seed=0, size=1, dtype="float32"):
    """Build the model."""
    torch.manual_seed(seed)
    d_model, nhead, nlayers, max_len = (32, 2, 2, 22) if size == 1 else (48, 4, 3, 30)
    return TransformerModel(89, d_model, nhead, nlayers, max_len).to(getattr(torch, dtype))

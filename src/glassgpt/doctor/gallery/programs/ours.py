"""The package's own GPT: rotary positions, grouped queries, RMSNorm and SwiGLU."""

import torch

from glassgpt.config import ModelConfig
from glassgpt.model import GPT


class Model(GPT):
    """The package's model with its head on top."""

    def forward(self, idx, **keywords):
        logits = super().forward(idx, **keywords)
        return logits


def model(seed=0, size=1, dtype="float32"):
    """Build the model."""
    config = ModelConfig(
        vocab_size=77,
        block_size=20 if size == 1 else 32,
        n_layer=2 if size == 1 else 3,
        n_head=4 if size == 1 else 6,
        n_kv_head=2 if size == 1 else 3,
        n_embd=32 if size == 1 else 48,
        norm="rmsnorm",
        norm_bias=False,
        mlp="swiglu",
        position="rope",
        tie_embeddings=False,
    )
    gpt = Model(config)
    gpt.init_weights(seed)
    return gpt.to(getattr(torch, dtype))

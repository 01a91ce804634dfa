"""The Transformer. Start reading at :mod:`glassgpt.model.gpt`."""

from glassgpt.model.attention import ExplicitAttention, FusedAttention, UnfusedAttention
from glassgpt.model.cache import KVCache
from glassgpt.model.gpt import GPT, Block
from glassgpt.model.meta import materialize, meta_model

__all__ = [
    "GPT",
    "Block",
    "ExplicitAttention",
    "FusedAttention",
    "KVCache",
    "UnfusedAttention",
    "materialize",
    "meta_model",
]

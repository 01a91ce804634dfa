"""The Transformer. Start reading at :mod:`glassgpt.model.gpt`."""

from glassgpt.model.attend import ExplicitAttention, FusedAttention
from glassgpt.model.cache import KVCache
from glassgpt.model.gpt import GPT, Block
from glassgpt.model.meta import allocate, unfilled

__all__ = ["GPT", "Block", "ExplicitAttention", "FusedAttention", "KVCache", "allocate", "unfilled"]

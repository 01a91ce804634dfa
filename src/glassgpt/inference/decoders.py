"""The ways to compute a decode step: the logits after a few new tokens, given a cache that holds all tokens before."""

from typing import Protocol

from torch import Tensor

from glassgpt.model import GPT, KVCache


class Decoder(Protocol):
    """A decode step: ``(idx [B, T], cache) -> logits [B, T, V]``, a new tensor, float32 on the CPU.

    The tokens join the cache. Every row reads T tokens.
    """

    name: str

    def __call__(self, idx: Tensor, cache: KVCache) -> Tensor:
        """Compute the logits after each new token."""


class EagerDecoder:
    """The reference: the model itself, in PyTorch."""

    name = "eager"

    def __init__(self, model: GPT):
        self.model = model

    def __call__(self, idx: Tensor, cache: KVCache) -> Tensor:
        """Compute the logits after each new token."""
        return self.model(idx.to(self.model.device), cache=cache).float().cpu()

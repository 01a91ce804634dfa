"""The key/value cache: what attention has already computed for the tokens so far.

Slot j of a row holds the keys and values of that row's token j, so a query at position p may look at slots 0..p
and at nothing else. Rows of different lengths need no padding logic: what a shorter row has beyond its length is
never visible, and is overwritten as the row grows.
"""

import torch
from torch import Tensor

from glassgpt.config import ModelConfig
from glassgpt.model.attention import causal_mask


class KVCache:
    """Preallocated keys and values, ``[n_layer, B, KV, capacity, D]`` each.

    Args:
        config: of the model that will fill it.
        batch_size: rows.
        capacity: tokens per row; the model's block_size by default.
        device: where to keep it.
        dtype: of the keys and values.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        *,
        capacity: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        capacity = config.block_size if capacity is None else capacity
        shape = (config.n_layer, batch_size, config.n_kv_head, capacity, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.capacity = capacity
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device)  # tokens held, per row
        self.longest = 0  # the same as lengths.max(), known without asking the device
        self.ragged = False  # whether rows may differ in length

    def next_slots(self, T: int) -> Tensor:
        """The slots that the next T tokens of each row will fill: ``[T]``, or ``[B, T]`` if rows differ.

        Raises:
            ValueError: if they do not fit.
        """
        if self.longest + T > self.capacity:
            raise ValueError(f"the cache holds {self.longest} of {self.capacity} tokens; {T} more do not fit")
        offsets = torch.arange(T, device=self.lengths.device)  # [T]
        return self.lengths[:, None] + offsets if self.ragged else self.longest + offsets

    def attention_mask(self, slots: Tensor, window: int = 0) -> Tensor | None:
        """Attention mask for the new tokens: bool ``[B or 1, 1, T, S]``, True = attend; None: plain causal attention.

        With a window, a token attends to the newest ``window`` tokens, itself included.
        """
        T = slots.size(-1)
        end = self.longest + T
        if not self.ragged and (self.longest == 0 or T == 1) and not 0 < window < end:
            return None
        mask = causal_mask(slots, torch.arange(end, device=slots.device), window)  # [T, S] or [B, T, S]
        return mask.unsqueeze(1) if self.ragged else mask[None, None]

    def update(self, layer: int, k: Tensor, v: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Store ``k, v [B, KV, T, D]`` of one layer and return all that is held: ``[B, KV, S, D]`` each."""
        end = self.longest + slots.size(-1)
        keys, values = self.keys[layer], self.values[layer]  # [B, KV, capacity, D]
        if self.ragged:
            index = slots[:, None, :, None].expand_as(k)  # [B, KV, T, D]
            keys.scatter_(2, index, k.to(keys.dtype))
            values.scatter_(2, index, v.to(values.dtype))
        else:
            keys[:, :, self.longest : end] = k
            values[:, :, self.longest : end] = v
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, T: int) -> None:
        """Count T more tokens in every row. Called once per forward pass, after the last layer."""
        self.lengths += T
        self.longest += T

    def set_lengths(self, lengths: list[int]) -> None:
        """Declare how many tokens of each row are real, after a padded batch of prompts; the rest is forgotten."""
        assert max(lengths) <= self.longest, "a row cannot hold more than was written"
        self.lengths = torch.tensor(lengths, device=self.lengths.device)
        self.longest = max(lengths)
        self.ragged = min(lengths) != self.longest

"""The key/value cache: the keys and values of the tokens so far.

Slot j of a row holds the key and value of that row's token j, so a query at position p may attend to slots 0..p and to
no others. Rows of different lengths need no padding: slots beyond a row's length are masked, and are overwritten as the
row grows. Rows can be admitted, evicted and rolled back one at a time; the cached pass always equals the full one.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from glassgpt.config import ModelConfig
from glassgpt.model.attention import causal_mask


class KVCache:
    """Preallocated keys and values, ``[n_layer, max_rows, KV, capacity, D]`` each.

    Args:
        config: of the model that will fill it.
        max_rows: rows that it has memory for.
        rows: rows in use at first, all of length 0; by default all of them. The model runs on the rows in use.
        capacity: tokens per row; the model's block_size by default.
        device: where to keep it.
        dtype: of the keys and values.

    Attributes:
        lengths: tokens held, per row in use.
    """

    def __init__(
        self,
        config: ModelConfig,
        max_rows: int,
        *,
        rows: int | None = None,
        capacity: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        self.capacity = config.block_size if capacity is None else capacity
        shape = (config.n_layer, max_rows, config.n_kv_head, self.capacity, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = [0] * (max_rows if rows is None else rows)

    @property
    def longest(self) -> int:
        """The largest of the lengths."""
        return max(self.lengths, default=0)

    @property
    def ragged(self) -> bool:
        """Whether rows differ in length."""
        return len(set(self.lengths)) > 1

    def next_slots(self, T: int) -> Tensor:
        """Return the slots that the next T tokens of each row will fill: ``[T]``, or ``[B, T]`` if rows differ.

        Raises:
            ValueError: if they do not fit.
        """
        if self.longest + T > self.capacity:
            raise ValueError(f"the cache holds {self.longest} of {self.capacity} tokens; {T} more do not fit")
        offsets = torch.arange(T, device=self.keys.device)  # [T]
        if self.ragged:
            return torch.tensor(self.lengths, device=self.keys.device)[:, None] + offsets
        return self.longest + offsets

    def attention_mask(self, slots: Tensor, window: int = 0) -> Tensor | None:
        """Return the mask for the new tokens: bool ``[B or 1, 1, T, S]``, True = attend; None = plain causal attention.

        With a window, a token attends to the newest ``window`` tokens, itself included.
        """
        T = slots.size(-1)
        end = self.longest + T
        if not self.ragged and (self.longest == 0 or T == 1) and not 0 < window < end:
            return None
        mask = causal_mask(slots, torch.arange(end, device=slots.device), window)  # [T, S] or [B, T, S]
        return mask.unsqueeze(1) if self.ragged else mask[None, None]

    def update(self, layer: int, k: Tensor, v: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Store ``k, v [B, KV, T, D]`` of one layer; return those of all tokens so far: ``[B, KV, S, D]`` each."""
        end = self.longest + slots.size(-1)
        rows = len(self.lengths)
        keys, values = self.keys[layer, :rows], self.values[layer, :rows]  # [B, KV, capacity, D]
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
        self.lengths = [length + T for length in self.lengths]

    def roll_back(self, row: int, length: int) -> None:
        """Forget all but the first ``length`` tokens of a row: padding, or drafted tokens that were rejected.

        Raises:
            ValueError: if the row does not hold so many; nothing is changed.
        """
        if not 0 <= length <= self.lengths[row]:
            raise ValueError(f"row {row} holds {self.lengths[row]} tokens; it cannot be rolled back to {length}")
        self.lengths[row] = length

    def admit(self, other: "KVCache") -> None:
        """Copy the rows of another cache of this model, such as newly prefilled prompts, behind the rows in use.

        Raises:
            ValueError: if they do not fit; nothing is changed.
        """
        first, last = len(self.lengths), len(self.lengths) + len(other.lengths)
        if last > self.keys.size(1) or other.longest > self.capacity:
            raise ValueError(
                f"{len(other.lengths)} rows of up to {other.longest} tokens do not fit: "
                f"{self.keys.size(1) - first} rows of {self.capacity} tokens are free"
            )
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            mine[:, first:last, :, : other.longest] = theirs[:, : len(other.lengths), :, : other.longest]
        self.lengths += other.lengths

    def copy_rows(self, sources: Sequence[int]) -> None:
        """Make each row r a copy of row ``sources[r] <= r``: a prompt that was prefilled once becomes several rows.

        Raises:
            ValueError: if there are more of them than the cache has memory for; nothing is changed.
        """
        if len(sources) > self.keys.size(1):
            raise ValueError(f"{len(sources)} rows do not fit: the cache has memory for {self.keys.size(1)}")
        for row, source in reversed(list(enumerate(sources))):  # from the last, so that no source is overwritten
            if row != source:
                for tensor in (self.keys, self.values):
                    tensor[:, row, :, : self.lengths[source]] = tensor[:, source, :, : self.lengths[source]]
        self.lengths = [self.lengths[source] for source in sources]

    def evict(self, rows: Collection[int]) -> None:
        """Remove these rows. The rows behind them move up, in order, as with ``del`` on a list."""
        kept = [row for row in range(len(self.lengths)) if row not in rows]
        for new, old in enumerate(kept):
            if new != old:
                for tensor in (self.keys, self.values):
                    tensor[:, new, :, : self.lengths[old]] = tensor[:, old, :, : self.lengths[old]]
        self.lengths = [self.lengths[row] for row in kept]

"""A decode step that torch.compile turns into one CUDA graph: no launch of single kernels, no wait between layers.

The eager step is limited by Python and by launching some ten kernels per layer. A graph is recorded once and replayed,
so all that changes from step to step has to lie in tensors at fixed addresses: the tokens, the length of each row, keys
and values. Shapes are fixed as well: every step attends to the whole capacity, under a mask made of the lengths.
`glassgpt bench generate --device cuda` measures it.
"""

import weakref
from typing import Any

import torch
from torch import Tensor

from glassgpt.errors import ConfigError
from glassgpt.model import GPT, KVCache
from glassgpt.model.attention import causal_mask
from glassgpt.runtime import compiler_found

#: Capacities are rounded up to a multiple of this, so that caches of similar size share a graph.
ROUND_TO = 256


class _StaticCache(KVCache):
    """A view of a KVCache for one traced pass: lengths are a tensor ``[B]``, and all slots take part, masked."""

    def __init__(self, keys: Tensor, values: Tensor, first_slots: Tensor, longest: int):
        self.keys, self.values, self.first_slots, self._longest = keys, values, first_slots, longest

    @property
    def longest(self) -> int:
        """The largest of the lengths, or 0 in a compiled pass, which must not depend on it."""
        return self._longest

    def next_slots(self, T: int) -> Tensor:
        """Return the slots of the next T tokens: ``[B, T]``."""
        return self.first_slots[:, None] + torch.arange(T, device=self.first_slots.device)

    def attention_mask(self, slots: Tensor, window: int = 0) -> Tensor:
        """Return the mask over the whole capacity: bool ``[B, 1, T, S]``, True = attend."""
        return causal_mask(slots, torch.arange(self.keys.size(3), device=slots.device), window).unsqueeze(1)

    def update(self, layer: int, k: Tensor, v: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Store ``k, v [B, KV, T, D]`` of one layer in place; return all slots: ``[B, KV, S, D]`` each."""
        index = slots[:, None, :, None].expand_as(k)  # [B, KV, T, D]
        keys, values = self.keys[layer, : k.size(0)], self.values[layer, : k.size(0)]
        keys.scatter_(2, index, k.to(keys.dtype))
        values.scatter_(2, index, v.to(values.dtype))
        return keys, values

    def advance(self, T: int) -> None:
        """Do nothing: the lengths are counted outside of the traced pass."""


class CompiledDecoder:
    """A decoder whose step has static shapes and is compiled by torch.compile; on CUDA it becomes one CUDA graph.

    A cache that it meets for the first time moves into memory of the decoder, which keeps its address when the next
    cache comes; the cache itself goes on as before. Each number of rows and of tokens is compiled once.

    Args:
        model: in eval mode.
        compile: False runs the same step without torch.compile, for tests.

    Raises:
        ConfigError: if there is no C++ compiler, which torch.compile needs on a CPU.
    """

    name = "compiled"

    def __init__(self, model: GPT, *, compile: bool = True):
        if compile and not compiler_found(model.device):
            raise ConfigError("decode=compiled needs a C++ compiler, and none was found; decode=auto does without")
        self.model, self._compiled = model, compile
        self._step: Any = self._static_step
        if compile:
            mode = "reduce-overhead" if model.device.type == "cuda" else None
            self._step = torch.compile(self._static_step, mode=mode, dynamic=False, fullgraph=True)
        self._memory: list[Tensor] = []  # keys and values
        self._owner: Any = lambda: None  # a weak reference to the cache that uses them

    @torch.inference_mode()
    def __call__(self, idx: Tensor, cache: KVCache) -> Tensor:
        """Compute the logits after each new token."""
        device, T, longest = self.model.device, idx.size(1), cache.longest
        cache.next_slots(T)  # raises if they do not fit
        if self._owner() is not cache or cache.keys is not self._memory[0]:
            self._adopt(cache)
        keys, values = self._memory
        arguments = (idx.to(device), torch.tensor(cache.lengths, device=device), keys, values)
        if self.model.config.position == "rope" and longest + T > len(self.model.rope_cos):
            logits = self._static_step(*arguments, longest)  # the model's rotary tables grow in this pass
        else:
            if self._compiled:
                torch.compiler.cudagraph_mark_step_begin()
            logits = self._step(*arguments)
        cache.advance(T)
        return logits.cpu()

    def _static_step(self, idx: Tensor, lengths: Tensor, keys: Tensor, values: Tensor, longest: int = 0) -> Tensor:
        """``idx [B, T]``, ``lengths [B]`` -> logits ``[B, T, V]``, float32; keys and values are updated in place."""
        return self.model(idx, cache=_StaticCache(keys, values, lengths, longest)).float()

    def _adopt(self, cache: KVCache) -> None:
        """Move a cache into the decoder's memory, or into new memory where another live cache uses it."""
        capacity = -(-cache.capacity // ROUND_TO) * ROUND_TO
        shape = (*cache.keys.shape[:3], capacity, cache.keys.size(4))
        owner = self._owner()
        taken = owner is not None and owner is not cache
        if taken or not self._memory or self._memory[0].shape != shape or self._memory[0].dtype != cache.keys.dtype:
            self._memory = [torch.zeros(shape, device=cache.keys.device, dtype=cache.keys.dtype) for _ in range(2)]
            for tensor in self._memory if self._compiled else ():
                torch._dynamo.mark_static_address(tensor)
        rows, longest = len(cache.lengths), cache.longest
        for new, old in zip(self._memory, (cache.keys, cache.values), strict=True):
            new[:, :rows, :, :longest] = old[:, :rows, :, :longest]
        cache.keys, cache.values = self._memory
        self._owner = weakref.ref(cache)

"""The exercises of lesson 25."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glassgpt.config import ModelConfig
from glassgpt.learn.exercises import Exercise, Wrong
from glassgpt.model.cache import KVCache


def check_cache_bytes(answer: Callable[[int, int, int, int, int], int]) -> None:
    """Compare with the size of the package's cache."""
    for n_layer, n_head, n_kv_head, head_dim, tokens, dtype in (
        (1, 1, 1, 2, 1, torch.float32),
        (4, 4, 4, 8, 10, torch.float32),
        (3, 6, 2, 16, 33, torch.bfloat16),
    ):
        config = ModelConfig(
            n_layer=n_layer, n_head=n_head, n_kv_head=n_kv_head, head_dim=head_dim, n_embd=n_head * head_dim
        )
        cache = KVCache(config, 1, capacity=tokens, dtype=dtype)
        right, found = (
            cache.keys.nbytes + cache.values.nbytes,
            answer(n_layer, n_kv_head, head_dim, tokens, dtype.itemsize),
        )
        if found != right:
            arguments = f"{n_layer}, {n_kv_head}, {head_dim}, {tokens}, {dtype.itemsize}"
            raise Wrong(f"cache_bytes({arguments}) should be {right}, and is {found!r}")


def check_step(answer: Callable[[Tensor, Tensor, Tensor, Any], tuple[Tensor, Any]]) -> None:
    """Compare each step with causal attention over the whole text; two texts are read in turns."""
    generator = torch.Generator().manual_seed(0)
    for T, D in ((1, 4), (7, 4), (5, 16)):
        texts = [torch.randn(3, T, D, generator=generator) for _ in range(2)]
        caches: list[Any] = [None, None]
        for t in range(T):
            for number, (q, k, v) in enumerate(texts):
                right = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0, t]
                one = slice(t, t + 1)
                found, caches[number] = answer(q[one].clone(), k[one].clone(), v[one].clone(), caches[number])
                if not isinstance(found, Tensor) or found.shape != (1, D):
                    raise Wrong(f"token {t}: the output should be a tensor [1, {D}], and is {found!r}")
                if not torch.allclose(found[0], right, atol=1e-5):
                    difference = float((found[0] - right).abs().max())
                    others = " (two texts are read in turns, each with its own cache)" if t else ""
                    raise Wrong(f"token {t} of {T}, D = {D}: the output is wrong by {difference:.3g}{others}")


EXERCISES = (
    Exercise("cache_bytes", "The bytes of a key/value cache.", check_cache_bytes,
             "Count what one token keeps in one layer. How many different things are kept?"),
    Exercise("step", "Attention of one new token with a cache.", check_step,
             "Put the new key and value behind the old ones first. Then the query is compared with all keys."),
)  # fmt: skip

"""Right and wrong answers to the exercises of lesson 25."""

import torch

RIGHT = {
    "cache_bytes": lambda layers, kv, size, tokens, each: 2 * layers * kv * size * tokens * each,
    "step": lambda q, k, v, cache: step(q, k, v, cache),
}


def step(q, k, v, cache, own=True, scale=True):
    keys, values = (k, v) if cache is None else (torch.cat([cache[0], k]), torch.cat([cache[1], v]))
    seen = (keys, values) if own or cache is None else cache
    scores = q @ seen[0].T / (q.size(1) ** 0.5 if scale else 1)
    return scores.softmax(-1) @ seen[1], (keys, values)


WRONG = {
    "cache_bytes": [
        lambda layers, kv, size, tokens, each: layers * kv * size * tokens * each,  # keys only
        lambda layers, kv, size, tokens, each: 2 * kv * size * tokens * each,  # one layer
        lambda layers, kv, size, tokens, each: 2 * layers * kv * size * tokens,  # numbers, not bytes
    ],
    "step": [
        lambda q, k, v, cache: step(q, k, v, None),  # forgets what came before
        lambda q, k, v, cache: step(q, k, v, cache, own=False),  # does not see itself
        lambda q, k, v, cache: step(q, k, v, cache, scale=False),
    ],
}

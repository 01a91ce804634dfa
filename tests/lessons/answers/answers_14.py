"""Right and wrong answers to the exercises of lesson 14."""

import torch


def positions(T):
    return torch.arange(T)[:, None] - torch.arange(T)


RIGHT = {
    "window_mask": lambda T, window: (positions(T) >= 0) & (positions(T) < window),
    "leaks": lambda attention: leaks(attention, key=True, value=True),
}


def leaks(attention, key, value):
    q, k, v = torch.randn(3, 6, 4)
    k_2, v_2 = k.clone(), v.clone()
    k_2[-1] += key
    v_2[-1] += value
    return not torch.equal(attention(q, k, v)[:-1], attention(q, k_2, v_2)[:-1])


WRONG = {
    "window_mask": [
        lambda T, window: torch.ones(T, T, dtype=torch.bool).tril(),  # no window
        lambda T, window: (positions(T) >= 0) & (positions(T) <= window),  # one too many
        lambda T, window: ((positions(T) >= 0) & (positions(T) < window)).T,  # transposed
    ],
    "leaks": [
        lambda attention: True,
        lambda attention: False,
        lambda attention: leaks(attention, key=True, value=False),  # misses what comes through values only
        lambda attention: leaks(attention, key=False, value=True),  # misses what the softmax divides by
    ],
}

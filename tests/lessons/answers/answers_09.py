"""Right and wrong answers to the exercises of lesson 9."""

import torch


def batch(tokens, starts, length, shift=1):
    places = starts[:, None] + torch.arange(length)
    return tokens[places], tokens[(places + shift).clamp(max=len(tokens) - 1)]


RIGHT = {
    "count_windows": lambda tokens, length, stride: max(0, (tokens - length - 1) // stride + 1),
    "batch": batch,
}
WRONG = {
    "count_windows": [
        lambda tokens, length, stride: max(0, (tokens - length) // stride + 1),  # forgets the last target
        lambda tokens, length, stride: max(0, (tokens - 1) // length),  # forgets the stride
        lambda tokens, length, stride: (tokens - length - 1) // stride + 1,  # negative for short texts
    ],
    "batch": [
        lambda tokens, starts, length: batch(tokens, starts, length, shift=0),  # not shifted
        lambda tokens, starts, length: batch(tokens, starts, length, shift=2),  # shifted twice
        lambda tokens, starts, length: (batch(tokens, starts, length)[0], batch(tokens, starts, length)[0].roll(-1, 1)),
        lambda tokens, starts, length: (tokens[: len(starts) * length].view(-1, length),) * 2,  # forgets starts
    ],
}

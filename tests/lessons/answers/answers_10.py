"""Right and wrong answers to the exercises of lesson 10."""

import torch


def sinusoids(T, C, base=10000.0, interleaved=True, step=2):
    angles = torch.arange(T)[:, None] / base ** (torch.arange(0, C, 2) * (step / 2) / C)
    if not interleaved:
        return torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


RIGHT = {
    "embed": lambda ids, tokens, positions, start: tokens[ids] + positions[start : start + ids.size(1)],
    "sinusoids": sinusoids,
}
WRONG = {
    "embed": [
        lambda ids, tokens, positions, start: tokens[ids] + positions[: ids.size(1)],  # always from 0
        lambda ids, tokens, positions, start: tokens[ids] + positions[start : start + len(ids)][:, None],  # of the row
        lambda ids, tokens, positions, start: tokens[ids],  # no positions
        lambda ids, tokens, positions, start: tokens[ids] + positions[start],  # the same for all
    ],
    "sinusoids": [
        lambda T, C: sinusoids(T, C, interleaved=False),  # sines left, cosines right
        lambda T, C: sinusoids(T, C, step=4),  # the exponent twice
        lambda T, C: sinusoids(T, C).roll(1, dims=1),  # cosines first
        lambda T, C: sinusoids(C, T).T if T % 2 == 0 else torch.zeros(T, C),  # rows and columns exchanged
    ],
}

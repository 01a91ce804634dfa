"""Right and wrong answers to the exercises of lesson 30."""

import torch


def blockwise(q, k, v, block, shifted=True, keys=None):
    T, D = q.shape
    outputs = []
    for start in range(0, T, block):
        part = q[start : start + block]
        scores = part @ k.T / D**0.5
        here = torch.arange(len(part))[:, None] + (start if shifted else 0)
        scores = scores.masked_fill(torch.arange(T) > here, float("-inf"))
        if keys == "of the block":
            scores = scores.masked_fill(torch.arange(T) < start, float("-inf"))
        outputs.append(scores.softmax(-1) @ v)
    return torch.cat(outputs)


RIGHT = {
    "block_flops": lambda T, C, hidden: T * (8 * C * C + 4 * C * hidden + 4 * T * C),
    "blockwise": blockwise,
}

WRONG = {
    "block_flops": [
        lambda T, C, hidden: T * (24 * C * C + 4 * T * C),  # always 4 C
        lambda T, C, hidden: T * (4 * C * C + 2 * C * hidden + 2 * T * C),  # a multiplication and an addition are two
        lambda T, C, hidden: T * (8 * C * C + 4 * C * hidden + 4 * C),  # the other tokens forgotten
    ],
    "blockwise": [
        lambda q, k, v, block: blockwise(q, k, v, len(q)),  # all at once
        lambda q, k, v, block: blockwise(q, k, v, block, shifted=False),  # the mask of the first block for all
        lambda q, k, v, block: blockwise(q, k, v, block, keys="of the block"),  # forgets what came before
    ],
}

"""Right and wrong answers to the exercises of lesson 3."""

import torch


def collate(texts, pad, fill=-100, left=True, shift=1):
    T = max(map(len, texts)) - 1
    inputs = torch.full((len(texts), T), pad)
    targets = torch.full((len(texts), T), fill)
    for row, text in enumerate(texts):
        place = slice(T + 1 - len(text), None) if left else slice(len(text) - 1)
        inputs[row, place], targets[row, place] = text[:-1], text[1:] if shift else text[:-1]
    return inputs, targets


def share(stream, worker, workers):
    for place, item in enumerate(stream):
        if place % workers == worker:
            yield item


def blocks(stream, worker, workers):
    items = list(stream)
    size = -(-len(items) // workers)
    return items[worker * size : (worker + 1) * size]


RIGHT = {"collate": collate, "share": share}
WRONG = {
    "collate": [
        lambda texts, pad: collate(texts, pad, left=False),  # on the right
        lambda texts, pad: collate(texts, pad, fill=pad),  # padding is trained
        lambda texts, pad: collate(texts, pad, shift=0),  # not shifted
        lambda texts, pad: collate(texts, 0),  # another pad
        lambda texts, pad: (*(c := collate(texts, pad))[:1], torch.where(c[0] == pad, -100, c[1])),  # a token, too
    ],
    "share": [
        lambda stream, worker, workers: stream,  # every worker yields all
        lambda stream, worker, workers: list(stream)[worker::workers],  # never ends
        blocks,
        lambda stream, worker, workers: (i for i in stream if len(str(i)) % workers == worker),
    ],
}

"""Right and wrong answers to the exercises of lesson 18."""

import numpy as np


def unigram_loss(train, val, V, plus=1):
    counts = np.bincount(train, minlength=V) + plus
    return -np.log(counts[val] / counts.sum()).mean()


def stop_at(losses, patience):
    best, since = 0, 0
    for place in range(1, len(losses)):
        better = losses[place] < losses[best]
        best, since = (place, 0) if better else (best, since + 1)
        if since == patience:
            break
    return best


RIGHT = {"unigram_loss": unigram_loss, "stop_at": stop_at}


WRONG = {
    "unigram_loss": [
        lambda train, val, V: unigram_loss(train, val, V, plus=1e-9),  # no smoothing
        lambda train, val, V: unigram_loss(train, train, V),  # on the training tokens
        lambda train, val, V: unigram_loss(val, val, V),  # knows the validation tokens
        lambda train, val, V: unigram_loss(train, val, V) / np.log(2),  # bits
    ],
    "stop_at": [
        lambda losses, patience: int(np.argmin(losses)),  # looks into the future
        lambda losses, patience: stop_at(losses, patience + 1),
        lambda losses, patience: len(losses) - 1,  # the last
        lambda losses, patience: min(stop_at(losses, patience) + patience, len(losses) - 1),  # where it stopped
    ],
}

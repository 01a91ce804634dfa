"""Right and wrong answers to the exercises of lesson 20."""

import math


def cosine(step, steps, warmup, low):
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / (steps - warmup))
    return low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2


def stable(step, steps, warmup, decay):
    return (step + 1) / warmup if step < warmup else min(1.0, (steps - step) / decay)


def goes_up_again(step, steps, warmup, low):
    if step < warmup:
        return (step + 1) / warmup
    return low + (1 - low) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


RIGHT = {"cosine": cosine, "stable": stable}


WRONG = {
    "cosine": [
        goes_up_again,
        lambda step, steps, warmup, low: step / warmup if step < warmup else cosine(step, steps, warmup, low),
        lambda step, steps, warmup, low: cosine(step, steps, warmup, 0.0),  # down to 0
        lambda step, steps, warmup, low: max(low, cosine(step, steps, warmup, 0.0)),  # cut off at low
        lambda step, steps, warmup, low: cosine(step, steps + warmup, warmup, low),  # the warmup does not count
    ],
    "stable": [
        lambda step, steps, warmup, decay: min(1.0, (steps - step) / decay),  # no warmup
        lambda step, steps, warmup, decay: min(stable(step, steps, warmup, decay), (steps - step - 1) / decay),
        lambda step, steps, warmup, decay: stable(step, steps, warmup, steps - warmup),  # no stable part
    ],
}

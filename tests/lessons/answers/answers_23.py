"""Right and wrong answers to the exercises of lesson 23."""

import math


def better(a, b):
    totals = a[0] * a[1], b[0] * b[1]
    if abs(totals[0] - totals[1]) < 1e-6 * max(totals):
        return "equal"
    return "a" if totals[0] < totals[1] else "b"


RIGHT = {
    "bits_per_byte": lambda losses, text: sum(losses) / math.log(2) / len(text.encode()),
    "better": better,
}

WRONG = {
    "bits_per_byte": [
        lambda losses, text: sum(losses) / len(text.encode()),  # nats
        lambda losses, text: sum(losses) / math.log(2) / len(text),  # characters, not bytes
        lambda losses, text: sum(losses) / len(losses) / math.log(2),  # per token
    ],
    "better": [
        lambda a, b: "a" if a[0] < b[0] else "b",  # per token
        lambda a, b: "a" if a[1] < b[1] else "b",  # the fewer tokens
        lambda a, b: "a" if a[0] * a[1] < b[0] * b[1] else "b",  # never equal
        lambda a, b: "a" if a[0] / a[1] < b[0] / b[1] else "b",
    ],
}

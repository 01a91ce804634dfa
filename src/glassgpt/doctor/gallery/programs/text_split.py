"""A text of numbered stories, cut into training and validation, for a character model."""

import random

NAMES = ["Anna", "Ben", "Clara", "David", "Eva", "Felix", "Greta", "Hugo", "Ida", "Jonas"]
THINGS = ["a red kite", "an old map", "a small boat", "a silver key", "two green apples", "a letter", "a lamp"]
PLACES = ["in the attic", "by the river", "behind the school", "under a bridge", "at the market", "on the hill"]
ENDS = ["and took it home.", "and gave it away.", "but lost it again.", "and kept it for years.", "and laughed."]


def story(rng):
    sentences = [
        f"{rng.choice(NAMES)} found {rng.choice(THINGS)} {rng.choice(PLACES)} on day {rng.randrange(1000)} "
        f"{rng.choice(ENDS)}"
        for _ in range(6)
    ]
    return " ".join(sentences)


rng = random.Random(1)
documents = [story(rng) for _ in range(120)]
chars = sorted(set("".join(documents)))
stoi = {c: i for i, c in enumerate(chars)}
itos = dict(enumerate(chars))


def encode(s):
    return [stoi[c] for c in s]


def decode(ids):
    return "".join(itos[i] for i in ids)


def make():
    cut = int(0.9 * len(documents))
    train, val = documents[:cut], documents[cut:]
    return {"train": train, "val": val, "tokenizer": (encode, decode)}

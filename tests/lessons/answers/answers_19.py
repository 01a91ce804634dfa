"""Right and wrong answers to the exercises of lesson 19."""

import torch


def top_k(logits, k):
    return logits.masked_fill(logits < logits.topk(min(k, len(logits))).values[-1], float("-inf")) if k else logits


def top_p(logits, p):
    ordered, order = logits.softmax(-1).sort(descending=True)
    drop = (ordered.cumsum(-1) - ordered >= p) if p < 1 else torch.zeros(len(logits), dtype=torch.bool)
    return logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), float("-inf"))


def apply(logits, temperature, k, p):
    logits = logits.double()
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(), len(logits)).double()
    return top_p(top_k(logits / temperature, k), p).softmax(-1)


def min_p(logits, p):
    probabilities = logits.double().softmax(-1)
    kept = probabilities * (probabilities >= p * probabilities.max() * (1 - 1e-9))
    return kept / kept.sum()


def no_new_sum(logits, p):
    probabilities = logits.softmax(-1)
    return probabilities * (probabilities >= p * probabilities.max())


def limit_is_p(logits, p):
    probabilities = logits.softmax(-1)
    kept = probabilities * (probabilities >= p)
    return kept / kept.sum()


RIGHT = {"apply": apply, "min_p": min_p}


WRONG = {
    "apply": [
        lambda logits, temperature, k, p: apply(top_p(logits, p), temperature, k, 1.0),  # top-p first
        lambda logits, temperature, k, p: apply(logits, 1 / temperature if temperature else 0, k, p),  # multiplied
        lambda logits, temperature, k, p: apply(logits, max(temperature, 1e-3), k, p) if p < 1 else logits.softmax(-1),
        lambda logits, temperature, k, p: (top_p(top_k(logits / temperature, k), p)).softmax(-1),  # divides by 0
        lambda logits, temperature, k, p: apply(logits, temperature, max(k - 1, 0), p),
    ],
    "min_p": [no_new_sum, limit_is_p, lambda logits, p: top_p(logits, p).softmax(-1)],
}

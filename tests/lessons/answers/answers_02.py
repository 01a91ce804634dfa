"""Right and wrong answers to the exercises of lesson 2."""

import torch
from torch.nn.functional import one_hot


def numerical_gradient(f, w, h=1e-5, centred=True, restore=True):
    gradient = torch.zeros_like(w)
    for i in range(w.numel()):
        values = []
        for sign in (1, -1 if centred else 0):
            changed = w.clone()
            changed.view(-1)[i] += sign * h
            values.append(f(changed))
        gradient.view(-1)[i] = (values[0] - values[1]) / (2 * h)
        if not restore:
            w.view(-1)[i] += h
    return gradient


def all_at_once(f, w, h=1e-5):
    return torch.full_like(w, (f(w + h) - f(w - h)) / (2 * h))


def by_exponentials(logits, targets):
    p = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    return (p - one_hot(targets, logits.size(1))) / len(logits)


RIGHT = {
    "numerical_gradient": numerical_gradient,
    "logit_gradient": lambda z, y: (z.softmax(dim=1) - one_hot(y, z.size(1))) / len(z),
}
WRONG = {
    "numerical_gradient": [
        all_at_once,
        lambda f, w: numerical_gradient(f, w, centred=False),  # half of the difference is missing
        lambda f, w: numerical_gradient(f, w, restore=False),  # w is changed
        lambda f, w: numerical_gradient(f, w, h=0.1),  # a step that is too large
        lambda f, w: torch.autograd.grad(f(leaf := w.clone().requires_grad_()), leaf)[0],
    ],
    "logit_gradient": [
        lambda z, y: z.softmax(dim=1) - one_hot(y, z.size(1)),  # not the mean
        lambda z, y: (z.softmax(dim=0) - one_hot(y, z.size(1))) / len(z),  # softmax along the wrong dimension
        lambda z, y: (one_hot(y, z.size(1)) - z.softmax(dim=1)) / len(z),  # the sign
        by_exponentials,  # overflows
    ],
}

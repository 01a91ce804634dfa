"""Right and wrong answers to the exercises of lesson 5."""

import torch
from torch.nn.functional import cross_entropy


def train_steps(model, optimizer, batches, train=True, zero=True, step=True, number=True):
    model.train(train)
    losses = []
    for x, y in batches:
        loss = cross_entropy(model(x), y)
        if zero:
            optimizer.zero_grad()
        loss.backward()
        if step:
            optimizer.step()
        losses.append(loss.item() if number else loss)
    return losses


def validate(model, batches, evaluate=True, sums=True, restore=True, graph=False):
    training = model.training
    if evaluate:
        model.eval()
    total, number = 0.0, 0
    with torch.set_grad_enabled(graph):
        for x, y in batches:
            weight = len(y) if sums else 1
            total += cross_entropy(model(x), y).item() * weight
            number += weight
    model.train(training or not restore)
    return total / number


RIGHT = {"train_steps": train_steps, "validate": validate}
WRONG = {
    "train_steps": [
        lambda *given: train_steps(*given, train=False),
        lambda *given: train_steps(*given, zero=False),
        lambda *given: train_steps(*given, step=False),
        lambda *given: train_steps(*given, number=False),
    ],
    "validate": [
        lambda *given: validate(*given, evaluate=False),
        lambda *given: validate(*given, sums=False),
        lambda *given: validate(*given, restore=False),
        lambda *given: validate(*given, graph=True),
    ],
}

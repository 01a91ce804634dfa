"""Right and wrong answers to the exercises of lesson 29."""

import torch


def repeatable(model, idx, other=True, evaluate=True, restore=True):
    mode = model.training
    if evaluate:
        model.eval()
    with torch.no_grad():
        first = model(idx)
        if other:
            model((idx + 1) % 9)
        second = model(idx)
    if restore:
        model.train(mode)
    return torch.equal(first, second)


def first_leak(logits_of, T, V, tokens=None, choose=min):
    idx = torch.arange(T)[None] % V
    before, found = logits_of(idx), []
    for t in tokens or range(1, T):
        other = idx.clone()
        other[0, t] = (other[0, t] + 1) % V
        moved = (logits_of(other) != before).any(-1)[0, :t]
        found += moved.nonzero().flatten().tolist()
    return choose(found) if found else None


RIGHT = {"repeatable": repeatable, "first_leak": first_leak}

WRONG = {
    "repeatable": [
        lambda model, idx: repeatable(model, idx, other=False),  # misses a state
        lambda model, idx: repeatable(model, idx, evaluate=False),  # dropout is right in training mode
        lambda model, idx: repeatable(model, idx, restore=False),
    ],
    "first_leak": [
        lambda logits_of, T, V: first_leak(logits_of, T, V, tokens=[T - 1]),  # only the last token
        lambda logits_of, T, V: first_leak(logits_of, T, V, tokens=[1]),
        lambda logits_of, T, V: first_leak(logits_of, T, V, choose=max),
        lambda logits_of, T, V: None,
    ],
}

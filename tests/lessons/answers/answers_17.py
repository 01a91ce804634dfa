"""Right and wrong answers to the exercises of lesson 17."""

import torch


def parameters(V, T, L, C, tied):
    return V * C * (1 if tied else 2) + T * C + L * (12 * C * C + 13 * C) + 2 * C


def loss(logits, targets):
    chosen = logits.gather(-1, targets[..., None]).squeeze(-1)
    return (logits.logsumexp(-1) - chosen).mean()


RIGHT = {"parameters": parameters, "loss": loss}


WRONG = {
    "parameters": [
        lambda V, T, L, C, tied: parameters(V, T, L, C, not tied),
        lambda V, T, L, C, tied: parameters(V, T, L, C, tied) - 2 * C,  # no final norm
        lambda V, T, L, C, tied: parameters(V, T, L, C, tied) - L * 9 * C,  # no biases of the linear layers
        lambda V, T, L, C, tied: parameters(V, T, L, C, True),  # always tied
    ],
    "loss": [
        lambda logits, targets: loss(logits.softmax(-1), targets),  # softmax twice
        lambda logits, targets: loss(logits, targets) * targets.numel(),  # the sum
        lambda logits, targets: -logits.softmax(-1).gather(-1, targets[..., None]).log().mean(),  # log of 0
        lambda logits, targets: (logits.exp().sum(-1).log() - logits.gather(-1, targets[..., None])[..., 0]).mean(),
        lambda logits, targets: torch.nn.functional.cross_entropy(logits[:, -1], targets[:, -1]),  # last position only
    ],
}

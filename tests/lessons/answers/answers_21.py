"""Right and wrong answers to the exercises of lesson 21."""

import torch


def dropout(x, p, numbers, training):
    if not training or p == 0:
        return x
    return torch.zeros_like(x) if p == 1 else x * (numbers >= p) / (1 - p)


def measure(model, x):
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad():
        y = model(x)
    for module, mode in modes:
        module.training = mode
    return y


def then(model, x, *, after, gradient=False):
    model.eval()
    with torch.set_grad_enabled(gradient):
        y = model(x)
    model.train(after(model) if callable(after) else after)
    return y


def with_gradient(model, x):
    mode = [(module, module.training) for module in model.modules()]
    y = model.eval()(x)
    for module, training in mode:
        module.training = training
    return y


RIGHT = {"dropout": dropout, "measure": measure}


WRONG = {
    "dropout": [
        lambda x, p, numbers, training: x * (numbers >= p) if training else x,  # not divided
        lambda x, p, numbers, training: x * (numbers < p) / p if training and p else x,  # keeps what should go
        lambda x, p, numbers, training: dropout(x, p, numbers, True),  # always on
        lambda x, p, numbers, training: x * (numbers >= p) / (1 - p) if training else x,  # 0 / 0 for p = 1
        lambda x, p, numbers, training: x * (numbers >= p) if training else x * (1 - p),  # divided in evaluation
    ],
    "measure": [
        lambda model, x: model(x).detach(),  # dropout is on
        lambda model, x: then(model, x, after=True),  # always into training mode
        lambda model, x: then(model, x, after=False),  # stays in evaluation mode
        with_gradient,
    ],
}

"""Right and wrong answers to the exercises of lesson 4."""

from itertools import pairwise


def mlp(x, weights, biases, last=False, relu=True):
    for place, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = x @ weight.T + bias
        if relu and (last or place < len(weights) - 1):
            x = x.relu()
    return x


def in_place(x, weights, biases):
    x += 0.0001
    return mlp(x, weights, biases)


RIGHT = {
    "mlp": mlp,
    "count_parameters": lambda sizes, bias: sum(a * b + b * bias for a, b in pairwise(sizes)),
}
WRONG = {
    "mlp": [
        lambda x, weights, biases: mlp(x, weights, biases, last=True),
        lambda x, weights, biases: mlp(x, weights, biases, relu=False),
        lambda x, weights, biases: mlp(x, [w.T for w in weights], biases),
        in_place,
    ],
    "count_parameters": [
        lambda sizes, bias: sum(a * b for a, b in pairwise(sizes)),  # no biases
        lambda sizes, bias: sum(a * b + a * bias for a, b in pairwise(sizes)),  # a bias for each input
        lambda sizes, bias: sum(a * b + b for a, b in pairwise(sizes)),  # always biases
    ],
}

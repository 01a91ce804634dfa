"""Right and wrong answers to the exercises of lesson 27."""


def freeze(model, names=("lora_a", "lora_b"), others=False, count=lambda p: p.numel()):
    trained = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(names) or others)
        trained += count(parameter) if name.endswith(("lora_a", "lora_b")) else 0
    return trained


RIGHT = {
    "merge": lambda weight, a, b, alpha: weight + alpha / len(a) * b @ a,
    "freeze": freeze,
}

WRONG = {
    "merge": [
        lambda weight, a, b, alpha: weight + b @ a,  # no scale
        lambda weight, a, b, alpha: weight + alpha * b @ a,  # alpha alone
        lambda weight, a, b, alpha: weight + alpha / len(a) * (a.T @ b.T),  # transposed: it fits where W is square
        lambda weight, a, b, alpha: weight,
    ],
    "freeze": [
        lambda model: freeze(model, names=("lora_b",)),  # A stays random
        lambda model: freeze(model, others=True),  # nothing is frozen
        lambda model: freeze(model, count=lambda p: 1),  # tensors, not numbers
    ],
}

"""Right and wrong answers to the exercises of lesson 31."""

RIGHT = {
    "average": lambda gradients, counts: sum(g * n for g, n in zip(gradients, counts, strict=True)) / sum(counts),
    "training_bytes": lambda parameters, processes, kind: 16 * parameters / (processes if kind == "fsdp" else 1),
}

WRONG = {
    "average": [
        lambda gradients, counts: sum(gradients) / len(gradients),  # a mean of means
        lambda gradients, counts: sum(gradients),
        lambda gradients, counts: sum(g * n for g, n in zip(gradients, counts, strict=True)),  # never divided
    ],
    "training_bytes": [
        lambda parameters, processes, kind: 16 * parameters / processes,  # DDP shares nothing
        lambda parameters, processes, kind: 12 * parameters / (processes if kind == "fsdp" else 1),  # no float32 copy
        lambda parameters, processes, kind: 16 * parameters,  # FSDP shares everything
    ],
}

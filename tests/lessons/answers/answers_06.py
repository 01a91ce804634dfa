"""Right and wrong answers to the exercises of lesson 6."""


def choose(wanted, available):
    if wanted == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if name in available)
    if wanted not in available:
        raise ValueError(f"{wanted} is not there")
    return wanted


RIGHT = {"choose": choose, "gflops": lambda B, T, C, hidden: 4 * B * T * C * hidden / 1e9}
WRONG = {
    "choose": [
        lambda wanted, available: choose("auto" if wanted not in available else wanted, available),  # in silence
        lambda wanted, available: choose("cpu" if wanted == "auto" else wanted, available),
        lambda wanted, available: choose("auto", available),  # ignores the wish
        lambda wanted, available: "mps" if wanted == "auto" and "mps" in available else choose(wanted, available),
    ],
    "gflops": [
        lambda B, T, C, hidden: 2 * B * T * C * hidden / 1e9,  # multiplications only, or one matrix
        lambda B, T, C, hidden: 4 * B * C * hidden / 1e9,  # forgets the tokens
        lambda B, T, C, hidden: 4 * B * T * C * hidden,  # not billions
    ],
}

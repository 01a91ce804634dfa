"""The exercises of lesson 6."""

from collections.abc import Callable

from glassgpt.learn.exercises import Exercise, Wrong


def check_choose(answer: Callable[[str, set[str]], str]) -> None:
    """Try all machines and wishes."""
    order = ("cuda", "mps", "cpu")
    for available in ({"cpu"}, {"cpu", "cuda"}, {"cpu", "mps"}, {"cpu", "cuda", "mps"}):
        for wanted in ("auto", *order):
            where = f"choose({wanted!r}, {sorted(available)})"
            right = next(name for name in order if name in available) if wanted == "auto" else wanted
            try:
                found = answer(wanted, set(available))
            except ValueError as error:
                if right in available:
                    raise Wrong(f"{where} should be {right!r}, and raises a ValueError") from error
                continue
            if right not in available:
                raise Wrong(f"{where} should raise a ValueError, and is {found!r}")
            if str(found) != right:
                raise Wrong(f"{where} should be {right!r}, and is {found!r}")


def check_gflops(answer: Callable[[int, int, int, int], float]) -> None:
    """Compare with PyTorch's own counter."""
    import torch
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    for B, T, C, hidden in ((1, 1, 8, 32), (2, 16, 8, 32), (8, 128, 64, 256), (3, 5, 7, 11)):
        layers = nn.Sequential(nn.Linear(C, hidden), nn.GELU(), nn.Linear(hidden, C)).to("meta")
        with FlopCounterMode(display=False) as counter:
            layers(torch.empty(B, T, C, device="meta"))
        right, found = counter.get_total_flops() / 1e9, float(answer(B, T, C, hidden))
        if not abs(found - right) <= 1e-6 * right:
            raise Wrong(f"gflops({B}, {T}, {C}, {hidden}) should be {right:.6g}, and is {found:.6g}")


EXERCISES = (
    Exercise("choose", "The device to compute on.", check_choose,
             "If the user names a device that is not there, may the function return another one?"),
    Exercise("gflops", "The cost of one forward pass of an MLP.", check_gflops,
             "How many tokens go through a matrix? How many operations does one number of it cost for one token?"),
)  # fmt: skip

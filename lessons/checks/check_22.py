"""The exercises of lesson 22."""

import random
from collections.abc import Callable

import torch
from torch import Tensor

from glassgpt.glass.inside.heads import head_statistics
from glassgpt.learn.exercises import Exercise, Wrong


def check_previous_share(answer: Callable[[Tensor], float]) -> None:
    """Compare with the package's number, on random causal maps and on a perfect head."""
    generator = torch.Generator().manual_seed(0)
    for what, T in (("a random map", 6), ("a random map", 2), ("a head that looks only at the token before", 5)):
        mask = torch.ones(T, T, dtype=torch.bool).tril()
        weights = torch.randn(T, T, generator=generator).masked_fill(~mask, -torch.inf).softmax(-1)
        if what.startswith("a head"):
            weights = torch.eye(T).roll(-1, 1) * 0.0
            weights[0, 0] = 1.0
            weights[range(1, T), range(T - 1)] = 1.0
        right = float(head_statistics(weights, list(range(T)))["previous"])
        found = float(answer(weights.clone()))
        if not abs(found - right) < 1e-5:
            raise Wrong(f"{what} of T = {T}: it should be {right:.4f}, and is {found:.4f}")


def check_induction_target(answer: Callable[[list[int]], list[list[int]]]) -> None:
    """Compare with the definition, on short texts."""
    rng = random.Random(0)
    for ids in ([3], [1, 2, 1], [4, 4, 4], [5, 1, 5, 2, 5], [rng.randrange(4) for _ in range(12)]):
        right = [[s + 1 for s in range(t) if ids[s] == ids[t] and s + 1 < t] for t in range(len(ids))]
        found = [sorted(int(place) for place in places) for places in answer(list(ids))]
        if len(found) != len(ids):
            raise Wrong(f"induction_target({ids}) should have {len(ids)} lists, and has {len(found)}")
        for t, (mine, wanted) in enumerate(zip(found, right, strict=True)):
            if mine != wanted:
                raise Wrong(f"induction_target({ids}): position {t} should look at {wanted}, not at {mine}")


EXERCISES = (
    Exercise("previous_share", "The mean attention to the token before.", check_previous_share,
             "`diagonal` takes an offset. The first query has no token before it: it does not count."),
    Exercise("induction_target", "Where an induction head should look.", check_induction_target,
             "Find the earlier places of the same token. The target is one place later; is it still earlier?"),
)  # fmt: skip

"""The exercises of lesson 15."""

from collections.abc import Callable

import torch
from torch import Tensor

from glassgpt.learn.compare import compare
from glassgpt.learn.exercises import Exercise

#: Shapes [B, T, H, D]; with a single token, a single head, and all sizes different.
SHAPES = ((1, 1, 1, 1), (2, 3, 4, 5), (1, 6, 2, 3), (3, 4, 1, 2), (2, 1, 3, 2), (2, 4, 4, 4))


def check_merge(answer: Callable[[Tensor], Tensor]) -> None:
    """Compare with heads side by side, for tensors that are contiguous and for those that are not."""
    for B, T, H, D in SHAPES:
        y = torch.arange(B * T * H * D).float().view(B, H, T, D)
        right = torch.cat(list(y.unbind(dim=1)), dim=-1)
        compare(f"merge(y) of y = arange(...) of shape {list(y.shape)}", answer(y), right)
        strange = y.mT.contiguous().mT  # the same numbers, in another order in memory
        compare(f"merge(y) of a y of shape {list(y.shape)} that is not contiguous", answer(strange), right)


def check_share(answer: Callable[[Tensor, int], Tensor]) -> None:
    """Compare with stacking head by head."""
    for B, T, G, D in SHAPES:
        for times in (1, 2, 3):
            k = torch.arange(B * G * T * D).float().view(B, G, T, D)
            right = torch.stack([k[:, head // times] for head in range(G * times)], dim=1)
            compare(f"share(k, H={G * times}) of k = arange(...) of shape {list(k.shape)}", answer(k, G * times), right)


EXERCISES = (
    Exercise("merge", "The inverse of split: heads [B, H, T, D] side by side.", check_merge,
             "Do the two steps of split backwards, in the opposite order. Which of them needs a copy?"),
    Exercise("share", "Heads of keys [B, G, T, D] for H query heads.", check_share,
             "Write the number of the key head under each query head: 0 0 0 1 1 1, or 0 1 0 1 0 1?"),
)  # fmt: skip

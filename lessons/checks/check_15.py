"""The exercises of lesson 15."""

from collections.abc import Callable

import torch
from torch import Tensor

from glassgpt.learn.compare import compare
from glassgpt.learn.exercises import Exercise

#: Shapes [B, T, H, D]; with a single token, a single head, and all sizes different.
SHAPES = ((1, 1, 1, 1), (2, 3, 4, 5), (1, 6, 2, 3), (3, 4, 1, 2), (2, 1, 3, 2), (2, 4, 4, 4))


def check_split(answer: Callable[[Tensor, int], Tensor]) -> None:
    """Compare with slices, head by head."""
    for B, T, H, D in SHAPES:
        x = torch.arange(B * T * H * D).float().view(B, T, H * D)
        right = torch.stack([x[:, :, head * D : (head + 1) * D] for head in range(H)], dim=1)
        compare(f"split(x, H={H}) of x = arange(...) of shape {list(x.shape)}", answer(x, H), right)


def check_merge(answer: Callable[[Tensor], Tensor]) -> None:
    """Compare with heads side by side, for tensors that are contiguous and for those that are not."""
    for B, T, H, D in SHAPES:
        y = torch.arange(B * T * H * D).float().view(B, H, T, D)
        right = torch.cat(list(y.unbind(dim=1)), dim=-1)
        compare(f"merge(y) of y = arange(...) of shape {list(y.shape)}", answer(y), right)
        strange = y.mT.contiguous().mT  # the same numbers, in another order in memory
        compare(f"merge(y) of a y of shape {list(y.shape)} that is not contiguous", answer(strange), right)


EXERCISES = (
    Exercise("split", "The heads of a [B, T, C] tensor: [B, H, T, C / H].", check_split,
             "First say what each of the C numbers of one token belongs to; only then change the order of dimensions."),
    Exercise("merge", "The inverse of split: heads [B, H, T, D] side by side.", check_merge,
             "Do the two steps of split backwards, in the opposite order. Which of them needs a copy?"),
)  # fmt: skip

"""The exercises of lesson 1."""

from collections.abc import Callable

import torch
from torch import Tensor

from glassgpt.learn.compare import compare
from glassgpt.learn.exercises import Exercise, Wrong


def check_shares_memory(answer: Callable[[Tensor, Tensor], bool]) -> None:
    """Try pairs of views and copies, and look whether the numbers are as before."""
    x, y = torch.arange(12.0).view(3, 4), torch.arange(12.0).view(3, 4)
    cases = (
        ("a tensor and itself", x, x, True),
        ("x and x.t()", x, x.t(), True),
        ("x and its last row x[2:]", x, x[2:], True),
        ("the slices x[:2] and x[1:], which overlap", x[:2], x[1:], True),
        ("x and x.reshape(12), of a contiguous x", x, x.reshape(12), True),
        ("the slices x[:1] and x[1:], which do not overlap", x[:1], x[1:], False),
        ("the columns x[:, 0] and x[:, 1]", x[:, 0], x[:, 1], False),
        ("two tensors with equal numbers", x, y, False),
        ("x and x.clone()", x, x.clone(), False),
        ("x and x.t().reshape(12), a copy", x, x.t().reshape(12), False),
        ("x and x[[0]]", x, x[[0]], False),
    )
    for name, a, b, right in cases:
        before = a.clone(), b.clone()
        found = answer(a, b)
        if bool(found) != right:
            raise Wrong(f"for {name} it should say {right}, and says {found!r}")
        if not (torch.equal(a, before[0]) and torch.equal(b, before[1])):
            raise Wrong(f"for {name} the numbers were changed, and not put back")


def check_split_heads(answer: Callable[[Tensor, int], Tensor]) -> None:
    """Compare element by element with the definition."""
    for B, T, C, heads in ((1, 3, 4, 2), (2, 2, 6, 3), (2, 3, 4, 1), (3, 4, 4, 4)):
        x = torch.arange(float(B * T * C)).view(B, T, C)
        right = torch.stack(x.split(C // heads, dim=-1), dim=1)  # [B, heads, T, C / heads]
        compare(f"split_heads of x = arange(...) of shape [{B}, {T}, {C}] into {heads}", answer(x, heads), right)


EXERCISES = (
    Exercise("shares_memory", "Whether writing into one tensor can change the other.", check_shares_memory,
             "The same address is not enough, and not needed: a slice may begin elsewhere. Write, look, and restore."),
    Exercise("split_heads", "[B, T, C] to [B, heads, T, C / heads].", check_split_heads,
             "First cut the last dimension into two. Then the order of the dimensions is wrong: exchange two of them."),
)  # fmt: skip

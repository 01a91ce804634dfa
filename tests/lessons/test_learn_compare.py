"""An answer is judged by its numbers, not by its style."""

from typing import Any

import pytest
import torch

from glassgpt.learn.compare import compare
from glassgpt.learn.exercises import Wrong

RIGHT = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


@pytest.mark.parametrize(
    "answer",
    [RIGHT.clone(), RIGHT.double(), RIGHT.numpy(), RIGHT.tolist(), list(RIGHT), RIGHT.clone().requires_grad_()],
)
def test_accepts_other_styles(answer: Any) -> None:
    compare("f(x)", answer, RIGHT)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "f(x) should be a tensor, and is a NoneType"),
        (RIGHT[0], "f(x) should have the shape [2, 2], and has [2]"),
        (torch.tensor([[1.0, 2.0], [3.0, 5.0]]), "f(x), row [1] should be [3.0, 4.0], and is [3.0, 5.0]"),
        (torch.tensor([[1.0, float("nan")], [3.0, 4.0]]), "f(x), row [0] should be [1.0, 2.0], and is [1.0, nan]"),
    ],
)
def test_says_what_is_wrong(answer: Any, message: str) -> None:
    with pytest.raises(Wrong) as caught:
        compare("f(x)", answer, RIGHT)
    assert str(caught.value) == message


def test_whole_numbers_and_truth_values_keep_their_kind() -> None:
    compare("f(x)", torch.tensor([1, 2], dtype=torch.int32), torch.tensor([1, 2]))
    with pytest.raises(Wrong, match=r"torch\.int64, and is torch\.float32"):
        compare("f(x)", torch.tensor([1.0, 2.0]), torch.tensor([1, 2]))
    with pytest.raises(Wrong, match=r"torch\.bool, and is torch\.int64"):
        compare("f(x)", torch.tensor([1, 0]), torch.tensor([True, False]))

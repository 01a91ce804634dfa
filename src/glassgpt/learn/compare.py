"""Compare a learner's tensor with the right one. A list, an array or another float type is a matter of style."""

from typing import Any

import torch
from torch import Tensor

from glassgpt.learn.exercises import Wrong


def compare(call: str, answer: Any, right: Tensor, tolerance: float = 1e-5) -> None:
    """Compare shape, kind (bool, whole or floating-point numbers) and values.

    Args:
        call: what was computed, for the message.
        answer: the learner's result: a tensor, an array, or nested lists.
        right: the tensor that it should be.
        tolerance: the largest difference, relative to the largest number of ``right`` (at least 1).

    Raises:
        Wrong: if it is not right; the message shows the first row that differs most.
    """
    found = _tensor(call, answer)
    if found.shape != right.shape:
        raise Wrong(f"{call} should have the shape {list(right.shape)}, and has {list(found.shape)}")
    if not right.numel():
        return
    if not right.is_floating_point() and found.dtype != right.dtype:
        bools = torch.bool in (right.dtype, found.dtype)
        if bools or found.is_floating_point():  # another integer type is right, too
            raise Wrong(f"{call} should be of the type {right.dtype}, and is {found.dtype}")
    difference = (found.double() - right.double()).abs().nan_to_num(float("inf"))
    if float(difference.max()) <= tolerance * max(1.0, float(right.double().abs().max())):
        return
    if right.dim() == 0:
        raise Wrong(f"{call} should be {_shown(right)}, and is {_shown(found)}")
    row = int(difference.reshape(-1, right.size(-1)).amax(dim=1).argmax())
    place = [int(i) for i in torch.unravel_index(torch.tensor(row), right.shape[:-1])] if right.dim() > 1 else []
    expected, came = (_shown(tensor.reshape(-1, right.size(-1))[row]) for tensor in (right, found))
    raise Wrong(f"{call}{f', row {place}' if place else ''} should be {expected}, and is {came}")


def _tensor(call: str, answer: Any) -> Tensor:
    try:
        if isinstance(answer, list | tuple) and any(isinstance(part, Tensor) for part in answer):
            answer = torch.stack([torch.as_tensor(part) for part in answer])
        return torch.as_tensor(answer).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise Wrong(f"{call} should be a tensor, and is a {type(answer).__name__}") from error


def _shown(tensor: Tensor) -> str:
    numbers: Any = tensor.tolist()
    if isinstance(numbers, list):
        return str([round(number, 4) if isinstance(number, float) else number for number in numbers])
    return f"{numbers:.6g}" if isinstance(numbers, float) else str(numbers)

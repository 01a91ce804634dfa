"""The dataset of the books: windows of a token stream that overlap as much as one likes."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from glassgpt.errors import DataError


class SlidingWindowDataset(Dataset[tuple[Tensor, Tensor]]):
    """Inputs and targets cut from a token stream, for `torch.utils.data.DataLoader`.

    Window i begins at token ``i * stride``. With ``stride=max_length`` every token is an input once; with less, windows
    overlap, and an epoch shows the overlap again. What is left at the end and does not fill a window is not shown.
    (Training here uses :class:`glassgpt.data.Batches`, which can go on from any batch and moves its cuts every epoch.)

    Args:
        tokens: the ids, ``[N]``: a list, an array (a memory map stays one), or a tensor.
        max_length: tokens in a window, T.
        stride: tokens between the beginnings of two windows.

    Raises:
        DataError: if max_length or stride is less than 1, or the stream too short for one window and its targets.
    """

    def __init__(self, tokens: Sequence[int] | np.ndarray | Tensor, max_length: int, stride: int):
        if max_length < 1 or stride < 1:
            raise DataError(f"max_length and stride are at least 1, got max_length={max_length}, stride={stride}")
        self.tokens = np.asarray(tokens)
        if self.tokens.ndim != 1:
            raise DataError(f"tokens are one row of ids, got an array of shape {list(self.tokens.shape)}")
        if len(self.tokens) < max_length + 1:
            raise DataError(
                f"{len(self.tokens)} tokens hold no window of {max_length} and the target after it; use a longer text, "
                f"or max_length={max(1, len(self.tokens) - 1)} or less"
            )
        self.max_length, self.stride = max_length, stride

    def __len__(self) -> int:
        """How many windows there are."""
        return (len(self.tokens) - self.max_length - 1) // self.stride + 1

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Window ``index``: inputs and targets, int64 ``[max_length]`` each; targets are one token further on.

        Raises:
            IndexError: if there is no such window.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} windows, and no window {index}")
        begin = (index % len(self)) * self.stride
        window = torch.from_numpy(self.tokens[begin : begin + self.max_length + 1].astype(np.int64))  # [T + 1]
        return window[:-1], window[1:]

"""A sliding-window Dataset, as in textbooks (Raschka, "Build a Large Language Model (From Scratch)", chapter 2)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from glassgpt.errors import DataError


class SlidingWindowDataset(Dataset[tuple[Tensor, Tensor]]):
    """Inputs and targets cut from a token stream, for `torch.utils.data.DataLoader`.

    Window i begins at token ``i * stride``. With ``stride=max_length`` every token is an input once; with less, windows
    overlap, and an epoch repeats the overlap. Tokens at the end that do not fill a window are left out.
    (Training here uses :class:`glassgpt.data.Batches`, which resumes at any batch and shifts its cuts every epoch.)

    Args:
        tokens: the ids, ``[N]``: a list, an array (a memory map stays one), or a tensor.
        max_length: tokens in a window, T.
        stride: tokens from the start of a window to the start of the next.

    Raises:
        DataError: if max_length or stride is less than 1, or the stream is too short for one window and its targets.
    """

    def __init__(self, tokens: Sequence[int] | np.ndarray | Tensor, max_length: int, stride: int):
        if max_length < 1 or stride < 1:
            raise DataError(f"max_length and stride must be at least 1, got max_length={max_length}, stride={stride}")
        self.tokens = np.asarray(tokens)
        if self.tokens.ndim != 1:
            raise DataError(f"tokens must be a one-dimensional array of ids, got shape {list(self.tokens.shape)}")
        if len(self.tokens) < max_length + 1:
            raise DataError(
                f"{len(self.tokens)} tokens do not fill a window of {max_length} and its targets; use a longer text, "
                f"or max_length={max(1, len(self.tokens) - 1)} or less"
            )
        self.max_length, self.stride = max_length, stride

    def __len__(self) -> int:
        """Count the windows."""
        return (len(self.tokens) - self.max_length - 1) // self.stride + 1

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Give (idx, targets) of a window, int64 ``[max_length]`` each; targets are shifted by one token.

        Raises:
            IndexError: if there are not so many windows.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        begin = (index % len(self)) * self.stride
        window = torch.from_numpy(self.tokens[begin : begin + self.max_length + 1].astype(np.int64))  # [T + 1]
        return window[:-1], window[1:]

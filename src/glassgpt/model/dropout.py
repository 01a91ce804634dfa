"""Dropout (Srivastava et al., 2014) whose random numbers are cheap on a CPU.

torch's own draws a random number of 64 bits for every value on a CPU, which can cost more than the matrix products
around it. Here each such number decides about four values.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.library.custom_op("glassgpt::dropout_mask", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def dropout_mask(x: Tensor, p: float) -> Tensor:
    """Draw what to multiply ``x`` with, of its shape and type: 0 with probability p (in 65,536ths), else 1 / (1 - p).

    A pure function of the state of torch's default generator. An operation of its own, so that torch.compile keeps it
    as it is (and merges two calls only if their ``x`` is the same tensor).
    """
    dropped = min(round(p * 2**16), 2**16 - 1)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)  # uniform in all 64 bits
    draws = draws.view(torch.int16)[: x.numel()].view(x.shape)  # from -2 ** 15 on
    return (draws >= dropped - 2**15).to(x.dtype) * (2**16 / (2**16 - dropped))


@dropout_mask.register_fake
def _(x: Tensor, p: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


class Dropout(nn.Dropout):
    """``nn.Dropout``; on a CPU with :func:`dropout_mask`."""

    def forward(self, input: Tensor) -> Tensor:
        """``[...] -> [...]``: in training mode, zero some values and scale the others so that the mean stays."""
        if input.device.type != "cpu" or not self.training or self.p == 0:
            return F.dropout(input, self.p, self.training)
        return input * dropout_mask(input.detach(), self.p)

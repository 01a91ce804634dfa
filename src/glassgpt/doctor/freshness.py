"""Whether weights are still as they were drawn: training leaves directions in a matrix that chance does not."""

import math

import torch
from torch import Tensor, nn

#: Rows and columns, and matrices, that are looked at.
SIDE, MATRICES = 256, 24


def looks_untrained(module: nn.Module) -> bool:
    """Whether the gains of norms have one value each, or the matrices look like independent random numbers."""
    named = [(name, p.detach()) for name, p in module.named_parameters() if p.is_floating_point()]
    gains = [p for name, p in named if p.dim() == 1 and p.numel() > 1 and "bias" not in name]
    if gains and all(bool((gain == gain[0]).all()) for gain in gains):
        return True
    matrices = [p for _, p in named if p.dim() == 2 and min(p.shape) >= 16]
    step = -(-len(matrices) // MATRICES) or 1
    drawn = [random for p in matrices[::step] if (random := _is_random(p)) is not None]
    return drawn.count(False) <= len(drawn) // 16 if drawn else not gains


def _is_random(matrix: Tensor) -> bool | None:
    """Whether a matrix has no direction that stands out; None of a constant one, and of equal rows or columns.

    The largest singular value of independent entries of standard deviation s is s (sqrt(rows) + sqrt(columns)), up to
    fluctuations of the size that Tracy and Widom found: one matrix of some hundreds is beyond 1.5 times that. Some
    dozens of steps of Adam take many matrices there.
    """
    block = matrix[:SIDE, :SIDE].float()
    block = block - block.mean()
    if not bool(block.isfinite().all()) or bool((block == block[:1]).all()) or bool((block == block[:, :1]).all()):
        return None
    m, n = (math.sqrt(size) for size in block.shape)
    fluctuation = (1 / m + 1 / n) ** (1 / 3) / (m + n)
    largest = float(torch.linalg.matrix_norm(block, 2))
    return largest < float(block.std()) * (m + n) * (1 + 1.5 * fluctuation)

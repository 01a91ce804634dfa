"""Norms of many kinds, right and wrong, as modules and written out."""

import pytest
import torch
import torch.nn.functional as F
from small_programs import C, Model, alarms
from torch import Tensor, nn

from glassgpt.doctor.models.wiring.norms import NORM_CHECKS


class Own(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(C))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.function(x)


class Bare(nn.Module):
    """Without parameters."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Batch(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.BatchNorm1d(C)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


def rms(dim, power=-0.5, eps=1e-6):
    return lambda x: x * (x.pow(2).mean(dim, keepdim=True) + eps).pow(power)


RIGHT = {
    "LayerNorm": lambda: nn.LayerNorm(C),
    "RMSNorm": lambda: nn.RMSNorm(C),
    "own": lambda: Own(rms(-1)),
    "bare": lambda: Bare(rms(-1)),
    "standard deviation": lambda: Own(lambda x: (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)),
    "unit length": lambda: Own(lambda x: F.normalize(x, dim=-1) * C**0.5),
    "tanh": lambda: Own(lambda x: torch.tanh(0.5 * x)),
    "none": nn.Identity,
    "groups of one token": lambda: Own(lambda x: F.group_norm(x.reshape(-1, C), 4).view_as(x)),
}
WRONG = {
    "time": lambda: Own(rms(1)),
    "batch": lambda: Own(rms(0)),
    "bare over time": lambda: Bare(rms(1)),
    "time and channels": lambda: Own(lambda x: F.layer_norm(x, x.shape[1:])),
    "variance": lambda: Own(rms(-1, -1.0)),
    "multiplied": lambda: Own(rms(-1, 0.5)),
    "not divided": lambda: Own(lambda x: x - x.mean(-1, keepdim=True)),
    "eps": lambda: Own(rms(-1, eps=1.0)),
    "huge eps": lambda: Own(rms(-1, eps=1e5)),
    "groups over time": lambda: Own(lambda x: F.group_norm(x.transpose(1, 2), 4).transpose(1, 2)),
    "BatchNorm": Batch,
}


@pytest.mark.parametrize("norm", RIGHT.values(), ids=RIGHT)
def test_norms_of_one_token_raise_nothing(norm):
    assert alarms(NORM_CHECKS, Model(norm=norm)) == set()


@pytest.mark.parametrize("norm", WRONG.values(), ids=WRONG)
def test_wrong_norms_are_found(norm):
    assert alarms(NORM_CHECKS, Model(norm=norm)) == {"norm"}

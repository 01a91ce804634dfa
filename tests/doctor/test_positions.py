"""Positions and rotations, right and wrong."""

import pytest
import torch
from small_programs import CONTEXT, D, H, Model, alarms, plain
from torch import Tensor

from glassgpt.doctor.models.wiring.positions import POSITION_CHECKS
from glassgpt.doctor.models.wiring.rotations import ROTATION_CHECKS

CHECKS = (*POSITION_CHECKS, *ROTATION_CHECKS)
ANGLES = torch.arange(CONTEXT)[:, None] * 10000.0 ** (-torch.arange(0, D, 2) / D)  # [positions, D / 2]


def halves(x: Tensor, angles: Tensor) -> Tensor:
    cos, sin = (torch.cat([t, t], -1) for t in (angles.cos(), angles.sin()))
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def pairs(x: Tensor, angles: Tensor) -> Tensor:
    numbers = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(numbers * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def mixed(x: Tensor, angles: Tensor) -> Tensor:
    cos, sin = (t.repeat_interleave(2, -1) for t in (angles.cos(), angles.sin()))
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def rotary(rotate, q_from=0, k_from=0, keys=True, values=False, heads=False):
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        T = q.size(2)
        if heads:
            return plain(rotate(q, ANGLES[:H, None]), rotate(k, ANGLES[:H, None]), v)
        q = rotate(q, ANGLES[q_from : q_from + T])
        k = rotate(k, ANGLES[k_from : k_from + T]) if keys else k
        return plain(q, k, rotate(v, ANGLES[:T]) if values else v)

    return attend


def alibi(sign: float):
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        steps = torch.arange(q.size(2)).float()
        slopes = 2.0 ** -torch.arange(1.0, H + 1)[:, None, None]
        scores = q @ k.transpose(-2, -1) * D**-0.5 + sign * slopes * (steps - steps[:, None])
        return scores.masked_fill(steps > steps[:, None], float("-inf")).softmax(-1) @ v

    return attend


@pytest.mark.parametrize("attend", [rotary(halves), rotary(pairs), rotary(halves, 3, 3), alibi(1.0), plain])
def test_relative_positions_and_none_raise_nothing(attend):
    assert alarms(CHECKS, Model(attend, positions="none")) == set()


@pytest.mark.parametrize("positions", ["learned"])
def test_absolute_positions_raise_nothing(positions):
    assert alarms(CHECKS, Model(positions=positions)) == set()


def test_a_table_that_starts_at_zero_raises_nothing():
    model = Model()
    torch.nn.init.zeros_(model.pos_table.weight)
    assert alarms(CHECKS, model) == set()


@pytest.mark.parametrize("positions", ["rows", "first", "repeated", "clamped", "reversed", "unused"])
def test_absolute_positions_that_go_wrong_are_found(positions):
    assert alarms(CHECKS, Model(positions=positions)) == {"position"}


@pytest.mark.parametrize(
    "attend",
    [
        rotary(mixed),
        rotary(halves, keys=False),
        rotary(halves, 0, 1),
        rotary(halves, values=True),
        rotary(halves, heads=True),
        alibi(-1.0),
    ],
    ids=["pairing", "queries only", "offset", "values", "heads axis", "far keys weigh more"],
)
def test_relative_positions_that_go_wrong_are_found(attend):
    assert alarms(CHECKS, Model(attend, positions="none")) == {"position"}


def test_one_layer_without_positions_does_not_know_the_order():
    model = Model(positions="none", layers=1)
    for parameter in model.parameters():
        parameter.data *= 10 if parameter.dim() > 1 else 1  # so that the past matters
    assert alarms(CHECKS, model) == {"position"}

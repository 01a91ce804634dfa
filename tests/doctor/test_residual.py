"""Residual connections, right and wrong."""

import pytest
from small_programs import Model, alarms, examine
from torch import nn

from glassgpt.doctor.models.wiring.residual import RESIDUAL_CHECKS


@pytest.mark.parametrize("join", ["pre", "post", "scaled"])
def test_residual_connections_raise_nothing(join):
    assert alarms(RESIDUAL_CHECKS, Model(join=join)) == set()


@pytest.mark.parametrize("join", ["no attention shortcut", "no MLP shortcut", "doubled"])
def test_missing_and_doubled_connections_are_found(join):
    assert alarms(RESIDUAL_CHECKS, Model(join=join)) == {"residual"}


def test_a_missing_connection_in_the_last_block_alone_is_named():
    model = Model()
    model.blocks[1].join = "no MLP shortcut"
    (outcome,) = examine(RESIDUAL_CHECKS, model)
    assert outcome.result.finding == "residual"
    assert outcome.result.module.startswith("blocks.1.mlp")


def test_a_recurrent_model_is_not_examined():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.cell = nn.Embedding(61, 16), nn.GRU(16, 16, batch_first=True)
            self.head = nn.Linear(16, 61)

        def forward(self, idx):
            return self.head(self.cell(self.tokens(idx))[0])

    (outcome,) = examine(RESIDUAL_CHECKS, Recurrent())
    assert outcome.result.status == "NOT RUN"

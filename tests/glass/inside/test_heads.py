"""The numbers that find heads of known kinds, on attention patterns made by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from glassgpt.glass.inside.heads import STATISTICS, head_statistics

#: a b c a b c a: at positions 3 to 6 the token occurred before; what followed it is at positions 1 to 4.
REPEATED = [0, 1, 2, 0, 1, 2, 0]


def attends_to(*keys: int) -> Tensor:
    """A head whose position t attends to the one key ``keys[t]``."""
    return torch.eye(len(keys))[list(keys)]


def uniform(T: int) -> Tensor:
    allowed = torch.ones(T, T).tril()
    return allowed / allowed.sum(-1, keepdim=True)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (attends_to(0, 0, 1, 2, 3, 4, 5), {"previous": 1, "first": 1 / 6, "duplicate": 0, "induction": 0}),
        (attends_to(0, 0, 0, 0, 0, 0, 0), {"previous": 1 / 6, "first": 1, "duplicate": 2 / 4, "induction": 0}),
        (attends_to(0, 1, 2, 0, 1, 2, 3), {"previous": 0, "first": 1 / 6, "duplicate": 1, "induction": 0}),
        (attends_to(0, 1, 2, 1, 2, 3, 4), {"previous": 0, "first": 0, "duplicate": 0, "induction": 1}),
        (attends_to(0, 1, 2, 3, 4, 5, 6), {"previous": 0, "first": 0, "duplicate": 0, "induction": 0}),
    ],
    ids=["previous", "first", "duplicate", "induction", "itself"],
)
def test_a_head_of_a_pure_kind_has_the_numbers_of_that_kind(head: Tensor, expected: dict[str, float]) -> None:
    found = head_statistics(head[None], REPEATED)
    assert {name: values.item() for name, values in found.items()} == pytest.approx(expected | {"entropy": 0})


def test_a_uniform_head_has_the_entropy_of_its_choices() -> None:
    found = head_statistics(uniform(7)[None], REPEATED)
    assert found["entropy"].item() == pytest.approx(np.mean(np.log(np.arange(1, 8))))
    assert found["first"].item() == found["previous"].item() == pytest.approx(np.mean(1 / np.arange(2, 8)))
    assert found["duplicate"].item() == pytest.approx((1 / 4 + 1 / 5 + 1 / 6 + 2 / 7) / 4)
    assert found["induction"].item() == pytest.approx((1 / 4 + 1 / 5 + 1 / 6 + 2 / 7) / 4)


def test_a_number_without_positions_is_nan() -> None:
    alone = head_statistics(torch.ones(1, 1, 1), [5])
    assert alone["entropy"].item() == 0
    assert all(math.isnan(alone[name].item()) for name in ("first", "previous", "duplicate", "induction"))
    twice = head_statistics(uniform(2)[None], [5, 5])  # nothing but the position itself follows the earlier token
    assert twice["duplicate"].item() == 0.5 and math.isnan(twice["induction"].item())


def test_the_definitions_in_plain_loops_give_the_same_numbers() -> None:
    L, H, T = 2, 3, 9
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(L, H, T, T, generator=generator).masked_fill(torch.ones(T, T).triu(1) > 0, -math.inf)
    weights, ids = scores.softmax(-1), [1, 2, 2, 1, 3, 2, 1, 1, 4]
    found = head_statistics(weights, ids)
    assert list(found) == list(STATISTICS)
    for layer in range(L):
        for head in range(H):
            w = weights[layer, head].double().numpy()
            keys: dict[str, list[list[int]]] = {
                "first": [[0] for t in range(1, T)],
                "previous": [[t - 1] for t in range(1, T)],
                "duplicate": [[s for s in range(t) if ids[s] == ids[t]] for t in range(T)],
                "induction": [[s for s in range(1, t) if ids[s - 1] == ids[t]] for t in range(T)],
            }
            for name, targets in keys.items():
                rows = range(T - len(targets), T)
                masses = [w[t, places].sum() for t, places in zip(rows, targets, strict=True) if places]
                assert found_value(found[name], layer, head) == pytest.approx(np.mean(masses), abs=1e-6), name
            entropy = -np.mean([sum(p * math.log(p) for p in w[t, : t + 1]) for t in range(T)])
            assert found_value(found["entropy"], layer, head) == pytest.approx(entropy, abs=1e-6)


def found_value(values: np.ndarray, layer: int, head: int) -> float:
    assert values.shape == (2, 3)
    return float(values[layer, head])

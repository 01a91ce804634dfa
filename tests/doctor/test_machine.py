"""The checks of the machine: a sound one is silent, and a device that computes wrongly is found."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from glassgpt.doctor.machine import MACHINE_CHECKS, Computed, Machine, compute_on, load_machine
from glassgpt.doctor.report import Result, run_checks
from glassgpt.model import GPT


@pytest.fixture(scope="module")
def machine() -> Machine:
    return load_machine()


def examine(machine: Machine, name: str) -> list[Result]:
    """The results of one check."""
    return [outcome.result for outcome in run_checks(MACHINE_CHECKS, machine, only=[name])]


def test_this_machine_is_silent_and_its_facts_are_there(machine: Machine) -> None:
    before = torch.get_rng_state()
    results = [outcome.result for outcome in run_checks(MACHINE_CHECKS, machine, fast=True)]
    assert {result.status for result in results} <= {"PASS", "NOT RUN"}, results
    assert not [result for result in results if "the check ended with" in result.message]
    assert {"device", "threads", "compiler", "bfloat16 units"} <= results[0].evidence.keys()
    assert torch.equal(torch.get_rng_state(), before)


def fake(change: Callable[[Computed], Computed]) -> Callable[[GPT, Tensor, Tensor], Computed]:
    """A device that computes as the CPU does, and then changes the result."""
    compute = compute_on(torch.device("cpu"))
    return lambda model, idx, targets: change(compute(model, idx, targets))


def noisy(size: float) -> Callable[[Computed], Computed]:
    """Add relative noise to all that a device computes."""

    def add(tensor: Tensor) -> Tensor:
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
        return tensor + size * tensor.std() * noise

    return lambda found: (add(found[0]), {name: add(gradient) for name, gradient in found[1].items()})


def one_wrong_gradient(found: Computed) -> Computed:
    name = next(name for name in found[1] if "mlp" in name)
    return found[0], {**found[1], name: -found[1][name]}


def not_finite(found: Computed) -> Computed:
    return found[0].index_fill(1, torch.tensor([3]), torch.nan), found[1]


def no_gradients(found: Computed) -> Computed:
    return found[0], {}


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (noisy(0.0), "PASS"), (noisy(1e-6), "PASS"), (noisy(3e-4), "WARN"), (noisy(3e-2), "FAIL"),
        (one_wrong_gradient, "FAIL"), (not_finite, "FAIL"), (no_gradients, "FAIL"),
    ],
)  # fmt: skip
def test_a_device_is_as_good_as_its_numbers(
    machine: Machine, change: Callable[[Computed], Computed], status: str
) -> None:
    [result] = examine(Machine(machine.runtime, {"fake:0": fake(change)}), "devices agree")
    assert result.status == status, result
    assert result.finding == (None if status == "PASS" else "device")
    assert "fake:0" in result.message


def test_a_device_that_raises_fails_and_the_next_one_is_examined(machine: Machine) -> None:
    def broken(model: GPT, idx: Tensor, targets: Tensor) -> Computed:
        raise RuntimeError("no kernel image is available")

    results = examine(Machine(machine.runtime, {"broken": broken, "good": fake(noisy(0.0))}), "devices agree")
    assert [result.status for result in results] == ["FAIL", "PASS"]
    assert "no kernel image" in results[0].message


def test_nothing_is_compared_without_an_accelerator(machine: Machine) -> None:
    [result] = examine(Machine(machine.runtime, {}), "devices agree")
    assert result.status == "NOT RUN"

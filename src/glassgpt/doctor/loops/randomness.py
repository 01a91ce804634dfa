"""The random generators that a program may draw from: the global ones, and those that it holds itself."""

import inspect
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from glassgpt.doctor.loops.loop import Program


@dataclass(frozen=True)
class RandomGenerator:
    """One generator.

    Attributes:
        seed: seeds it.
        state: its state, which can be compared.
    """

    seed: Callable[[int], object]
    state: Callable[[], object]


def variables(program: Program) -> dict[str, Any]:
    """What get_batch can read: global and captured variables, attributes of its object and of the loop."""
    get_batch = program.get("get_batch")
    found: dict[str, Any] = {}
    try:
        seen = inspect.getclosurevars(inspect.unwrap(getattr(get_batch, "__func__", get_batch)))
        found |= {**seen.globals, **seen.nonlocals}
    except TypeError:
        pass
    found |= getattr(getattr(get_batch, "__self__", None), "__dict__", {})
    return found | (program.source if isinstance(program.source, dict) else getattr(program.source, "__dict__", {}))


def random_generators(program: Program) -> list[RandomGenerator]:
    """The global generators, and those in the variables of get_batch."""
    found = [
        RandomGenerator(torch.manual_seed, partial(_state, torch.default_generator)),
        RandomGenerator(random.seed, random.getstate),
        RandomGenerator(np.random.seed, lambda: pickle.dumps(np.random.get_state())),
    ]
    for value in variables(program).values():
        if isinstance(value, random.Random):
            found.append(RandomGenerator(value.seed, value.getstate))
        elif isinstance(value, torch.Generator):
            found.append(RandomGenerator(value.manual_seed, partial(_state, value)))
    return found


def _state(generator: torch.Generator) -> list[int]:
    return list(generator.get_state().tolist())

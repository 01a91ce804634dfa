"""What makes somebody's training step exact and repeatable: seeds, no compiler, no printing."""

import contextlib
import io
import random
import sys
import warnings
from collections.abc import Iterator

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed the three generators that a program may draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextlib.contextmanager
def quiet(seed: int) -> Iterator[None]:
    """Seed everything, silence prints and warnings, run compiled models eagerly; put all back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    grad = torch.is_grad_enabled()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng())
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if "torch._dynamo" in sys.modules:  # its import takes a second; without it nothing is compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        torch.set_grad_enabled(True)
        seed_all(seed)
        try:
            yield
        finally:
            torch.set_grad_enabled(grad)
            random.setstate(python)
            np.random.set_state(numpy)

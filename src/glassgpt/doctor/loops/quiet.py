"""What makes somebody's training step exact and repeatable: seeds, no dropout, no compiler, no printing."""

import contextlib
import io
import random
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

#: In inference mode these are not taken apart.
IN_PLACE = (aten.dropout_.default, aten.feature_dropout_.default, aten.alpha_dropout_.default)
WHOLE = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default, *IN_PLACE)


class DropoutSwitch(TorchDispatchMode):
    """Count the calls of dropout, and (with ``off``) let every value through.

    It works on the operations below autograd, so it sees every form: the module, the function, in place, by feature,
    and inside fused attention. A mask that a program makes from `torch.rand` itself is not seen.
    """

    def __init__(self, off: bool = True):
        super().__init__()
        self.off = off
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the random operations of dropout; run everything else as it is."""
        kwargs = kwargs or {}
        if func in WHOLE and args[1] > 0 and args[2]:
            self.calls += 1
            if self.off:
                return args[0] if func in IN_PLACE else args[0].clone()
        if func is aten.scaled_dot_product_attention.default and len(args) > 4 and args[4] > 0:
            self.calls += 1
            args = (*args[:4], 0.0, *args[5:]) if self.off else args
        if func is aten.native_dropout.default and args[2] is not False and args[1] > 0:
            self.calls += 1
            if self.off:
                return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        if func is aten.native_dropout_backward.default and self.off:
            return args[0].clone()
        if func is aten.bernoulli_.float:
            self.calls += 1
            if self.off:  # the mask is divided by the same number afterwards
                return args[0].fill_(args[1] if len(args) > 1 else kwargs.get("p", 0.5))
        return func(*args, **kwargs)


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

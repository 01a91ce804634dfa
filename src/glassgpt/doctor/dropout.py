"""Switch dropout off in anybody's model; the mode of its modules stays what it is."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from glassgpt.model.dropout import dropout_mask

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
        if func is dropout_mask._opoverload:
            self.calls += 1
            return torch.ones_like(args[0]) if self.off else func(*args, **kwargs)
        if func is aten.bernoulli_.float:
            self.calls += 1
            if self.off:  # the mask is divided by the same number afterwards
                return args[0].fill_(args[1] if len(args) > 1 else kwargs.get("p", 0.5))
        return func(*args, **kwargs)

"""AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101) by torch's fused kernel, without ``torch.optim``.

``torch.optim`` imports torch's compiler when its first optimiser is made. That takes a second, on every start.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

#: Added to the root of the second moment, as by default in torch.
EPS = 1e-8


class Optimizer:
    """Parameters in groups with settings of their own, and the state of each parameter: named tensors.

    Args:
        groups: each with its ``params``.
        settings: ``lr`` and the like, for groups without their own.
    """

    def __init__(self, groups: list[dict[str, Any]], **settings: Any):
        self.param_groups = [settings | group for group in groups]
        self.state: defaultdict[Tensor, dict[str, Tensor]] = defaultdict(dict)

    def step(self) -> None:
        """Apply one update from the gradients."""
        raise NotImplementedError


class AdamW(Optimizer):
    """The groups have ``params``, ``lr``, ``betas`` and ``weight_decay``, which is decoupled, times lr."""

    @torch.no_grad()
    def step(self) -> None:
        """Apply one update from the gradients."""
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not trained:
                continue
            states = [self.state[parameter] or self._begin(parameter) for parameter in trained]
            steps = [state["step"] for state in states]
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                trained, [parameter.grad for parameter in trained],
                [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states], [], steps,
                lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"],
                eps=EPS, amsgrad=False, maximize=False,
            )  # fmt: skip

    def _begin(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state before the first update: no step, and moments of zero."""
        state = self.state[parameter]
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state

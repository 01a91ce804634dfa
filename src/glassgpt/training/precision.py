"""Mixed precision: master weights in float32 for a model that computes in fewer bits.

The optimiser works on float32 master weights. The model computes with a copy of them in bfloat16 or float16 that is
made once per step, so that no operation has to cast a weight; the gradients of micro-batches add up in float32. In
float32 the copy and the masters are the same tensors. Frozen parameters (those that need no gradient) have no master.
Source: Micikevicius et al., 2018, arXiv:1710.03740.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from glassgpt.model import GPT


class MasterWeights:
    """The float32 weights of a model that computes in ``dtype``; the model is cast in place.

    Attributes:
        named: the masters by parameter name, of all parameters that need a gradient; in float32 these are the model's
            own parameters.
    """

    def __init__(self, model: GPT, dtype: torch.dtype):
        self.model = model
        self.named: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.separate = dtype != torch.float32
        if self.separate:
            self.named = {name: weight.detach().to(torch.float32, copy=True) for name, weight in self.named.items()}
            model.to(dtype)
            model.tie_weights_and_build_rope()  # the rotary tables stay exact

    def accumulate_into_master_grads(self) -> None:
        """After a backward pass: add the model's gradients to the masters', in float32."""
        if not self.separate:
            return  # they are the same tensors, and autograd has added them up
        pairs = [(weight, master, weight.grad) for weight, master in self._pairs() if weight.grad is not None]
        gradients = [torch.empty_like(grad, dtype=torch.float32) for _, _, grad in pairs]
        torch._foreach_copy_(gradients, [grad for _, _, grad in pairs])
        for (weight, master, _), gradient in zip(pairs, gradients, strict=True):
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            weight.grad = None

    def master_grads_to_model(self) -> None:
        """Before the backward pass in which DDP averages gradients: move the accumulated ones back to the model."""
        if not self.separate:
            return
        for weight, master in self._pairs():
            if master.grad is not None:
                weight.grad, master.grad = master.grad.to(weight.dtype), None

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every parameter of the model that is trained, with its master."""
        return ((p, self.named[name]) for name, p in self.model.named_parameters() if name in self.named)

    def gradients(self) -> list[Tensor]:
        """The float32 gradients."""
        return [weight.grad for weight in self.named.values() if weight.grad is not None]

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for weight in (*self.model.parameters(), *self.named.values()):
            weight.grad = None

    @torch.no_grad()
    def copy_master_to_model(self) -> None:
        """After an update: copy the masters into the model."""
        if self.separate:
            weights, masters = zip(*self._pairs(), strict=True)
            torch._foreach_copy_(weights, masters)  # all at once: on a GPU, launching costs more than copying

    def state_dict(self) -> dict[str, Tensor]:
        """The model's state; all but frozen weights in float32. Sharded ones are gathered: all ranks call this."""
        state = {name: full_tensor(weight) for name, weight in (self.model.state_dict() | self.named).items()}
        if self.model.config.tie_embeddings:
            state["head.weight"] = state["token_embedding.weight"]
        return state


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a tensor that is sharded over processes (a DTensor), on the CPU; all call this. Any other as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather().cpu()


@dataclass
class LossScale:
    """Keeps float16's small gradients from becoming zero: losses are scaled up, gradients back down.

    As torch's GradScaler: halved when a gradient overflows (the step is then skipped), doubled after
    ``growth_interval`` good steps in a row. For every other type it is 1 and not active.
    """

    value: float = 1.0
    growth_tracker: int = 0
    active: bool = False
    growth_interval: int = 1000

    @classmethod
    def for_dtype(cls, dtype: torch.dtype, value: float = 0.0, growth_tracker: int = 0) -> "LossScale":
        """The scale of a type: the given one, or 2 ** 16 to begin with for float16."""
        if dtype != torch.float16:
            return cls()
        return cls(value or 2.0**16, growth_tracker, active=True)

    @property
    def can_decrease(self) -> bool:
        """Whether an overflow is expected, and a smaller scale can prevent the next one."""
        return self.active and self.value > 1.0

    def update(self, finite: bool) -> None:
        """After each step: whether its gradients were finite."""
        if not self.active:
            return
        self.growth_tracker = self.growth_tracker + 1 if finite else 0
        if not finite:
            self.value = self.value / 2
        elif self.growth_tracker == self.growth_interval:
            self.value, self.growth_tracker = self.value * 2, 0

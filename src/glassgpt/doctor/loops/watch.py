"""What happens inside a training step: the gradients that reach the optimisers, and the order of the calls."""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from glassgpt.doctor.loops.loop import Program, flat


class Watch(contextlib.ExitStack):
    """Watch a program inside a `with` block.

    Args:
        program: the program.
        stretch: multiply every update by this; 0 keeps the parameters as they are; None leaves updates alone.
        scale: multiply every gradient by this, as it is computed.

    Attributes:
        events: ("optimizer" or "scheduler", its index), in order.
        rates: for each step of an optimiser, the rates of its groups.
        leftovers: names of held parameters that had a gradient already when their first one came.
    """

    def __init__(self, program: Program, stretch: float | None = None, scale: float = 1.0):
        super().__init__()
        self.program, self.stretch = program, stretch
        self.events: list[tuple[str, int]] = []
        self.rates: list[list[float]] = []
        self.before_step: Callable[[Any], None] | None = None  # another observer
        self._grads: dict[str, Tensor] = {}
        self._saved: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.leftovers: set[str] = set()
        self._names = {id(p): name for name, p in program.trainable().items()} if program.model is not None else {}
        for index, optimizer in enumerate(program.optimizers):
            self._watch_optimizer(index, optimizer)
        for index, scheduler in enumerate(program.schedulers):
            self._watch_calls(scheduler, partial(self.events.append, ("scheduler", index)))
        held = {id(p) for o in program.optimizers for p in held_tensors(o)}
        for name, parameter in (program.trainable() if program.model is not None else {}).items():
            if id(parameter) in held:
                self.callback(parameter.register_hook(self._first_gradient(name, parameter)).remove)
        if scale != 1.0:
            for parameter in program.trainable().values():
                self.callback(parameter.register_hook(lambda g: g * scale).remove)

    def gradient(self) -> Tensor | None:
        """The gradients at the last steps of the optimisers, as one vector over the trainable parameters.

        A parameter that no optimiser held, or that had no gradient, counts as zeros. None if no optimiser stepped on a
        parameter of the model. Forgets them afterwards.
        """
        grads, self._grads = self._grads, {}
        if not grads:
            return None
        return flat([grads.get(name, torch.zeros_like(p)) for name, p in self.program.trainable().items()])

    def count(self, kind: str, index: int = 0) -> int:
        """How often an optimiser or scheduler stepped."""
        return self.events.count((kind, index))

    def _first_gradient(self, name: str, parameter: Tensor) -> Callable[[Tensor], None]:
        first = [True]

        def look(_: Tensor) -> None:
            if first and parameter.grad is not None and bool(parameter.grad.any()):
                self.leftovers.add(name)
            first.clear()

        return look

    def _watch_optimizer(self, index: int, optimizer: Any) -> None:
        def before(_: Any, args: Any, kwargs: Any) -> Any:
            closure = args[1] if len(args) > 1 else kwargs.get("closure")
            self._begin(index, optimizer)
            if closure is None:
                self._record(optimizer)
                return None
            seen: list[bool] = []

            def watched() -> Any:
                result = closure()
                if not seen:
                    self._record(optimizer)
                    seen.append(True)
                return result

            return ((args[0], watched, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": watched})

        def begin() -> None:
            self._begin(index, optimizer)
            self._record(optimizer)

        def after(*_: Any) -> None:
            self._end(index)

        if hasattr(optimizer, "register_step_pre_hook"):
            self.callback(optimizer.register_step_pre_hook(before).remove)
            self.callback(optimizer.register_step_post_hook(after).remove)
        else:  # an optimiser written by hand
            self._watch_calls(optimizer, begin, after)

    def _watch_calls(self, owner: Any, before: Callable[[], Any], after: Callable[[], Any] | None = None) -> None:
        original = owner.step
        own = "step" in vars(owner) if hasattr(owner, "__dict__") else False

        def step(*args: Any, **kwargs: Any) -> Any:
            before()
            result = original(*args, **kwargs)
            if after is not None:
                after()
            return result

        with contextlib.suppress(AttributeError):
            owner.step = step
            self.callback(lambda: setattr(owner, "step", original) if own else delattr(owner, "step"))

    def _begin(self, index: int, optimizer: Any) -> None:
        self.events.append(("optimizer", index))
        self.rates.append([float(g["lr"]) for g in groups(optimizer) if "lr" in g])
        if self.before_step is not None:
            self.before_step(optimizer)
        if self.stretch is not None:
            held = {id(p): p for p in [*held_tensors(optimizer), *self.program.trainable().values()]}
            self._saved[index] = [(p, p.detach().clone()) for p in held.values()]

    def _record(self, optimizer: Any) -> None:
        unscale = getattr(optimizer, "grad_scale", None)  # a fused optimiser divides by it itself
        for parameter in held_tensors(optimizer):
            name = self._names.get(id(parameter))
            if name is not None and parameter.grad is not None:
                grad = parameter.grad.detach()
                grad = grad.to_dense() if grad.is_sparse else grad
                self._grads[name] = grad / unscale if unscale is not None else grad.clone()

    def _end(self, index: int) -> None:
        with torch.no_grad():
            for tensor, value in self._saved.pop(index, []):
                if self.stretch == 0.0:
                    tensor.copy_(value)
                elif self.stretch is not None:
                    tensor.copy_(value + self.stretch * (tensor - value))


def groups(optimizer: Any) -> list[dict[str, Any]]:
    """The parameter groups of an optimiser; one written by hand may only have `params` or `parameters`."""
    found = getattr(optimizer, "param_groups", None)
    if found is None:
        params = getattr(optimizer, "params", getattr(optimizer, "parameters", []))
        found = [{"params": list(params) if not callable(params) else []}]
    return list(found)


def held_tensors(optimizer: Any) -> list[Tensor]:
    """All tensors of an optimiser, with repetitions."""
    return [p for group in groups(optimizer) for p in group["params"] if isinstance(p, Tensor)]


def flat_parameters(program: Program) -> Tensor:
    """A copy of the trainable parameters as one vector."""
    return flat(list(program.trainable().values()))

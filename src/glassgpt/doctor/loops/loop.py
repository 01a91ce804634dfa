"""Somebody's training loop behind one interface, and a fresh one for each check.

A factory returns an object (or a dict) with what it has of: `model`, `optimizer`, `scheduler`, `get_batch(split)`,
`loss(x, y)`, `train_step(micro=None)`, `evaluate()`, `accum`, `clip`. Training changes a loop, so each check calls the
factory again. A factory that returns the same objects again (a script with global variables), or that is slow, gets
its first state put back instead.
"""

import contextlib
import copy
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from glassgpt.doctor.dropout import DropoutSwitch
from glassgpt.doctor.loading import import_factory
from glassgpt.doctor.loops.quiet import quiet, seed_all
from glassgpt.doctor.report import NotRun, Result
from glassgpt.errors import SubjectError, first_line

Batch = tuple[Tensor, Tensor]  # x and y, int64 [B, T]

#: The names that a loop may have.
NAMES = ("model", "optimizer", "scheduler", "get_batch", "loss", "train_step", "evaluate", "accum", "clip")

SLOW_FACTORY = 3.0  # seconds: the loop is then made once


def as_list(value: Any) -> list[Any]:
    """None, one object, or several as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else list(value.values()) if type(value) is dict else [value]


class Program:
    """What one call of the factory returned.

    Attributes:
        model: the model, or None.
        optimizers: the optimisers, none or several.
        schedulers: the schedulers, none or several.
        accum: micro-batches per update; 1 if the loop does not say.
        clip: the largest gradient norm, or None.
    """

    def __init__(self, source: Any):
        self.source = source
        model = self.get("model")
        self.model: nn.Module | None = model if isinstance(model, nn.Module) else None
        self.schedulers = [s for s in as_list(self.get("scheduler")) if hasattr(s, "step")]
        self.optimizers = [o for o in as_list(self.get("optimizer")) if hasattr(o, "step")]
        if not self.optimizers:
            self.optimizers = [s.optimizer for s in self.schedulers[:1] if hasattr(s, "optimizer")]
        accum, clip = self.get("accum"), self.get("clip")
        self.accum = int(accum) if isinstance(accum, int | float) and accum >= 1 else 1
        self.clip = float(clip) if isinstance(clip, int | float) and 0 < clip < float("inf") else None

    def get(self, name: str) -> Any:
        """The attribute or dict entry of this name, or None."""
        return self.source.get(name) if isinstance(self.source, dict) else getattr(self.source, name, None)

    def set(self, name: str, value: Any) -> None:
        """Replace an attribute or dict entry; objects that forbid it keep theirs."""
        with contextlib.suppress(AttributeError, TypeError):
            if isinstance(self.source, dict):
                self.source[name] = value
            else:
                object.__setattr__(self.source, name, value)

    def need(self, *names: str) -> None:
        """Raise NotRun if the loop lacks one of these."""
        for name in names:
            have = {"model": self.model is not None, "optimizer": bool(self.optimizers)}
            if not have.get(name, self.get(name) is not None):
                raise NotRun(f"the loop has no `{name}`")

    def trainable(self) -> dict[str, nn.Parameter]:
        """The model's trainable parameters by name, each once."""
        assert self.model is not None
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def draw(self, split: str = "train") -> Batch:
        """Draw one batch; NotRun if it is not a pair of tensors [B, T]."""
        self.need("get_batch")
        batch = self.get("get_batch")(split)
        if not (isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch)):
            raise NotRun("get_batch(split) does not return a pair of tensors (x, y)")
        x, y = batch
        if x.dim() != 2 or x.shape != y.shape:
            raise NotRun(f"get_batch gives x {list(x.shape)} and y {list(y.shape)}; both must be [B, T]")
        return x.clone(), y.clone()

    def micro_batches(self, seed: int) -> list[Batch]:
        """Draw the micro-batches of one update."""
        seed_all(seed)
        return [self.draw() for _ in range(self.accum)]

    @property
    def takes_micro(self) -> bool:
        """Whether `train_step` takes micro-batches."""
        return _argument(self.get("train_step")) is not None

    def step(self, micro: list[Batch] | None = None, seed: int = 1) -> Any:
        """Do one training step from these micro-batches (or from drawn ones), from this random state."""
        seed_all(seed)
        train_step = self.get("train_step")
        name = _argument(train_step)
        if micro is None or name is None:
            return train_step()
        micro = [(x.clone(), y.clone()) for x, y in micro]
        return train_step(micro=micro) if name == "micro" else train_step(micro)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of one batch, by the loop's `loss` or else by a model that returns one."""
        function = self.get("loss")
        if function is None:
            if self.model is None:
                raise NotRun("the loop has no `loss(x, y)`")
            names = inspect.signature(self.model.forward).parameters
            name = next((n for n in ("targets", "labels", "target", "y") if n in names), None)
            if name is None:
                raise NotRun("the loop has no `loss(x, y)`, and its model takes no targets")
            result = self.model(x, **{name: y})
        else:
            result = function(x, y)
        found = [t for t in _tensors(result) if t.numel() == 1]
        if not found:
            raise NotRun("neither `loss(x, y)` nor the model returns a number")
        return found[-1].reshape(())

    def gradient(self, micro: list[Batch], weight: float = 1.0) -> Tensor:
        """The gradient of the sum of the losses of these batches, as one float32 vector; `.grad` is not touched."""
        params = list(self.trainable().values())
        total = torch.zeros(sum(p.numel() for p in params), device=params[0].device)
        for x, y in micro:
            grads = torch.autograd.grad(self.loss(x, y) * weight, params, allow_unused=True)
            total += flat([torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)])
        return total / weight


def attempt(part: Callable[[], Result]) -> Result:
    """One of several results of a check: if it cannot be had, the others still are."""
    try:
        return part()
    except NotRun as reason:
        return Result("NOT RUN", str(reason))
    except Exception as error:  # anybody's code
        return Result("NOT RUN", f"ended with {type(error).__name__}: {first_line(error)}")


def flat(tensors: list[Tensor]) -> Tensor:
    """Several tensors as one float32 vector."""
    return torch.cat([(t.to_dense() if t.is_sparse else t).detach().float().reshape(-1) for t in tensors])


def _argument(function: Any) -> str | None:
    """The name of the first argument, or None if there is none."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None
    if "micro" in parameters:
        return "micro"
    first = next(iter(parameters.values()), None)
    return first.name if first is not None and ("micro" in first.name or first.default is None) else None


def _tensors(value: Any) -> list[Tensor]:
    """The floating tensors in what a model or a loss returned."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    elif not isinstance(value, list | tuple):
        value = [getattr(value, name, None) for name in ("logits", "loss")]
    return [t for t in value if isinstance(t, Tensor) and t.is_floating_point()]


class Loop:
    """The subject of the loop checks: a factory of programs.

    Args:
        factory: makes the object; it needs no arguments.
        name: what the user typed.
    """

    def __init__(self, factory: Callable[[], Any], name: str = "loop"):
        self.factory, self.name = factory, name
        self._program: Program | None = None  # the last one
        self._first: _State | None = None  # the state of the first one
        self._slow = False

    @property
    def module(self) -> nn.Module | None:
        """The model of the last program, if it has one."""
        return self._program.model if self._program else None

    @contextlib.contextmanager
    def open(self, dropout: bool = False, seed: int = 0) -> Iterator[Program]:
        """Give a fresh program, seeded and silent; dropout is off unless it is wanted."""
        with quiet(seed), contextlib.nullcontext() if dropout else DropoutSwitch():
            yield self._fresh()

    def _fresh(self) -> Program:
        if not (self._slow and self._program):
            start = time.perf_counter()
            program = Program(self.factory())
            self._slow = time.perf_counter() - start > SLOW_FACTORY
            same = self._program is not None and program.model is not None and program.model is self._program.model
            self._program = program
            if self._first is None or not same:
                self._first = _State(program)
                return program
        assert self._program is not None and self._first is not None
        self._first.restore(self._program)
        return self._program


class _State:
    """A copy of the state of a program: weights, gradients, modes, optimisers, schedulers."""

    def __init__(self, program: Program):
        model = program.model or nn.Module()
        self.tensors = [(t, t.detach().clone()) for t in [*model.parameters(), *model.buffers()]]
        self.grads = [(p, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
        self.modes = [(m, m.training) for m in model.modules()]
        self.groups = [
            [(g, {k: copy.copy(v) for k, v in g.items() if k != "params"}) for g in getattr(o, "param_groups", [])]
            for o in program.optimizers
        ]
        self.states = [[(p, copy.deepcopy(s)) for p, s in getattr(o, "state", {}).items()] for o in program.optimizers]
        self.schedules = [
            copy.deepcopy(s.state_dict()) if hasattr(s, "state_dict") else None for s in program.schedulers
        ]

    def restore(self, program: Program) -> None:
        """Put it back."""
        with torch.no_grad():
            for tensor, value in self.tensors:
                tensor.copy_(value)
        for parameter, grad in self.grads:
            parameter.grad = None if grad is None else grad.clone()
        for module, training in self.modes:
            module.training = training
        for optimizer, groups, states in zip(program.optimizers, self.groups, self.states, strict=True):
            for group, values in groups:
                group.update(values)
            if hasattr(optimizer, "state"):
                optimizer.state.clear()
                optimizer.state.update(
                    copy.deepcopy(dict(states)) if not states else {p: copy.deepcopy(s) for p, s in states}
                )
        for scheduler, state in zip(program.schedulers, self.schedules, strict=True):
            if state is not None:
                scheduler.load_state_dict(copy.deepcopy(state))


def load_loop(spec: str) -> Loop:
    """Import a factory and call it once.

    Args:
        spec: `module.py:factory` or `package.module:factory`.

    Raises:
        SubjectError: the import, the call, or what it returned is at fault.
    """
    loop = Loop(import_factory(spec), spec)
    with loop.open() as program:
        if not any(program.get(name) is not None for name in NAMES):
            raise SubjectError(
                f"{spec} returned {type(program.source).__name__}, which has none of: {', '.join(NAMES)}. "
                "Return an object (or a dict) with what your loop has of these"
            )
    return loop

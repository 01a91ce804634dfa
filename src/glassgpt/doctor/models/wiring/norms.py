"""Norms: over the channels of one token, without regard to the size of the input.

Modules are tried alone, on random inputs of the shape that they get in the model. What is written without a module is
found in the trace, by the axes over which it takes variances, norms and mean squares.
"""

import math
import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from glassgpt.doctor.models.wiring.sites import computed, trace_with
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed
from glassgpt.doctor.subject import Subject, fixed_random_state
from glassgpt.doctor.trace import Op, Trace, trace

NAME = re.compile(r"norm|rms|(^|[._])ln(_|\d|$)|(^|_)ln", re.IGNORECASE)
BATCH_NORMS = ("aten.native_batch_norm", "aten._native_batch_norm_legit", "aten._batch_norm", "aten.cudnn_batch_norm")
SPREADS = ("aten.var", "aten.var_mean", "aten.std", "aten.std_mean", "aten.linalg_vector_norm", "aten.norm")
#: What stands between a statistic and the division by it.
BETWEEN = (
    "add", "sqrt", "rsqrt", "clamp", "clamp_min", "maximum", "pow", "reciprocal", "expand", "unsqueeze", "view", "mul",
    "div", "_to_copy", "clone", "squeeze", "sub", "expand_as",
)  # fmt: skip


def norm_modules(subject: Subject) -> Iterator[Result]:
    """Each norm on random input: per token, independent of the input's size, over the last axis."""
    module, idx = subject.copy(), subject.ids()
    shapes = _shapes(module, idx)
    if not shapes:
        raise NotRun("no module looks like a norm")
    axes = _Axes(*idx.shape)
    notes: dict[str, int] = {}
    with torch.no_grad(), fixed_random_state():
        for name, shape in shapes.items():
            verdict = _judge(module.get_submodule(name), shape, axes, name)
            if isinstance(verdict, Result):
                yield verdict
                return
            notes[verdict] = notes.get(verdict, 0) + 1
    yield passed("; ".join(f"{count} {what}" for what, count in notes.items()))


class _Axes:
    """Finds the axes of tokens by their size, which no weight has."""

    def __init__(self, batch: int, length: int):
        self.batch, self.length = batch, length

    def of(self, shape: torch.Size, last: bool = False) -> dict[str, int]:
        """The axes of time and batch, where they are clear; the last axis only if asked for."""
        names = {"time": self.length, "batch": self.batch, "tokens": self.batch * self.length}
        return {
            name: list(shape).index(size)
            for name, size in names.items()
            if size > 1 and list(shape).count(size) == 1 and (last or size != shape[-1])
        }


def _shapes(module: nn.Module, idx: Tensor) -> dict[str, torch.Size]:
    """The modules that may be norms, with the shape of their first input."""
    found: dict[str, torch.Size] = {}
    hooks = []
    for name, part in module.named_modules():
        if not name or isinstance(part, nn.Identity) or any(p.squeeze().dim() > 1 for p in part.parameters()):
            continue
        if "parametrizations" in name:  # weight norm and spectral norm normalise weights
            continue
        own = list(part.parameters(recurse=False))
        if not own and not NAME.search(f"{name.rsplit('.', 1)[-1]} {type(part).__name__}"):
            continue

        def see(_: nn.Module, inputs: tuple[object, ...], out: object, name: str = name) -> None:
            single = len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(out, Tensor)
            if single and inputs[0].is_floating_point() and inputs[0].shape == out.shape and name not in found:  # type: ignore[attr-defined]
                found[name] = inputs[0].shape  # type: ignore[attr-defined]

        hooks.append(part.register_forward_hook(see))
    try:
        with torch.no_grad(), fixed_random_state():
            module(idx)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _judge(norm: nn.Module, shape: torch.Size, axes: _Axes, name: str) -> str | Result:
    """A note, or a failure."""
    x = torch.randn(shape) + 0.3
    y = norm(x)
    if not isinstance(y, Tensor) or y.shape != x.shape or not bool(y.isfinite().all()):
        return "without a verdict"
    limit = 1e-5 * float(y.abs().amax())
    at = tuple(min(1, size - 1) for size in shape)
    for what, axis in axes.of(shape).items():
        changed = x.clone()
        changed.select(axis, at[axis]).normal_()
        moved = (norm(changed) - y).abs()
        moved.select(axis, at[axis]).zero_()
        if float(moved.amax()) > limit:
            over = {"time": "other positions", "batch": "other rows of the batch", "tokens": "other tokens"}[what]
            return failed(
                "norm", f"the norm of a token of {list(shape)} depends on {over}", name, change=float(moved.amax())
            )
    changed = x.clone()
    changed[at] += 1000.0  # so that a norm shows through any eps
    moved = (norm(changed) - y).abs() > limit
    if int(moved.sum()) <= 1:
        return "elementwise, which are not norms"
    last_is_time = shape[-1] in (axes.length, axes.batch * axes.length)
    if not last_is_time and int(moved[at[:-1]].sum()) <= 1:
        return failed("norm", f"the norm of {list(shape)} is not over the last axis", name)
    return _judge_size(norm, x, y, name)


def _judge_size(norm: nn.Module, x: Tensor, y: Tensor, name: str) -> str | Result:
    zero = norm(torch.zeros_like(x)).nan_to_num(0.0, 0.0, 0.0)
    one, ten = (float((out - zero).square().mean().sqrt()) for out in (y, norm(10 * x)))
    degree = math.log10(max(ten, 1e-30) / max(one, 1e-30))
    if 0.03 < degree < 0.3:
        return failed("norm", "eps is as large as the variance of usual input (1)", name, degree=degree)
    if abs(degree) > 0.03:
        how = "not divided by its size" if degree > 0.5 else "divided by more than its size (a variance?)"
        return failed(
            "norm", f"10 times the input gives {10**degree:.3g} times the output: it is {how}", name, degree=degree
        )
    gain = max([1.0, *(float(p.abs().amax()) for p in norm.parameters() if p.numel())])
    if one > 3 * gain:
        return failed("norm", f"random input leaves it with size {one:.3g}, not about 1", name, size=one)
    batch_norm = isinstance(norm, nn.modules.batchnorm._BatchNorm)
    if batch_norm:
        return failed("norm", "batch normalisation: in training a token depends on the other tokens and rows", name)
    return "per token, over channels, independent of size"


def norm_operations(subject: Subject) -> Result:
    """No statistic that divides anything is taken over positions or rows."""
    module, idx = subject.copy(), subject.ids()
    with fixed_random_state():
        run = trace(module, idx)
    live, axes, seen = computed(run), _Axes(*idx.shape), list[int]()
    readers = run.consumers()
    for index, op in enumerate(run.ops):
        if live.isdisjoint(op.inputs):
            continue
        if op.name.startswith(BATCH_NORMS):
            message = "batch normalisation: in training a token depends on the other tokens and rows"
            return failed("norm", message, op.module)
        dims = _reduced(op, run)
        if dims is None:
            continue
        seen.append(index)
        source = run.tensors[op.inputs[0]]
        over = [what for what, axis in axes.of(source.shape, last=True).items() if axis in dims]
        if over and (
            op.name in ("aten.native_layer_norm", "aten.native_group_norm") or _divides(run, readers, op) is not None
        ):
            names = {"time": "positions", "batch": "rows of the batch", "tokens": "all tokens"}
            message = (
                f"{op.name[5:]} of {list(source.shape)} is taken over {' and '.join(names[what] for what in over)}"
            )
            return failed("norm", message, op.module)
    if not seen:
        raise NotRun("no norm was found in the trace")
    wrong = _wrong_power(module, idx, run, seen)
    return wrong or passed(f"{len(seen)} statistics are taken over channels of one token")


def _wrong_power(module: nn.Module, idx: Tensor, run: Trace, statistics: list[int]) -> Result | None:
    """Whether one of a few statistics that are written out divides by a power of the size that is not 1."""
    readers = run.consumers()
    written_out = [(i, _divides(run, readers, run.ops[i])) for i in statistics if "native" not in run.ops[i].name]
    usable = [(i, end) for i, end in written_out if end is not None]
    for index, end in usable[:2] + usable[2:][-1:]:
        start = _normalised(run, index)
        if start is None:
            continue
        sizes = []
        for factor in (10.0, 100.0):
            other = trace_with(module, idx, {start: lambda out, factor=factor: factor * out})  # type: ignore[misc]
            if len(other.ops) != len(run.ops):
                return None
            sizes.append(float(other.tensors[other.ops[end].outputs[0]].float().square().mean().sqrt()))
        degree = math.log10(max(sizes[1], 1e-30) / max(sizes[0], 1e-30))
        if -2.5 < degree < -0.5 or degree > 1.5:
            message = f"10 times the input of a norm gives {10**degree:.3g} times its output"
            return failed("norm", message, run.ops[index].module or None, degree=degree)
    return None


def _normalised(run: Trace, index: int) -> int | None:
    """The operation that made what a statistic's norm is applied to: before squares and subtracted means."""
    value = run.ops[index].inputs[0]
    while (maker := run.producer.get(value)) is not None:
        op = run.ops[maker]
        if len(op.outputs) > 1:
            return None
        if op.name.removeprefix("aten.") not in ("pow", "mul", "sub", "_to_copy", "view", "clone", "unsqueeze"):
            return maker
        if op.name == "aten.mul" and len(set(op.inputs)) > 1:
            return maker
        value = op.inputs[0]
    return None


def _reduced(op: Op, run: Trace) -> set[int] | None:
    """The axes of the first input that a norm's statistic is taken over; None for other operations."""
    rank = run.tensors[op.inputs[0]].dim()
    if op.name == "aten.native_layer_norm":
        return set(range(rank - len(op.args[1]), rank))
    if op.name == "aten.native_group_norm":
        return set(range(2, rank)) | ({1} if op.args[6] < op.args[4] or rank == 3 else set())
    dims: object
    if op.name == "aten.mean":
        maker = run.made_by(op.inputs[0])
        square = maker is not None and (
            (maker.name == "aten.pow" and maker.args[1] == 2)
            or (maker.name == "aten.mul" and len(maker.inputs) == 2 and maker.inputs[0] == maker.inputs[1])
        )
        if not square:
            return None
        dims = op.args[1] if len(op.args) > 1 else op.kwargs.get("dim")
    elif op.name in SPREADS:
        place = 2 if op.name in ("aten.linalg_vector_norm", "aten.norm") else 1
        dims = op.args[place] if len(op.args) > place else op.kwargs.get("dim")
    else:
        return None
    if isinstance(dims, int):
        dims = [dims]
    return {dim % rank for dim in dims} if isinstance(dims, (list, tuple)) and dims else set(range(rank))


def _divides(run: Trace, readers: dict[int, list[int]], op: Op) -> int | None:
    """The operation by which a statistic, through roots and such, scales a tensor as large as its input."""
    size, todo, seen = run.tensors[op.inputs[0]].numel(), list(op.outputs), set[int]()
    while todo:
        value = todo.pop()
        for index in readers.get(value, ()):
            reader = run.ops[index]
            if index in seen or reader.name.removeprefix("aten.").rstrip("_") not in BETWEEN:
                continue
            seen.add(index)
            out = run.tensors[reader.outputs[0]]
            if out.numel() < size:
                todo += reader.outputs
            elif reader.name.rstrip("_") in ("aten.div", "aten.mul"):
                return index
            elif "expand" in reader.name:
                todo += reader.outputs
    return None


NORM_CHECKS: tuple[Check[Subject], ...] = (
    Check(
        name="norms",
        does="Runs each norm alone on random input: another token, row or the input's size may not change a token's "
        "result; other channels must.",
        cost="one forward pass, and about 6 calls of each norm",
        threshold="1e-5 of the largest output (float32 rounding); 10 times the input may give 7 % more (eps up to 0.1)",
        findings=("norm",),
        run=norm_modules,
    ),
    Check(
        name="norm operations",
        does="Looks in a pass for variances, norms and mean squares over positions or rows that divide activations.",
        cost="one forward pass",
        threshold="none: the axes are known by sizes that no weight has",
        findings=("norm",),
        run=norm_operations,
    ),
)

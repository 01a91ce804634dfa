"""Matrices that multiply the hidden state and are neither parameters nor buffers."""

import torch
from torch import Tensor, nn

from glassgpt.doctor.subject import Subject
from glassgpt.doctor.trace import Trace, trace

FACTORS = ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten.mv", "aten.convolution")
PRODUCTS = (*FACTORS, "aten.embedding")
LOOKUPS = ("aten.embedding", "aten.index", "aten.index_select")
#: Operations that take only the shape of their input, or what is no number of it.
SHAPE_ONLY = (
    "aten.ones_like", "aten.zeros_like", "aten.full_like", "aten.empty_like", "aten.new_ones", "aten.new_zeros",
    "aten.new_full", "aten.new_empty", "aten.rand_like", "aten.randn_like", "aten.eq", "aten.ne", "aten.lt",
    "aten.le", "aten.gt", "aten.ge",
)  # fmt: skip


def trace_forward(subject: Subject, module: nn.Module, idx: Tensor) -> Trace:
    """Trace one pass of a copy that gives the logits of every position, if its forward can."""
    options = {subject.targets: idx} if subject.targets and subject.last_only else {}
    return trace(module, idx, **options)


def source(seen: Trace, value: int) -> str | None:
    """The parameter that a value is a view or a converted copy of."""
    origin, name = seen.origins.get(_root(seen, value), ("", ""))
    return name if origin == "parameter" else None


def _root(seen: Trace, value: int) -> int:
    """The value that a value is a view, a slice or a copy of."""
    while (op := seen.made_by(value)) is not None and len(op.inputs) == 1:
        value = op.inputs[0]
    return value


def multiplied(subject: Subject, module: nn.Module, products: tuple[str, ...] = FACTORS) -> set[str]:
    """The parameters that are factors of a matrix product in forward."""
    seen = trace_forward(subject, module, subject.ids(2, min(4, subject.context)))
    return {name for op in seen.ops if op.name in products for value in op.inputs if (name := source(seen, value))}


def constant_weights(subject: Subject, module: nn.Module) -> list[tuple[str, Tensor]]:
    """Find matrices that are used as weights and belong to nobody: where they are used, and the matrix.

    A weight multiplies something that depends on the tokens, and was made from constants and random numbers alone; or
    it is a table that is added. Masks, averages, rotations, transforms and one-hot tables are no weights: their entries
    repeat. Sines, cosines and slopes over the positions are none, either.
    """
    idx = subject.ids()
    seen = trace_forward(subject, module, idx)
    tokens = {value for value, (origin, _) in seen.origins.items() if origin == "input"}
    owned = {value for value, (origin, _) in seen.origins.items() if origin in ("parameter", "buffer")}
    found: dict[int, tuple[str, Tensor]] = {}
    for op in seen.ops:
        if op.name in PRODUCTS + LOOKUPS and any(value in tokens for value in op.inputs):
            for value in op.inputs[:1] if op.name in LOOKUPS else op.inputs:
                if value not in tokens and value not in owned and _is_weight(seen.tensors[value], idx.size(1)):
                    found[value] = (f"a plain tensor in {op.module or 'the model itself'}", seen.tensors[value])
        if op.name in ("aten.add", "aten.add_") and any(value in tokens for value in op.inputs):
            for value in op.inputs:
                plain = seen.origins.get(_root(seen, value), ("",))[0] == "constant"
                if plain and _is_weight(seen.tensors[value], idx.size(1)) and not _waves(seen.tensors[value]):
                    found[value] = (f"a plain tensor added in {op.module or 'the model itself'}", seen.tensors[value])
        if op.name not in SHAPE_ONLY and any(value in tokens for value in op.inputs):
            tokens.update(op.outputs)
        if any(value in owned for value in op.inputs):
            owned.update(op.outputs)
    return list(found.values())


def _is_weight(tensor: Tensor, length: int) -> bool:
    """Whether a tensor could be learned numbers: a matrix, not over time, whose entries hardly repeat."""
    if tensor.dim() < 2 or not tensor.is_floating_point() or min(tensor.shape[-2:]) < 2:
        return False
    if tensor.shape[-2:] == (length, length):
        return False
    flat = tensor.detach().float().flatten()
    some = flat[:: max(1, len(flat) // 512)][:512].abs()
    largest = float(some.max())
    if not 0 < largest < float("inf"):
        return False
    return len(torch.unique((some / largest * 1e5).round())) > len(some) // 2


def _waves(table: Tensor) -> bool:
    """Whether each column of ``[..., T, C]`` is a sine, an exponential or a line over time.

    All of these satisfy ``v[t - 1] + v[t + 1] = c v[t] + d`` with two numbers for each column; drawn numbers do not.
    """
    if table.size(-2) < 6:
        return True
    v = table.detach().double().reshape(-1, *table.shape[-2:])[0]
    middle, around = v[1:-1], v[:-2] + v[2:]
    middle, around = middle - middle.mean(0), around - around.mean(0)
    factor = (middle * around).sum(0) / middle.square().sum(0).clamp_min(1e-30)
    return float((around - factor * middle).norm()) < 1e-2 * float(around.norm()) + 1e-12

"""The residual stream: a way from the tokens to the head that no matrix and no activation crosses.

In the trace, additions, norms, views and multiplications pass the stream on; matrices, softmax and activations are
crossings. Where attention is used, the way with the fewest crossings must have none between the first attention and the
last, nor in the last block.
"""

import heapq

import torch
from torch import Tensor

from glassgpt.doctor.models.wiring.sites import PRODUCTS, Site, Sites, computed, sites_of, trace_with
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed, warned
from glassgpt.doctor.subject import Subject
from glassgpt.doctor.trace import Op, Trace

CROSSINGS = PRODUCTS | {
    "aten.convolution", "aten.mv", "aten.addmv", "aten._softmax", "aten._safe_softmax", "aten._log_softmax",
    "aten.gelu", "aten.relu", "aten.silu", "aten.sigmoid", "aten.tanh", "aten.exp", "aten.leaky_relu", "aten.elu",
    "aten.hardswish", "aten.hardtanh", "aten.softplus", "aten.mish", "aten.erf", "aten.clamp_min", "aten.pow",
    "aten.rsqrt", "aten.sqrt", "aten.var", "aten.var_mean", "aten.std", "aten.mean", "aten.sum", "aten.reciprocal",
    "aten.linalg_vector_norm", "aten.log_sigmoid_forward", "aten.sin", "aten.cos", "aten.cumsum", "aten.prelu",
    "aten._prelu_kernel", "aten.threshold", "aten.relu6", "aten.amax", "aten.max",
}  # fmt: skip
#: Products that sum over so few are mixtures of streams (hyper-connections), not layers.
FEW = 4


def residual_stream(subject: Subject) -> Result:
    """No branch replaces the stream, and the stream alone does not grow."""
    sites = sites_of(subject)
    run, live = sites.plain, computed(sites.plain)
    path, crossings = _way(run, live, _head(run, live, subject))
    crossed = [index for index in path if _crosses(run, run.ops[index])]
    head = next((index for index in crossed if _makes_logits(run, run.ops[index], subject)), None)
    if head is not None:  # what follows works on logits: an ensemble mixes those of its members
        crossed = crossed[: crossed.index(head)] + ([head] if head > max(s.mix for s in sites.found) else [])
    layers = _layers(sites)
    first, last = min(min(site.sources, default=site.mix) for site in sites.found), max(s.mix for s in sites.found)
    inside = [index for index in crossed if first <= index <= last or _in_block(run.ops[index], sites.found)]
    after = [index for index in crossed if index > last]
    if not inside and len(after) > 3:
        inside = after[:-1]
    if inside:
        if layers == 1 and len(inside) > 3 and not _adds_stream(run, path, first):
            return passed("one attention layer without residual connections: nothing is lost yet")
        op = run.ops[_worst(run, inside)]
        return failed(
            "residual",
            f"the tokens reach the head only through {len(inside)} operations of blocks ({op.name[5:]} in "
            f"{op.module or 'the model'}): a residual connection is missing there",
            op.module or None,
            crossings=len(inside),
        )
    for site in sites.found:
        more = crossings.get(run.ops[site.mix].outputs[0], 0) - len(after) - 1  # one is the projection after it
        if more >= 3:
            return failed(
                "residual",
                "what this attention gives reaches the head only through the matrices and activation of an MLP: it is "
                "not added to the stream",
                site.module,
                crossings=more,
            )
    return _growth(sites, path, first, last, layers, subject)


def _head(run: Trace, live: set[int], subject: Subject) -> int:
    """The value of the logits."""
    for op in reversed(run.ops):
        for value in op.outputs:
            if value in live and subject.outputs in run.tensors[value].shape and run.tensors[value].is_floating_point():
                return value
    raise NotRun("the logits were not found in the trace")


def _makes_logits(run: Trace, op: Op, subject: Subject) -> bool:
    """Whether an operation is a product that gives a number per token id, and nothing of that size goes in."""
    sizes = [run.tensors[value].size(-1) for value in (*op.inputs[-2:-1], *op.outputs) if run.tensors[value].dim()]
    return op.name in PRODUCTS and sizes[-1:] == [subject.outputs] and sizes[0] != subject.outputs


def _crosses(run: Trace, op: Op) -> bool:
    """Whether an operation is a crossing."""
    name = op.name.rstrip("_")
    if name in PRODUCTS and run.tensors[op.inputs[-1]].size(-2) <= FEW:
        return False
    return name in CROSSINGS


def _way(run: Trace, live: set[int], goal: int) -> tuple[list[int], dict[int, int]]:
    """The operations on the way with the fewest crossings from the token ids to a value, in order.

    Also the smallest number of crossings between each value and this one.
    """
    start = None
    best: dict[int, int] = {goal: 0}
    came: dict[int, tuple[int, int]] = {}  # value -> (operation, the value that it made)
    queue = [(0, goal)]
    while queue:
        cost, value = heapq.heappop(queue)
        if cost > best[value]:
            continue
        op_index = run.producer.get(value)
        if op_index is None:
            start = value if start is None else start
            continue
        op = run.ops[op_index]
        step = cost + _crosses(run, op)
        for earlier in op.inputs:
            if earlier in live and step < best.get(earlier, 1 << 30):
                best[earlier] = step
                came[earlier] = (op_index, value)
                heapq.heappush(queue, (step, earlier))
    if start is None:
        raise NotRun("no way from the token ids to the logits was found")
    way, value = [], start
    while value != goal:
        index, value = came[value]
        way.append(index)
    return way, best


def _block(module: str) -> str:
    """The repeated block that a module is in: the name up to the first number."""
    parts = module.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else ""


def _in_block(op: Op, found: list[Site]) -> bool:
    """Whether an operation belongs to the same repeated block as an attention."""
    block = _block(op.module)
    return bool(block) and any(_block(site.module) == block for site in found)


def _layers(sites: Sites) -> int:
    """Number of attention layers: heads of one layer may be sites of their own, but read the same input."""
    entries = set()
    for site in sites.found:
        if site.first:
            op = sites.plain.ops[min(site.first)]
            tensor = sites.plain.tensors[op.inputs[-2]]
            entries.add(float(tensor.float().abs().sum()))
    return max(len(entries), 1)


def _adds_stream(run: Trace, path: list[int], first: int) -> bool:
    """Whether any addition after the first attention on the path adds two computed tensors."""
    live = computed(run)
    return any(
        run.ops[i].name.rstrip("_") == "aten.add"
        and i > first
        and len([v for v in run.ops[i].inputs if v in live]) == 2
        for i in path
    )


def _worst(run: Trace, inside: list[int]) -> int:
    """The first product among the crossings; it names the branch."""
    return next((index for index in inside if run.ops[index].name in PRODUCTS), inside[0])


def _growth(sites: Sites, path: list[int], first: int, last: int, layers: int, subject: Subject) -> Result:
    run = sites.plain
    live = computed(run)
    silent = {
        index: torch.zeros_like
        for index in range(first, len(run.ops))
        if run.ops[index].name in PRODUCTS
        and _crosses(run, run.ops[index])
        and not live.isdisjoint(run.ops[index].inputs)
    }
    alone = trace_with(sites.module, sites.idx, silent)
    if len(alone.ops) != len(run.ops):
        return passed("the tokens reach the head through additions and norms alone")
    gain, divided = 1.0, False
    for index in path:
        name = run.ops[index].name.rstrip("_")
        by_number = name in ("aten.mul", "aten.div") and len(run.ops[index].inputs) == 1 and not divided
        by_statistic = len(run.ops[index].inputs) > 1 and live.issuperset(run.ops[index].inputs)
        divided = name != "aten.add" and (divided or (name in ("aten.div", "aten.mul") and by_statistic))
        if index > first and (name in ("aten.add", "aten.sub") or by_number):
            gain *= _ratio(alone, index, path, live)
    each = gain ** (1 / layers)
    if each > 1.8:
        return failed(
            "residual",
            f"without what the branches add, the stream grows {each:.3g} times in each of {layers} layers: it is "
            "added to itself",
            gain=gain, layers=layers,
        )  # fmt: skip
    growth = _range(run, path)
    if subject.fresh and growth > 1e4:
        return warned("residual", f"the stream grows {growth:.2g} times from tokens to head", growth=growth)
    return passed(
        f"the tokens reach the head through additions and norms alone; without branches they grow {gain:.3g} times",
        gain=gain,
    )


def _ratio(run: Trace, index: int, path: list[int], live: set[int]) -> float:
    """Size of an operation's output relative to the input on the path."""
    op = run.ops[index]
    before = path[path.index(index) - 1] if path.index(index) else None
    made = set(run.ops[before].outputs) if before is not None else set()
    inputs = [value for value in op.inputs if value in made] or [value for value in op.inputs if value in live]
    x, y = (run.tensors[value].float() for value in (inputs[0], op.outputs[0]))
    size = _size(x)
    return _size(y) / size if size > 0 and x.numel() == y.numel() else 1.0


def _size(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _range(run: Trace, path: list[int]) -> float:
    """Largest by smallest size along the additions of the path."""
    sizes = [_size(run.tensors[run.ops[i].outputs[0]].float()) for i in path if run.ops[i].name.startswith("aten.add")]
    sizes = [size for size in sizes if size > 0]
    return max(sizes) / sizes[0] if sizes else 1.0


RESIDUAL_CHECKS: tuple[Check[Subject], ...] = (
    Check(
        name="residual stream",
        does="Looks for the way from tokens to head with the fewest matrices and activations: from the first attention "
        "on, additions and norms must be enough; with all branches set to zero, the stream may not grow.",
        cost="one forward pass",
        threshold="no crossing in a block; growth of 1.8 a layer (a stream added to itself doubles)",
        findings=("residual",),
        run=residual_stream,
    ),
)

"""Attention in a trace: the scores, the softmax, the product with the values, and the projections before them.

A site is recognised by its arithmetic: a product of two computed tensors (the scores), an exponential that is divided
by a sum, a second product (with the values). Axes are never guessed from shapes: the axis over which the second product
sums holds the keys.
"""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from glassgpt.doctor.report import NotRun
from glassgpt.doctor.subject import Subject, fixed_random_state
from glassgpt.doctor.trace import Trace, trace
from glassgpt.errors import first_line

PRODUCTS = frozenset({"aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten.baddbmm_", "aten.addmm_"})
#: Where a walk back from queries, keys or values ends.
STOPS = PRODUCTS | {"aten.convolution", "aten.embedding", "aten.mv", "aten.addmv", "aten.dot"}
SOFTMAX = frozenset({"aten._softmax", "aten._safe_softmax", "aten._log_softmax"})
#: Their output does not depend on the values of their input, only on its shape.
SHAPE_ONLY = frozenset(
    f"aten.{name}"
    for name in ("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty")
)
Replace = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Site:
    """One attention: indices of operations in the trace.

    Attributes:
        module: dotted name of the module that it runs in.
        scores: the product of queries and keys; None if there are several.
        softmax: the softmax; None if it is written by hand.
        mix: the product with the values. flipped: whether the weights are its second factor.
        queries, keys, values: the operations that end the walk back (usually one projection each). Queries and keys
            are in the order of the factors: :meth:`Sites.factors` tells which is which.
    """

    module: str
    scores: int | None
    softmax: int | None
    mix: int
    flipped: bool
    first: frozenset[int]
    second: frozenset[int]
    values: frozenset[int]

    @property
    def sources(self) -> frozenset[int]:
        """All operations that queries, keys and values come from."""
        return self.first | self.second | self.values

    def weights(self, run: Trace) -> Tensor:
        """The attention weights as they multiply the values: ``[N, queries, keys]``."""
        a, b = factors(run, self.mix)
        return b.transpose(1, 2) if self.flipped else a

    def mixed(self, run: Trace) -> Tensor:
        """The values as they are multiplied: ``[N, keys, D]``."""
        a, b = factors(run, self.mix)
        return a.transpose(1, 2) if self.flipped else b

    def output(self, run: Trace) -> Tensor:
        """The weighted sums ``[N, queries, D]``."""
        return self.weights(run) @ self.mixed(run)

    def operands(self, run: Trace) -> tuple[Tensor, Tensor]:
        """Both factors of the scores, as ``[N, T, D]``."""
        assert self.scores is not None
        a, b = factors(run, self.scores)
        return a, b.transpose(1, 2)


def factors(run: Trace, index: int) -> tuple[Tensor, Tensor]:
    """The two factors of a product, with three dimensions."""
    a, b = (run.tensors[value].detach() for value in run.ops[index].inputs[-2:])
    return (a, b) if a.dim() == 3 else (a[None], b[None])


def computed(run: Trace) -> set[int]:
    """The values that are computed from the token ids (not only from their shape)."""
    live = {value for value, (origin, _) in run.origins.items() if origin == "input"}
    for op in run.ops:
        if op.name not in SHAPE_ONLY and not live.isdisjoint(op.inputs):
            live.update(op.outputs)
    return live


def walk_back(run: Trace, live: set[int], value: int) -> tuple[set[int], frozenset[int]]:
    """Walk from a value to the products before it: (indices of the operations passed, of those at which it ended)."""
    passed, ends, todo = set[int](), set[int](), [value]
    while todo:
        index = run.producer.get(todo.pop())
        if index is None or index in passed or index in ends:
            continue
        op = run.ops[index]
        if op.name in STOPS and not _is_rotation(run, live, index):
            if op.name == "aten.embedding" or not live.isdisjoint(op.inputs):
                ends.add(index)
            continue
        passed.add(index)
        todo += [earlier for earlier in op.inputs if earlier in live]
    return passed, frozenset(ends)


def is_sum(run: Trace, live: set[int], value: int) -> bool:
    """Whether a value adds what came from different products (LoRA): its size says nothing about a factor."""
    for index in walk_back(run, live, value)[0]:
        op = run.ops[index]
        parts = [walk_back(run, live, v)[1] for v in op.inputs if v in live]
        if (
            op.name.rstrip("_") in ("aten.add", "aten.sub")
            and len(parts) == 2
            and all(parts)
            and not parts[0] & parts[1]
        ):
            return True
    return False


def _is_rotation(run: Trace, live: set[int], index: int) -> bool:
    """Whether a product is one with a table that holds one matrix per position, as rotations may be written."""
    op = run.ops[index]
    if op.name not in PRODUCTS or run.tensors[op.inputs[-1]].dim() != 3:
        return False
    tables = [value for value in op.inputs[-2:] if value not in live]
    if len(tables) != 1:
        return False
    table = run.tensors[tables[0]]
    names = [run.origins[v][0] for v in run.ancestors(tables[0]) if v in run.origins]
    return "parameter" not in names and len(table) > 1 and table.size(1) == table.size(2) > 1


def find_sites(run: Trace) -> list[Site]:
    """All attention sites of a trace, in the order in which they ran."""
    live = computed(run)
    sites = []
    for mix, op in enumerate(run.ops):
        if op.name not in PRODUCTS or not live.issuperset(op.inputs[-2:]):
            continue
        for flipped in (False, True):
            weights, values = op.inputs[:-3:-1] if flipped else op.inputs[-2:]
            passed, ends = walk_back(run, live, weights)
            names = {run.ops[i].name.rstrip("_") for i in passed}
            softmaxes = [i for i in passed if run.ops[i].name in SOFTMAX]
            by_hand = {"aten.exp", "aten.sum", "aten.div"} <= names
            scores = [i for i in ends if run.ops[i].name in PRODUCTS and live.issuperset(run.ops[i].inputs[-2:])]
            if not scores or not (softmaxes or by_hand):
                continue
            one = scores[0] if len(scores) == 1 else None
            first, second = (
                (walk_back(run, live, value)[1] for value in run.ops[one].inputs[-2:])
                if one is not None
                else (frozenset[int](), frozenset[int]())
            )
            softmax = max(softmaxes) if softmaxes else None
            sites.append(Site(op.module, one, softmax, mix, flipped, first, second, walk_back(run, live, values)[1]))
            break
    return sites


class _Replacing(TorchDispatchMode):
    """Replaces the outputs of some operations, by index."""

    def __init__(self, replace: Mapping[int, Replace]):
        super().__init__()
        self.replace, self.index = replace, -1

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        out = func(*args, **(kwargs or {}))  # type: ignore[operator]
        self.index += 1
        return self.replace[self.index](out) if self.index in self.replace else out


def trace_with(module: nn.Module, idx: Tensor, replace: Mapping[int, Replace]) -> Trace:
    """Trace a pass in which the outputs of some operations are replaced."""
    with fixed_random_state(), _Replacing(replace):
        return trace(module, idx)


@dataclass(eq=False)
class Sites:
    """The attention of a subject, with passes in which its projections gave chosen numbers.

    With random signs of one size as the outputs of all projections, no head is flat or zero at the start of training,
    and a rotation keeps the size: what changes it is a factor.

    Attributes:
        module: the copy that was run. idx: the ids ``[1, T]``.
        plain: the pass as it is. found: the sites.
        once, twice: passes with random signs times SIZE, and with the doubled numbers.
        later: as ``once``, but the last token's signs are others. other: as ``once``, but all signs are others.
    """

    module: nn.Module
    idx: Tensor
    plain: Trace
    found: list[Site]
    once: Trace = field(init=False)
    twice: Trace = field(init=False)
    later: Trace = field(init=False)
    other: Trace = field(init=False)

    def __post_init__(self) -> None:
        self.once = self.run(lambda out: SIZE * signs(out))
        self.twice = self.run(lambda out: 2 * SIZE * signs(out))
        self.later = self.run(lambda out: self.change_last(SIZE * signs(out)))
        self.other = self.run(lambda out: SIZE * signs(out, 5))

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.idx.size(1)

    def run(self, replace: Replace, idx: Tensor | None = None) -> Trace:
        """A pass in which all sources of all sites give other numbers."""
        sources = {index for site in self.found for index in site.sources}
        run = trace_with(self.module, self.idx if idx is None else idx, dict.fromkeys(sources, replace))
        if [op.name for op in run.ops] != [op.name for op in self.plain.ops]:
            raise NotRun("two passes do not run the same operations")
        return run

    def scrambled(self, site: Site) -> bool:
        """Whether rows of queries or keys are not tokens: heads were cut from the wrong axes."""
        if site.scores is None:
            return False
        pairs = zip(site.operands(self.once), site.operands(self.later), strict=True)
        return any(not torch.equal(a[:, : self.length - 1], b[:, : self.length - 1]) for a, b in pairs)

    def time_axis(self, tensor: Tensor) -> int | None:
        """The axis of time of a projection's output; None if it is not clear."""
        axes = [axis for axis, size in enumerate(tensor.shape) if size == self.length]
        return axes[0] if len(axes) == 1 else None

    def change_last(self, out: Tensor) -> Tensor:
        """The same numbers with the last token's negated at random."""
        axis = self.time_axis(out)
        if axis is None:
            return out
        last = out.narrow(axis, self.length - 1, 1)
        return torch.cat([out.narrow(axis, 0, self.length - 1), last * signs(last, 7)], axis)

    def alike(self, out: Tensor) -> Tensor:
        """The same signs at every position."""
        axis = self.time_axis(out)
        return signs(out) if axis is None else signs(out.narrow(axis, 0, 1)).expand_as(out).contiguous()


#: Small, so that a cap of the scores (c tanh(x / c)) stays linear.
SIZE = 0.5


def signs(like: Tensor, seed: int = 0) -> Tensor:
    """Random signs."""
    generator = torch.Generator().manual_seed(seed + like.numel())
    return (torch.randint(0, 2, like.shape, generator=generator) * 2 - 1).to(like.dtype)


_KNOWN: "weakref.WeakKeyDictionary[Subject, Sites | str]" = weakref.WeakKeyDictionary()


def sites_of(subject: Subject) -> Sites:
    """Find the attention of a subject, once.

    Raises:
        NotRun: if there is none, or its pass cannot be traced.
    """
    if subject not in _KNOWN:
        try:
            _KNOWN[subject] = _examine(subject)
        except NotRun as reason:
            _KNOWN[subject] = str(reason)
        except Exception as error:
            _KNOWN[subject] = f"a pass could not be traced: {type(error).__name__}: {first_line(error)}"
    found = _KNOWN[subject]
    if isinstance(found, str):
        raise NotRun(found)
    return found


def _examine(subject: Subject) -> Sites:
    if subject.length < 3:
        raise NotRun("the context is too short")
    module, idx = subject.copy(), subject.ids(1)
    with torch.no_grad(), fixed_random_state():
        for parameter in module.parameters():  # a table that starts constant has positions that do not differ yet
            if (
                parameter.dim() > 1
                and parameter.is_floating_point()
                and bool((parameter == parameter.flatten()[:1]).all())
            ):
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    plain = trace_with(module, idx, {})
    found = find_sites(plain)
    if not found:
        raise NotRun("no softmax attention was found")
    return Sites(module, idx, plain, found)

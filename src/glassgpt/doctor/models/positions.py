"""Positions: the order of tokens matters, rotations of queries and keys fit each other, no two positions are the same.

Rotary positions turn queries and keys so that their product depends on the distance only. The checks give every
position the same queries and keys, and look whether that holds: for any pairing, base and way to write it.
"""

import weakref
from collections.abc import Iterator

import torch
from torch import Tensor

from glassgpt.doctor.models.sites import SIZE, STOPS, Site, Sites, computed, find_sites, sites_of, trace_with, walk_back
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed
from glassgpt.doctor.subject import Subject, fixed_random_state
from glassgpt.doctor.trace import Trace

#: Tables of cosines in bfloat16 are wrong by 4e-3; a rotation that does not fit changes products by tenths.
FIT = 3e-2
#: Positions at the beginning that a shift or convolution of queries and keys may treat as an edge.
EDGE = 3
TABLE_NAMES = ("pos", "wpe", "rope", "rotary", "alibi", "slope", "cos", "sin", "freq")


def order_of_tokens(subject: Subject) -> Result:
    """Two earlier tokens that change places change the prediction."""
    T = subject.length
    if T < 4:
        raise NotRun("the context is too short")
    module, idx = subject.copy(), subject.ids(3)
    with torch.no_grad(), fixed_random_state():
        for parameter in module.parameters():  # opens what starts at zero
            if parameter.is_floating_point():
                parameter += 0.1 * max(float(parameter.std()) if parameter.numel() > 1 else 0.0, 0.02) * torch.randn_like(parameter)
        swapped, replaced = idx.clone(), idx.clone()
        swapped[0, [T - 3, T - 2]] = idx[0, [T - 2, T - 3]]
        replaced[0, T - 2] = idx[0, T - 4] if idx[0, T - 4] != idx[0, T - 2] else idx[0, T - 1]
        last = [subject.logits(module, ids)[0, -1].float() for ids in (idx, swapped, replaced)]
    size = float(last[0].abs().amax())
    swap, other = (float((logits - last[0]).abs().amax()) / max(size, 1e-30) for logits in last[1:])
    if not other > 2e-3 or not size > 0:
        raise NotRun(f"another token before changes the last logits by {other:.1e} of their size: too little to tell")
    if swap <= 2e-6 and swap * 20 < other:
        return failed(
            "position",
            f"two tokens that change places change the last logits by {swap:.1e} of their size (another token: "
            f"{other:.1e}): the order of tokens is not known to the model",
            swap=swap, another_token=other,
        )  # fmt: skip
    return passed(f"two tokens that change places change the last logits by {swap:.1e} of their size", swap=swap)


def rotations(subject: Subject) -> Result:
    """With the same queries and keys everywhere, scores depend on the distance only, and values are not rotated."""
    sites = sites_of(subject)
    still = _still(sites)
    notes = set()
    for site in sites.found:
        verdict = _judge_rotation(site, still)
        if isinstance(verdict, Result):
            return verdict
        notes |= verdict
    return passed("; ".join(sorted(notes)) or "queries, keys and scores hold no positions")


class _Still:
    """Passes in which every position has the same token and the same outputs of projections."""

    def __init__(self, sites: Sites):
        self.sites = sites
        self.live = computed(sites.plain)
        same = sites.idx[:, :1].expand_as(sites.idx).contiguous()
        self.once = sites.run(lambda out: SIZE * sites.alike(out), same)
        self.twice = sites.run(lambda out: 2 * SIZE * sites.alike(out), same)
        self.ones = sites.run(lambda out: torch.full_like(out, SIZE), same)
        self.twos = sites.run(lambda out: torch.full_like(out, 2 * SIZE), same)

    def linear(self, once: Tensor, twice: Tensor) -> tuple[Tensor, bool]:
        """What is linear in the projections, and whether something is added; all, if they are normalised."""
        if float((twice - once).norm()) < 0.3 * float(once.norm()):
            return once, False
        rest = 2 * once - twice
        added = float((rest - rest[:, -1:]).norm()) > 1e-3 * float(once.norm())
        return twice - once, added

    def tables(self, value: int) -> list[tuple[Tensor, bool]]:
        """The tables that multiply a value on the way from its projection, with whether they are learned."""
        run, found = self.sites.plain, []
        passed_ops, _ = walk_back(run, self.live, value)
        for index in passed_ops:
            op = run.ops[index]
            if op.name.rstrip("_") not in ("aten.mul", "aten.bmm", "aten.addcmul", "aten.mm"):
                continue
            for other in op.inputs:
                table = run.tensors[other]
                if other not in self.live and table.numel() > 1:
                    learned = any(run.origins.get(v, ("",))[0] == "parameter" for v in run.ancestors(other))
                    found.append((table, learned))
        return found


_KNOWN: "weakref.WeakKeyDictionary[Sites, _Still]" = weakref.WeakKeyDictionary()


def _still(sites: Sites) -> _Still:
    """The passes of a subject, run once."""
    if sites not in _KNOWN:
        _KNOWN[sites] = _Still(sites)
    return _KNOWN[sites]


def _moves(tensor: Tensor) -> float:
    """How much ``[N, T, D]`` differs between positions, relative to its size."""
    inner = tensor[:, EDGE:]
    return float((inner - inner[:, -1:]).abs().amax() / inner.abs().amax().clamp_min(1e-30))


def _off_diagonal(scores: Tensor) -> float:
    """How far ``[N, T, T]`` is from a function of the distance, relative to its size."""
    inner = scores[:, EDGE:, EDGE:] if scores.size(1) > EDGE + 3 else scores
    return float((inner[:, 1:, 1:] - inner[:, :-1, :-1]).abs().amax() / inner.abs().amax().clamp_min(1e-30))


def _judge_rotation(site: Site, still: _Still) -> Result | set[str]:
    if site.scores is None or not site.first or not site.second:
        return set()
    a, b = (still.linear(*pair) for pair in zip(site.operands(still.once), site.operands(still.twice), strict=True))
    (q, q_added), (k, k_added) = a, b
    if q.size(1) != k.size(1) or q.size(1) != still.sites.length or still.sites.scrambled(site):
        return set()
    tables = [still.tables(value) for value in still.sites.plain.ops[site.scores].inputs[-2:]]
    learned = any(is_learned and table.numel() > 1 and still.sites.length in table.shape for side in tables for table, is_learned in side)
    moved = [_moves(q) > 1e-3, _moves(k) > 1e-3]
    if not any(moved):
        if all(_like_rotation(side) for side in tables):
            return failed(
                "position",
                "queries and keys are multiplied by tables like cosines and sines, but are the same at every position: "
                "the tables are read along another axis",
                site.module,
            )
    elif _has_time(tables, still.sites.length) and not (q_added or k_added or learned):
        error = min(_off_diagonal(q @ k.transpose(1, 2)), _off_diagonal(_unit(q) @ _unit(k).transpose(1, 2)))
        if error > FIT:
            which = "both" if all(moved) else "only one"
            return failed(
                "position",
                f"with equal queries and keys everywhere, scores of one distance differ by {error:.2g} of the largest "
                f"({which} of queries and keys change with the position): rotations do not fit each other",
                site.module,
                error=error,
            )
        offset = _offset(site, still) if all(moved) else None
        if offset is not None and offset < 0.995:
            return failed(
                "position",
                f"equal queries and keys are not most similar at distance 0 (cosine {offset:.3f}, not 1): queries and "
                "keys are rotated to different positions",
                site.module,
                cosine=offset,
            )
    rotated_values = _rotated_values(site, still)
    if rotated_values is not None:
        return rotated_values
    return {"rotary positions fit"} if any(moved) else set()


def _has_time(tables: list[list[tuple[Tensor, bool]]], length: int) -> bool:
    """Whether a table that is not learned has an axis of time."""
    return any(length in table.shape and not is_learned for side in tables for table, is_learned in side)


def _unit(heads: Tensor) -> Tensor:
    return heads / heads.norm(dim=-1, keepdim=True).clamp_min(1e-30)


def _like_rotation(tables: list[tuple[Tensor, bool]]) -> bool:
    """Whether tables are cosines and sines: complex, or at least two, different, none above 1."""
    fixed = [table for table, is_learned in tables if not is_learned]
    if any(table.is_complex() or (table.dim() > 2 and table.size(-1) == table.size(-2) > 1) for table in fixed):
        return True
    small = [table.float() for table in fixed if table.is_floating_point() and float(table.abs().amax()) < 1.5]
    return any(one.shape == two.shape and not torch.equal(one, two) for one in small for two in small)


def _offset(site: Site, still: _Still) -> float | None:
    """Cosine of query and key of one position, if all their numbers are equal before the rotation."""
    (q1, k1), (q2, k2) = site.operands(still.ones), site.operands(still.twos)
    for once, twice in ((q1, q2), (k1, k2)):
        if abs(float(twice.norm() / once.norm().clamp_min(1e-30)) - 2) > 0.02:
            return None
    q, k = q2 - q1, k2 - k1
    if max(_moves(side.norm(dim=-1, keepdim=True)) for side in (q, k)) > 1e-2:
        return None  # factors that grow and fall with the position (xPos)
    return float((_unit(q) * _unit(k)).sum(-1)[:, EDGE:].amin())


def _rotated_values(site: Site, still: _Still) -> Result | None:
    run = still.sites.plain
    once, twice = site.mixed(still.once), site.mixed(still.twice)
    values, _ = still.linear(once, twice)
    tables = still.tables(run.ops[site.mix].inputs[-2 if site.flipped else -1])
    if values.size(1) != still.sites.length or _moves(values) < FIT or not _like_rotation(tables):
        return None
    readers = run.consumers()
    todo, seen = list(run.ops[site.mix].outputs), set[int]()
    while todo:  # values that are rotated back after the weighted sum are right
        for index in readers.get(todo.pop(), ()):
            op = run.ops[index]
            if index in seen or op.name in STOPS:
                continue
            seen.add(index)
            if op.name.rstrip("_") == "aten.mul" and any(
                value not in still.live and run.tensors[value].numel() > 1 for value in op.inputs
            ):
                return None
            todo += op.outputs
    return failed("position", "values are rotated, and the weighted sums are not rotated back", site.module)


def position_tables(subject: Subject) -> Result:
    """Positions reach the model, differ along time and not along the batch, and no two are the same."""
    sites = sites_of(subject)
    token = sites.idx[:, :1]
    one = _entering(sites, token.expand(1, sites.length))
    if float(one.abs().amax()) < 1e-6:
        raise NotRun("one row alone gives zeros before the first attention")
    if _distinct(one) > 1:
        return _all_differ(sites, token, subject)
    rows = _entering(sites, token.expand(4, sites.length))  # sums of four equal numbers are exact
    if _distinct(rows) > 1:
        return failed(
            "position",
            "one token repeated is the same at every position, and differs between rows of the batch: positions are "
            "counted along the batch",
        )
    return _relative_or_none(sites)


def _entering(sites: Sites, idx: Tensor) -> Tensor:
    """What enters the first projection of an attention: ``[B T, C]``."""
    run = trace_with(sites.module, idx.contiguous(), {})
    sources = [site.first or site.values for site in find_sites(run)]
    entry = min((min(source) for source in sources if source), default=None)
    if entry is None:
        raise NotRun("no projection before an attention was found")
    op, live = run.ops[entry], computed(run)
    inputs = [value for value in op.inputs if value in live] or list(op.inputs)
    tensor = run.tensors[op.outputs[0] if op.name == "aten.embedding" else inputs[0]].float()
    return tensor.reshape(-1, tensor.size(-1))


def _distinct(rows: Tensor) -> int:
    """Number of different rows, up to rounding."""
    size = rows.abs().amax().clamp_min(1e-2)
    found: list[Tensor] = []
    for row in rows:
        if not any(float((row - other).abs().amax()) <= 1e-4 * float(size) for other in found):
            found.append(row)
    return len(found)


def _all_differ(sites: Sites, token: Tensor, subject: Subject) -> Result:
    T = min(subject.context, 48)
    rows = _entering(sites, token.expand(1, T))
    if len(rows) != T:
        return passed("absolute positions are added")
    distance = (rows[:, None] - rows[None]).norm(dim=-1)
    usual = float(distance.sum()) / (T * (T - 1))
    fewer = _entering(sites, token.expand(1, T - 2))
    change = (fewer - rows[: T - 2])[: T - 5] if len(fewer) == T - 2 > 4 else rows[:1] * 0
    if float((change - change[:1]).abs().amax()) > 1e-2 * float(rows.abs().amax()):  # a mean over time changes all alike
        return failed("position", f"the first positions of {T - 2} tokens and of {T} differ: positions depend on the length")
    later = torch.ones(T, T).triu(1).bool()
    moves_on = ((distance > 0.1 * usual) & later).any(1)  # a convolution or recurrence comes to rest
    same = ((distance < 1e-4 * usual) & later & moves_on[:, None]).nonzero().tolist()
    if same:
        return failed(
            "position",
            f"positions {same[0][0]} and {same[0][1]} are the same ({len(same)} such pairs among the first {T})",
            pairs=len(same),
        )
    return passed(f"a repeated token differs along the first {T} positions")


def _relative_or_none(sites: Sites) -> Result:
    still = _still(sites)
    seen = set()
    for site in sites.found:
        result = _judge_bias(site, still, seen)
        if result is not None:
            return result
        if site.scores is not None and any(_moves(side) > 1e-3 for side in site.operands(still.once)):
            seen.add("rotary positions")
    if seen:
        return passed(" and ".join(sorted(seen)) + " in attention")
    unused = next(_useless_tables(sites), None)
    if unused:
        return failed("position", unused)
    return passed("no positions were found: the order of tokens is known by the causal mask only")


def _judge_bias(site: Site, still: _Still, seen: set[str]) -> Result | None:
    """Biases that depend on the distance fall with it, where they are not learned."""
    weights = site.weights(still.once).float()
    if weights.size(1) != still.sites.length or weights.size(2) < weights.size(1):
        return None
    T = weights.size(1)
    logs = weights[..., :T].clamp_min(1e-30).log()
    relative = logs - logs.diagonal(dim1=1, dim2=2)[..., None]  # score minus that of distance 0
    seen_self = weights[..., :T].diagonal(dim1=1, dim2=2)[..., None] > 1e-20
    allowed = seen_self & (weights[..., :T] > 1e-20) & torch.ones(T, T, dtype=torch.bool).tril(-1)
    allowed[:, :EDGE], allowed[:, :, :EDGE] = False, False
    if not bool(allowed.any()):
        return None
    run = still.sites.plain
    passed_ops, ends = walk_back(run, still.live, run.ops[site.mix].inputs[-1 if site.flipped else -2])
    biases = list(_biases(run, still.live, passed_ops | ends))
    q_moves = site.scores is not None and any(_moves(side) > 1e-3 for side in site.operands(still.once))
    largest = float(relative[allowed].abs().amax())
    fixed = biases and not any(biases)
    if largest > 1e-4 and not q_moves:
        seen.add("biases of scores")
    if not fixed or q_moves:
        return None
    if largest <= 1e-5:
        return failed("position", "a table is added to the scores, but weighs all keys of a query alike", site.module)
    per_head = torch.where(allowed, relative, 0.0).sum((1, 2))
    if bool((per_head > 1e-3).all()):
        return failed("position", "biases of scores grow with the distance: far keys weigh more", site.module)
    return None


def _biases(run: Trace, live: set[int], indices: set[int]) -> Iterator[bool]:
    """For each table of at least three finite numbers that is added to scores: whether it is learned."""
    for index in indices:
        op = run.ops[index]
        if op.name.rstrip("_") not in ("aten.add", "aten.sub", "aten.baddbmm"):
            continue
        for value in op.inputs:
            table = run.tensors[value]
            if value in live or not table.is_floating_point() or table.numel() < 3:
                continue
            numbers = table[table.abs() < 1e3].unique()
            if len(numbers) > 2:
                yield any(run.origins.get(v, ("",))[0] == "parameter" for v in run.ancestors(value))


def _useless_tables(sites: Sites) -> Iterator[str]:
    """Tables of positions that the model holds, though no position was seen: unused, or read at one place."""
    run, readers = sites.plain, sites.plain.consumers()
    for value, (origin, name) in run.origins.items():
        tensor = run.tensors[value]
        last = name.lower()
        if origin not in ("parameter", "buffer") or tensor.numel() < 2 or not tensor.is_floating_point():
            continue
        if not any(word in last for word in TABLE_NAMES) or tensor.dim() < 2:
            continue
        state = "is used, but every position reads the same" if value in readers else "is never used"
        yield f"no position was seen in the model; {name} {list(tensor.shape)} {state}"


POSITION_CHECKS: tuple[Check[Subject], ...] = (
    Check(
        name="order of tokens",
        does="Lets two earlier tokens change places; the last logits must change.",
        cost="3 forward passes",
        threshold="2e-6 of the largest logit (float32 rounding), and 20 times less than another token changes",
        findings=("position",),
        run=order_of_tokens,
    ),
    Check(
        name="rotations",
        does="Gives every position the same queries, keys and values; scores may then depend on the distance only, "
        "and equal queries and keys must be most similar at distance 0.",
        cost="4 forward passes",
        threshold="3e-2 of the largest score (tables in bfloat16 are wrong by 4e-3); cosine 0.995 at distance 0",
        findings=("position",),
        run=rotations,
    ),
    Check(
        name="positions",
        does="Repeats one token: what enters the first attention must differ between positions, not between rows; or "
        "rotations or biases of attention must show the distance.",
        cost="2 to 7 forward passes",
        threshold="rows that differ by less than 1e-4 of the mean distance are the same",
        findings=("position",),
        run=position_tables,
    ),
)

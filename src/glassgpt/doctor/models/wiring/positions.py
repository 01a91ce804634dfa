"""Positions: the order of tokens matters, and no two positions are the same."""

from collections.abc import Iterator

import torch
from torch import Tensor

from glassgpt.doctor.models.probing import working_length
from glassgpt.doctor.models.wiring.rotations import EDGE, Still, moves, still_of
from glassgpt.doctor.models.wiring.sites import Site, Sites, computed, find_sites, sites_of, trace_with, walk_back
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed
from glassgpt.doctor.subject import Subject, fixed_random_state
from glassgpt.doctor.trace import Trace

TABLE_NAMES = ("pos", "wpe", "rope", "rotary", "alibi", "slope", "cos", "sin", "freq")


def order_of_tokens(subject: Subject) -> Result:
    """Two earlier tokens that change places change the prediction."""
    T = subject.length
    if T < 4:
        raise NotRun("the context is too short")
    module, idx = subject.copy(), subject.ids(3)
    with torch.no_grad(), fixed_random_state():
        for parameter in module.parameters() if subject.fresh else ():  # opens what starts at zero
            if parameter.is_floating_point():
                spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
                parameter.add_(torch.randn_like(parameter), alpha=0.1 * max(spread, 0.02))
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
    T = working_length(subject, min(subject.context, 48))
    if sites.length > T:
        return passed("absolute positions are added")
    rows = _entering(sites, token.expand(1, T))
    if len(rows) != T:
        return passed("absolute positions are added")
    distance = (rows[:, None] - rows[None]).norm(dim=-1)
    usual = float(distance.sum()) / (T * (T - 1))
    fewer = _entering(sites, token.expand(1, T - 2))
    change = (fewer - rows[: T - 2])[: T - 5] if len(fewer) == T - 2 > 4 else rows[:1] * 0
    if float((change - change[:1]).abs().amax()) > 1e-2 * float(
        rows.abs().amax()
    ):  # a mean over time changes all alike
        return failed(
            "position", f"the first positions of {T - 2} tokens and of {T} differ: positions depend on the length"
        )
    later = torch.ones(T, T).triu(1).bool()
    moves_on = ((distance > 0.1 * usual) & later).any(1)[:, None]  # a convolution or recurrence comes to rest
    same = ((distance < 1e-4 * usual) & later & (moves_on | _looked_up(sites, T))).nonzero().tolist()
    if same:
        return failed(
            "position",
            f"positions {same[0][0]} and {same[0][1]} are the same ({len(same)} such pairs among the first {T})",
            pairs=len(same),
        )
    return passed(f"a repeated token differs along the first {T} positions")


def _looked_up(sites: Sites, T: int) -> Tensor:
    """Which positions read the same row of a table, ``[T, T]``."""
    run = trace_with(sites.module, sites.idx[:, :1].expand(1, T).contiguous(), {})
    live, same = computed(run), torch.zeros(T, T, dtype=torch.bool)
    for op in run.ops:
        if op.name not in ("aten.embedding", "aten.index", "aten.index_select"):
            continue
        for rows in (run.tensors[value] for value in op.inputs[1:] if value not in live):
            if rows.numel() == T and not rows.is_floating_point():
                same |= rows.flatten()[:, None] == rows.flatten()
    return same


def _relative_or_none(sites: Sites) -> Result:
    still = still_of(sites)
    seen = set[str]()
    for site in sites.found:
        result = _judge_bias(site, still, seen)
        if result is not None:
            return result
        if site.scores is not None and any(moves(side) > 1e-3 for side in site.operands(still.once)):
            seen.add("rotary positions")
    if seen:
        return passed(" and ".join(sorted(seen)) + " in attention")
    unused = next(_useless_tables(sites), None)
    if unused:
        return failed("position", unused)
    return passed("no positions were found: the order of tokens is known by the causal mask only")


def _judge_bias(site: Site, still: Still, seen: set[str]) -> Result | None:
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
    q_moves = site.scores is not None and any(moves(side) > 1e-3 for side in site.operands(still.once))
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
        name="positions",
        does="Repeats one token: what enters the first attention must differ between positions, not between rows; or "
        "rotations or biases of attention must show the distance.",
        cost="2 to 7 forward passes",
        threshold="rows that differ by less than 1e-4 of the mean distance are the same",
        findings=("position",),
        run=position_tables,
    ),
)

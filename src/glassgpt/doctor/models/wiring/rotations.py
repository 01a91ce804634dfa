"""Rotary positions: the rotations of queries and keys fit each other.

They turn queries and keys so that their product depends on the distance only. The check gives every position the same
queries and keys, and looks whether that holds: for any pairing, base and way to write it.
"""

import weakref

import torch
from torch import Tensor

from glassgpt.doctor.models.wiring.sites import SIZE, STOPS, Site, Sites, computed, sites_of, walk_back
from glassgpt.doctor.report import Check, Result, failed, passed
from glassgpt.doctor.subject import Subject

#: Tables of cosines in bfloat16 are wrong by 4e-3; a rotation that does not fit changes products by tenths.
FIT = 3e-2
#: Positions at the beginning that a shift or convolution of queries and keys may treat as an edge.
EDGE = 3


def rotations(subject: Subject) -> Result:
    """With the same queries and keys everywhere, scores depend on the distance only, and values are not rotated."""
    sites = sites_of(subject)
    still = still_of(sites)
    notes = set()
    for site in sites.found:
        verdict = _judge_rotation(site, still)
        if isinstance(verdict, Result):
            return verdict
        notes |= verdict
    return passed("; ".join(sorted(notes)) or "queries, keys and scores hold no positions")


class Still:
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


_KNOWN: "weakref.WeakKeyDictionary[Sites, Still]" = weakref.WeakKeyDictionary()


def still_of(sites: Sites) -> Still:
    """The passes of a subject, run once."""
    if sites not in _KNOWN:
        _KNOWN[sites] = Still(sites)
    return _KNOWN[sites]


def moves(tensor: Tensor) -> float:
    """How much ``[N, T, D]`` differs between positions, relative to its size."""
    inner = tensor[:, EDGE:] if tensor.size(1) > EDGE + 1 else tensor
    return float((inner - inner[:, -1:]).abs().amax() / inner.abs().amax().clamp_min(1e-30))


def _off_diagonal(scores: Tensor) -> float:
    """How far ``[N, T, T]`` is from a function of the distance, relative to its size."""
    inner = scores[:, EDGE:, EDGE:] if scores.size(1) > EDGE + 3 else scores
    return float((inner[:, 1:, 1:] - inner[:, :-1, :-1]).abs().amax() / inner.abs().amax().clamp_min(1e-30))


def _judge_rotation(site: Site, still: Still) -> Result | set[str]:
    if site.scores is None or not site.first or not site.second:
        return set()
    a, b = (still.linear(*pair) for pair in zip(site.operands(still.once), site.operands(still.twice), strict=True))
    (q, q_added), (k, k_added) = a, b
    if q.size(1) != k.size(1) or q.size(1) != still.sites.length or still.sites.scrambled(site):
        return set()
    tables = [still.tables(value) for value in still.sites.plain.ops[site.scores].inputs[-2:]]
    learned = any(
        is_learned and table.numel() > 1 and still.sites.length in table.shape
        for side in tables
        for table, is_learned in side
    )
    moved = [moves(q) > 1e-3, moves(k) > 1e-3]
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


def _offset(site: Site, still: Still) -> float | None:
    """Cosine of query and key of one position, if all their numbers are equal before the rotation."""
    (q1, k1), (q2, k2) = site.operands(still.ones), site.operands(still.twos)
    for once, twice in ((q1, q2), (k1, k2)):
        if abs(float(twice.norm() / once.norm().clamp_min(1e-30)) - 2) > 0.02:
            return None
    q, k = q2 - q1, k2 - k1
    if max(moves(side.norm(dim=-1, keepdim=True)) for side in (q, k)) > 1e-2:
        return None  # factors that grow and fall with the position (xPos)
    return float((_unit(q) * _unit(k)).sum(-1)[:, EDGE:].amin())


def _rotated_values(site: Site, still: Still) -> Result | None:
    run = still.sites.plain
    once, twice = site.mixed(still.once), site.mixed(still.twice)
    values, _ = still.linear(once, twice)
    tables = still.tables(run.ops[site.mix].inputs[-2 if site.flipped else -1])
    if values.size(1) != still.sites.length or moves(values) < FIT or not _like_rotation(tables):
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


ROTATION_CHECKS: tuple[Check[Subject], ...] = (
    Check(
        name="rotations",
        does="Gives every position the same queries, keys and values; scores may then depend on the distance only, "
        "and equal queries and keys must be most similar at distance 0.",
        cost="4 forward passes",
        threshold="3e-2 of the largest score (tables in bfloat16 are wrong by 4e-3); cosine 0.995 at distance 0",
        findings=("position",),
        run=rotations,
    ),
)

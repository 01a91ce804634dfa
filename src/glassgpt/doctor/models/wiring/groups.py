"""Grouped queries: which key and value head each query head reads."""

import torch
from torch import Tensor

from glassgpt.doctor.models.wiring.sites import SIZE, Site, Sites, signs, sites_of
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed
from glassgpt.doctor.subject import Subject
from glassgpt.doctor.trace import Trace


def grouped_queries(subject: Subject) -> Result:
    """Query head h reads key and value head h // (heads per group)."""
    sites = sites_of(subject)
    groups = 0
    for site in sites.found:
        if site.scores is None or not site.first or not site.second:
            continue
        q, k = _queries_and_keys(site, sites.once)
        keys, values = _classes(k), _classes(site.mixed(sites.once))
        shared = len(set(keys)) < len(keys) or len(set(values)) < len(values)
        if q.size(0) == k.size(0) and not shared and q.size(1) == sites.length:
            continue
        groups += 1
        result = _judge_groups(site, sites, keys, values)
        if result is not None:
            return result
    if not groups:
        raise NotRun("no heads share keys or values")
    return passed(f"consecutive query heads share keys and values in {groups} attentions")


def _queries_and_keys(site: Site, run: Trace) -> tuple[Tensor, Tensor]:
    """The factors of the scores in this order: the one with the keys' length second."""
    first, second = site.operands(run)
    rows, columns = site.weights(run).shape[1:]
    return (second, first) if first.size(1) != rows and first.size(1) == columns else (first, second)


def _classes(heads: Tensor) -> list[int]:
    """Number heads ``[N, T, D]`` so that equal ones have equal numbers, in the order of their first occurrence."""
    found: list[Tensor] = []
    numbers = []
    for head in heads:
        same = next((i for i, other in enumerate(found) if torch.equal(head, other)), len(found))
        if same == len(found):
            found.append(head)
        numbers.append(same)
    return numbers


def _judge_groups(site: Site, sites: Sites, keys: list[int], values: list[int]) -> Result | None:
    several = len(set(keys)) > 1 and len(set(values)) > 1
    if several and keys != values:
        message = f"query heads read the key heads {keys}, but the value heads {values}"
        return failed("grouped queries", message, site.module, keys=keys, values=values)
    if not several:
        return None
    blocks = _query_blocks(site, sites, keys)
    if blocks is None or blocks == sorted(blocks):
        return None
    message = f"query heads in the order of the projection read the key heads {blocks}; groups are consecutive heads"
    return failed("grouped queries", message, site.module, key_heads=blocks)


def _query_blocks(site: Site, sites: Sites, keys: list[int]) -> list[int] | None:
    """The key head of each query head, in the order of the columns of the projection of the queries."""
    q, _ = _queries_and_keys(site, sites.once)
    if keys == sorted(keys) and q.size(1) == sites.length:
        return keys  # heads in another order would need a permutation of the queries: not looked for
    first = site.first if site.operands(sites.once)[0].equal(q) else site.second
    out = sites.plain.tensors[sites.plain.ops[min(first)].outputs[0]]
    D, columns = q.size(2), out.size(-1)
    if len(first) != 1 or columns % D or columns // D > 128:
        return None if q.size(1) != sites.length else keys
    readers: list[int] = []
    for block in range(columns // D):

        def change(out: Tensor, block: int = block) -> Tensor:
            changed = SIZE * signs(out)
            if out.size(-1) == columns:
                changed[..., block * D : (block + 1) * D] *= -1.5 * signs(changed[..., block * D : (block + 1) * D], 3)
            return changed

        other, _ = _queries_and_keys(site, sites.run(change))
        moved = ((other - q).abs().flatten(1).amax(1) > 1e-5).nonzero().flatten().tolist()
        if len(moved) == 1:
            readers.append(keys[moved[0]])
    return readers if len(readers) >= len(keys) else None


GROUP_CHECKS: tuple[Check[Subject], ...] = (
    Check(
        name="grouped queries",
        does="Finds out which key and value head each query head reads: consecutive query heads share one.",
        cost="no further pass; where the order looks wrong, one for each head",
        threshold="shared heads are bitwise equal",
        findings=("grouped queries",),
        run=grouped_queries,
    ),
)

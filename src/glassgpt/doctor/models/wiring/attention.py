"""Attention: the axis of the softmax, the past only, the scale.

All is measured on passes in which the projections gave random signs: so nothing is flat or zero in a fresh model, and
the same holds for every way to write attention.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from glassgpt.doctor.models.wiring.sites import SIZE, Site, Sites, computed, factors, is_sum, sites_of, walk_back
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed, warned
from glassgpt.doctor.subject import HOLDERS, Subject
from glassgpt.doctor.trace import Trace

#: Rounding of a sum of at most 13 float32 weights is 1e-6; bfloat16 weights round to 4e-3 each.
ROW = 1e-2
#: Of a factor in float32, measured through logarithms of weights; 1/sqrt(d) and its neighbours differ by more.
SAME = 0.03


def attention_rows(subject: Subject) -> Result:
    """Each query's weights sum to 1 and do not depend on later tokens."""
    sites = sites_of(subject)
    for site in sites.found:
        result = _wrong_axis(site, sites) or _sees_later(site, sites)
        if result is not None:
            return result
    return passed(f"rows of {len(sites.found)} attentions sum to 1 and depend on the past only")


def _wrong_axis(site: Site, sites: Sites) -> Result | None:
    weights = site.weights(sites.once).float()  # [N, queries, keys]
    rows = weights.sum(-1)
    if bool((rows - 1).abs().amax() < ROW):
        return None
    usable = weights.nan_to_num(0.0)
    sums = {"queries": usable.sum(1), "heads": usable.sum(0)}
    for axis, total in sums.items():
        filled = total[total > 0]  # columns that are masked everywhere hold nothing
        if len(filled) and bool((filled - 1).abs().amax() < ROW) and usable.size(1 if axis == "queries" else 0) > 1:
            return _axis_failure(site, axis, rows)
    if site.softmax is None:
        return None
    op = sites.once.ops[site.softmax]
    out, axis_number = sites.once.tensors[op.outputs[0]].float(), int(op.args[1])
    if out.numel() != usable.numel():
        return None
    apart = out.nan_to_num(0.0).flatten().sort().values - usable.flatten().sort().values
    if float(apart.abs().amax()) < 1e-5:  # nothing changed the weights after the softmax: its axis is another one
        return _axis_failure(site, f"axis {axis_number} of {list(out.shape)}", rows)
    return None


def _axis_failure(site: Site, axis: str, rows: Tensor) -> Result:
    worst = float((rows.nan_to_num(0.0) - 1).abs().amax())
    return failed(
        "softmax axis",
        f"the weights of a query sum to 1 over {axis}, not over keys: a row is {worst:.2g} away from 1",
        site.module,
        row_error=worst,
    )


def _sees_later(site: Site, sites: Sites) -> Result | None:
    before, after = (site.weights(run)[..., : sites.length - 1, :].float() for run in (sites.once, sites.later))
    if site.weights(sites.once).size(1) != sites.length or not site.sources or sites.scrambled(site):
        return None
    change = float((before - after).nan_to_num(0.0).abs().amax())
    if change <= 1e-6:
        return None
    return failed(
        "leak",
        f"attention weights of earlier queries change by {change:.2g} with the last token",
        site.module,
        change=change,
    )


def attention_scale(subject: Subject) -> Result:
    """The scores are q k / sqrt(d)."""
    sites = sites_of(subject)
    measured = [(site, factor) for site in sites.found if (factor := _factor(site, sites)) is not None]
    if not measured:
        raise NotRun("the scores were not found between projections and softmax")
    notes = set()
    for site, factor in measured:
        verdict = _judge(site, factor, sites, subject)
        if isinstance(verdict, Result):
            return verdict
        notes.add(verdict)
    return passed("; ".join(sorted(notes)))


def _factor(site: Site, sites: Sites) -> dict[str, float] | None:
    """The factors between projections and softmax; None if they cannot be measured.

    Returns:
        total, of which q and k before the product and scores after it; degree: 2 if the scores are bilinear in the
        projections, 0 if queries and keys are normalised; d: size over which the product sums; mean_square of both.
    """
    if site.scores is None or not site.first or not site.second:
        return None
    live = computed(sites.plain)
    if any(is_sum(sites.plain, live, value) for value in sites.plain.ops[site.scores].inputs[-2:]):
        return None
    (q1, k1), (q2, k2) = site.operands(sites.once), site.operands(sites.twice)
    after = _after_product(site, sites)
    if after is None:
        return None
    sizes = [float((b - a).square().mean().sqrt()) / SIZE for a, b in ((q1, q2), (k1, k2))]
    degrees = [_degree(a, b) for a, b in ((q1, q2), (k1, k2))]
    return {
        "total": after * sizes[0] * sizes[1], "q": sizes[0], "k": sizes[1], "scores": after,
        "d": float(q1.size(-1)), "degree": min(degrees),
    }  # fmt: skip


def _degree(once: Tensor, twice: Tensor) -> float:
    """1 if a tensor doubled with the projections, 0 if it stayed."""
    ratio = float(twice.norm() / once.norm().clamp_min(1e-30))
    return math.log2(max(ratio, 1e-9))


def _after_product(site: Site, sites: Sites) -> float | None:
    """The factor between q k and what enters the softmax: by the logarithms of the weights, up to a constant a row."""
    changes = []
    for run in (sites.once, sites.other):
        q, k = site.operands(run)
        weights = site.weights(run).float()
        changes.append((q.float() @ k.float().transpose(1, 2), weights))
    (s1, p1), (s2, p2) = changes
    best, fit = None, 0.999
    for flip in (False, True):
        scores = (s2 - s1).transpose(1, 2) if flip else s2 - s1
        if scores.shape != p1.shape:
            if scores.shape[:2] != p1.shape[:2] or scores.size(2) < p1.size(2):
                continue
            scores = scores[..., : p1.size(2)]
        seen = (p1 > 1e-20) & (p2 > 1e-20) & p1.isfinite() & p2.isfinite()
        logs = torch.where(seen, (p2.clamp_min(1e-30) / p1.clamp_min(1e-30)).log(), 0.0)
        x, y = _centred(scores, seen), _centred(logs, seen)
        size = float(x.norm() * y.norm())
        cosine = float((x * y).sum()) / size if size > 0 else 0.0
        if abs(cosine) > fit:
            best, fit = float((x * y).sum() / x.square().sum()), abs(cosine)
    return best


def _centred(values: Tensor, seen: Tensor) -> Tensor:
    """Values minus the mean of their row, where they are seen; else 0."""
    count = seen.sum(-1, keepdim=True).clamp_min(1)
    mean = torch.where(seen, values, 0.0).sum(-1, keepdim=True) / count
    return torch.where(seen, values - mean, 0.0)


def _judge(site: Site, factor: Mapping[str, float], sites: Sites, subject: Subject) -> str | Result:
    """A note if the scale is right or may be meant, else a failure."""
    total, d = factor["total"], factor["d"]
    right = d**-0.5
    evidence = {"factor": total, "expected": right, "head_dim": int(d)}

    def wrong(what: str) -> Result:
        message = f"scores are q k times {total:.4g} ({what}), not 1/sqrt({int(d)}) = {right:.4g}"
        return failed("scale", message, site.module, **evidence)

    if factor["degree"] < 0.5:
        return f"queries or keys are normalised, scores are multiplied by {factor['scores']:.3g}"
    if _close(total, right):
        return f"scores are q k / sqrt({int(d)})"
    if total < 0:
        return wrong("a negative factor: the least similar keys weigh most")
    if _close(total, 1 / d):
        if _applied_twice(factor, site, sites):
            return wrong("1/sqrt(d) is applied twice")
        return f"scores are q k / {int(d)}, as in muP"
    if _configured(total, subject):
        return f"scores are q k times {total:.4g}, as configured"
    if _learned(site, sites):
        return f"scores are q k times {total:.4g}, with a learned factor"
    if total > 0.9:
        plain_q, plain_k = (t.float().square().mean().sqrt() for t in site.operands(sites.plain))
        ratio = float(torch.minimum(plain_q, plain_k) / torch.maximum(plain_q, plain_k).clamp_min(1e-30))
        if total < 1.1 and 0 < ratio < 2 * right and ratio < 0.6:
            return f"scores are q k; the projections of q and k differ in size by {ratio:.3g}, which scales them (T5)"
        return wrong("no scale" if _close(total, 1.0) else "multiplied, not divided")
    if subject.fresh and any(not bool(side.any()) for side in site.operands(sites.plain)):
        return f"scores are q k times {total:.4g}; queries or keys start at zero, as in muP"
    if _close(total, d**-0.25):
        return wrong("only one of two factors")
    sizes = {"width": _width(site, sites), "time": sites.length, "heads": factors(sites.plain, site.mix)[0].size(0)}
    parts = factor["q"], factor["k"], factor["scores"]
    in_one_place = any(_close(part, total) for part in parts) or (_close(parts[0], parts[1]) and _close(parts[2], 1.0))
    for name, size in sizes.items():
        if in_one_place and size > 1 and (_close(total, size**-0.5) or (name == "time" and _close(total, 1 / size))):
            text = f"the size of the {name} axis, {size}, instead of a head's"
            if name != "width":
                return wrong(text)
            return warned(
                "scale", f"scores are q k times {total:.4g} ({text}: lectures and muP do so)", site.module, **evidence
            )
    return f"scores are q k times {total:.4g}; 1/sqrt({int(d)}) is {right:.4g}"


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= SAME * abs(b)


def _applied_twice(factor: Mapping[str, float], site: Site, sites: Sites) -> bool:
    """Whether 1/d is made of one 1/sqrt(d) in one place and another one elsewhere, not half on q and half on k."""
    right = factor["d"] ** -0.5
    root = right**0.5  # fused attention multiplies q and k by it
    q, k, scores = factor["q"], factor["k"], factor["scores"]
    if _close(scores, right) and (_close(q, right) or _close(k, right)):
        return True
    if (_close(q, right * root) and _close(k, root)) or (_close(k, right * root) and _close(q, root)):
        return True
    return sum(_close(number, right) for number in _numbers(site, sites.plain)) >= 2


def _numbers(site: Site, run: Trace) -> list[float]:
    """The plain numbers that multiply the scores on their way to the softmax."""
    passed, _ = walk_back(run, computed(run), run.ops[site.mix].inputs[-1 if site.flipped else -2])
    found = []
    for index in passed:
        op = run.ops[index]
        if op.name.rstrip("_") not in ("aten.mul", "aten.div") or len(op.args) < 2:
            continue
        number = op.args[1]
        if isinstance(number, Tensor) and number.numel() == 1:
            number = float(number)
        if isinstance(number, (int, float)) and number:
            found.append(1 / number if "div" in op.name else number)
    return found


def _configured(total: float, subject: Subject) -> bool:
    """Whether a number in the model's configuration, named as a scale, explains a factor."""
    for part in subject.module.modules():
        for holder in (part, *(getattr(part, name, None) for name in HOLDERS)):
            items = holder if isinstance(holder, Mapping) else getattr(holder, "__dict__", {})
            for name, value in items.items():
                named = any(word in str(name).lower() for word in ("scal", "mult", "temperature", "pre_attn"))
                if not named or isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
                    continue
                if holder is not part and any(_close(total, x) for x in (value, 1 / value, value**-0.5)):
                    return True
    return False


def _learned(site: Site, sites: Sites) -> bool:
    """Whether a parameter multiplies scores, queries or keys on the way to the softmax."""
    run, parameters = sites.plain, {v for v, (origin, _) in sites.plain.origins.items() if origin == "parameter"}
    start = min(site.first | site.second)
    for index in range(start, site.mix):
        op = run.ops[index]
        if op.name.rstrip("_") not in ("aten.mul", "aten.div") or index in site.sources:
            continue
        for value in op.inputs:
            ancestors = run.ancestors(value) if run.tensors[value].numel() <= 256 else {value}
            if len(ancestors) < 8 and ancestors & parameters and set(op.outputs) & _ahead(run, site):
                return True
    return False


def _ahead(run: Trace, site: Site) -> set[int]:
    return run.ancestors(run.ops[site.mix].inputs[-1 if site.flipped else -2])


def _width(site: Site, sites: Sites) -> int:
    """The size over which the projection of the queries sums."""
    op = sites.plain.ops[min(site.first)]
    return sites.plain.tensors[op.inputs[-1]].size(-2) if op.name != "aten.embedding" else 0


ATTENTION_CHECKS: tuple[Check[Subject], ...] = (
    Check(
        name="attention rows",
        does="Replaces the projections of every attention by random signs; the weights of each query must sum to 1 "
        "over the keys and not change with later tokens.",
        cost="5 forward passes, shared by all checks of attention",
        threshold="rows within 1e-2 of 1 (bfloat16 weights round to 4e-3); changes up to 1e-6 (they are exactly 0)",
        findings=("softmax axis", "leak"),
        run=attention_rows,
    ),
    Check(
        name="attention scale",
        does="Measures the factor between projected queries and keys and the softmax, which must be 1/sqrt(head size).",
        cost="no further pass",
        threshold="3 %; other factors up to 0.9 that may be meant pass with a note: 1/d (muP), configured, learned, "
        "normalised queries and keys",
        findings=("scale",),
        run=attention_scale,
    ),
)

"""The gradients of a training step: cleared before it, and summed rightly over its micro-batches."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from glassgpt.doctor.loops.loop import Batch, Loop, Program, flat
from glassgpt.doctor.loops.watch import Watch
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed

SMALL = 2.0**-10  # a power of two: exact in every floating type


def shares(parts: list[Tensor], total: Tensor) -> tuple[list[float], float]:
    """How much of each part is in a total: the least-squares coefficients, and the relative size of the rest."""
    gram = torch.tensor([[float(a @ b) for b in parts] for a in parts], dtype=torch.float64)
    right = torch.tensor([float(a @ total) for a in parts], dtype=torch.float64)
    found = (torch.linalg.pinv(gram, hermitian=True) @ right).tolist()
    rest = total - sum((c * a for c, a in zip(found, parts, strict=True)), torch.zeros_like(total))
    return found, float(rest.norm() / total.norm().clamp_min(1e-30))


def cosine(a: Tensor, b: Tensor) -> float:
    """The cosine between two vectors."""
    return float(a @ b / (a.norm() * b.norm()).clamp_min(1e-30))


def captured(program: Program, micro: list[Batch], scale: float = 1.0, seed: int = 1) -> Tensor:
    """The gradient that one training step hands to the optimiser; the parameters are kept."""
    with Watch(program, stretch=0.0, scale=scale) as watch:
        program.step(micro, seed)
        return reached(watch) / scale


def reached(watch: Watch) -> Tensor:
    """The watched gradient; NotRun if there is none, or if it is not finite."""
    gradient = watch.gradient()
    if gradient is None:
        raise NotRun("no optimiser of the loop steps on the model's parameters inside train_step")
    if not bool(gradient.isfinite().all()):
        raise NotRun("the gradient is not finite")
    if not bool(gradient.any()):
        raise NotRun("the gradient at the optimiser is zero")
    return gradient


def half(program: Program) -> bool:
    """Whether a trainable parameter has 16 bits."""
    return any(p.dtype in (torch.float16, torch.bfloat16) for p in program.trainable().values())


def cleared(loop: Loop) -> Result:
    """Compare the gradient of a batch with the gradient of the same batch after a step on another."""
    with loop.open() as program:
        program.need("model", "optimizer", "train_step")
        stale = [p.grad for p in program.trainable().values()]
        old = flat([torch.zeros_like(p) if p.grad is None else p.grad for p in program.trainable().values()])
        a, b = two_batches(program)
        first = captured(program, b, seed=2)
        second = captured(program, b, seed=2)
        if any(g is not None for g in stale) and float(old.norm()) > 0:
            (_, kept), _ = shares([second, old], first)
            if kept > 0.2:
                return failed(
                    "gradients not cleared", "gradients from before the first step are added to its own", kept=kept
                )
    with loop.open() as program:
        two_batches(program)  # the same draws as above
        before = captured(program, a, seed=1)
        with Watch(program, stretch=0.0) as watch:
            program.step(b, seed=2)
            after, left = reached(watch), sorted(watch.leftovers)
        if left:
            text = (
                f"{len(left)} parameters still have the last step's gradient when a step begins: {', '.join(left[:3])}"
            )
            return failed("gradients not cleared", text, left[0], names=left[:20])
        if cosine(before, first) > 0.9999:
            growth = float(second.norm() / first.norm())
            if growth > 1.5:
                return failed(
                    "gradients not cleared",
                    f"the gradient of one batch grows x{growth:.2f} in two steps",
                    growth=growth,
                )
            return passed("the gradient of one batch is the same in two steps", growth=growth)
        (own, kept), rest = shares([first, before], after)
    evidence: dict[str, Any] = {
        "share of the last step": round(kept, 4),
        "own share": round(own, 4),
        "unexplained": round(rest, 4),
    }
    if kept > 0.2 and rest < 0.3:
        return failed(
            "gradients not cleared",
            f"a step's gradient contains {kept:.2f} times the gradient of the step before",
            **evidence,
        )
    if rest > 0.3:
        raise NotRun(f"the gradient of the same batch differs from step to step by {rest:.0%}")
    return passed("a step's gradient contains nothing of the step before", **evidence)


def two_batches(program: Program) -> tuple[list[Batch], list[Batch]]:
    """The micro-batches of two steps; empty where train_step draws its own."""
    if not program.takes_micro or program.get("get_batch") is None:
        return [], []
    return program.micro_batches(1), program.micro_batches(2)


def accumulation(loop: Loop) -> Iterable[Result]:
    """Write the gradient of a step as a sum over its micro-batches and compare with the full batch."""
    with loop.open() as program:
        program.need("model", "optimizer", "train_step", "get_batch")
        if program.accum < 2:
            raise NotRun("the loop does not accumulate (`accum` is missing or 1)")
        yield from _same_batch_again(program)
    with loop.open() as program:
        if not program.takes_micro:
            raise NotRun("train_step takes no micro-batches")
        micro, ragged = _uneven(program)
        scale = 1.0 if any(p.dtype == torch.float16 for p in program.trainable().values()) else SMALL
        chunks = [micro[:1], micro[1:-1], micro[-1:]] if len(micro) > 2 else [micro[:1], micro[1:]]
        parts = [program.gradient(chunk) for chunk in chunks]
        expected, odd = shares(parts, program.gradient([_joined(micro)]))
        if odd > 0.05:  # the loss of a batch depends on more than its windows (experts, batch norm)
            if ragged:
                raise NotRun("the loss of a joined batch is not a weighted mean of the losses of its parts")
            expected = [1 / len(micro)] * len(parts)
        with Watch(program, stretch=0.0, scale=scale) as watch:
            program.step(micro)
            steps = max(watch.count("optimizer", i) for i in range(len(program.optimizers)))
            if steps > 1:
                yield failed(
                    "accumulation",
                    f"the optimiser steps {steps} times in one update of {len(micro)} micro-batches",
                    steps=steps,
                )
                return
            raw = reached(watch)
        found, rest = shares(parts, raw / scale)
        even = max(found) < 1.1 * min(found)
        if program.clip and even and abs(sum(found) / sum(expected) - 1) > 0.1:  # is it cut even when it is small?
            again, _ = shares(parts, captured(program, micro, scale / 16))
            if abs(sum(again) / sum(found) - 1) > 0.1:
                raise NotRun("the gradient is cut although its norm is far below `clip`: its size says nothing here")
        if program.clip and abs(float(raw.norm()) / program.clip - 1) < 0.01:  # always normalised: sizes mean nothing
            found = [c * sum(expected) / sum(found) for c in found]
        yield _judge_shares(found, expected, rest, len(micro), ragged)


def _same_batch_again(program: Program) -> Iterable[Result]:
    assert program.model is not None
    seen: list[Tensor] = []

    def look(module: object, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        ids = next((a for a in [*args, *kwargs.values()] if isinstance(a, Tensor) and not a.is_floating_point()), None)
        if ids is not None:
            seen.append(ids.clone())

    handle = program.model.register_forward_pre_hook(look, with_kwargs=True)
    with Watch(program, stretch=0.0):
        program.step(None)
    handle.remove()
    drawn = [program.draw()[0] for _ in range(4)]
    constant = all(torch.equal(drawn[0], x) for x in drawn)
    if len(seen) == program.accum and not constant and all(torch.equal(seen[0], x) for x in seen):
        yield failed(
            "accumulation", f"all {program.accum} micro-batches of one update are the same batch", forwards=len(seen)
        )


def _uneven(program: Program) -> tuple[list[Batch], bool]:
    """Micro-batches; where the loop's own differ in their numbers of trained tokens, ones that differ clearly."""
    micro = program.micro_batches(1)
    counts = [int((y >= 0).sum()) for _, y in [*micro, *(program.draw() for _ in range(8))]]
    ragged = min(counts) < 0.95 * max(counts)
    if ragged:
        x, y = micro[-1]
        trained = y >= 0
        keep = trained & (trained.cumsum(1) > trained.sum(1, keepdim=True) * 0.7)
        micro[-1] = (x, torch.where(keep, y, torch.full_like(y, -100)))
    return micro, ragged


def _joined(micro: list[Batch]) -> Batch:
    """Several batches as one, padded on the right where their lengths differ."""
    length = max(x.shape[1] for x, _ in micro)
    xs = [torch.nn.functional.pad(x, (0, length - x.shape[1])) for x, _ in micro]
    ys = [torch.nn.functional.pad(y, (0, length - y.shape[1]), value=-100) for _, y in micro]
    return torch.cat(xs), torch.cat(ys)


def _judge_shares(found: list[float], expected: list[float], rest: float, accum: int, ragged: bool) -> Result:
    ratios = [f / e for f, e in zip(found, expected, strict=True)]
    evidence: dict[str, Any] = {
        "ratio to the full batch": [round(r, 4) for r in ratios],
        "unexplained": round(rest, 4),
        "accum": accum,
    }
    if rest > 0.1:
        raise NotRun(f"{rest:.0%} of the gradient of train_step is not of loss(x, y) on its micro-batches")
    if all(abs(r - 1) < 0.1 for r in ratios):
        return passed(f"{accum} micro-batches give the gradient of the full batch", **evidence)
    mean = sum(ratios) / len(ratios)
    if any(r < 0.2 * max(ratios) for r in ratios):
        text = "the gradients of some micro-batches are lost"
    elif all(abs(r / mean - 1) < 0.1 for r in ratios):
        text = f"the gradient of {accum} micro-batches is {mean:.3g} times that of the full batch"
    elif ragged:
        text = "each micro-batch weighs the same, whatever its number of trained tokens (a mean of means)"
    else:
        text = "the micro-batches do not weigh the same"
    return failed("accumulation", text, **evidence)


GRADIENT_CHECKS: tuple[Check[Loop], ...] = (
    Check(
        "gradients cleared",
        "compares the gradient of a batch with that of the same batch after a step on another; no update is made",
        "4 training steps",
        "20 % of the last step's gradient: a right loop keeps none, a bug keeps all of it; bfloat16 noise is about 2 %",
        ("gradients not cleared",),
        cleared,
    ),
    Check(
        "accumulation",
        "writes the gradient of one update as a sum of those of its micro-batches, and compares it with the full batch",
        "2 training steps and 2 passes over their batches",
        "10 %: the sums agree to rounding; a wrong weight is wrong by a factor",
        ("accumulation",),
        accumulation,
    ),
)

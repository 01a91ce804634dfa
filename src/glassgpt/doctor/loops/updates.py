"""What a training step does to the parameters: whether they change, which way, how far, and what rounding leaves."""

import contextlib
import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from glassgpt.doctor.loops.gradients import cosine, two_batches
from glassgpt.doctor.loops.loop import Batch, Loop, Program, attempt
from glassgpt.doctor.loops.schedules import peak_factor
from glassgpt.doctor.loops.watch import Watch, flat_parameters, groups, held_tensors
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed, warned

STEPS = 12  # on one batch: enough for an optimiser's first, badly scaled steps to even out
SIXTEEN_BITS = (torch.float16, torch.bfloat16)


def loss_on(program: Program, micro: list[Batch]) -> float:
    """The mean loss of some batches."""
    with torch.no_grad():
        return sum(float(program.loss(x, y)) for x, y in micro) / len(micro)


def update(loop: Loop) -> Iterable[Result]:
    """Train on one batch: the parameters change, along the descent, and its loss falls."""
    with loop.open() as program:
        program.need("model", "train_step")
        micro = two_batches(program)[0]
        start = flat_parameters(program)
        with Watch(program) as watch:
            change = torch.zeros_like(start)
            for step in range(20):  # a warm-up begins with a rate of 0
                program.step(micro, seed=step)
                change = flat_parameters(program) - start
                if bool(change.any()):
                    break
            gradient = watch.gradient()
            if not bool(change.any()) or (gradient is not None and not bool(gradient.any())):
                yield _nothing_changes(program, watch, gradient)
                return
        missing = _unchanged(program, change, gradient)
        if missing:
            names = ", ".join(missing[:4])
            yield failed(
                "no update",
                f"held by the optimiser, with a gradient, and not changed: {names}",
                missing[0],
                names=missing,
            )
    yield attempt(lambda: _falls(loop))


def _nothing_changes(program: Program, watch: Watch, gradient: Tensor | None) -> Result:
    rates = sorted({rate for step in watch.rates for rate in step})
    if program.optimizers and not watch.events:
        return failed("no update", "train_step calls no step of the optimiser: no parameter changes")
    if gradient is None and program.optimizers:
        return failed("no update", "the optimiser holds no parameter of the model that has a gradient: nothing changes")
    if gradient is not None and not bool(gradient.any()):
        return failed("no update", "the gradients at the optimiser are all zero: nothing is learned")
    if rates and not any(rates):
        return failed("no update", "the learning rate is 0 in all of 20 steps: nothing changes", rates=rates)
    if any(p.dtype in SIXTEEN_BITS for p in program.trainable().values()):
        return failed("precision", "no 16-bit parameter changes in 20 steps: every update is rounded away", rates=rates)
    return failed("no update", "no parameter of the model changes in 20 training steps", rates=rates)


def _unchanged(program: Program, change: Tensor, gradient: Tensor | None) -> list[str]:
    """Names of the held float32 parameters with a gradient and a rate that did not change."""
    if gradient is None or float(change.abs().max()) < 1e-5:  # such a rate is rounded away near 1
        return []
    live = {id(p) for o in program.optimizers for g in groups(o) if g.get("lr", 1) != 0 for p in g["params"]}
    sizes = [p.numel() for p in program.trainable().values()]
    return [
        name
        for (name, p), c, g in zip(program.trainable().items(), change.split(sizes), gradient.split(sizes), strict=True)
        if id(p) in live
        and p.dtype == torch.float32
        and not bool(c.any())
        and float(g.norm()) > 1e-6 * float(gradient.norm())
    ]


def _train(loop: Loop, stretch: float | None) -> tuple[list[float], Tensor, Tensor | None, dict[str, float]]:
    """Train a fresh program on one batch.

    Returns:
        the losses, the first change, the gradient before it, and the loss along that change by multiples of it.
    """
    with loop.open() as program:
        micro = two_batches(program)[0]
        probe = micro or _probe(program)
        sweep: dict[str, float] = {}
        losses, gradient = [], None
        with contextlib.suppress(NotRun):
            losses.append(loss_on(program, probe))
            gradient = _try_gradient(program, probe)
        own = not losses  # without a loss, what train_step returns
        change = torch.zeros(1)
        with Watch(program, stretch=stretch):
            for _ in range(STEPS):
                before = flat_parameters(program)
                returned = program.step(micro or None, seed=1)
                if not bool(change.any()):
                    change = flat_parameters(program) - before
                    if stretch is None and not own and bool(change.any()):
                        sweep = _sweep(program, probe, before, change)
                losses.append(_number(returned) if own else loss_on(program, probe))
        return losses, change, gradient, sweep


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise NotRun("the loop has no `loss(x, y)`, and train_step returns no number") from None


def _probe(program: Program) -> list[Batch]:
    program.need("get_batch")
    return program.micro_batches(1)


def _try_gradient(program: Program, micro: list[Batch]) -> Tensor | None:
    try:
        return program.gradient(micro)
    except RuntimeError:  # a loss without a graph
        return None


def _sweep(program: Program, micro: list[Batch], start: Tensor, change: Tensor) -> dict[str, float]:
    """The loss at multiples of the first change."""
    end = flat_parameters(program)
    found = {}
    for factor in (0.01, 0.1, 1.0, 10.0, 100.0):
        _set(program, start + factor * change)
        found[f"x{factor:g}"] = loss_on(program, micro)
    _set(program, end)
    return found


@torch.no_grad()
def _set(program: Program, values: Tensor) -> None:
    params = list(program.trainable().values())
    for p, value in zip(params, values.split([p.numel() for p in params]), strict=True):
        p.copy_(value.view_as(p))


def _falls(loop: Loop) -> Result:
    losses, change, gradient, sweep = _train(loop, None)
    along = cosine(gradient, change) if gradient is not None and gradient.shape == change.shape else 0.0
    evidence: dict[str, Any] = {
        "losses on one batch": [round(v, 4) for v in losses],
        "cosine of update and gradient": round(along, 4), "sweep": sweep,
    }  # fmt: skip
    first, last = losses[0], losses[-1]
    if along > 0.02:
        return failed("no update", "the update goes up the gradient of loss(x, y): the loss rises", **evidence)
    if along < -1e-3 and abs(last - first) < 1e-4 * abs(first):
        return passed("the update goes down the gradient; the rate is still too low to see it in the loss", **evidence)
    peak = max(losses[1:])
    if last < first and peak > 1.05 * first:
        slower, *_ = _train(loop, 0.1)
        evidence["losses at a tenth of the rate"] = [round(v, 4) for v in slower]
        if slower[-1] < last:
            text = (
                f"on one batch the loss rises from {first:.3f} to {peak:.3f}; at a tenth of the rate it falls at once"
            )
            judge = failed if peak > 1.1 * first else warned
            return judge("schedule", text, **evidence)
    if last < first:
        return passed(f"{STEPS} steps on one batch lower its loss from {first:.3f} to {last:.3f}", **evidence)
    slow, *_ = _train(loop, 0.01)
    evidence["losses at a hundredth of the rate"] = [round(v, 4) for v in slow]
    if slow[-1] < slow[0]:
        text = (
            f"on one batch the loss goes from {first:.3f} to {last:.3f}; at a hundredth of the rate, to {slow[-1]:.3f}"
        )
        return failed("schedule", text, **evidence)
    return failed(
        "no update",
        f"{STEPS} steps on one batch do not lower its loss, at no rate ({first:.3f} to {last:.3f})",
        **evidence,
    )


def rounding(loop: Loop) -> Result:
    """Compare 16-bit parameters with what the same updates do to float32 copies, at the schedule's full rate."""
    factor = peak_factor(loop)
    with loop.open() as program:
        program.need("model", "optimizer", "train_step")
        params = [p for p in program.trainable().values() if p.dtype in SIXTEEN_BITS]
        if not params:
            return passed("all trainable parameters are in float32")
        micro = two_batches(program)[0]
        watch, shadow = Watch(program), _Shadow(program, params, factor)
        watch.before_step = shadow.before
        start = [p.detach().clone() for p in params]
        with watch:
            for _ in range(8):
                program.step(micro or None, seed=1)
    lost = total = 0
    for p, first, wanted in zip(params, start, shadow.wanted, strict=True):
        moved = wanted > 0
        spacing = torch.finfo(p.dtype).eps * first.float().abs()
        sure = moved & ((wanted > spacing) | shadow.plain)  # an optimiser with compensation may move it later
        lost += int((sure & (p.detach() == first)).sum())
        total += int(moved.sum())
    if not total:
        raise NotRun("no 16-bit parameter would change in 8 steps")
    share = lost / total
    evidence: dict[str, Any] = {"share rounded away": round(share, 4), "rate": shadow.rate}
    text = f"{share:.0%} of the 16-bit parameters do not change in 8 steps, where float32 copies would"
    if share >= 0.5:
        return failed("precision", text, **evidence)
    return warned("precision", text, **evidence) if share >= 0.35 else passed(text, **evidence)


class _Shadow:
    """Run each optimiser's step on float32 copies first, and add up how far they go."""

    def __init__(self, program: Program, params: list[nn.Parameter], factor: float | None):
        self.params, self.factor = params, factor
        self.wanted = [torch.zeros_like(p, dtype=torch.float32) for p in params]
        self.plain = all(type(o).__module__.startswith("torch.optim") for o in program.optimizers)
        self.rate = 0.0
        self.busy = False

    def before(self, optimizer: Any) -> None:
        """Called at the beginning of the optimiser's own step."""
        if self.busy or not hasattr(optimizer, "state"):
            return
        self.busy = True
        for group in groups(optimizer):
            if self.factor is not None and "initial_lr" in group:
                group["lr"] = self.factor * float(group["initial_lr"])
            elif "lr" in group and "lr" in getattr(optimizer, "defaults", {}):
                group["lr"] = max(float(group["lr"]), float(optimizer.defaults["lr"] or 0))
            self.rate = max(self.rate, float(group.get("lr", 0)))
        state = copy.copy(optimizer.state), copy.deepcopy(dict(optimizer.state))
        held = {id(p) for p in held_tensors(optimizer)}
        saved = [(p, p.data, p.grad) for p in self.params if id(p) in held and p.grad is not None]
        for p, data, grad in saved:
            p.grad, p.data = None, data.float()
            p.grad = None if grad is None else grad.float()
        optimizer.state.clear()
        for p, values in state[1].items():
            optimizer.state[p] = {
                k: v.float() if isinstance(v, Tensor) and v.dtype in SIXTEEN_BITS else v for k, v in values.items()
            }
        try:
            optimizer.step()
            for index, p in enumerate(self.params):
                for same, data, _ in saved:
                    if same is p:
                        self.wanted[index] += (p.data - data.float()).abs()
        finally:
            for p, data, grad in saved:
                p.grad, p.data = None, data
                p.grad = grad
            optimizer.state.clear()
            optimizer.state.update(state[0])
            self.busy = False


def underflow(loop: Loop) -> Result:
    """Compare the zeros in float16 gradients with those of a loss that is scaled up."""
    with loop.open() as program:
        program.need("model", "optimizer", "train_step", "get_batch")
        micro = program.micro_batches(1)
        with Watch(program, stretch=0.0) as watch:
            program.step(micro if program.takes_micro else None)
            gradient = watch.gradient()
        if gradient is None:
            raise NotRun("no optimiser of the loop steps on the model's parameters inside train_step")
        if not bool(gradient.any()) and not any(p.dtype == torch.float16 for p in program.trainable().values()):
            raise NotRun("the gradient at the optimiser is zero")
        scaled = program.gradient(micro, weight=1024.0)
        live = scaled.isfinite() & (scaled != 0)
        share = float((gradient[live] == 0).float().mean()) if bool(live.any()) else math.nan
    text = f"{share:.1%} of the gradients are zero at the optimiser and not zero when the loss is scaled by 1024"
    if share >= 0.5:
        return failed("precision", text, share=share)
    return warned("precision", text, share=share) if share >= 0.2 else passed(text, share=share)


UPDATE_CHECKS: tuple[Check[Loop], ...] = (
    Check(
        "update",
        "trains on one batch: parameters change, down the gradient, and the loss falls; tries other rates",
        f"{STEPS + 1} to {2 * STEPS + 20} training steps",
        "the loss after 12 steps on one batch is lower; if not, a hundredth of the rate tells a rate that is too high "
        "from a wrong direction; a rise by a tenth on the way is too high if a tenth of the rate ends lower",
        ("no update", "schedule", "precision"),
        update,
    ),
    Check(
        "rounding",
        "runs the same updates on float32 copies of 16-bit parameters and counts those that only the copies make",
        "16 optimiser steps",
        "half of the parameters fail, a third warns: norms near 1 are always lost, and are few",
        ("precision",),
        rounding,
    ),
    Check(
        "underflow",
        "counts gradients that are zero at the optimiser and not zero when the loss is scaled up",
        "1 training step and 1 pass",
        "half fail, a fifth warn; in float32 and bfloat16 it is 0",
        ("precision",),
        underflow,
    ),
)

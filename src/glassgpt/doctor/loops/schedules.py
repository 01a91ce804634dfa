"""The learning rate: a scheduler steps once per update, after it, on this optimiser; rates are numbers that train."""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from glassgpt.doctor.loops.gradients import two_batches
from glassgpt.doctor.loops.loop import Loop, Program, attempt
from glassgpt.doctor.loops.watch import Watch, flat_parameters, groups
from glassgpt.doctor.report import Check, Result, failed, passed, warned

STEPS = 3
AHEAD = 2000  # steps of a schedule that are looked at
BY_EPOCH = ("StepLR", "MultiStepLR", "ExponentialLR", "ReduceLROnPlateau")


def peak_factor(loop: Loop) -> float | None:
    """The largest multiple of its base rate that a torch scheduler reaches; None without one."""
    with loop.open() as program:
        return _peak(program)


def _peak(program: Program) -> float | None:
    scheduler = next((s for s in program.schedulers if isinstance(s, LRScheduler)), None)
    if scheduler is None or isinstance(scheduler, ReduceLROnPlateau):
        return None
    factors = []
    for _ in range(AHEAD):
        factors.append(
            max(float(g["lr"]) / (float(g.get("initial_lr", 0)) or 1) for g in scheduler.optimizer.param_groups)
        )
        try:
            scheduler.step()
        except ValueError:  # OneCycleLR ends
            break
    return max(factors)


def schedule(loop: Loop) -> Iterable[Result]:
    """Count the scheduler's steps, their order, and look at the rates."""
    with loop.open() as program:
        program.need("train_step", "optimizer")
        micro = two_batches(program)[0]
        with Watch(program) as watch:
            for _ in range(STEPS):
                program.step(micro)
        rates = [rate for step in watch.rates for rate in step]
        bad = [rate for rate in rates if rate < 0 or not math.isfinite(rate)]
        if bad:
            yield failed("schedule", f"a learning rate of {bad[0]}", rates=rates[:10])
        if not program.schedulers:
            yield passed("there is no scheduler; rates in the first steps: " + ", ".join(f"{r:.3g}" for r in rates[:3]))
        for index, scheduler in enumerate(program.schedulers):
            yield attempt(partial(_judge, program, watch, index, scheduler))
    yield from _too_small(loop)


def _judge(program: Program, watch: Watch, index: int, scheduler: Any) -> Result:
    steps = watch.count("scheduler", index)
    name = type(scheduler).__name__
    evidence: dict[str, Any] = {"scheduler": name, "scheduler steps": steps, "updates": STEPS, "accum": program.accum}
    owner = getattr(scheduler, "optimizer", None)
    if owner is not None and not any(_same(owner, o) for o in program.optimizers):
        return failed(
            "schedule", f"the {name} belongs to another optimiser: it changes no rate of this one", **evidence
        )
    if steps == 0:
        return _never(program, name, index, evidence)
    if steps != STEPS:
        return failed(
            "schedule", f"the {name} steps {steps} times in {STEPS} updates (accum {program.accum})", **evidence
        )
    order = [kind for kind, i in watch.events if kind == "optimizer" or i == index]
    if isinstance(scheduler, LRScheduler) and order[0] == "scheduler" and "optimizer" in order:
        return failed("schedule", f"the {name} steps before the optimiser: the first rate is never used", **evidence)
    return passed(f"the {name} steps once per update, after it", **evidence)


def _same(a: Any, b: Any) -> bool:
    """Whether two optimisers are one, or share their parameter groups (a wrapper)."""
    return a is b or getattr(a, "param_groups", 0) is getattr(b, "param_groups", 1)


def _never(program: Program, name: str, index: int, evidence: dict[str, Any]) -> Result:
    if program.get("evaluate") is not None:
        with Watch(program) as watch, torch.no_grad():
            program.get("evaluate")()
        if watch.count("scheduler", index):
            return passed(f"the {name} steps in evaluate()", **evidence)
    text = f"train_step never steps the {name}"
    if name == "ReduceLROnPlateau":
        return passed(f"{text}; it needs a validation loss, so the program around it may", **evidence)
    if name in BY_EPOCH:
        return warned("schedule", f"{text}; if it is meant for epochs, the program around it has to", **evidence)
    return failed("schedule", text, **evidence)


def _too_small(loop: Loop) -> Iterable[Result]:
    """Whether the rate, at its schedule's peak, still changes anything."""
    with loop.open() as program:
        if program.model is None or not program.schedulers:
            return
        micro = two_batches(program)[0]
        start = flat_parameters(program)
        rate = 0.0
        for _ in range(20):
            rate = max(float(g.get("lr", 0)) for o in program.optimizers for g in groups(o))
            program.step(micro)
            change = flat_parameters(program) - start
            if bool(change.any()):
                break
        relative = float(change.norm() / start.norm())
        base = max(float(g.get("initial_lr", 0)) for o in program.optimizers for g in groups(o))
        factor = _peak(program)
    if not factor or factor < 0 or not rate or not relative:
        return
    top = relative * factor * base / rate
    evidence: dict[str, Any] = {"relative change per step": top, "peak rate": factor * base}
    if top < 1e-5:
        yield failed(
            "schedule",
            f"the rate's peak is {factor * base:.3g}: a step changes the weights by {top:.1g} of their size",
            **evidence,
        )


SCHEDULE_CHECKS: tuple[Check[Loop], ...] = (
    Check(
        "schedule",
        "counts the scheduler's steps in three updates, checks their order and optimiser, and looks ahead at its rates",
        "3 to 6 training steps",
        "one step per update; at the peak, a step changes weights by more than 1e-5 of their size (usual: 1e-3)",
        ("schedule",),
        schedule,
    ),
)

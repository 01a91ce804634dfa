"""What the optimisers hold: every trainable parameter once, and weight decay where it belongs."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from glassgpt.doctor.loops.gradients import two_batches
from glassgpt.doctor.loops.loop import Loop, Program
from glassgpt.doctor.loops.watch import groups, held_tensors
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed, warned

DEFAULT_DECAY = 0.01  # AdamW's own
LIVE_STEPS = 4  # what begins at zero (adapters, gates) lets gradients through only after a step or two
MOST_DECAY = 0.01  # of a weight per step: in a hundred steps it is gone; usual ones are below 0.001


def coverage(loop: Loop) -> Iterable[Result]:
    """Compare what the optimisers hold with the model's trainable parameters, and see what a step changes."""
    with loop.open() as program:
        program.need("model", "optimizer")
        held = [id(p) for o in program.optimizers for p in held_tensors(o)]
        if not held:
            raise NotRun("the optimiser does not show what it holds (no `param_groups`)")
        named = program.trainable()
        if not named:
            yield failed("optimizer coverage", "the model has no trainable parameter")
            return
        twice = [name for name, p in named.items() if held.count(id(p)) > 1]
        if twice:
            yield failed(
                "optimizer coverage", f"held twice, so updated twice: {', '.join(twice[:4])}", twice[0], names=twice
            )
        missing = [name for name, p in named.items() if id(p) not in held]
        extra = len(set(held) - {id(p) for p in named.values()})
        unused = _unused(program, missing) if missing else []
    missing = [name for name in missing if name not in unused]
    evidence: dict[str, Any] = {
        "held": len(set(held)),
        "trainable": len(named),
        "missing": missing[:20],
        "not of the model": extra,
    }
    if missing:
        other = f"; it holds {extra} other tensors (was the model moved or replaced afterwards?)" if extra else ""
        text = (
            f"{len(missing)} of {len(named)} trainable parameters are in no optimiser: {', '.join(missing[:4])}{other}"
        )
        yield failed("optimizer coverage", text, missing[0], **evidence)
    elif unused:
        text = (
            f"{len(unused)} parameters are not held, and have no gradient or change all the same; all others are held"
        )
        yield passed(text, **evidence)
    elif not twice:
        yield passed(f"each of the {len(named)} trainable parameters is held once", **evidence)


def _unused(program: Program, missing: list[str]) -> list[str]:
    """Of the parameters that are not held: those without a gradient, or that a step changes (copies in float32)."""
    if program.get("train_step") is None:
        return []
    named = program.trainable()
    before = {name: named[name].detach().clone() for name in missing}
    seen = _reached(program)
    return [name for name in missing if name not in seen or not torch.equal(before[name], named[name].detach())]


def _reached(program: Program) -> set[str]:
    """Train a few steps; the names of the parameters with a gradient that is not zero in one of them."""
    micro, seen = two_batches(program)[0], set[str]()

    def look(name: str, gradient: Tensor) -> None:
        if float(gradient.abs().sum()) != 0:
            seen.add(name)

    handles = [p.register_hook(partial(look, name)) for name, p in program.trainable().items()]
    for step in range(LIVE_STEPS):
        program.step(micro if step == 0 and micro else None, seed=step)
    for handle in handles:
        handle.remove()
    return seen


def dead(loop: Loop) -> Result:
    """Train a few steps and look for parameters that the optimiser holds and no loss reaches."""
    with loop.open() as program:
        program.need("model", "optimizer", "train_step")
        held = {id(p) for o in program.optimizers for p in held_tensors(o)}
        named = [name for name, p in program.trainable().items() if id(p) in held]
        reached = _reached(program)
    unreached = [name for name in named if name not in reached]
    if not reached:
        raise NotRun("no gradient reaches a parameter of the model")
    if unreached:
        text = f"no gradient reaches {len(unreached)} of {len(named)} parameters in {LIVE_STEPS} steps"
        return failed("dead parameters", f"{text}: {', '.join(unreached[:4])}", unreached[0], names=unreached[:20])
    return passed(f"the loss reaches all of the {len(named)} parameters that the optimisers hold")


def decay(loop: Loop) -> Iterable[Result]:
    """Look at which shapes of parameters decay."""
    with loop.open() as program:
        program.need("optimizer")
        optimizers = program.optimizers
        found = [_decay_of(o) for o in optimizers if any("weight_decay" in g for g in groups(o))]
        if not found:
            yield passed("no optimiser has weight decay")
            return
        for optimizer in optimizers:
            strength = max((float(g.get("weight_decay") or 0) for g in groups(optimizer)), default=0.0)
            coupled = not any(g.get("decoupled_weight_decay") for g in groups(optimizer))
            if type(optimizer).__name__ in ("Adam", "Adamax", "NAdam", "RAdam") and strength > 0 and coupled:
                text = (
                    f"{type(optimizer).__name__} adds a decay of {strength:g} to the gradient, where it is divided away"
                )
                yield warned("weight decay", f"{text}; AdamW decays the weights", decay=strength)
        yield from found


def _decay_of(optimizer: Any) -> Result:
    kinds: dict[tuple[bool, bool], int] = {}  # (is a matrix, decays) -> tensors
    strength = per_step = 0.0
    for group in groups(optimizer):
        value = float(group.get("weight_decay") or 0)
        strength = max(strength, value)
        per_step = max(per_step, value * max(float(group.get("lr", 0)), float(group.get("initial_lr", 0))))
        for p in group["params"]:
            key = (p.dim() >= 2, value > 0)
            kinds[key] = kinds.get(key, 0) + 1
    evidence: dict[str, Any] = {
        "decay": strength,
        "matrices that decay": kinds.get((True, True), 0), "matrices that do not": kinds.get((True, False), 0),
        "vectors that decay": kinds.get((False, True), 0), "vectors that do not": kinds.get((False, False), 0),
    }  # fmt: skip
    if per_step >= MOST_DECAY:
        text = f"a decay of {strength:g} takes {per_step:.2%} of each weight per step: none can grow"
        return failed("weight decay", text, **evidence, per_step=per_step)
    matrix, vector = kinds.get((True, True), 0), kinds.get((False, True), 0)
    if not vector:
        return passed(f"a decay of {strength:g} on matrices only" if matrix else "nothing decays", **evidence)
    if not matrix and kinds.get((True, False)):
        return failed(
            "weight decay",
            f"norms and biases decay ({strength:g}), matrices do not: the groups are exchanged",
            **evidence,
        )
    if kinds.get((False, False)):
        return failed(
            "weight decay",
            f"{vector} norms or biases decay ({strength:g}), others do not: the groups are mixed",
            **evidence,
        )
    if strength > DEFAULT_DECAY:
        return warned("weight decay", f"a decay of {strength:g} also pulls norms and biases towards 0", **evidence)
    return passed(f"a decay of {strength:g} on everything, the default of AdamW", **evidence)


OPTIMIZER_CHECKS: tuple[Check[Loop], ...] = (
    Check(
        "optimizer coverage",
        "compares what the optimisers hold with the model's trainable parameters",
        "3 training steps where something is missing",
        "every parameter with a gradient, once",
        ("optimizer coverage",),
        coverage,
    ),
    Check(
        "reached parameters",
        "looks for parameters that the optimisers hold and that never have a gradient",
        f"{LIVE_STEPS} training steps",
        f"exactly 0 in {LIVE_STEPS} steps",
        ("dead parameters",),
        dead,
    ),
    Check(
        "weight decay",
        "looks at which parameters decay, matrices or norms and biases, and how much per step",
        "none",
        "one decay above 0.01 (AdamW's default) on everything warns: it was set by hand, norms forgotten; 1 % of a "
        "weight per step fails",
        ("weight decay",),
        decay,
    ),
)

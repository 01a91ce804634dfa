"""Gradients are clipped as a whole, before the update, at the norm that the loop declares."""

import math
from typing import Any

import torch
from torch import Tensor

from glassgpt.doctor.loops.gradients import captured, cosine, half, reached, two_batches
from glassgpt.doctor.loops.loop import Loop, Program
from glassgpt.doctor.loops.watch import Watch, held_tensors
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed


def clipping(loop: Loop) -> Result:
    """Make the gradients far too large and look at their norm at the optimiser."""
    with loop.open() as program:
        program.need("model", "optimizer", "train_step")
        if program.clip is None:
            raise NotRun("the loop declares no `clip`")
        clip, exact = program.clip, not half(program)
        micro = two_batches(program)[0]
        free = captured(program, micro, 2.0**-20 if exact else 1.0)
    with loop.open() as program:
        two_batches(program)
        scale = 2.0 ** math.ceil(math.log2(max(100 * clip / float(free.norm()), 2.0)))
        with Watch(program, stretch=0.0, scale=scale) as watch:
            program.step(micro)
            if not watch.count("optimizer"):
                raise NotRun(f"the loop skips the update when gradients are {scale:g} times as large")
            big = reached(watch)
        sizes = [p.numel() for p in program.trainable().values()]
        norms, turned = _by_optimizer(program, big, free)
    norm, largest = float(big.norm()), float(big.abs().max())
    evidence: dict[str, Any] = {
        "clip": clip,
        "norm": norm,
        "norm before": scale * float(free.norm()),
        "cosine": round(turned, 5),
    }
    slack, straight = (1.01, 0.995) if exact else (1.05, 0.97)
    by_part = [float(part.norm()) for part in big.split(sizes)]
    if max(norms) <= slack * clip and turned >= straight:
        if max(norms) > 0.5 * clip or abs(float(big.abs().sum()) / clip - 1) < 0.02:
            return passed(
                f"a norm of {evidence['norm before']:.3g} reaches the optimiser as {norm:.3g} (clip {clip:g})",
                **evidence,
            )
        return failed(
            "clipping", f"gradients are cut to a norm of {norm:.3g}, far below the clip of {clip:g}", **evidence
        )
    if largest <= slack * clip and (float((big.abs() > 0.9 * clip).float().mean()) > 0.05 or turned >= straight):
        return passed(f"every value of the gradient is cut at {clip:g}", **evidence)
    if max(by_part) <= slack * clip and sum(n > 0.9 * clip for n in by_part) >= len(by_part) / 2:
        return passed(f"each parameter is cut to a norm of {clip:g} by itself, which turns the gradient", **evidence)
    if max(norms) <= slack * clip:
        return failed("clipping", "the clipped gradient points elsewhere: parts are clipped, then summed", **evidence)
    return failed("clipping", f"a norm of {norm:.3g} reaches the optimiser, with clip {clip:g}", **evidence)


def _by_optimizer(program: Program, big: Tensor, free: Tensor) -> tuple[list[float], float]:
    """The norm of each optimiser's part (each may be clipped by itself), and the lowest cosine between the two."""
    named, sizes = program.trainable(), [p.numel() for p in program.trainable().values()]
    norms, cosines = [], []
    for optimizer in program.optimizers:
        held = {id(p) for p in held_tensors(optimizer)}
        chosen = [id(p) in held for p in named.values()]
        a, b = (
            torch.cat([g for g, c in zip(v.split(sizes), chosen, strict=True) if c] or [v[:0]]) for v in (big, free)
        )
        if bool(a.any()):
            norms.append(float(a.norm()))
            cosines.append(cosine(a, b))
    return norms, min(cosines)


CLIPPING_CHECKS: tuple[Check[Loop], ...] = (
    Check(
        "clipping",
        "multiplies gradients as they are computed, to 100 times `clip`, and measures their norm at the optimiser",
        "2 training steps",
        "1.01 times `clip` (1.05 in 16 bits): the norm is computed in floating point",
        ("clipping",),
        clipping,
    ),
)

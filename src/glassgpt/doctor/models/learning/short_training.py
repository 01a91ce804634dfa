"""What a short training of a copy learns."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from glassgpt.doctor.models.learning.gradients import trainable, training_loss
from glassgpt.doctor.models.learning.loss_gradient import alignment, loss_gradient
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed
from glassgpt.doctor.subject import Subject, cross_entropy, fixed_random_state

#: Sizes of a single step, relative to the norm of all weights.
RATES = (0.001, 0.01, 0.1, 1.0)


def short_training(subject: Subject) -> Iterator[Result]:
    """A step lowers the loss at some rate; a short training on one batch learns the next token."""
    shift = 0
    if subject.computes_loss:
        idx, targets = subject.ids(), subject.ids(seed=7)
        with fixed_random_state():
            shares = alignment(loss_gradient(subject, subject.copy(), idx, targets).gradient, targets)
        shift = 1 if shares.get(1, 0) > shares[0] else 0
    length = max(2, min(subject.context, 16))
    tokens = subject.ids(2, length + 1, 11)
    idx, targets = tokens[:, :-1].contiguous(), (tokens[:, 1:] if shift == 0 else tokens[:, :-1]).contiguous()
    size = sum(p.numel() for p in subject.module.parameters())
    if size > 3e7:
        raise NotRun(f"{size:,} parameters are too many for a training of a few seconds")
    rates = {rate: _one_step(subject, idx, targets, rate) for rate in RATES}
    evidence: dict[str, Any] = {"rates": {str(rate): round(change, 5) for rate, change in rates.items()}}
    if not any(change < 0 for change in rates.values()):
        yield failed("no update", "no step against the gradient, small or large, lowers the loss", **evidence)
        return
    steps = int(max(20, min(80, 2e9 / max(size * tokens.numel() * 6, 1) * 10)))
    losses, offsets = _overfit(subject, idx, targets, steps)
    learned = min(offsets, key=lambda k: offsets[k])
    evidence |= {"losses": losses, "offsets": {str(k): round(v, 4) for k, v in offsets.items()}, "steps": steps}
    if losses[-1] > losses[0] - 0.1 * abs(losses[0]):
        raise NotRun(f"{steps} steps on one batch lowered the loss only from {losses[0]:.2f} to {losses[-1]:.2f}")
    if learned != 1 and offsets[learned] < offsets[1] - 0.3:
        yield failed(
            "targets", f"a training of {steps} steps learned to predict the token at t {learned:+d}, not the next one",
            **evidence,
        )  # fmt: skip
        return
    yield passed(f"{steps} steps on one batch lowered the loss from {losses[0]:.2f} to {losses[-1]:.2f}", **evidence)


def _one_step(subject: Subject, idx: Tensor, targets: Tensor, rate: float) -> float:
    """How one step along the gradient, of this size relative to the weights, changes the loss."""
    with fixed_random_state():
        module = subject.copy()
        parameters = list(trainable(module).values())
        loss, _ = training_loss(subject, module, idx, targets)
        if not loss.requires_grad:
            raise NotRun("the loss does not depend on the parameters")
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        pairs = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
        norm = math.sqrt(sum(float(g.double().square().sum()) for _, g in pairs)) or 1.0
        weight = math.sqrt(sum(float(p.detach().double().square().sum()) for p, _ in pairs)) or 1.0
        with torch.no_grad():
            for parameter, gradient in pairs:
                parameter.sub_(gradient * (rate * weight / norm))
            after, _ = training_loss(subject, module, idx, targets)
    return float(after) - float(loss.detach())


def _overfit(subject: Subject, idx: Tensor, targets: Tensor, steps: int) -> tuple[list[float], dict[int, float]]:
    """Train a copy on one batch: the losses, and the cross entropy of what it learned at each offset of the input."""
    with fixed_random_state():
        module = subject.copy()
        optimizer = torch.optim.Adam(list(trainable(module).values()), lr=3e-3)
        losses = []
        for _ in range(steps):
            loss, _ = training_loss(subject, module, idx, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(round(float(loss.detach()), 4))
        with torch.no_grad():
            logits = subject.logits(module, idx)
    T = idx.size(1)
    offsets = {}
    for k in range(-1, min(3, T - 1)):
        here, there = slice(max(0, -k), T - max(0, k)), slice(max(0, k), T + min(0, k))
        offsets[k] = float(cross_entropy(logits[:, here], idx[:, there]))
    return losses, offsets


LEARNING_CHECKS: tuple[Check[Subject], ...] = (
    Check(
        "short training",
        "Takes single steps at several rates, then trains a copy on one batch, and looks which token it learned.",
        "4 steps, then 20 to 80 of Adam",
        "one rate of four that lowers the loss; the next token learned best, by 0.3 nats",
        ("no update", "targets"),
        short_training,
        fast=False,
    ),
)

"""Which tokens a module that computes its own loss is trained on, seen in the gradient of the loss."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glassgpt.doctor.models.learning.declared import padding_ids
from glassgpt.doctor.models.learning.loss_gradient import LossGradient, alignment, is_trained, loss_gradient
from glassgpt.doctor.models.learning.outputs import probabilities
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed, warned
from glassgpt.doctor.subject import Subject, cross_entropy, fixed_random_state, target_name
from glassgpt.errors import first_line

IGNORED = -100


def _require_loss(subject: Subject) -> None:
    if not subject.computes_loss and not subject.targets_error:
        raise NotRun("the module computes no loss; examine the training loop with --loop")


def targets_aligned(subject: Subject) -> Iterator[Result]:
    """Each position is trained on one target: its own, or the next one, where the module shifts."""
    _require_loss(subject)
    idx, targets = subject.ids(), subject.ids(seed=7)
    with fixed_random_state():
        module = subject.copy()
        try:
            seen = loss_gradient(subject, module, idx, targets.clone())
        except Exception as error:
            if subject.targets_error:
                raise NotRun(f"the call with targets ended with: {subject.targets_error}") from error
            raise
    shares = alignment(seen.gradient, targets)
    best = max(shares, key=lambda k: (shares[k], -abs(k)))
    evidence: dict[str, Any] = {"alignment": {str(k): share for k, share in shares.items()}}
    trained = is_trained(seen.gradient)[:, : idx.size(1) - max(0, best)]
    evidence["trained"] = round(float(trained.float().mean()), 4)
    if shares[best] < 0.8:
        yield _misaligned(subject, seen, idx, targets, evidence)
        return
    if best not in (0, 1):
        yield failed("targets", f"position t is trained on targets[t {best:+d}]; right are t, or t + 1", **evidence)
        return
    arguments = set(inspect.signature(subject.module.forward).parameters)
    if best == 0 and {"input_ids", "attention_mask", "labels"} <= arguments:
        text = (
            "position t is trained on labels[t]: with labels equal to input_ids, as its signature means by convention, "
            "it learns to copy its input. Shift inside, or call the argument targets"
        )
        yield failed("targets", text, **evidence)
        return
    if seen.loss.dtype in (torch.float16, torch.bfloat16) and subject.dtype == torch.float32:
        yield failed("precision", f"the loss is computed in {seen.loss.dtype} for a float32 model", **evidence)
    problems = [
        *_weights_and_value(subject, seen, idx, targets, best, evidence),
        *_ignored(subject, module, idx, targets, best, evidence),
    ]
    yield from problems
    if not any(problem.status in ("FAIL", "WARN") for problem in problems):
        given = "the next tokens" if best == 0 else "the input itself"
        name = subject.targets or target_name(subject.module)
        where = f"{'its own' if best == 0 else 'the next'} target: pass {given} as {name}"
        note = f"; a target of -100 {evidence['minus_100']}" if "minus_100" in evidence else ""
        yield passed(f"each position is trained on {where}{note}", **evidence)


def _misaligned(subject: Subject, seen: LossGradient, idx: Tensor, targets: Tensor, evidence: dict[str, Any]) -> Result:
    """Name what is trained instead of the targets."""
    B, T, _ = seen.gradient.shape
    trained = is_trained(seen.gradient)
    aims = seen.gradient.argmin(-1)
    if float(trained.float().mean()) < 0.8:
        where = sorted(set(torch.nonzero(trained)[:, 1].tolist()))
        return failed("targets", f"only positions {where[:8]} of {T} are trained", trained_positions=where, **evidence)
    inputs = alignment(seen.gradient, idx)
    best = max(inputs, key=lambda k: inputs[k])
    if inputs[best] > 0.8:
        result = failed if best != 1 else warned
        return result("targets", f"the targets are not used: position t is trained on input[t {best:+d}]", **evidence)
    upside = alignment(-seen.gradient, targets)
    if max(upside[0], upside[1]) > 0.8:
        return failed("targets", "the loss has the wrong sign: it makes the targets less likely", **evidence)
    flat = targets.t().reshape(B, T)
    other = targets.reshape(-1)[torch.arange(B * T).reshape(T, B).t().reshape(-1)].reshape(B, T)
    if max(float((aims == order).float().mean()) for order in (flat, other)) > 0.7:
        text = "logits and targets are flattened in different orders: positions are trained on targets of other places"
        return failed("targets", text, **evidence)
    rows = max(float((aims == targets.roll(shift, 0)).float().mean()) for shift in range(1, B)) if B > 1 else 0.0
    if rows > 0.8:
        return failed("targets", "positions are trained on the targets of another row of the batch", **evidence)
    share = max(alignment(seen.gradient, targets).values())
    if subject.vocab < 8:
        raise NotRun(f"a vocabulary of {subject.vocab} is too small to tell the targets apart")
    return failed("targets", f"no offset of the targets explains what is trained (at best {share:.0%})", **evidence)


def _weights_and_value(
    subject: Subject, seen: LossGradient, idx: Tensor, targets: Tensor, shift: int, evidence: dict[str, Any]
) -> Iterator[Result]:
    """The weights of the positions sum to 1 (a mean), and the loss is that of logits."""
    T = targets.size(1)
    wanted = targets[:, shift:]
    logits, gradient = seen.logits[:, : T - shift], seen.gradient[:, : T - shift]
    if squash := _squash_before_loss(subject, seen, logits, idx, wanted):
        yield failed(
            "output not logits", f"the module's own loss is the cross entropy of a {squash} of its logits, which "
            "takes a softmax itself", loss=float(seen.loss.float().mean()), **evidence,
        )  # fmt: skip
        return
    missing = 1 - logits.softmax(-1).gather(-1, wanted[..., None])[..., 0]
    weights = -gradient.gather(-1, wanted[..., None])[..., 0] / missing.clamp_min(1e-6)
    total, tokens = float(weights.sum()), weights.numel()
    evidence["weight"] = round(total, 4)
    if evidence["trained"] < 0.9:
        yield failed("targets", f"only {evidence['trained']:.0%} of the positions are trained", **evidence)
        return
    for count, of, tolerance in ((tokens, "batch and length", 0.3), (T - shift, "length", 0.15)):
        if count > 3 and abs(total - count) < tolerance * count:
            text = f"the loss is a sum over {count} tokens, not a mean: the gradient grows with {of}"
            yield failed("targets", text, **evidence)
            return


def _squash_before_loss(subject: Subject, seen: LossGradient, logits: Tensor, idx: Tensor, wanted: Tensor) -> str:
    """The function that the loss takes of the logits before cross entropy; empty if there is none."""
    loss = float(seen.loss.float().mean())

    def explains(values: Tensor, tolerance: float) -> bool:
        return abs(loss - float(cross_entropy(values, wanted))) < tolerance * abs(loss)

    if probabilities(logits) and explains(logits, 1e-5):
        return "softmax"
    with torch.no_grad():
        plain = logits if subject.last_only else subject.logits(subject.copy(), idx)[:, : logits.size(1)].float()
    squashes: dict[str, Callable[[Tensor], Tensor]] = {
        "softmax": lambda z: z.softmax(-1), "sigmoid": torch.sigmoid, "ReLU": F.relu, "tanh": torch.tanh,
    }  # fmt: skip
    if explains(plain, 1e-5):
        return ""
    return next((name for name, squash in squashes.items() if explains(squash(plain), 2e-6)), "")


def _ignored(
    subject: Subject, module: nn.Module, idx: Tensor, targets: Tensor, shift: int, evidence: dict[str, Any]
) -> Iterator[Result]:
    """Targets of -100 get no gradient, and the mean is over the others; no real token is ignored."""
    some = targets.clone()
    some[:, 1::2] = IGNORED
    ignored = some[:, shift:] == IGNORED
    try:
        seen = loss_gradient(subject, module, idx, some.clone())
    except NotRun:
        return
    except Exception as error:
        evidence["minus_100"] = f"is not taken: {first_line(error)}"
        yield from _real_tokens(subject, module, idx, targets, shift)
        return
    T = idx.size(1)
    size = is_trained(seen.gradient[:, : T - shift])
    counted = float(size[ignored].float().mean()) if bool(ignored.any()) else 0.0
    if counted > 0:
        last = seen.gradient[:, : T - shift].argmin(-1)[ignored] == subject.outputs + IGNORED
        result = warned if bool(last.all()) else failed  # indexing: -100 counts from the end
        yield result(
            "targets", f"targets of -100 are trained: {counted:.0%} of them get a gradient", ignored_but_trained=counted
        )
        return
    kept = ~ignored
    wanted = torch.where(kept, some[:, shift:], 0)
    missing = 1 - seen.logits[:, : T - shift].softmax(-1).gather(-1, wanted[..., None])[..., 0]
    weights = -seen.gradient[:, : T - shift].gather(-1, wanted[..., None])[..., 0] / missing.clamp_min(1e-6)
    total, share = float(weights[kept].sum()), float(kept.float().mean())
    if abs(total - share) < 0.1 * share and share < 0.8:
        own_mask = any("mask" in name for name in inspect.signature(subject.module.forward).parameters)
        result = warned if own_mask else failed  # who passes a mask does not write -100
        yield result(
            "targets", f"the mean is over all positions, and those with -100 count as zero: with {share:.0%} of the "
            f"targets the gradient is {total:.0%} of what it should be", weight=round(total, 4), kept=round(share, 4),
        )  # fmt: skip
    yield from _real_tokens(subject, module, idx, targets, shift)


def _real_tokens(subject: Subject, module: nn.Module, idx: Tensor, targets: Tensor, shift: int) -> Iterator[Result]:
    """No token id is ignored as a target, except one that is declared as padding."""
    some = targets.clone().flatten()
    every = torch.cat([torch.arange(min(subject.vocab, len(some) // 2)), torch.tensor([subject.vocab - 1])])
    some[: len(every)] = every
    some = some.view_as(targets)
    seen = loss_gradient(subject, module, idx, some.clone())
    T, wanted = idx.size(1), some[:, shift:]
    sure = seen.logits[:, : T - shift].softmax(-1).gather(-1, wanted[..., None])[..., 0] > 0.99  # nothing left to learn
    used = sure | (seen.gradient[:, : T - shift].abs().amax(-1) > 0)
    silent = sorted(set(wanted[~used].tolist()) - set(wanted[used].tolist()))
    unknown = [token for token in silent if token not in padding_ids(subject.module)]
    if unknown:
        yield warned(
            "targets", f"token ids {unknown[:8]} are never trained as targets, and are not declared as padding",
            never_trained=unknown[:20],
        )  # fmt: skip


TARGETS_CHECKS: tuple[Check[Subject], ...] = (
    Check(
        "targets",
        "Reads in the gradient of the module's own loss which target each position is trained on, or ignores.",
        "3 passes with gradients",
        "four fifths of the positions at one offset: by chance it would be one in V",
        ("targets", "output not logits", "precision"),
        targets_aligned,
    ),
)

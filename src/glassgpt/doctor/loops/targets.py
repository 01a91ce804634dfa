"""Which token each position is trained on: by the batches, and by the gradient of the loss."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from glassgpt.doctor.loops.loop import Batch, Loop, Program, attempt
from glassgpt.doctor.loops.randomness import random_generators
from glassgpt.doctor.loops.watch import Watch
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed, warned

SHIFTS = range(-2, 5)
DRAWS = 8  # batches of each split
CLEAR = 0.8  # documents that are packed have other targets at their ends


def agreement(y: Tensor, x: Tensor, shift: int) -> float:
    """How often y[t] is x[t + shift], over the trained positions (y >= 0) where both exist.

    The last trained position before a masked one does not count: its target, an end token, is often cut from x.
    """
    length = x.shape[1]
    first, last = max(0, -shift), min(length, length - shift)
    ours, theirs = y[:, first:last], x[:, first + shift : last + shift]
    inside = torch.cat([y[:, 1:] >= 0, torch.ones_like(y[:, :1], dtype=torch.bool)], 1)
    trained = (y >= 0)[:, first:last]
    trained = trained & inside[:, first:last] if bool((trained & inside[:, first:last]).any()) else trained
    return float((ours == theirs)[trained].float().mean()) if bool(trained.any()) else 0.0


def batches(loop: Loop) -> Iterable[Result]:
    """Compare y with x at several shifts, for both splits."""
    with loop.open() as program:
        program.need("get_batch")
        for split in ("train", "val"):
            drawn: list[Batch] = []
            missing = attempt(partial(_draw, program, split, drawn))
            if len(drawn) < DRAWS:
                yield missing
                continue
            yield from _kinds(program, drawn, split)
            yield _aligned(drawn, split)
            if split == "train" and all(torch.equal(drawn[0][0], x) for x, _ in drawn):
                yield _constant(program, drawn[0][0])


def _constant(program: Program, first: Tensor) -> Result:
    """The same batch each time: a bug if the loop draws it from a generator, which it must then seed each time."""
    text = "get_batch('train') gives the same batch each time"
    for generator in random_generators(program):
        generator.seed(12345)
        before = generator.state()
        same = torch.equal(program.draw()[0], first)
        if same and generator.state() != before:
            return failed("state", f"{text}, and draws it from a random generator: it is seeded inside")
    return passed(f"{text}: the loop trains on all of its data, or on one batch by intention")


def _draw(program: Program, split: str, into: list[Batch]) -> Result:
    into.extend(program.draw(split) for _ in range(DRAWS))
    return passed("")


def _kinds(program: Program, drawn: list[Batch], split: str) -> Iterable[Result]:
    x, y = torch.cat([a.reshape(-1) for a, _ in drawn]), torch.cat([b.reshape(-1) for _, b in drawn])
    if x.is_floating_point() or y.is_floating_point():
        yield failed("tokenizer", f"get_batch({split!r}) gives {x.dtype} and {y.dtype}; ids are int64")
    vocab = _vocabulary(program.model)
    highest = max(int(x.max()), int(y.max()))
    if int(x.min()) < 0:
        yield failed("tokenizer", f"x of get_batch({split!r}) contains {int(x.min())}; only y may", lowest=int(x.min()))
    if vocab and highest >= vocab:
        yield failed(
            "tokenizer", f"the id {highest} is outside the model's {vocab} tokens", highest=highest, vocab=vocab
        )
    blank = [int((b >= 0).any(1).logical_not().sum()) / len(b) for _, b in drawn]
    if max(blank) == 1.0:
        yield failed("targets", f"a batch of get_batch({split!r}) trains on nothing: its mean loss is not a number")
    elif sum(blank) / len(blank) > 0.05:
        yield warned("targets", f"{sum(blank) / len(blank):.0%} of the rows of get_batch({split!r}) train on nothing")


def _vocabulary(model: nn.Module | None) -> int | None:
    sizes = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)] if model is not None else []
    return max(sizes, default=None)


def _aligned(drawn: list[Batch], split: str) -> Result:
    xs, ys = [x for x, _ in drawn], [y for _, y in drawn]
    found = {k: sum(agreement(y, x, k) for x, y in drawn) / len(drawn) for k in SHIFTS}
    evidence: dict[str, Any] = {"agreement by shift": {str(k): round(v, 4) for k, v in found.items()}, "split": split}
    best = max(found.values())
    if found[0] > 0.999:
        return passed(f"y of {split!r} is x: the model or the loss shifts", **evidence)
    if best < CLEAR:
        text = f"y of get_batch({split!r}) is no shift of x: at best {best:.0%} of the targets agree"
        return failed("targets", text, **evidence)
    if found[1] < best - 0.05:
        shift = max(found, key=lambda k: found[k])
        return failed("targets", f"y of get_batch({split!r}) is x shifted by {shift}, not by 1", **evidence)
    ends = [(x[:, 0], y[:, -1], x[:, -1]) for x, y in zip(xs, ys, strict=True)]
    trained = torch.cat([y >= 0 for _, y, _ in ends])
    wrapped = torch.cat([y == first for first, y, _ in ends])[trained]
    if (
        len(wrapped) >= 8
        and not all(map(_periodic, xs))
        and bool(wrapped.all())
        and len(torch.cat([first for first, _, _ in ends]).unique()) > 1
    ):
        return failed("targets", "the last target of every row is its first token: y was rolled around", **evidence)
    return passed(f"y of {split!r} is the next token in {found[1]:.1%} of the trained positions", **evidence)


def _periodic(x: Tensor) -> bool:
    """Whether every row repeats itself after some number of tokens: a rolled row is then right."""
    return any(bool((x[:, p:] == x[:, :-p]).all()) for p in range(1, x.shape[1] // 2 + 1))


def trained_on(loop: Loop) -> Iterable[Result]:
    """Read from the gradient at the logits which token each position is trained on, by loss and by train_step."""
    with loop.open() as program:
        program.need("model", "get_batch")
        x, y = program.draw()
        x, y = x[:4], y[:4]
        yield attempt(partial(_trained, program, x, y, "loss"))
        if program.takes_micro and program.get("train_step") is not None:
            yield attempt(partial(_trained, program, x, y, "train_step"))


def _trained(program: Program, x: Tensor, y: Tensor, by: str) -> Result:
    gradient = logits_gradient(program, x, y, by)
    live = gradient.abs().amax(-1) > 0
    target = torch.where(live, gradient.argmin(-1), torch.full_like(x, -100))
    found = {k: agreement(target, x, k) for k in SHIFTS}
    evidence: dict[str, Any] = {"agreement by shift": {str(k): round(v, 4) for k, v in found.items()}, "by": by}
    shift = max(found, key=lambda k: (found[k], k == 1))
    if found[shift] < CLEAR:
        if agreement(y, x, 1) > CLEAR or agreement(y, x, 0) > CLEAR:
            text = f"the tokens that {by} trains on are no shift of x: at best {found[shift]:.0%} agree"
            return failed("targets", text, **evidence)
        raise NotRun("neither y nor the trained tokens are a shift of x")
    if shift != 1 and found[1] < found[shift] - 0.05:
        which = {0: "itself, which it sees (no shift)", 2: "the token after the next (shifted twice)"}
        text = f"by {by}, each position is trained on {which.get(shift, f'the token {shift} further')}"
        return failed("targets", text, **evidence)
    return _masks(x, y, live, evidence)


def _masks(x: Tensor, y: Tensor, live: Tensor, evidence: dict[str, Any]) -> Result:
    """Which positions are trained, against those that y says."""
    if agreement(y, x, 0) > 0.999:  # the loss shifts: position t is trained on y[t + 1]
        wanted = torch.cat([y[:, 1:] >= 0, torch.zeros_like(y[:, :1], dtype=torch.bool)], 1)
    else:
        wanted = y >= 0
    loud = int((live & ~wanted).sum())
    evidence = {
        **evidence,
        "masked but trained": loud,
        "not masked and not trained": int((wanted & ~live).sum()),
    }
    if loud:
        return failed("targets", f"{loud} positions with target -100 are trained all the same", **evidence)
    lost = _never_trained(x, wanted, live)
    if lost is not None:
        text = f"the token {lost} is never a target, though it is one inside the text: is it taken for padding?"
        return failed("targets", f"{text} (ignore_index)", **evidence)
    return passed("each position is trained on the next token, and masked ones are not", **evidence)


def _never_trained(x: Tensor, wanted: Tensor, live: Tensor) -> int | None:
    """The one token that no position is trained on, where it is not padding: trained ones stand before and behind."""
    target, wanted, live = x[:, 1:], wanted[:, :-1], live[:, :-1]
    silent = target[wanted & ~live].unique()
    if len(silent) != 1 or bool((live & (target == silent)).any()):
        return None
    inside = (live.cumsum(1) > 0) & (live.flip(1).cumsum(1).flip(1) > 0)
    return int(silent) if int((inside & wanted & (target == silent)).sum()) > 1 else None


def logits_gradient(program: Program, x: Tensor, y: Tensor, by: str = "loss") -> Tensor:
    """The gradient at the logits, as [B, T, V]; a position without a logit has zeros.

    Args:
        program: the program; its parameters are kept.
        x, y: the batch.
        by: "loss" or "train_step": what computes the loss.

    Raises:
        NotRun: no tensor of the model has a gradient of the form of cross-entropy: rows that sum to zero, and are
            negative at one token.
    """
    assert program.model is not None
    rows, highest = x.numel(), int(x.max())
    grads: list[Tensor] = []

    def has_room(part: Tensor) -> bool:  # for logits of all tokens, at all positions
        return part.dim() >= 2 and part.shape[-1] > highest and part.numel() // part.shape[-1] in (rows, rows - len(x))

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        if not isinstance(output, Tensor | list | tuple | dict):
            output = getattr(output, "logits", None)
        parts = (
            output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else [output]
        )
        for part in parts:
            if isinstance(part, Tensor) and part.requires_grad and has_room(part):
                part.register_hook(grads.append)

    handles = [m.register_forward_hook(keep) for m in program.model.modules()]
    try:
        if by == "loss":
            torch.autograd.grad(program.loss(x, y), list(program.trainable().values()), allow_unused=True)
        else:
            with Watch(program, stretch=0.0):
                program.step([(x, y)] * program.accum)
    finally:
        for handle in handles:
            handle.remove()
    found = [grad for grad in grads if _is_cross_entropy(grad)]  # backward: the logits come first
    if found:
        grad = max(found, key=lambda g: float(g.abs().sum()))  # heads for later tokens have smaller weights
        shaped = grad.detach().float().reshape(len(x), -1, grad.shape[-1])
        return nn.functional.pad(shaped, (0, 0, 0, x.shape[1] - shaped.shape[1]))
    raise NotRun(f"no output of the model has the gradient of a cross-entropy in {by}")


def _is_cross_entropy(grad: Tensor) -> bool:
    rows = grad.float().reshape(-1, grad.shape[-1])
    rows = rows[rows.abs().amax(1) > 0]
    if not len(rows):
        return False
    lowest = rows.amin(1)
    balanced = rows.sum(1).abs() < 0.05 * rows.abs().sum(1)
    pointed = lowest.abs() > 0.9 * rows.clamp_max(0).abs().sum(1)
    return float((balanced & pointed).float().mean()) > 0.9


TARGET_CHECKS: tuple[Check[Loop], ...] = (
    Check(
        "batches",
        "compares y with x at shifts of -2 to 4, in both splits; ids are in range; every batch trains something",
        "16 batches",
        "80 % of the trained positions: packed documents have other targets at their ends",
        ("targets", "tokenizer", "state"),
        batches,
    ),
    Check(
        "trained targets",
        "reads from the gradient at the logits, negative at the target only, what each position is trained on",
        "1 pass and 1 training step",
        "80 % of the positions agree with one shift; masked positions have a gradient of exactly 0",
        ("targets",),
        trained_on,
    ),
)

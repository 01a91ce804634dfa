"""Parameters that never learn, because they get no gradient."""

import ast
import inspect
import itertools
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from glassgpt.doctor.models.learning.constants import multiplied
from glassgpt.doctor.models.learning.gradients import auxiliary_losses, probe_size, trainable, training_loss
from glassgpt.doctor.models.probing import difference, quiet_logits, size_of
from glassgpt.doctor.report import Check, Result, failed, passed, warned
from glassgpt.doctor.subject import Subject, cross_entropy, fixed_random_state

#: Batches (and steps between them) before a parameter without a gradient is called dead.
BATCHES = 12


@dataclass
class Seen:
    """Which entries of one parameter got a gradient in any batch: the parameter, its rows and its columns.

    ``of_logits`` tells whether the cross entropy of the logits alone gave one.
    """

    any: bool = False
    of_logits: bool = False
    rows: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    columns: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))

    def add(self, gradient: Tensor | None) -> None:
        """Add the gradient of one batch; None is no gradient."""
        if gradient is None:
            return
        used = gradient.detach() != 0
        self.any = self.any or bool(used.any())
        if used.dim() >= 2:
            table = used.reshape(-1, used.size(-1)) if used.size(0) == 1 else used.flatten(1)
            rows, columns = table.any(1), table.any(0)
            self.rows = rows | self.rows if len(self.rows) else rows
            self.columns = columns | self.columns if len(self.columns) else columns


class _Calls:
    """Which modules run, with how many tokens, and where a gradient ends."""

    def __init__(self, module: nn.Module):
        self.tokens: Counter[str] = Counter()
        self.cut: str | None = None
        for name, part in module.named_modules():
            part.register_forward_hook(lambda part, args, out, name=name: self.see(name, part, args, out))

    def see(self, name: str, part: nn.Module, args: Any, out: Any) -> None:
        given = [t for t in tree_leaves(args) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point()]
        self.tokens[name] += given[0].shape[:-1].numel() if given else 1
        learns = any(p.requires_grad for p in part.parameters())
        if self.cut is None and learns and made and not any(t.requires_grad for t in made):
            self.cut = name


def _gradients(subject: Subject, module: nn.Module, factors: set[str], batches: int) -> tuple[dict[str, Seen], bool]:
    """Collect gradients over batches, with a small step after each: paths that begin at zero open.

    Returns:
        What each trainable parameter got, and whether the loss depends on any parameter at all.
    """
    parameters = trainable(module)
    seen = {name: Seen() for name in parameters}
    rows = {name: Seen() for name in parameters}  # of the logits of all positions: the last one, too
    B, T = probe_size(subject)
    connected = False
    for batch in range(batches):
        targets = subject.ids(B, T, 100 + batch)
        loss, output = training_loss(subject, module, subject.ids(B, T, batch), targets)
        connected = connected or loss.requires_grad
        if not loss.requires_grad:
            break
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, retain_graph=True)
        every = gradients
        if (subject.computes_loss or auxiliary_losses(subject, module, output)) and output.logits.requires_grad:
            logits_loss = cross_entropy(output.logits, targets)
            every = torch.autograd.grad(logits_loss, list(parameters.values()), allow_unused=True)
        for name, gradient, full in zip(parameters, gradients, every, strict=True):
            seen[name].add(gradient)
            rows[name].add(full)
            seen[name].rows, seen[name].of_logits = rows[name].rows, rows[name].any
        if all(s.of_logits and not _unused(subject, n, parameters[n], s, T, factors) for n, s in seen.items()):
            break
        with torch.no_grad():
            for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                largest = 0.0 if gradient is None else float(gradient.abs().max())
                if gradient is not None and 0 < largest < float("inf"):
                    parameter.sub_(gradient * (0.01 * max(0.1, min(1.0, float(parameter.abs().max()))) / largest))
    return seen, connected


def _unused(subject: Subject, name: str, parameter: Tensor, seen: Seen, length: int, factors: set[str]) -> str:
    """Say which slices of a matrix got no gradient; empty if that is nothing to speak of.

    It looks at the rows of a table of positions, and in ``factors`` of matrix products at blocks of neighbouring rows
    or columns (a head that is left out), and at half of all. Rows of tokens or distances that did not occur, and
    single units of a ReLU that are off, are no bugs.
    """
    if parameter.dim() < 2 or not seen.any or not len(seen.rows):
        return ""
    known = (subject.vocab, subject.outputs, subject.context)
    positions = ("pos" in name.lower() or "wpe" in name.lower()) and "rel" not in name.lower()
    rows = len(seen.rows)
    if positions and subject.context <= rows <= subject.context + 8 and rows != subject.vocab:
        dead = int((~seen.rows[: min(length, rows)]).sum())
        if dead > max(2, length // 4):
            return f"{dead} of {min(length, rows)} rows of the table of positions"
    if parameter.dim() == 2 and name in factors and not subject.context <= rows <= 2 * subject.context + 1:
        for label, flags in (("rows", seen.rows), ("columns", seen.columns)):
            if len(flags) in known or len(flags) < 4 or (len(flags) > subject.vocab and rows in known):
                continue
            dead = int((~flags).sum())
            if dead == len(flags) - subject.vocab:  # a padded vocabulary that is cut off
                continue
            longest = max(
                (sum(1 for _ in run) for used, run in itertools.groupby(flags.tolist()) if not used), default=0
            )
            if dead >= len(flags) / 2 or longest >= max(4, len(flags) / 16):
                return f"{dead} of {len(flags)} {label}"
    return ""


def _used_elsewhere(module: nn.Module, name: str, calls: _Calls) -> str | None:
    """The method of the model, not forward, that calls the part of a parameter; None if there is none."""
    part = name.split(".")[0]
    if calls.tokens[part] or not isinstance(getattr(module, part, None), nn.Module):
        return None
    for method, function in inspect.getmembers(type(module), inspect.isfunction):
        if method == "forward" or hasattr(nn.Module, method):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        except (OSError, TypeError, SyntaxError):
            continue
        called = (n.func for n in ast.walk(tree) if isinstance(n, ast.Call))
        if any(isinstance(f, ast.Attribute) and f.attr == part for f in called):
            return method
    return None


def _grouped(names: list[str]) -> str:
    """Names of parameters in short: by module, the first few."""
    modules = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
    return ", ".join(modules[:4]) + (f" and {len(modules) - 4} more" if len(modules) > 4 else "")


def _common_module(names: list[str]) -> str | None:
    """The innermost module that holds all of these parameters."""
    split = [name.split(".")[:-1] for name in names]
    common = [parts[0] for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*split, strict=False))]
    return ".".join(common) or None


def dead_parameters(subject: Subject) -> Iterator[Result]:
    """Every trainable parameter gets a gradient from the loss, at the latest after a few steps."""
    with fixed_random_state():
        module = subject.copy(train=True)
        parameters, frozen = trainable(module), sum(not p.requires_grad for p in module.parameters())
        factors = multiplied(subject, module)
        calls = _Calls(module)
        seen, connected = _gradients(subject, module, factors, BATCHES)
    count = len(parameters)
    if not connected:
        yield failed(
            "dead parameters",
            "the loss does not depend on any parameter as far as autograd can see (no_grad, detach, .data, argmax, "
            f"or numbers that left PyTorch); the gradient ends in {calls.cut or 'the model itself'}",
            calls.cut or None, dead=list(parameters)[:50], count=count, of=count,
        )  # fmt: skip
        return
    dead = [name for name, s in seen.items() if not s.any and not _key_bias(name, parameters[name])]
    starved = [name for name in dead if "expert" in name.lower()]  # an untrained router may send them nothing
    elsewhere = {name: method for name in dead if (method := _used_elsewhere(module, name, calls))}
    real = [name for name in dead if name not in starved and name not in elsewhere]
    if real:
        yield from _explain(subject, module, real, count, calls)
    if elsewhere:
        yield warned(
            "dead parameters", f"{_grouped(list(elsewhere))} is not used by forward, only by "
            f"{', '.join(sorted(set(elsewhere.values())))}()",
            _common_module(list(elsewhere)), dead=list(elsewhere)[:50],
        )  # fmt: skip
    length = probe_size(subject)[1]
    slices = {n: text for n, s in seen.items() if (text := _unused(subject, n, parameters[n], s, length, factors))}
    if slices:
        name, text = next(iter(slices.items()))
        more = f" (and of {len(slices) - 1} more parameters)" if len(slices) > 1 else ""
        yield failed(
            "dead parameters", f"{text} of {name}{more} got no gradient in {BATCHES} batches",
            name.rpartition(".")[0] or None, slices=slices,
        )  # fmt: skip
    unweighted = _chosen_without_gradient(subject, module, [n for n, s in seen.items() if s.any and not s.of_logits])
    if unweighted:
        yield failed(
            "dead parameters", f"{_grouped(unweighted)} changes the logits, but gets no gradient from them, only from "
            "an auxiliary loss: what it chooses is not weighted by it",
            _common_module(unweighted), dead=unweighted[:50],
        )  # fmt: skip
    if not real and not elsewhere and not slices and not unweighted:
        note = f"; {frozen} more are frozen (requires_grad=False)" if frozen else ""
        note += f"; no token was sent to {_grouped(starved)}" if starved else ""
        text = f"{count - len(starved)} of {count} trainable parameters got a gradient{note}"
        yield passed(text, count=count, frozen=frozen, starved=starved[:50])


def _key_bias(name: str, parameter: Tensor) -> bool:
    """A bias of keys: softmax does not change when all scores of a row do, so its gradient is zero by arithmetic."""
    return parameter.dim() == 1 and "bias" in name.lower() and any(k in name.lower() for k in ("key", "k_", "wk", "k."))


def _chosen_without_gradient(subject: Subject, module: nn.Module, names: list[str]) -> list[str]:
    """The parameters of these that change the logits in training: routers whose probabilities are not used."""
    found, idx = [], subject.ids()
    if names:
        before = quiet_logits(subject, module, idx)
    for name in names:
        parameter = trainable(module)[name]
        kept = parameter.detach().clone()
        with torch.no_grad(), fixed_random_state(2):
            parameter.add_(torch.randn_like(parameter) * max(0.1, float(parameter.abs().max())))
            apart = difference(before, quiet_logits(subject, module, idx)).max()
            parameter.copy_(kept)
        if float(apart) > 1e-4 * size_of(before):
            found.append(name)
    return found


def _explain(subject: Subject, module: nn.Module, dead: list[str], count: int, calls: _Calls) -> Iterator[Result]:
    """Say why parameters are dead: a product of factors that are all zero, never called, or cut off."""
    with fixed_random_state(1):
        twin = subject.copy(train=True)
        with torch.no_grad():
            for parameter in trainable(twin).values():
                if bool((parameter == parameter.flatten()[0]).all()):
                    parameter.add_(0.02 * torch.randn_like(parameter))
        opened, _ = _gradients(subject, twin, set(), 1)
    stuck = [name for name in dead if opened[name].any]
    values = trainable(module)
    if stuck and any(float(values[name].detach().abs().max()) == 0 for name in stuck):
        yield failed(
            "init", f"{_grouped(stuck)}: factors of one product are all zero, so none of them ever gets a gradient",
            _common_module(stuck), parameters=stuck[:50],
        )  # fmt: skip
    holders = {name.rpartition(".")[0] for name in dead}
    idle = sorted(holder for holder in holders if holder and not calls.tokens[holder])
    why = f"; never called: {', '.join(idle[:4])}" if idle else ""
    why = f"; the gradient ends in {calls.cut}" if not idle and calls.cut else why
    yield failed(
        "dead parameters", f"{len(dead)} of {count} parameters get no gradient at all: {_grouped(dead)}{why}",
        calls.cut or _common_module(dead), dead=dead[:50], count=len(dead), of=count, never_called=idle[:50],
    )  # fmt: skip


PARAMETERS_CHECKS: tuple[Check[Subject], ...] = (
    Check(
        "dead parameters",
        "Takes gradients of the loss on random text, and looks for parameters, heads and rows that get none.",
        "1 pass with gradients; up to 12, with a small step after each, if something got none",
        "exactly zero or None: a path that starts at zero opens after a step, everything else has some gradient",
        ("dead parameters", "init"),
        dead_parameters,
    ),
)

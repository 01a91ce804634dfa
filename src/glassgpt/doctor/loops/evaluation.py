"""What an evaluation must not do: run with dropout, leave the model in another mode, learn, keep graphs."""

import gc
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from glassgpt.doctor.dropout import DropoutSwitch
from glassgpt.doctor.loops.gradients import two_batches
from glassgpt.doctor.loops.loop import Loop, Program
from glassgpt.doctor.loops.quiet import seed_all
from glassgpt.doctor.loops.watch import Watch
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed

NODES = 200_000  # of a graph, that are counted at most


@contextmanager
def forwards(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Note what the modules do in a block: whether they build graphs, and which run in train mode."""
    seen: dict[str, Any] = {"graph": None, "training": set(), "eval": set()}

    def look(module: nn.Module, args: Any, output: Any) -> None:
        parts = output if isinstance(output, list | tuple) else [output]
        if seen["graph"] is None and any(isinstance(t, Tensor) and t.grad_fn is not None for t in parts):
            seen["graph"] = names[module]
        seen["training" if module.training else "eval"].add(names[module])

    names = {module: name for name, module in model.named_modules()}
    handles = [module.register_forward_hook(look) for module in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def evaluation(loop: Loop) -> Iterable[Result]:
    """Run evaluate() between training steps and compare everything before and after."""
    with loop.open(dropout=True) as program:
        program.need("model", "evaluate")
        assert program.model is not None
        micro = two_batches(program)[0] if program.get("train_step") else []
        before = _training(program, micro)
        state = {name: t.detach().clone() for name, t in program.model.state_dict().items() if isinstance(t, Tensor)}
        grads = [None if p.grad is None else p.grad.clone() for p in program.model.parameters()]
        seed_all(3)
        with Watch(program) as watch, forwards(program.model) as seen, DropoutSwitch(off=False) as drops:
            value = program.get("evaluate")()
        after = {name: t for name, t in program.model.state_dict().items() if isinstance(t, Tensor)}
        changed = [name for name, t in state.items() if name not in after or not torch.equal(t, after[name].detach())]
        same = zip(grads, program.model.parameters(), strict=True)
        touched = any(
            p.grad is not None and bool(p.grad.any()) and (g is None or not torch.equal(g, p.grad)) for g, p in same
        )
        norms = [
            n
            for n, m in program.model.named_modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and n in seen["training"]
        ]
        yield from _mode(program, drops.calls, norms, before, micro)
        if watch.count("optimizer"):
            yield failed(
                "state",
                "evaluate() steps the optimiser: it trains on what it measures",
                changed[0] if changed else None,
            )
        elif touched:
            yield failed(
                "gradients not cleared", "evaluate() leaves gradients behind, which the next step adds to its own"
            )
        elif changed and not norms:
            yield failed("state", f"evaluate() changes {', '.join(changed[:4])}", changed[0], names=changed[:20])
        else:
            yield passed("evaluate() changes no parameter and no buffer")
        if seen["graph"] is not None:
            text = "evaluate() runs the model with gradients on: each pass builds a graph"
            yield failed("memory", f"{text}; use torch.no_grad()", seen["graph"] or None)
        elif isinstance(value, Tensor) and value.grad_fn is not None:
            yield failed("memory", "evaluate() returns a tensor with its graph")
        else:
            yield passed("evaluate() builds no graphs")
        yield from _again(program)


def _training(program: Program, micro: Any) -> tuple[int, int]:
    """Run one training step; count dropouts that act, and dropout modules that ran in eval mode."""
    if program.get("train_step") is None or program.model is None:
        return -1, 0
    with forwards(program.model) as seen, DropoutSwitch(off=False) as drops:
        program.step(micro or None)
    named = dict(program.model.named_modules())
    asleep = [n for n in seen["eval"] if isinstance(named[n], nn.modules.dropout._DropoutNd) and named[n].p > 0]
    return drops.calls, len(asleep)


def _mode(program: Program, calls: int, norms: list[str], before: tuple[int, int], micro: Any) -> Iterable[Result]:
    if calls or norms:
        what = f"{calls} calls of dropout act" if calls else f"batch norm {norms[0]} runs in train mode"
        yield failed(
            "mode",
            f"in evaluate() {what}: model.eval() is missing or does not reach it",
            norms[0] if norms else None,
            calls=calls,
        )
        return
    if before[0] < 0:
        yield passed("no dropout acts in evaluate()")
        return
    after = _training(program, micro)
    evidence: dict[str, Any] = {"dropouts before": before[0], "dropouts after": after[0]}
    if before[1] and not before[0]:
        yield failed(
            "mode", "the model trains in eval mode: its dropout never acts (model.train() is missing)", **evidence
        )
    elif after[0] < before[0]:
        text = f"a training step calls dropout {before[0]} times, and {after[0]} times after evaluate()"
        yield failed("mode", f"{text}: model.train() is missing", **evidence)
    else:
        yield passed("no dropout acts in evaluate(), and training goes on as before", **evidence)


def _again(program: Program) -> Iterator[Result]:
    """Whether training goes on with the same batches after each evaluation, from whatever random state."""
    if program.get("get_batch") is None:
        return
    drawn = []
    for evaluated in (True, False):
        for seed in (3, 4):
            seed_all(seed)
            if evaluated:
                program.get("evaluate")()
            drawn.append(program.draw()[0])
    if torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[2], drawn[3]):
        yield failed("state", "evaluate() seeds the random generator: the same training batches follow each evaluation")
    else:
        yield passed("evaluate() leaves the random generators of training batches alone")


def kept(loop: Loop) -> Result:
    """Compute the loss of a batch before and after that of another one, in eval mode."""
    with loop.open() as program, torch.no_grad():
        program.need("model", "get_batch")
        assert program.model is not None
        (x, y), other = program.draw(), program.draw()
        program.model.eval()
        losses = []
        for a, b in ((x, y), other, (x, y)):
            seed_all(7)
            losses.append(float(program.loss(a.clone(), b.clone())))
    evidence: dict[str, Any] = {"loss before": losses[0], "loss after another batch": losses[2]}
    if abs(losses[0] - losses[2]) > 1e-5 * abs(losses[0]):
        return failed("state", "the loss of a batch depends on the one before it: the model keeps a state", **evidence)
    return passed("the loss of a batch is the same after another batch", **evidence)


def graphs(loop: Loop) -> Iterable[Result]:
    """Count the nodes of all graphs that are still alive after each training step."""
    with loop.open() as program:
        program.need("train_step")
        micro = two_batches(program)[0] if program.model is not None else []
        returned = program.step(micro or None)
        if isinstance(returned, Tensor) and returned.grad_fn is not None:
            yield failed(
                "memory",
                "train_step returns the loss with its graph: whoever keeps it keeps the activations; use .item()",
            )
            return
        del returned
        gc.collect()
        gc.freeze()  # what exists by now is not looked through again
        try:
            sizes = []
            for _ in range(4):
                program.step(micro or None)
                sizes.append(_live_nodes())
        finally:
            gc.unfreeze()
    growth = [b - a for a, b in itertools.pairwise(sizes)]
    if min(growth) > 0:
        yield failed("memory", f"each training step leaves a graph of {growth[-1]} nodes behind", nodes=sizes)
    elif max(sizes) >= NODES:
        raise NotRun("the graphs are too large to be counted")
    else:
        yield passed("no graphs are left behind by training steps", nodes=sizes)


def _live_nodes() -> int:
    gc.collect(0)
    roots = [o for o in gc.get_objects() if issubclass(type(o), Tensor)]
    todo = [t.grad_fn for t in roots if t.grad_fn is not None]
    seen = set(todo)
    while todo and len(seen) < NODES:
        for node, _ in todo.pop().next_functions:
            if node is not None and node not in seen:
                seen.add(node)
                todo.append(node)
    return len(seen)


EVALUATION_CHECKS: tuple[Check[Loop], ...] = (
    Check(
        "evaluation",
        "runs evaluate() between two training steps: dropout and gradients off, nothing changed, train mode back",
        "2 training steps, 4 evaluations",
        "none: each is counted",
        ("mode", "state", "memory", "gradients not cleared"),
        evaluation,
    ),
    Check(
        "kept state",
        "computes the loss of a batch, of another one, and of the first again, in eval mode",
        "3 passes",
        "1e-5 of the loss: the same operations on the same numbers",
        ("state",),
        kept,
    ),
    Check(
        "graphs",
        "counts the nodes of all autograd graphs that live after each training step",
        "5 training steps",
        "it grows in each of three steps",
        ("memory",),
        graphs,
    ),
)

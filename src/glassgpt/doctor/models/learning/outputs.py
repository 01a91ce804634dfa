"""What comes out of an untrained model, and whether the outputs are logits."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from glassgpt.doctor.models.learning.constants import LOOKUPS, PRODUCTS, multiplied, source, trace_forward
from glassgpt.doctor.models.learning.gradients import same_memory
from glassgpt.doctor.models.probing import working_length
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed, warned
from glassgpt.doctor.subject import Subject, cross_entropy, fixed_random_state, read_output
from glassgpt.doctor.trace import Op, Trace

#: Operations that rearrange or convert a tensor, and leave its numbers as they are.
SAME_NUMBERS = (
    "aten.view", "aten._unsafe_view", "aten.reshape", "aten.transpose", "aten.permute", "aten.t", "aten.slice",
    "aten.select", "aten.unsqueeze", "aten.squeeze", "aten._to_copy", "aten.clone", "aten.detach", "aten.alias",
    "aten.expand", "aten.index", "aten.split", "aten.narrow", "aten.cat", "aten.stack", "aten.lift_fresh", "aten.copy_",
)  # fmt: skip
#: Operations after which numbers are no logits: some values cannot be reached, or all are probabilities.
SQUASHES = {
    "aten._softmax": "softmax", "aten.sigmoid": "sigmoid", "aten.relu": "ReLU", "aten.tanh": "tanh", "aten.abs": "abs",
    "aten.exp": "exp", "aten.gelu": "GELU", "aten.silu": "SiLU", "aten.leaky_relu": "leaky ReLU", "aten.elu": "ELU",
    "aten.softplus": "softplus", "aten.square": "square", "aten.clamp_min": "clamp", "aten.hardtanh": "hardtanh",
    "aten.argmax": "argmax", "aten.log_sigmoid_forward": "log-sigmoid", "aten.sin": "sin", "aten.cos": "cos",
}  # fmt: skip
#: The loss of an untrained model may lie above ln V by this, plus a tenth of ln V. Logits of standard deviation s
#: add about s * s / 2; PyTorch's default initialisation gives s of 0.6, an embedding of standard deviation 1 gives 1.
EXCESS, EXCESS_SHARE = 1.0, 0.1
#: A matrix of less than this, times the root of its inputs, makes a thousand times smaller numbers than it gets.
TINY = 1e-3


def last_operation(seen: Trace, logits: Tensor) -> Op | None:
    """The operation that made the numbers of the logits, before they were rearranged."""
    raw = seen.output
    parts = tree_leaves(raw if isinstance(raw, (Tensor, tuple, list, dict)) else list(vars(raw).values()))
    result = next((t for t in parts if isinstance(t, Tensor) and same_memory(t, logits)), None)
    value = None if result is None else seen.value_of(result)
    while value is not None and (op := seen.made_by(value)) is not None:
        if op.name.rstrip("_") not in SAME_NUMBERS or not op.inputs:
            return op
        value = op.inputs[0]
    return None


def probabilities(logits: Tensor) -> bool:
    """Whether the last dimension is not negative and sums to 1."""
    real = logits.float()
    return bool((real >= 0).all()) and bool(((real.sum(-1) - 1).abs() < 1e-3).all()) and real.size(-1) > 1


def outputs_are_logits(subject: Subject) -> Iterator[Result]:
    """The outputs are one unbounded number per token id."""
    idx = subject.ids()
    with fixed_random_state(), torch.no_grad():
        module = subject.copy()
        output = subject.forward(module, idx)
        logits = output.logits.float()
        seen = trace_forward(subject, module, idx)
        op = last_operation(seen, subject_logits(subject, seen, idx))
        training = subject.logits(subject.copy(train=True), idx).float()
    problem = _squashed(op, logits)
    if problem and not (op and op.name in SQUASHES and op.name != "aten._softmax") and not _squashed(None, training):
        own = subject.computes_loss and "; in training mode they are logits"
        if probabilities(logits) and not probabilities(training):
            yield warned(
                "output not logits",
                f"in evaluation mode the outputs are {problem}{own or ''}: a loss of them is not that of training",
            )
            return
    if problem:
        if _loss_of_probabilities(subject, logits):
            yield passed(f"the outputs are {problem}, and the module's own loss takes their logarithm")
            return
        yield failed(
            "output not logits", f"the outputs are {problem}; cross entropy expects logits", op.module if op else None,
            lowest=float(logits.min()), highest=float(logits.max()), sum_of_a_row=float(logits[0, 0].sum()),
        )  # fmt: skip
        return
    width = subject.outputs
    if width < subject.vocab or (width > subject.vocab and not _from_head(seen, op, width)):
        yield failed(
            "output not logits",
            f"the last dimension of the output is {width}, but there are {subject.vocab} token ids: hidden states?",
            op.module if op else None, outputs=width, vocab=subject.vocab,
        )  # fmt: skip
        return
    notes = []
    if width > subject.vocab:
        notes.append(f"{width - subject.vocab} columns more than token ids (a padded vocabulary)")
    if bool((logits.logsumexp(-1).abs() < 1e-4).all()) and width > 1:
        notes.append("they are log-probabilities, whose cross entropy is the same")
    yield passed("; ".join([f"the outputs are {width} unbounded numbers per position", *notes]))


def subject_logits(subject: Subject, seen: Trace, idx: Tensor) -> Tensor:
    """The logits among what a traced forward returned."""
    return read_output(seen.output, len(idx), idx.size(1), subject.vocab)[0]


def _squashed(op: Op | None, logits: Tensor) -> str:
    """Say what the outputs are, if they are no logits; empty otherwise."""
    if probabilities(logits):
        return "probabilities (not negative, each row sums to 1)"
    if op is not None and op.name.rstrip("_") in SQUASHES:
        return f"the result of a {SQUASHES[op.name.rstrip('_')]}"
    return ""


def _loss_of_probabilities(subject: Subject, logits: Tensor) -> bool:
    """Whether the module's own loss is -log of the probability that it returns."""
    if not subject.computes_loss or not probabilities(logits):
        return False
    idx, targets = subject.ids(), subject.ids(seed=5)
    with torch.no_grad():
        output = subject.forward(subject.copy(), idx, targets)
    if output.loss is None or not probabilities(output.logits):
        return False
    logs = output.logits.float().clamp_min(1e-30).log()
    right = [cross_entropy(logs, targets), cross_entropy(logs[:, :-1], targets[:, 1:])]
    return any(abs(float(output.loss) - float(value)) < 1e-3 * float(value) for value in right)


def _from_head(seen: Trace, op: Op | None, width: int) -> bool:
    """Whether the last step is a product with a matrix of so many columns, rather than a norm or a residual sum."""
    for _ in range(8):
        if op is None:
            return False
        if op.name in PRODUCTS:
            names = [name for value in op.inputs if (name := source(seen, value))]
            return any(width in seen.tensors[value].shape for value in op.inputs if source(seen, value)) or not names
        if not op.inputs or "norm" in op.name:
            return False
        computed = [
            before for value in op.inputs if (before := seen.made_by(value)) is not None and value not in seen.origins
        ]
        if op.name in ("aten.add", "aten.add_") and len(computed) > 1:
            return False
        op = computed[0] if computed else None
    return False


def initial_loss(subject: Subject) -> Iterator[Result]:
    """An untrained model is sure of nothing: its loss on random targets is about ln V."""
    if subject.outputs < subject.vocab:
        raise NotRun(f"the output has {subject.outputs} columns for {subject.vocab} token ids")
    length = working_length(subject, min(subject.context, 32))
    with fixed_random_state(), torch.no_grad():
        module = subject.copy()
        size = sum(p.numel() for p in module.parameters())
        rows = max(2, min(256, 20_000_000 // max(size, 1))) if size < 2e7 else 2
        idx, targets = (
            subject.ids(max(2, rows // length * 4), length),
            subject.ids(max(2, rows // length * 4), length, 50),
        )
        logits = subject.logits(module, idx).float()
    usable = torch.isfinite(logits).flatten(0, 1).any(0)
    if not bool(torch.isfinite(logits[..., : subject.vocab]).all()):
        odd = list(_odd_weights(subject)) if subject.fresh else []
        if not odd:
            raise NotRun("the logits are not finite")
        yield from odd
        return
    spread = float(logits[..., usable].clamp_min(-1e4).std(-1).mean())
    if not subject.fresh:
        yield passed(
            f"the model is trained: its logits are finite, with a standard deviation of {spread:.2f}", spread=spread
        )
        return
    loss, uniform = float(cross_entropy(logits, targets)), math.log(max(2, int(usable.sum())))
    evidence: dict[str, Any] = {"loss": round(loss, 4), "ln V": round(uniform, 4), "spread": round(spread, 4)}
    problems = [*_odd_weights(subject)]
    if loss > uniform + EXCESS + EXCESS_SHARE * uniform:
        problems.append(
            failed(
                "init",
                f"the loss before training is {loss:.2f}; knowing nothing is ln {int(usable.sum())} = {uniform:.2f} "
                f"(the logits have a standard deviation of {spread:.2f})",
                **evidence,
            )
        )
    elif _large_weights(subject) and (entropy := _attention_entropy(subject)) is not None and entropy < 0.3:
        problems.append(
            failed(
                "init",
                f"before training, attention already looks at single tokens: its mean entropy is {entropy:.2f} "
                "of what it would be for equal weights; the weights are too large",
                entropy=round(entropy, 4),
                **evidence,
            )
        )
    if problems:
        yield from problems
    else:
        yield passed(f"the loss before training is {loss:.2f}, where ln V is {uniform:.2f}", **evidence)


def _odd_weights(subject: Subject) -> Iterator[Result]:
    """Weights that were never filled, or that make all units of a layer the same."""
    trained = {n: p for n, p in subject.module.named_parameters() if p.requires_grad and p.is_floating_point()}
    with torch.no_grad():
        wild = [n for n, p in trained.items() if not bool((p.abs() < 1e4).all())]
        if wild:
            yield failed(
                "init", f"{wild[0]} holds {float(trained[wild[0]].abs().max()):.3g}: was it filled at all?",
                wild[0].rpartition(".")[0] or None, parameters=wild[:20],
            )  # fmt: skip
        if trained and all(float(p.abs().max()) == 0 for p in trained.values() if p.numel()):
            yield failed("init", "every parameter is zero")
        same = [n for n, p in trained.items() if _units_equal(p)]
    products = multiplied(subject, subject.copy()) if same else set()
    looked_up = multiplied(subject, subject.copy(), LOOKUPS) if same else set()
    sides = {
        n: set(trained[n].shape[-2:]) for n in same
    }  # [T, T] mixes positions; other lookups than tokens may repeat
    of_units = {n for n in products if sides.get(n) != {subject.context}}
    same = [n for n in same if n in of_units or (n in looked_up and subject.vocab in sides[n])]
    if same:
        yield failed(
            "init", f"all rows or columns of {', '.join(same[:3])}{' ...' if len(same) > 3 else ''} are equal: its "
            "units compute the same and get the same gradient", same[0].rpartition(".")[0] or None, same=same[:20],
        )  # fmt: skip
    matrices = [p.detach().float() for p in trained.values() if p.dim() == 2 and p.numel() > 1]
    drawn = [p for p in matrices if float(p.std()) > 0]
    tiny = [p for p in drawn if float(p.std()) * math.sqrt(min(p.shape)) < TINY]
    if len(tiny) > len(drawn) / 2:
        size = max(float(p.std()) for p in tiny)
        yield warned("init", f"{len(tiny)} of {len(drawn)} matrices have a standard deviation of {size:.0e} or less")


def _units_equal(parameter: Tensor) -> bool:
    """Whether all rows, or all columns, of a matrix are equal, and not zero."""
    if parameter.dim() < 2 or min(parameter.shape[-2:]) < 2:
        return False
    equal = (parameter == parameter[..., :1, :]).all() or (parameter == parameter[..., :1]).all()
    return bool(equal) and bool(parameter.abs().max() > 0)


def _large_weights(subject: Subject) -> bool:
    """Whether a matrix makes numbers much larger: standard deviation times the root of its inputs above 3."""
    matrices = [p.detach() for p in subject.module.parameters() if p.dim() == 2 and min(p.shape) > 4]
    return any(float(p.float().std()) * math.sqrt(min(p.shape)) > 3 for p in matrices)


def _attention_entropy(subject: Subject) -> float | None:
    """The mean entropy of the attention rows, divided by that of equal weights on as many tokens; None if not found."""
    idx = subject.ids()
    seen = trace_forward(subject, subject.copy(), idx)
    T, found = idx.size(1), []
    for op in seen.ops:
        if op.name in ("aten._softmax", "aten._safe_softmax"):
            weights = seen.tensors[op.outputs[0]].float()
            if weights.dim() >= 3 and weights.shape[-2:] == (T, T):
                allowed = (seen.tensors[op.inputs[0]].float() > -9e3).sum(-1)  # the others are masked
                entropy = -(weights * weights.clamp_min(1e-30).log()).sum(-1)
                found += (entropy / allowed.clamp_min(2).log())[allowed >= 4].flatten().tolist()
    return sum(found) / len(found) if found else None


OUTPUTS_CHECKS: tuple[Check[Subject], ...] = (
    Check(
        "outputs",
        "Looks at the operation that made the outputs, their range and their last dimension.",
        "3 forward passes",
        "rows that sum to 1 within 1e-3; a last operation that bounds each number on its own (softmax, sigmoid, ReLU)",
        ("output not logits",),
        outputs_are_logits,
    ),
    Check(
        "initial loss",
        "Compares the loss of an untrained model on random targets with ln V; looks for weights that were not drawn.",
        "1 to 3 forward passes",
        "ln V + 1 + a tenth of ln V: logits of standard deviation 1 add 0.5; attention entropy below 0.3 of that of "
        "equal weights, with large weights: ALiBi's steepest slopes leave more",
        ("init",),
        initial_loss,
    ),
)

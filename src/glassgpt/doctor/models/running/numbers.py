"""Numbers that are none: NaN and infinity in weights, logits and gradients, and values that float16 cannot hold."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from glassgpt.doctor.dropout import DropoutSwitch
from glassgpt.doctor.models.learning.declared import padding_ids
from glassgpt.doctor.models.probing import Seen, affordable_length, are_finite, quiet, quiet_logits, record
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed, warned
from glassgpt.doctor.subject import Subject, cross_entropy, fixed_random_state
from glassgpt.doctor.trace import Op, Trace, trace
from glassgpt.errors import first_line

#: The largest float16.
HALF_MAX = 65504.0
#: exp of more than this is infinite in float32.
EXP_MAX = 88.0
#: Fresh attention scores are about 0.01 and grow with the square of the weights: this takes them beyond EXP_MAX.
STRESS = 300.0


def _bad(tensor: Tensor) -> bool:
    """Whether there is NaN or plus infinity; minus infinity masks."""
    return bool((tensor.isnan() | (tensor == torch.inf)).any())


def _texts(subject: Subject) -> Iterator[tuple[str, Tensor]]:
    """Tokens that programs trip over."""
    T = min(subject.length, subject.context)
    yield "random ids", subject.ids()
    yield "one token", subject.ids(1, 1)
    yield "equal ids", torch.full((2, T), min(1, subject.vocab - 1))
    pads = padding_ids(subject.module)
    for token in (0, subject.vocab - 1):
        if token not in pads:
            yield f"id {token} only", torch.full((2, T), token)
    for token in sorted(pads & set(range(subject.vocab)))[:2] if T > 2 else ():
        padded = subject.ids(2)
        padded[:, T // 2 :] = token
        yield f"a text before padding (id {token})", padded
    if subject.context > T and affordable_length(subject, 3 * subject.context):
        yield f"{subject.context} tokens", subject.ids(1, subject.context)


def check_finite(subject: Subject) -> Result:
    """Weights, logits, the loss and all gradients are finite, for ordinary and for odd inputs."""
    for name, parameter in subject.module.named_parameters():
        if parameter.is_floating_point() and not bool(parameter.isfinite().all()):
            count = int((~parameter.isfinite()).sum())
            return failed("non-finite", f"{count} values of {name} are NaN or infinite", _owner(name), count=count)
    module, tried = subject.copy(), 0
    for what, idx in _texts(subject):
        try:
            logits = quiet_logits(subject, module, idx)
        except Exception:  # such a text is refused
            continue
        tried += 1
        if not are_finite(logits):
            where = _first_bad(record(subject, module, idx))
            return failed("non-finite", f"the logits of {what} are not finite", where, input=what)
        bad = _bad_gradient(subject, idx) if idx.size(1) > 1 or not subject.last_only else None
        if bad:
            message = f"{bad} is not finite in training on {what}, though the logits are"
            return failed("non-finite", message, _owner(bad.removeprefix("the gradient of ")), input=what)
    return passed(f"weights, logits and gradients are finite for {tried} kinds of input")


def _owner(name: str) -> str | None:
    return name.rpartition(".")[0] or None


def _first_bad(seen: Seen) -> str | None:
    """The first module that made a value not finite out of finite ones."""
    for name, received, made in seen:
        if any(map(_bad, made)) and not any(map(_bad, received)):
            return name
    return None


def _bad_gradient(subject: Subject, idx: Tensor) -> str | None:
    """What is not finite in a step of training without dropout: the loss, or a gradient (the last one in the model's
    order: the gradients of all before it are made from its own)."""
    module, targets = subject.copy(train=True), idx.roll(-1, 1) % subject.outputs
    if not any(p.requires_grad for p in module.parameters()):
        return None
    try:
        with fixed_random_state(), DropoutSwitch(), torch.enable_grad():
            output = subject.forward(module, idx, targets if subject.computes_loss else None)
            own = output.loss if len(idx) == subject.batch and idx.size(1) > 1 else None
            loss = cross_entropy(output.logits, targets) if own is None else own
            loss.backward()
    except Exception:  # no backward pass: other checks say so
        return None
    if not bool(loss.isfinite()):
        return "the loss"
    bad = [n for n, p in module.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]
    return f"the gradient of {bad[-1]}" if bad else None


def check_float16(subject: Subject) -> Result:
    """What overflows in float16, and softmaxes that overflow in float32."""
    idx = subject.ids(2)
    naive = _softmax_without_maximum(subject, idx)
    if naive is not None:
        message = "a softmax takes exp of the scores as they are: above 88 (11 in float16) it is infinite, then NaN; "
        return failed("overflow", f"{message}subtract the maximum first", naive or None)
    if not are_finite(quiet_logits(subject, subject.copy(), idx)):
        raise NotRun("the logits are not finite in float32, either")
    own, half = subject.dtype == torch.float16, subject.copy(dtype=torch.float16)
    if not own and not subject._exact:
        raise NotRun(f"the model runs in {subject.dtype} only")
    try:
        with quiet():
            seen = trace(half, idx)
    except Exception as error:
        text = first_line(error)
        if "overflow" in text:
            message = "a constant, of a mask most likely, is too large for float16"
            return failed("overflow", f"{message}: {text}") if own else passed(f"{message}; it is harmless in float32")
        return _by_size(subject, idx, text)
    culprit = _first_overflow(seen)
    if culprit is None:
        return passed("no value overflows in float16")
    message = f"float16 overflows in {culprit.name}"
    return _verdict(subject, f"{message} ({culprit.module or 'the model itself'})", culprit.module)


def _verdict(subject: Subject, message: str, module: str) -> Result:
    if subject.fresh or subject.dtype == torch.float16:
        return failed("overflow", message, module or None)
    return warned("overflow", f"{message}; a trained model may have massive activations", module or None)


def _activations(seen: Trace) -> set[int]:
    """The values that were computed from weights; masks and tables are not."""
    made = {number for number, (origin, _) in seen.origins.items() if origin == "parameter"}
    for op in seen.ops:
        if made.intersection(op.inputs):
            made.update(op.outputs)
    return made


def _first_overflow(seen: Trace) -> Op | None:
    """The first operation that makes infinity (or NaN) of finite activations."""
    made = _activations(seen)
    for op in seen.ops:
        if op.name.startswith("aten.empty"):  # memory that is filled later
            continue
        values = [seen.tensors[number] for number in op.outputs if number in made]
        if any(value.is_floating_point() and _bad(value) for value in values):
            given = [seen.tensors[number] for number in op.inputs]
            if all(bool(value.isfinite().all()) for value in given if value.is_floating_point()):
                return op
    return None


def _by_size(subject: Subject, idx: Tensor, reason: str) -> Result:
    """Where float16 does not run here: the largest activation in float32."""
    with quiet():
        seen = trace(subject.copy(), idx)
    made = _activations(seen)
    for op in seen.ops:
        for number in op.outputs:
            value = seen.tensors[number].detach()
            if number in made and value.is_floating_point() and value.numel() and float(value.max()) > HALF_MAX:
                return _verdict(subject, f"{op.name} makes {float(value.max()):.1e}, over {HALF_MAX:.0f}", op.module)
    return passed(f"no activation is over {HALF_MAX:.0f} (float16 itself does not run here: {reason})")


def _softmax_without_maximum(subject: Subject, idx: Tensor) -> str | None:
    """The module that divides exp(x) by its own sum, where x is not bounded; None if there is none."""
    module = subject.copy()
    if not any(_quotients(_traced(module, idx))):
        return None
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point() and parameter.dim() >= 2:
                parameter.mul_(STRESS)
    for op, scores in _quotients(_traced(module, idx)):
        if scores.isnan().any() or float(scores.max()) > EXP_MAX:
            return op.module
    return None


def _traced(module: nn.Module, idx: Tensor) -> Trace:
    with quiet():
        return trace(module, idx)


def _quotients(seen: Trace) -> Iterator[tuple[Op, Tensor]]:
    """The divisions exp(x) / sum(exp(x)), each with its x."""
    for op in seen.ops:
        if not op.name.startswith("aten.div") or len(op.inputs) != 2:
            continue
        exponents = [_exponent(seen, number) for number in op.inputs]
        if exponents[0] is not None and exponents[0] == exponents[1] and _is_sum(seen, op.inputs[1]):
            scores = seen.tensors[exponents[0]]
            largest = scores.amax(-1)
            if not bool((largest[largest.isfinite()].abs() < 1e-6).all()):
                yield op, scores


_COPIES = ("clone", "expand", "view", "unsqueeze", "_to_copy", "alias", "detach", "clamp", "add", "dropout")


def _exponent(seen: Trace, value: int) -> int | None:
    """The x of exp(x), where a value is exp(x) or its sum, perhaps copied, reshaped or with an epsilon."""
    for _ in range(8):
        op = seen.made_by(value)
        if op is None or not op.inputs:
            return None
        kind = op.name.removeprefix("aten.").rstrip("_")
        if kind == "exp":
            return op.inputs[0]
        if kind != "sum" and kind not in _COPIES:
            return None
        value = op.inputs[0]
    return None


def _is_sum(seen: Trace, value: int) -> bool:
    for _ in range(8):
        op = seen.made_by(value)
        if op is None or not op.inputs:
            return False
        if op.name.startswith("aten.sum"):
            return True
        value = op.inputs[0]
    return False


NUMBER_CHECKS: tuple[Check[Subject], ...] = (
    Check(
        "finite",
        "Looks for NaN and infinity in weights, in logits, in the loss and in all gradients, also for odd inputs.",
        "7 forward and backward passes",
        "any NaN or infinity; minus infinity for ids that do not exist is meant",
        ("non-finite",),
        check_finite,
    ),
    Check(
        "float16",
        "Runs a float16 copy and finds the first operation that overflows; looks for softmaxes without a maximum.",
        "2 passes",
        f"{HALF_MAX:.0f} is the largest float16, exp({EXP_MAX:.0f}) the largest exponential in float32",
        ("overflow",),
        check_float16,
    ),
)

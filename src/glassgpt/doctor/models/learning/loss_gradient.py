"""The gradient of a module's own loss with respect to its logits, and the targets that are read in it.

The gradient of cross entropy with respect to the logits is the probability, minus one at the target. So its most
negative entry at a position names the token that this position is trained to predict, however the loss is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from glassgpt.doctor.report import NotRun
from glassgpt.doctor.subject import Subject, read_output, target_name


@dataclass(frozen=True)
class LossGradient:
    """The loss of one pass, its logits, and d loss / d logits, both ``[B, T, V]``."""

    loss: Tensor
    logits: Tensor
    gradient: Tensor


class _Wide(TorchFunctionMode):
    """Keeps every tensor of the size of the logits that a forward makes."""

    def __init__(self, width: int, numel: int):
        super().__init__()
        self.width, self.numel = width, numel
        self.kept: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.requires_grad and out.numel() == self.numel and self.width in out.shape:
            self.kept.append(out)
        return out


def loss_gradient(subject: Subject, module: nn.Module, idx: Tensor, targets: Tensor) -> LossGradient:
    """Take the gradient of the module's own loss with respect to the logits that it returns, or that it made last.

    Raises:
        NotRun: if it gives no loss, or if no tensor of the size of the logits is in the graph of the loss.
    """
    B, T = idx.shape
    name = subject.targets or target_name(module)
    with _Wide(subject.outputs, B * T * subject.outputs) as wide:
        raw = module(idx, **{str(name): targets})
    leaves = _tensors(raw)
    loss = getattr(raw, "loss", None)
    if not isinstance(loss, Tensor):
        loss = next((t for t in leaves if t.numel() == 1 and t.dim() <= 1), None)
    if loss is None or not loss.requires_grad:
        raise NotRun("the module's own loss does not depend on its parameters")
    made = [*(t for t in leaves if t.numel() == B * T * subject.outputs), *reversed(wide.kept)]
    for tensor in sorted(made, key=lambda t: not _is_output(subject, module, idx, t)):  # those first, in this order
        if tensor.requires_grad:
            (gradient,) = torch.autograd.grad(loss.mean(), [tensor], allow_unused=True, retain_graph=True)
            if gradient is not None:
                pair = torch.stack([tensor.detach().float(), gradient.detach().float()])
                logits, slope = (read_output((part,), B, T, subject.vocab)[0] for part in pair)
                if _time_first(subject, module, idx, logits):
                    logits, slope = (x.reshape(T, B, -1).transpose(0, 1) for x in (logits, slope))
                return LossGradient(loss.detach(), logits, slope)
    raise NotRun("the logits were not found in the graph of the module's own loss (it may compute them in chunks)")


def _is_output(subject: Subject, module: nn.Module, idx: Tensor, tensor: Tensor) -> bool:
    """Whether a tensor is what a call without targets returns: a later one may be scrambled on the way to the loss."""
    if tensor.shape != (*idx.shape, subject.outputs):
        return False
    with torch.no_grad():
        plain = read_output(module(idx), len(idx), idx.size(1), subject.vocab)[0]
    return plain.shape == tensor.shape and bool(torch.allclose(plain.float(), tensor.detach().float(), atol=1e-5))


def _tensors(raw: Any) -> list[Tensor]:
    """The floating-point tensors that a forward returned."""
    if not isinstance(raw, (Tensor, Mapping, tuple, list)):
        raw = vars(raw)
    values = list(raw.values()) if isinstance(raw, Mapping) else raw
    return [t for t in tree_leaves(values) if isinstance(t, Tensor) and t.is_floating_point()]


def _time_first(subject: Subject, module: nn.Module, idx: Tensor, logits: Tensor) -> bool:
    """Whether logits that came with a loss are flattened with time first: those without targets tell."""
    with torch.no_grad():
        raw = module(idx)
        plain = read_output(raw, len(idx), idx.size(1), subject.vocab)[0][:, -1].float()
    other = logits.reshape(idx.size(1), len(idx), -1)[-1]
    close = [bool(torch.allclose(rows, plain, rtol=1e-4, atol=1e-5)) for rows in (logits[:, -1], other)]
    return close == [False, True]


def is_trained(gradient: Tensor) -> Tensor:
    """Which positions ``[B, T]`` have a target: their most negative entry is not small beside the others'.

    A term that every position has, as the square of logsumexp, gives a small gradient without a target.
    """
    pull = (-gradient.amin(-1)).clamp_min(0)
    return pull > 0.05 * pull.max()


def alignment(gradient: Tensor, targets: Tensor) -> dict[int, float]:
    """For each offset k: the share of positions t that are trained on ``targets[:, t + k]``, of those that could be."""
    T = gradient.size(1)
    wanted = gradient.argmin(-1)
    trained = is_trained(gradient)
    shares = {}
    for k in range(-min(3, T - 1), min(3, T - 1) + 1):
        here, there = slice(max(0, -k), T - max(0, k)), slice(max(0, k), T + min(0, k))
        match = (wanted[:, here] == targets[:, there]) & trained[:, here]
        shares[k] = round(float(match.float().mean()), 4)
    return shares

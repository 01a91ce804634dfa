"""Ablation: the loss of a model without each of its heads and each of its MLPs.

A head is left out by changing its slice of the input of the output projection, an MLP by changing its output. Zero
ablation puts 0 there; mean ablation puts the mean of the component's output over all positions that are read, so
that what later layers always receive from it stays.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from glassgpt.errors import ConfigError, DataError, GenerationError
from glassgpt.files import Progress
from glassgpt.glass.inside.heads import require_head
from glassgpt.inference.stream import require_known
from glassgpt.loss import Evaluation, evaluate, subset
from glassgpt.model import GPT, Block
from glassgpt.recording import evaluation_mode
from glassgpt.tokenizer import Tokenizer

By = Literal["zero", "mean"]
#: Logits of a forward pass, at most (a single window may have more).
_MOST_LOGITS = 1 << 24


@dataclass(frozen=True)
class Ablation:
    """The loss without each component, in nats per token.

    Attributes:
        by: zero or mean.
        loss: of the whole model.
        tokens: how many tokens are predicted.
        window: tokens of context, at most.
        layers: the layers of the rows, ``[N]``.
        heads: the loss without each head, ``[N, H]``.
        mlps: the loss without each MLP, ``[N]``.
    """

    by: By
    loss: float
    tokens: int
    window: int
    layers: list[int]
    heads: np.ndarray
    mlps: np.ndarray

    def components(self) -> list[tuple[str, float]]:
        """Return (name, loss without it) of every component, the most important first."""
        named = [
            (f"layer {layer} head {head}", float(self.heads[row, head]))
            for row, layer in enumerate(self.layers)
            for head in range(self.heads.shape[1])
        ]
        named += [(f"layer {layer} MLP", float(self.mlps[row])) for row, layer in enumerate(self.layers)]
        return sorted(named, key=lambda pair: -pair[1])


class _Pass:
    """A function ``idx -> logits`` for :func:`evaluate`: the model from block ``layer`` on.

    The blocks below are not run again: their output, which no component of this layer or a later one changes, is kept,
    one tensor ``[B, T, C]`` per batch in the order of the batches.
    """

    def __init__(self, model: GPT):
        self.model = model
        self.layer = 0
        self.kept: list[Tensor] = []
        self._next = 0

    def __call__(self, idx: Tensor) -> Tensor:
        """``[B, T] -> [B, T, V]``."""
        if self.layer == 0:
            return self.model(idx)
        batch, self._next = self._next, (self._next + 1) % len(self.kept)
        whole = self.model.blocks
        below = [_Skip(None)] * (self.layer - 1) + [_Skip(self.kept[batch])]
        self.model.blocks = nn.ModuleList([*below, *whole[self.layer :]])
        try:
            return self.model(idx)
        finally:
            self.model.blocks = whole

    @contextmanager
    def keeping_output_of(self, layer: int) -> Iterator[None]:
        """Keep the output of this block in each batch; after that, passes begin at the next block."""
        kept: list[Tensor] = []
        with self.model.blocks[layer].register_forward_hook(lambda _, inputs, output: kept.append(output)):
            yield
        self.layer, self.kept, self._next = layer + 1, kept, 0


class _Skip(nn.Module):
    """Stands for a block that is not run: returns what the block returned before, or its input."""

    def __init__(self, output: Tensor | None):
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return x if self.output is None else self.output


@torch.no_grad()
def ablate(
    model: GPT,
    tokenizer: Tokenizer,
    text: str,
    by: By = "zero",
    tokens: int = 2048,
    layer: int | None = None,
    progress: Progress | None = None,
) -> Ablation:
    """Measure the loss on a text without each head and each MLP, one at a time.

    The text is cut into windows as for validation; a subset of them, spread evenly, is used if it is longer than
    ``tokens``. Blocks below the component are not computed again.

    Args:
        model: from :func:`glassgpt.load`.
        tokenizer: its tokenizer.
        text: at least two tokens.
        by: zero or mean.
        tokens: how many tokens are predicted, at most.
        layer: only the components of this layer.
        progress: called with the number of passes that are done.

    Raises:
        ConfigError: if there is no such layer, or for a wrong argument.
        DataError: if the text has fewer than two tokens.
        TokenizerError: if it has characters that the tokenizer does not know.
        GenerationError: if the loss is not finite.
    """
    require_head(model.config, layer)
    if by not in get_args(By):
        raise ConfigError(f"--by {by!r} is not one of {', '.join(get_args(By))}")
    if tokens < 1:
        raise ConfigError(f"--tokens {tokens}: give at least 1")
    ids = tokenizer.encode_array(text)
    if len(ids) < 2:
        raise DataError(f"the text has {len(ids)} tokens; the loss needs at least 2")
    require_known([int(ids.min()), int(ids.max())], model.config.vocab_size, "the text")
    window = min(model.config.block_size, tokens, len(ids) - 1)
    starts = subset(ids, window, tokens)
    batch_size = max(1, min(32, _MOST_LOGITS // (window * model.config.vocab_size)))
    run = _Pass(model)

    def measure() -> Evaluation:
        return evaluate(run, ids, window, model.device, starts=starts, batch_size=batch_size)

    layers = list(range(model.config.n_layer)) if layer is None else [layer]
    with evaluation_mode(model):
        whole, heads, mlps = _ablate_layers(run, measure, by, layers, progress)
    return Ablation(by, whole.loss, whole.tokens, window, layers, heads, mlps)


def _ablate_layers(
    run: _Pass, measure: Callable[[], Evaluation], by: By, layers: list[int], progress: Progress | None
) -> tuple[Evaluation, np.ndarray, np.ndarray]:
    """Return the evaluation of the whole model, and the losses without each head ``[N, H]`` and each MLP ``[N]``."""
    H, D = run.model.config.n_head, run.model.config.head_dim
    heads, mlps = np.zeros((len(layers), H)), np.zeros(len(layers))
    total, done = len(layers) * (H + 2), 0

    def loss(what: str) -> Evaluation:
        nonlocal done
        if progress:
            progress("ablating", done, total)
        done += 1
        evaluation = measure()
        if not math.isfinite(evaluation.loss):
            raise GenerationError(f"the loss {what} is {evaluation.loss}; the model's weights are damaged")
        return evaluation

    for row, layer in enumerate(layers):
        block = run.model.blocks[layer]
        assert isinstance(block, Block)
        with ExitStack() as hooks:
            if layer:
                hooks.enter_context(run.keeping_output_of(layer - 1))
            mixed_mean = hooks.enter_context(_mean(block.attention.out, "input"))
            mlp_mean = hooks.enter_context(_mean(block.mlp, "output"))
            whole = loss("of the whole model")
        for head in range(H):
            part = slice(head * D, (head + 1) * D)
            with _replaced_input(block.attention.out, part, mixed_mean()[part] if by == "mean" else None):
                heads[row, head] = loss(f"without layer {layer} head {head}").loss
        with _replaced_output(block.mlp, mlp_mean() if by == "mean" else None):
            mlps[row] = loss(f"without layer {layer} MLP").loss
    return whole, heads, mlps


@contextmanager
def _mean(module: nn.Module, of: Literal["input", "output"]) -> Iterator[Callable[[], Tensor]]:
    """Give a function that returns the mean ``[size]``, over all positions, of what passes through the module."""
    sums: list[Tensor] = []
    positions = 0

    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal positions
        x = (inputs[0] if of == "input" else output).flatten(0, 1)  # [B T, size]
        sums.append(x.sum(dim=0))
        positions += len(x)

    with module.register_forward_hook(add):
        yield lambda: torch.stack(sums).sum(dim=0) / positions


def _replaced_input(module: nn.Module, part: slice, value: Tensor | None) -> RemovableHandle:
    """Put a value ``[size]``, or 0, in place of a part of the module's input, while the handle's context lasts."""

    def replace(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        x = inputs[0].clone()
        x[..., part] = 0 if value is None else value
        return x

    return module.register_forward_pre_hook(replace)


def _replaced_output(module: nn.Module, value: Tensor | None) -> RemovableHandle:
    """Put a value ``[size]``, or 0, in place of the module's output, while the handle's context lasts."""
    return module.register_forward_hook(
        lambda _, inputs, output: torch.zeros_like(output) if value is None else value.expand_as(output)
    )

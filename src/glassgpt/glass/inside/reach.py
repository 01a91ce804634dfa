"""Reach: which positions the output at each position depends on, found by gradients.

A causal model reaches every earlier position, and itself: a full lower triangle. Layers with sliding windows reach a
band; L layers of window w reach L (w - 1) + 1 positions.

The pass is made by a copy of the model in float64. In it, queries are scaled down so that every score is between -1
and 1: a trained head may give a position a weight so small that it, or its gradient, is rounded to exactly 0. The masks
stay as they are, so a weight is 0 where the mask forbids to look, and only there. What is found is therefore whether a
position can be seen at all, not how much it matters on this text.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from glassgpt.errors import ConfigError, GenerationError
from glassgpt.glass.inside.prompt import Prompt, read_prompt
from glassgpt.model import GPT, Block
from glassgpt.model.attention import causal_mask
from glassgpt.tokenizer import Tokenizer

#: Tokens of a random sequence, by default.
LENGTH = 32
#: Scores are scaled down to at most this, whose softmax is within a factor of 8 of an even one.
_LARGEST_SCORE = 1.0


@dataclass(frozen=True)
class Finding:
    """A wrong pair: the output at ``position`` depends on the position ``other``, or does not though it should."""

    position: int
    other: int
    problem: str


@dataclass(frozen=True)
class Reach:
    """Which positions the output at each position depends on, and which it should.

    Attributes:
        prompt: the tokens that the model reads.
        depends: row t, column s: whether the output at t depends on the token at s; bool ``[T, T]``.
        expected: the same for a causal model with the sliding windows of this one's configuration.
        band: how many positions the windows reach, itself included; 0: all.
    """

    prompt: Prompt
    depends: np.ndarray
    expected: np.ndarray
    band: int

    @property
    def correct(self) -> bool:
        """Whether every output depends on just what it should."""
        return bool(np.array_equal(self.depends, self.expected))

    def findings(self) -> Iterator[Finding]:
        """Yield every wrong pair, those that see the future first."""
        for t, s in np.argwhere(self.depends & ~self.expected).tolist():
            if s > t:
                yield Finding(t, s, "sees its future")
        for t, s in np.argwhere(self.depends != self.expected).tolist():
            if s <= t:
                yield Finding(t, s, "sees beyond its window" if self.depends[t, s] else "does not see its past")


def reach(model: GPT, tokenizer: Tokenizer, prompt: str = "", length: int = 0) -> Reach:
    """Return which positions the hidden state at each position depends on.

    For each position, a random projection of its hidden state (after the final norm) is differentiated with respect to
    the token embeddings of all positions: one forward pass, T backward passes.

    Args:
        model: any; it is copied, not changed.
        tokenizer: its tokenizer.
        prompt: the text that it reads; by default random tokens, always the same.
        length: how many random tokens; 0: 32, or the context if that is less.

    Raises:
        ConfigError: if the length does not fit the context, or is given with a prompt.
        GlassError: if the prompt cannot be read, or the hidden states are not finite.
    """
    if prompt and length:
        raise ConfigError("--length is for random tokens; give --prompt or --length, not both")
    read = read_prompt(model, tokenizer, prompt) if prompt else _random_prompt(model, tokenizer, length)
    twin = copy.deepcopy(model).requires_grad_(False).eval().to("cpu", torch.float64)
    embeddings: list[Tensor] = []

    def detach(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        embeddings.append(output.detach().requires_grad_())
        return embeddings[-1]

    twin.token_embedding.register_forward_hook(detach)
    for block in twin.blocks:
        assert isinstance(block, Block)
        block.attention.attend.register_forward_pre_hook(_scale_queries)
    with torch.enable_grad():
        hidden = twin(torch.tensor([read.ids]), apply_head=False)[0]  # [T, C]
        if not hidden.isfinite().all():
            raise GenerationError("the hidden states are not all finite numbers; the model's weights are damaged")
        direction = torch.randn(hidden.size(1), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        depends = [
            (torch.autograd.grad(output, embeddings[0], retain_graph=True)[0][0] != 0).any(dim=-1)  # [T]
            for output in hidden @ direction
        ]
    windows = model.config.windows
    band = 0 if 0 in windows else sum(window - 1 for window in windows) + 1
    return Reach(read, torch.stack(depends).numpy(), expected_reach(windows, len(read.ids)), band)


def _scale_queries(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Scale the queries down so that no score is above 1 in absolute value."""
    q, k, *others = inputs
    largest = q.detach().norm(dim=-1).max() * k.detach().norm(dim=-1).max() / math.sqrt(q.size(-1))
    return (q * (_LARGEST_SCORE / largest).clamp(max=1), k, *others)


def expected_reach(windows: tuple[int, ...], T: int) -> np.ndarray:
    """Return which positions a causal model with these windows (0: none) depends on, layer after layer: ``[T, T]``."""
    here = torch.arange(T)
    reached = torch.eye(T)
    for window in windows:
        reached = ((causal_mask(here, here, window).float() @ reached) > 0).float()
    return reached.bool().numpy()


def _random_prompt(model: GPT, tokenizer: Tokenizer, length: int) -> Prompt:
    context, V = model.config.block_size, model.config.vocab_size
    if not 0 <= length <= context:
        raise ConfigError(f"--length {length}: the model reads 1 to {context:,} tokens")
    size = length or min(LENGTH, context)
    ids = torch.randint(V, (size,), generator=torch.Generator().manual_seed(0)).tolist()
    return Prompt.of(tokenizer, ids)

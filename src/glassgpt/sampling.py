"""From logits to the next token: pure functions, each of which can be read and tested by itself.

The order is temperature, then top-k, then top-p, then the draw. Everything is computed in float64, so that the
probabilities shown by ``--explain`` are the ones drawn from.

Sources: top-k (Fan et al., 2018, arXiv:1805.04833); top-p, or nucleus (Holtzman et al., 2019, arXiv:1904.09751).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from glassgpt.errors import ConfigError
from glassgpt.seeds import derive_seed


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen.

    ``temperature=0`` is greedy. ``top_k=0`` and ``top_p=1`` keep everything.

    Raises:
        ConfigError: with every value that is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.temperature < float("inf"):
            problems.append(f"temperature: {self.temperature} is not a number from 0 (greedy) up")
        if self.top_k < 0:
            problems.append(f"top_k: {self.top_k} is negative; 0 keeps every token")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p: {self.top_p} is not in (0, 1]; 1 keeps every token")
        if problems:
            raise ConfigError(problems)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divide logits ``[B, V]`` by the temperature, which must be above zero, after shifting their maximum to 0.

    The shift changes no probability, and keeps a tiny temperature from overflowing.
    """
    return (logits - logits.max(dim=-1, keepdim=True).values) / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set all but the k largest logits of each row ``[B, V]`` to -inf. Of equal ones, the lowest ids stay."""
    if k <= 0 or k >= logits.size(-1):
        return logits
    order = logits.sort(dim=-1, descending=True, stable=True).indices  # [B, V]
    return logits.scatter(-1, order[:, k:], float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest most likely tokens whose probabilities sum to at least p; set the rest to -inf.

    The most likely token always stays.
    """
    if p >= 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)  # [B, V]
    probability = ordered.softmax(dim=-1)
    before = probability.cumsum(dim=-1) - probability  # the mass of all likelier tokens
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= p)
    return logits.masked_fill(dropped, float("-inf"))


def probabilities(logits: Tensor, config: SamplingConfig) -> Tensor:
    """The distribution ``[B, V]`` that is drawn from, float64. Greedy puts all of it on the first largest logit."""
    logits = logits.double()
    if config.temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(dim=-1), logits.size(-1)).double()
    logits = apply_temperature(logits, config.temperature)
    return keep_top_p(keep_top_k(logits, config.top_k), config.top_p).softmax(dim=-1)


def draw(probability: Tensor, uniform: Tensor) -> Tensor:
    """Invert the cumulative distribution: the token in whose share of [0, 1) each number falls.

    Args:
        probability: ``[B, V]``, float64.
        uniform: ``[B]``, float64, in [0, 1).

    Returns:
        Token ids ``[B]``, never one of probability zero.
    """
    cumulative = probability.cumsum(dim=-1)  # [B, V]
    threshold = uniform * cumulative[:, -1]  # [B]; the sum may miss 1 by rounding
    return (cumulative > threshold.unsqueeze(-1)).int().argmax(dim=-1)


def next_token(logits: Tensor, config: SamplingConfig, uniform: Tensor) -> Tensor:
    """Choose a token for each row: ``logits [B, V]``, ``uniform [B]`` -> ids ``[B]``."""
    return draw(probabilities(logits, config), uniform)


class UniformStreams:
    """One stream of random numbers per row, each a pure function of (seed, row).

    A row's numbers do not depend on which other rows are in its batch.
    """

    def __init__(self, seed: int, rows: int):
        self.generators = [torch.Generator().manual_seed(derive_seed(seed, "draws", row)) for row in range(rows)]

    def next(self) -> Tensor:
        """The next number in [0, 1) of every row: ``[rows]``, float64."""
        return torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in self.generators])


@dataclass(frozen=True)
class Candidate:
    """One token that could have come next, with its probability after each stage (0 where it was cut)."""

    token: int
    logit: float
    after_temperature: float
    after_top_k: float
    after_top_p: float


def explain(logits: Tensor, config: SamplingConfig, count: int) -> list[Candidate]:
    """The ``count`` most likely candidates of one row of logits ``[V]``, likeliest first."""
    row = logits.double().unsqueeze(0)  # [1, V]
    if config.temperature == 0:
        stages = [probabilities(row, config)] * 3
    else:
        scaled = apply_temperature(row, config.temperature)
        cut = keep_top_k(scaled, config.top_k)
        stages = [stage.softmax(dim=-1) for stage in (scaled, cut, keep_top_p(cut, config.top_p))]
    order = row[0].sort(descending=True, stable=True).indices[:count].tolist()
    return [Candidate(i, float(row[0, i]), *(float(stage[0, i]) for stage in stages)) for i in order]

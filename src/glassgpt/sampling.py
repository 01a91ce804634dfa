"""From logits to the next token: pure functions, each of which can be read and tested by itself.

The order is that of `transformers`: repetition penalty, temperature, top-k, top-p, min-p, then the random choice.
Everything is computed in float64, so that ``--explain`` shows the very probabilities that are sampled from.

Every function takes one row of logits ``[V]`` or several ``[B, V]``.

Sources: repetition penalty (Keskar et al., 2019, arXiv:1909.05858); top-k (Fan et al., 2018, arXiv:1805.04833); top-p,
or nucleus (Holtzman et al., 2019, arXiv:1904.09751); min-p (Nguyen et al., 2024, arXiv:2407.01082).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from glassgpt.errors import ConfigError, type_problems
from glassgpt.seeds import derive_seed


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen.

    ``temperature=0`` is greedy. ``top_k=0``, ``top_p=1`` and ``min_p=0`` keep every token; ``repetition_penalty=1``
    changes nothing.

    Raises:
        ConfigError: with every value that is out of range or not a number.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise ConfigError(problems)

    def _problems(self) -> Iterator[str]:
        for name, value in vars(self).items():
            kind, expected = (Integral, "a whole number") if name == "top_k" else (Real, "a number")
            if wrong := type_problems(name, value, kind, expected):
                yield from wrong
            elif name == "temperature" and not 0 <= value < float("inf"):
                yield f"temperature: {value} is not a finite number >= 0; 0 is greedy"
            elif name == "top_k" and value < 0:
                yield f"top_k: {value} is negative; 0 keeps every token"
            elif name == "top_p" and not 0 < value <= 1:
                yield f"top_p: {value} is not in (0, 1]; 1 keeps every token"
            elif name == "min_p" and not 0 <= value <= 1:
                yield f"min_p: {value} is not in [0, 1]; 0 keeps every token"
            elif name == "repetition_penalty" and not 1e-100 <= value <= 1e100:  # so that no logit overflows
                yield f"repetition_penalty: {value} is not a number from 1e-100 to 1e100; 1 turns it off"


def penalize_repetition(logits: Tensor, previous_ids: Sequence[int], penalty: float) -> Tensor:
    """Divide positive logits of previous tokens by the penalty and multiply negative ones by it, once per token.

    ``logits [..., V] -> [..., V]``; all rows have the same previous tokens.
    """
    if penalty == 1 or not previous_ids:
        return logits
    ids = torch.tensor(sorted(set(previous_ids)))
    old = logits[..., ids]
    return logits.index_copy(-1, ids, torch.where(old > 0, old / penalty, old * penalty))


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divide logits by the temperature, after shifting their maximum to 0; temperature 0 keeps the first maximum only.

    ``logits [..., V] -> [..., V]``. The shift changes no probability, and keeps a tiny temperature from overflowing.
    """
    if temperature == 0:
        best = torch.full_like(logits, float("-inf"))
        return best.scatter(-1, logits.argmax(dim=-1, keepdim=True), 0.0)
    return (logits - logits.max(dim=-1, keepdim=True).values) / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set all but the k largest logits ``[..., V]`` to -inf. Among equal logits, the lowest ids are kept."""
    if k <= 0 or k >= logits.size(-1):
        return logits
    least = logits.topk(k).values[..., -1:]  # [..., 1]
    larger, equal = logits > least, logits == least
    kept = larger | (equal & (equal.cumsum(dim=-1) <= k - larger.sum(dim=-1, keepdim=True)))
    return logits.masked_fill(~kept, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest most likely tokens whose probabilities sum to at least p; set the rest to -inf.

    The most likely token is always kept. A sum that is below p by less than rounding can cause, V + 16 times the
    dtype's eps (2**-52 in float64), counts as p: of [.3 .1 .1 .5], p = .8 keeps two.
    """
    if p >= 1:
        return logits
    if logits.dim() > 1:
        return torch.stack([keep_top_p(row, p) for row in logits])
    probability, limits = logits.softmax(dim=-1), torch.finfo(logits.dtype)
    likely = (probability > (1 - p) / (2 * len(logits))).nonzero().flatten()  # all others sum to less than 1 - p
    likely = likely[logits[likely].sort(descending=True, stable=True).indices]
    ordered = probability[likely]
    before = ordered.cumsum(dim=-1) - ordered  # the mass of all likelier tokens
    enough = max(p - (len(logits) + 16) * limits.eps, limits.tiny)  # above 0 the first is kept
    kept = likely[before < enough]
    return torch.full_like(logits, float("-inf")).scatter(-1, kept, logits[kept])


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Set the logits ``[..., V]`` of tokens less than p times as likely as the most likely token to -inf.

    A probability that is lower by less than rounding can cause, a part of 16 times the dtype's eps, counts as equal.
    """
    if p <= 0:
        return logits
    probability = logits.softmax(dim=-1)
    least = p * probability.max(dim=-1, keepdim=True).values * (1 - 16 * torch.finfo(logits.dtype).eps)
    return logits.masked_fill(probability < least, float("-inf"))


#: The names of the stages, in order.
STAGES = ("repetition penalty", "temperature", "top-k", "top-p", "min-p")


def stages(logits: Tensor, sampling: SamplingConfig, previous_ids: Sequence[int] = ()) -> list[Tensor]:
    """Return the logits ``[..., V]``, float64, after each of :data:`STAGES`."""
    penalized = penalize_repetition(logits.double(), previous_ids, sampling.repetition_penalty)
    scaled = apply_temperature(penalized, sampling.temperature)
    top_k = keep_top_k(scaled, sampling.top_k)
    top_p = keep_top_p(top_k, sampling.top_p)
    return [penalized, scaled, top_k, top_p, keep_min_p(top_p, sampling.min_p)]


def probabilities(logits: Tensor, sampling: SamplingConfig, previous_ids: Sequence[int] = ()) -> Tensor:
    """Return the distribution that is sampled from, ``[..., V]``, float64. Greedy: all on the first largest logit."""
    return stages(logits, sampling, previous_ids)[-1].softmax(dim=-1)


def sample_inverse_cdf(probability: Tensor, uniform: Tensor) -> Tensor:
    """Choose the first token whose cumulative probability exceeds the random number.

    Args:
        probability: ``[V]`` or ``[B, V]``, float64.
        uniform: ``[]`` or ``[B]``, float64, in [0, 1).

    Returns:
        Token ids ``[]`` or ``[B]``, never one of probability zero.
    """
    cumulative = probability.cumsum(dim=-1)
    threshold = uniform * cumulative[..., -1]  # the sum may miss 1 by rounding
    return (cumulative > threshold.unsqueeze(-1)).int().argmax(dim=-1)


def next_token(logits: Tensor, sampling: SamplingConfig, uniform: Tensor, previous_ids: Sequence[int] = ()) -> Tensor:
    """Choose the next token: ``logits [V]``, ``uniform []`` -> id ``[]``; with a batch dimension, one per row."""
    if sampling.temperature == 0:  # as below, in less time
        exact = logits if sampling.repetition_penalty == 1 else logits.double()
        return penalize_repetition(exact, previous_ids, sampling.repetition_penalty).argmax(dim=-1)
    return sample_inverse_cdf(probabilities(logits, sampling, previous_ids), uniform)


def row_generator(seed: int, row: int) -> torch.Generator:
    """Create the random generator of one row: a pure function of (seed, row), whatever else is in its batch."""
    return torch.Generator().manual_seed(derive_seed(int(seed), "draws", int(row)))


def next_uniform(generator: torch.Generator) -> Tensor:
    """Draw the next number in [0, 1): ``[]``, float64."""
    return torch.rand((), generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Candidate:
    """A possible next token, with its logit and its probability after each stage (0 where it was dropped)."""

    token: int
    logit: float
    penalized_logit: float
    after_temperature: float
    after_top_k: float
    after_top_p: float
    after_min_p: float


def explain(
    logits: Tensor, sampling: SamplingConfig, count: int, previous_ids: Sequence[int] = (), chosen: int | None = None
) -> list[Candidate]:
    """Return the ``count`` most likely candidates of a row of logits ``[V]``, most likely first, and the chosen one."""
    penalized, *later = stages(logits, sampling, previous_ids)
    shown = [logits.double(), penalized, *(stage.softmax(dim=-1) for stage in later)]
    ids = penalized.sort(descending=True, stable=True).indices[:count].tolist()
    ids += [chosen] if chosen is not None and chosen not in ids else []
    return [Candidate(i, *(float(values[i]) for values in shown)) for i in ids]


@dataclass(frozen=True)
class Cut:
    """The tokens that a stage dropped. Greedy decoding is a temperature of 0, which drops all but the best.

    Attributes:
        stage: its name, of :data:`STAGES`.
        kept: how many tokens are left.
        dropped: how many tokens it dropped.
        mass: their probability before it.
        last_kept: the least likely token that is left; None if nothing was dropped.
        first_dropped: the most likely token that it dropped, or None.
    """

    stage: str
    kept: int
    dropped: int
    mass: float
    last_kept: int | None
    first_dropped: int | None


def cuts(logits: Tensor, after_stages: Sequence[Tensor]) -> list[Cut]:
    """Return what each stage drops from a row of logits ``[V]``, given those that :func:`stages` returned."""
    found, before = [], logits.double()
    for stage, after in zip(STAGES, after_stages, strict=True):
        kept, dropped = after > float("-inf"), (after == float("-inf")) & (before > float("-inf"))
        count, last_kept, first_dropped = int(dropped.sum()), None, None
        if count:
            order = before.sort(descending=True, stable=True).indices
            last_kept, first_dropped = int(order[kept[order]][-1]), int(order[dropped[order]][0])
        mass = float(before.softmax(dim=-1)[dropped].sum()) if count else 0.0
        found.append(Cut(stage, int(kept.sum()), count, mass, last_kept, first_dropped))
        before = after
    return found


def interval(probability: Tensor, token: int) -> tuple[float, float]:
    """Return the cumulative probabilities [from, to) of a token, in the order of the ids: ``probability [V]``.

    The token is chosen if the random number, times the sum of all probabilities (1 but for rounding), is in it.
    """
    cumulative = probability.cumsum(dim=-1)
    return float(cumulative[token - 1]) if token else 0.0, float(cumulative[token])

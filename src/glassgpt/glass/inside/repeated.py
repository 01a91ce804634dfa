"""Measure heads on random tokens that are repeated once, where only induction tells which token comes next.

The test for induction heads of Olsson et al., 2022 (arXiv:2209.11895).
"""

import random
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from glassgpt.errors import ConfigError
from glassgpt.glass.inside.heads import STATISTICS, head_statistics
from glassgpt.model import GPT
from glassgpt.recording import record
from glassgpt.seeds import derive_seed
from glassgpt.tokenizer import Tokenizer

#: Tokens of the longest sequence that is repeated.
_LONGEST = 64
#: Their lengths differ (in a context of 10 or more): a head that looks back by a fixed distance fits one of them only.
_SEQUENCES = 4


@dataclass(frozen=True)
class Repeated:
    """Means over the sequences.

    Attributes:
        statistics: as :func:`~glassgpt.glass.inside.heads.head_statistics`, ``[L, H]`` each.
        first_loss: of tokens at their first occurrence, in nats.
        second_loss: of the same tokens where they are repeated, in nats; lower with induction.
        chance: the induction score of a head that attends to all positions alike.
    """

    statistics: dict[str, np.ndarray]
    first_loss: float
    second_loss: float
    chance: float


def measure_repeated(model: GPT, tokenizer: Tokenizer, seed: int = 0) -> Repeated:
    """Measure every head of a model on repeated random tokens.

    Raises:
        ConfigError: if the model's context or vocabulary is too small.
    """
    found, losses, chances = [], [], []
    for ids in repeated_sequences(model, tokenizer, seed):
        recording = record(model, torch.tensor([ids], device=model.device), ("attention weights",))
        found.append(head_statistics(torch.cat(recording.layers("attention weights")), ids))
        loss = F.cross_entropy(recording.logits[0, :-1].double().cpu(), torch.tensor(ids[1:]), reduction="none")
        half = len(ids) // 2  # the token at `half` is the first that is repeated, and none tells that it comes
        losses.append((float(loss[: half - 1].mean()), float(loss[half:].mean())))
        uniform = torch.ones(len(ids), len(ids)).tril() / torch.arange(1, len(ids) + 1)[:, None]
        chances.append(float(head_statistics(uniform, ids)["induction"]))
    statistics = {name: np.mean([values[name] for values in found], axis=0) for name in STATISTICS}
    first_loss, second_loss = np.mean(losses, axis=0).tolist()
    return Repeated(statistics, first_loss, second_loss, float(np.mean(chances)))


def repeated_sequences(model: GPT, tokenizer: Tokenizer, seed: int) -> list[list[int]]:
    """Draw four sequences of different random tokens, of up to 64; each is followed by itself.

    Raises:
        ConfigError: if the model's context or vocabulary is too small.
    """
    left_out = {*tokenizer.unused_ids(), *tokenizer.special_ids().values()}
    ids = [i for i in range(min(tokenizer.vocab_size, model.config.vocab_size)) if i not in left_out]
    longest = min(_LONGEST, model.config.block_size // 2, len(ids))
    if longest < 2:
        raise ConfigError(
            "induction is measured on at least 2 different tokens that are repeated, and the model has a context of "
            f"{model.config.block_size} and {len(ids)} tokens that are not special; use a larger model"
        )
    draw = random.Random(derive_seed(seed, "repeated tokens"))
    lengths = [max(2, longest - i * max(1, longest // 8)) for i in range(_SEQUENCES)]
    return [2 * draw.sample(ids, length) for length in lengths]

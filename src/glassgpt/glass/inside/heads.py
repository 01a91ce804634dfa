"""The attention weights of every head on a prompt, and numbers by which heads of known kinds are found.

Layers and heads count from 0, and a head is written as its layer and number: ``5.3``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glassgpt.config import ModelConfig
from glassgpt.errors import ConfigError, GenerationError
from glassgpt.glass.inside.prompt import Prompt, read_prompt
from glassgpt.model import GPT
from glassgpt.recording import evaluation_mode, watch
from glassgpt.tokenizer import Tokenizer

#: The numbers of a head, in the order of tables; :func:`head_statistics` defines them.
STATISTICS = ("entropy", "first", "previous", "duplicate", "induction")


@dataclass(frozen=True)
class AttentionMaps:
    """The attention of every head on a prompt.

    Attributes:
        prompt: the tokens, T of them.
        weights: ``[L, H, T, T]``, float32: layer, head, query, key, of all layers or chosen ones. Each row sums to 1,
            unless they are pooled.
        statistics: as :func:`head_statistics`, ``[L, H]`` each.
    """

    prompt: Prompt
    weights: np.ndarray
    statistics: dict[str, np.ndarray]


def attention(model: GPT, tokenizer: Tokenizer, prompt: str) -> AttentionMaps:
    """Compute the attention weights of every head on a text.

    Raises:
        GlassError: as :func:`read_prompt`.
    """
    return attention_maps(model, read_prompt(model, tokenizer, prompt))


@torch.no_grad()
def attention_maps(
    model: GPT, prompt: Prompt, layers: Sequence[int] | None = None, at_most: int | None = None
) -> AttentionMaps:
    """Compute the attention weights of every head on a prompt; the logits are not computed.

    The weights of all heads take much memory for a long prompt. With ``layers``, only those of these layers are in the
    result, in this order; the statistics are of all. With ``at_most``, the weights of a head are pooled to a picture of
    so many rows and columns at most, in which each number is the largest of a square of weights.

    Raises:
        GenerationError: if weights are not numbers.
    """
    L, H, T = model.config.n_layer, model.config.n_head, len(prompt.ids)
    kept = list(range(L)) if layers is None else list(layers)
    square = 1 if at_most is None else math.ceil(T / at_most)
    weights = torch.empty(len(kept), H, *2 * [math.ceil(T / square)])
    statistics: list[dict[str, np.ndarray]] = []

    def see(name: str, layer: int | None, tensor: Tensor) -> None:
        if name != "attention weights":
            return
        statistics.append(values := head_statistics(tensor[0], prompt.ids))
        if not np.isfinite(values["entropy"]).all():
            raise GenerationError(
                f"the attention weights of layer {layer} are not numbers; `glassgpt trace` shows where that begins"
            )
        if layer in kept:
            pooled = tensor[0] if square == 1 else F.max_pool2d(tensor[0], square, ceil_mode=True)
            weights[kept.index(layer)] = pooled

    with evaluation_mode(model), watch(model, see, "explicit"):
        model(prompt.idx(model), apply_head=False)
    columns = {name: np.stack([values[name] for values in statistics]) for name in STATISTICS}
    return AttentionMaps(prompt, weights.numpy(), columns)


def head_statistics(weights: Tensor, ids: Sequence[int]) -> dict[str, np.ndarray]:
    """Compute five numbers of each head from its attention weights ``[..., T, T]`` on these tokens; ``[...]`` each.

    A position has an attention weight for each key: itself and all positions before it.

    - ``entropy``: of these weights, in nats; the mean over all positions. 0: each attends to one key alone.
    - ``first``: the weight on position 0; the mean over the positions from 1.
    - ``previous``: the weight on the position before; the mean over the positions from 1.
    - ``duplicate``: the summed weight on earlier positions with the same token; the mean over the positions that
      have one (duplicate-token heads: Wang et al., 2022, arXiv:2211.00593).
    - ``induction``: the summed weight on the earlier positions that come right after an earlier position with the
      same token; the mean over the positions that have one (the prefix-matching score of induction heads:
      Olsson et al., 2022, arXiv:2209.11895). A position itself does not count: in "a a", the second "a" has none.

    A number without any position is NaN. In a sliding window, positions before the window have the weight 0.
    """
    T = len(ids)
    tokens = torch.tensor(ids)
    duplicate = (tokens[:, None] == tokens).tril(-1)  # [T, T]: query, key
    induction = torch.zeros_like(duplicate)
    induction[:, 1:] = duplicate[:, :-1]
    before = torch.ones(T, T, dtype=torch.bool).tril(-1)  # [T, T]
    masks = {"first": before & (torch.arange(T) == 0), "previous": before.triu(-1)}
    masks |= {"duplicate": duplicate, "induction": induction.tril(-1)}
    heads = weights.reshape(-1, T, T).float()
    result = {"entropy": torch.stack([torch.special.entr(head).sum(-1).mean() for head in heads])}
    for name, mask in masks.items():
        positions = mask.any(dim=1).sum().to(heads)  # the mean of no position is 0 / 0, NaN
        result[name] = heads.flatten(1) @ mask.flatten().to(heads) / positions
    return {name: values.reshape(weights.shape[:-2]).double().cpu().numpy() for name, values in result.items()}


def head_name(head: tuple[int, int]) -> str:
    """Write a head as its layer and number: ``5.3``."""
    return f"{head[0]}.{head[1]}"


def require_head(config: ModelConfig, layer: int | None, head: int | None = None) -> None:
    """Check that a layer, and a head, exist.

    Raises:
        ConfigError: if not; the message names those that do.
    """
    for name, number, count in (("layer", layer, config.n_layer), ("head", head, config.n_head)):
        if number is not None and not 0 <= number < count:
            existing = f"only {name} 0" if count == 1 else f"the {name}s 0 to {count - 1}"
            raise ConfigError(f"--{name} {number}: the model has {existing}")


def require_comparable(maps: AttentionMaps, other: AttentionMaps) -> None:
    """Check that two models have the same heads, and read the same tokens.

    Raises:
        ConfigError: if not.
    """
    shapes = ["{} layers of {} heads".format(*one.statistics["entropy"].shape) for one in (maps, other)]
    if maps.prompt != other.prompt:
        counts = [len(one.prompt.ids) for one in (maps, other)]
        raise ConfigError(
            f"the models read different tokens, {counts[0]:,} and {counts[1]:,}; "
            "compare models with the same tokenizer, on a prompt that fits the context of both"
        )
    if shapes[0] != shapes[1]:
        raise ConfigError(f"the models have different heads, {shapes[0]} and {shapes[1]}; compare models of one shape")

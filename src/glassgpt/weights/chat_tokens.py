"""A chat template, its control tokens, and their rows in the embedding, for a model that has no chat template."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from glassgpt.config import ModelConfig
from glassgpt.seeds import derive_seed
from glassgpt.tokenizer.base import Tokenizer
from glassgpt.tokenizer.chatml import IM_END, IM_START, with_chatml
from glassgpt.weights import mapping
from glassgpt.weights.families.family import Family
from glassgpt.weights.loading import PART, describe
from glassgpt.weights.sources import WeightSource


def with_chat_template(source: WeightSource) -> WeightSource:
    """Give a model that has no chat template ChatML, its control tokens and their rows.

    Returns:
        The source itself if its tokenizer has a default chat template (even one that fails); else a source of the
        changed model, which can be loaded, and written by :mod:`glassgpt.weights.transfer`.

    Raises:
        TokenizerError: if the tokenizer is missing or damaged, or the tokens cannot be added.
        CheckpointError: if the configuration or the embedding cannot be read.
    """
    tokenizer = source.tokenizer()
    if "default" in tokenizer.published.chat_templates:
        return source
    config, family = describe(source)
    if tokenizer.vocab_size > config.vocab_size:  # which `load_source` reports
        return source
    return ChatTokensSource(source, tokenizer, config, family)


class ChatTokensSource:
    """A source with ChatML and rows for its control tokens; see :class:`WeightSource`.

    New tokens take the rows beyond the tokenizer's vocabulary, if there are any, before the embedding grows. A row is
    drawn from a normal distribution with the mean and the standard deviation of the old tokens' rows, per column, so
    that it looks like the row of any token; the same holds for the rows of a head of its own.

    Args:
        source: of a model without a chat template.
        tokenizer: the source's.
        config, family: the source's, as :func:`describe` reads them.
    """

    def __init__(self, source: WeightSource, tokenizer: Tokenizer, config: ModelConfig, family: Family):
        self._source = source
        self._tokenizer = with_chatml(tokenizer, source.path)
        old_size, new_size = tokenizer.vocab_size, self._tokenizer.vocab_size
        names = mapping.full_names(source.shapes, family)
        published = {place.ours: names.get(place.published) for place in mapping.placements(config, family)}
        vocab_size = max(config.vocab_size, new_size)
        self.path, self.stored = source.path, source.stored
        self.config: dict[str, Any] = {**source.config, "vocab_size": vocab_size}
        self._first, self._new = old_size, dict[str, Tensor]()  # the new rows, by name of the tensor
        embedding, head = published["token_embedding.weight"], published["head.weight"]
        for name, ours in ((embedding, "token_embedding"), (head, "head")):
            if name is None or source.shapes[name][0] < old_size or new_size == old_size:
                continue
            ours = "token_embedding" if config.tie_embeddings else ours  # a tied head may be in the file, too
            self._new[name] = _draw_rows(source, name, old_size, new_size - old_size, derive_seed("chat tokens", ours))
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: (vocab_size, *shape[1:]) if name in self._new else shape for name, shape in source.shapes.items()
        }
        self.notes = (*source.notes, _note(self._tokenizer, old_size))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """As :meth:`WeightSource.read`."""
        if name not in self._new:
            return self._source.read(name, start, stop)
        rows, old_rows = self.shapes[name][0], self._source.shapes[name][0]
        stop = rows if stop is None else min(stop, rows)
        new, first = self._new[name], self._first
        part = new.new_empty(max(0, stop - start), new.size(1))
        if start < min(stop, old_rows):
            old = self._source.read(name, start, min(stop, old_rows))
            part[: len(old)] = old
        begin, end = max(start, first), min(stop, first + len(new))
        if begin < end:
            part[begin - start : end - start] = new[begin - first : end - first]
        return part

    def tokenizer(self) -> Tokenizer:
        """The tokenizer with ChatML and its control tokens."""
        return self._tokenizer


def _draw_rows(source: WeightSource, name: str, num_old: int, num_new: int, seed: int) -> Tensor:
    """Draw rows with the mean and the standard deviation of the first ``num_old`` rows, ``[num_new, C]``.

    Two passes over the rows, in parts: deviations from the mean are exact even where it is large.
    """
    step = max(1, PART // (4 * math.prod(source.shapes[name][1:])))
    spans = [(start, min(num_old, start + step)) for start in range(0, num_old, step)]
    mean = torch.stack([source.read(name, *span).double().sum(0) for span in spans]).sum(0) / num_old
    squares = [(source.read(name, *span).double() - mean).square().sum(0) for span in spans]
    std = (torch.stack(squares).sum(0) / num_old).sqrt()
    noise = torch.randn(num_new, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (mean + std * noise).to(source.read(name, 0, 1).dtype)


def _note(tokenizer: Tokenizer, old_size: int) -> str:
    """Say what was added."""
    ids = {name: tokenizer.special_ids()[name] for name in (IM_START, IM_END)}
    new = {name: i for name, i in ids.items() if i >= old_size}
    note = "the model has no chat template; it gets ChatML"
    if not new:
        return f"{note}, whose tokens {IM_START} and {IM_END} it has"
    tokens = "tokens" if len(new) > 1 else "token"
    numbers = " and ".join(f"{i:,}" for i in new.values())
    return (
        f"{note}; added {' and '.join(new)} as {tokens} {numbers}: their rows in the embedding are drawn from a normal "
        "distribution with the mean and standard deviation of the other tokens' rows, per column"
    )

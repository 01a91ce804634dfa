"""How surprised a model is by each token of a text: its loss in nats, its rank, and what was expected instead.

A text that is longer than the context is read in windows that overlap. A token is counted once, in the first window
that predicts it, so with a stride of half a context every token is predicted from at least half a context before it
(but for the beginning of the text). With a stride of a full context the windows do not overlap, and the loss is that of
:func:`glassgpt.loss.evaluate`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glassgpt.errors import ConfigError, GenerationError
from glassgpt.files import Progress
from glassgpt.glass.inside.prompt import token_text
from glassgpt.inference.stream import require_known
from glassgpt.model import GPT
from glassgpt.recording import evaluation_mode
from glassgpt.tokenizer import Tokenizer
from glassgpt.tokenizer.base import adds_bos_token

#: Surprises in bits at which a picture of a text changes its colour: probabilities 1/2, 1/8, 1/64 and 1/1024.
LEVELS = (1, 3, 6, 10)
#: Tokens in one forward pass, and logits at a time, at most (but at least one window, and one position).
_PASS_TOKENS, _LOGITS = 8192, 1 << 22


@dataclass(frozen=True)
class Score:
    """The surprise of a model at each of the N tokens of a text. The first token is not predicted.

    Attributes:
        ids: token ids ``[N]``. A model that was trained with BOS reads it first: then it is the first token.
        tokens: the tokens as printable text, ``[N]``.
        nats: -ln of the probability of each token, ``[N]``; NaN for the first.
        ranks: 1 + the number of tokens that were more likely, ``[N]``; 0 for the first.
        expected: the id of the most likely token, ``[N]``; -1 for the first.
        expected_probability: its probability, ``[N]``; NaN for the first.
        loss: the mean of ``nats`` over the N - 1 tokens that are predicted.
        bytes: of the text of those tokens.
        bits_per_byte: their surprises, summed in bits, per byte; None if the tokenizer loses a part of this text.
        stride: tokens from the start of a window to the start of the next.
        windows: how many windows were read.
    """

    ids: list[int]
    tokens: list[str]
    nats: np.ndarray
    ranks: np.ndarray
    expected: np.ndarray
    expected_probability: np.ndarray
    loss: float
    bytes: int
    bits_per_byte: float | None
    stride: int
    windows: int

    @property
    def bits(self) -> np.ndarray:
        """The surprises in bits, ``[N]``; NaN for the first."""
        return self.nats / math.log(2)

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def worst(self, count: int) -> list[int]:
        """Return the positions of the most surprising tokens, the worst first."""
        order = np.argsort(-self.nats[1:], kind="stable")[:count] + 1
        return order.tolist()


def score(
    model: GPT, tokenizer: Tokenizer, text: str, *, stride: int | None = None, progress: Progress | None = None
) -> Score:
    """Score a text of any length.

    Args:
        model: any model.
        tokenizer: its tokenizer.
        text: at least two tokens, or one after BOS.
        stride: tokens from the start of a window to the start of the next, 1 to block_size; by default block_size / 2.
        progress: called with the tokens that are scored.

    Raises:
        TokenizerError: if the text has characters that the tokenizer does not know.
        ConfigError: if the text is too short, or the stride is out of range.
        GenerationError: if the model does not have one of the tokens, or its logits are NaN or infinite.
    """
    context = model.config.block_size
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise ConfigError(f"stride: {stride} is not from 1 to {context:,}, the context; no token could be left out")
    ids, begins_with_bos = _encode(model, tokenizer, text)
    spans = list(_windows(len(ids), context, stride))
    columns = np.full((4, len(ids)), np.nan)  # nats, ranks, expected, expected_probability
    columns[1, 0], columns[2, 0] = 0, -1
    with evaluation_mode(model), torch.inference_mode():
        for group in _batches(spans, context):
            columns[:, group[0][2] : group[-1][1] + 1] = _predict(model, ids, group)
            if progress:
                progress("scoring", group[-1][1], len(ids) - 1)
    nats = columns[0]
    if not np.isfinite(nats[1:]).all():
        position = int(np.flatnonzero(~np.isfinite(nats[1:]))[0]) + 1
        raise GenerationError(
            f"token {position}: its probability is not a positive number. The weights are damaged, or too large for "
            "their dtype; try float32"
        )
    size = len(text.encode("utf-8")) - (0 if begins_with_bos else len(tokenizer.token_bytes(ids[0])))
    total = math.fsum(nats[1:])
    texts = {i: token_text(tokenizer, i) for i in set(ids)}
    lossless = _is_lossless(tokenizer, ids[begins_with_bos:], text)
    return Score(
        ids=ids,
        tokens=[texts[i] for i in ids],
        nats=nats,
        ranks=columns[1].astype(np.int64),
        expected=columns[2].astype(np.int64),
        expected_probability=columns[3],
        loss=total / (len(ids) - 1),
        bytes=size,
        bits_per_byte=total / math.log(2) / size if lossless and size > 0 else None,
        stride=stride,
        windows=len(spans),
    )


def _encode(model: GPT, tokenizer: Tokenizer, text: str) -> tuple[list[int], bool]:
    """Encode the text, after BOS if the model was trained with it; return the ids, and whether BOS is the first."""
    bos = tokenizer.bos_token_id if adds_bos_token(tokenizer) else None
    ids = tokenizer.encode_array(text).tolist() if text else []
    ids = ids if bos is None else [bos, *ids]
    if len(ids) < 2:
        raise ConfigError("the text is too short to score: nothing comes before its first token; give a longer text")
    require_known(ids, model.config.vocab_size, "the text")
    return ids, bos is not None


def _is_lossless(tokenizer: Tokenizer, ids: list[int], text: str) -> bool:
    return getattr(tokenizer, "unk_token_id", None) not in ids and tokenizer.decode(ids) == text


#: A window reads the tokens from start to stop - 1, predicts those from start + 1 to stop, and counts those from first.
_Window = tuple[int, int, int]


def _windows(N: int, context: int, stride: int) -> Iterator[_Window]:
    """Cut N tokens into windows (start, stop, first) that count each token but the first once."""
    start, first = 0, 1
    while first < N:
        stop = min(start + context, N - 1)
        yield start, stop, first
        start, first = start + stride, stop + 1


def _batches(spans: list[_Window], context: int) -> Iterator[list[_Window]]:
    """Group windows of one length, which go through the model together."""
    rows = max(1, _PASS_TOKENS // context)
    for _, group in groupby(spans, key=lambda span: span[1] - span[0]):
        same = list(group)
        yield from (same[i : i + rows] for i in range(0, len(same), rows))


def _predict(model: GPT, ids: list[int], group: list[_Window]) -> np.ndarray:
    """Return nats, rank, expected id and its probability of each token that these windows count: ``[4, tokens]``."""
    idx = torch.tensor([ids[start:stop] for start, stop, _ in group], device=model.device)  # [B, T]
    hidden_states = model(idx, apply_head=False)  # [B, T, C]
    counted = [hidden_states[r, first - 1 - start :] for r, (start, _, first) in enumerate(group)]
    targets = torch.tensor(ids[group[0][2] : group[-1][1] + 1], device=model.device)  # [tokens]
    rows = max(1, _LOGITS // model.config.vocab_size)
    parts = zip(torch.cat(counted).split(rows), targets.split(rows), strict=True)
    return np.concatenate([_columns(model.head(states).float(), wanted) for states, wanted in parts], axis=1)


def _columns(logits: Tensor, targets: Tensor) -> np.ndarray:
    """Return nats, rank, most likely id and its probability: ``logits [M, V]``, ``targets [M]`` -> ``[4, M]``."""
    nats = F.cross_entropy(logits, targets, reduction="none")
    ranks = 1 + (logits > logits.gather(1, targets[:, None])).sum(dim=1)
    largest, expected = logits.max(dim=1)
    probability = (largest - logits.logsumexp(dim=1)).exp()
    return torch.stack([column.cpu().double() for column in (nats, ranks, expected, probability)]).numpy()

"""The loss of a model over a token stream: deterministic, and (but for rounding) the same for every batch size.

The stream is cut into windows of block_size tokens that do not overlap; each token but the first is predicted once,
from the tokens of its own window. Sums are kept in float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glassgpt.data.batches.windows import document_positions
from glassgpt.data.corpus.shards import Ids
from glassgpt.processes import Processes

#: Taken off the count of every pair, in the bigram model.
DISCOUNT = 0.75


@dataclass(frozen=True)
class Evaluation:
    """The loss of a model on a text.

    Attributes:
        loss: mean cross-entropy per token, in nats.
        stderr: standard error of that mean over windows, in nats; nan for a single window.
        tokens: how many tokens were predicted.
        bits_per_byte: of the text, the unit that compares tokenizers; None if the tokenizer is lossy.
    """

    loss: float
    stderr: float
    tokens: int
    bits_per_byte: float | None = None


def subset(tokens: Ids, block_size: int, at_most: int) -> np.ndarray:
    """Window starts, int64 ``[W]``, of a fixed subset of at most so many predicted tokens, spread over the stream."""
    starts = np.arange(0, max(len(tokens) - 1, 0), block_size)
    count = max(1, min(len(starts), at_most // block_size))
    return starts[np.linspace(0, len(starts) - 1, count).round().astype(np.int64)] if len(starts) else starts


@torch.no_grad()
def evaluate(
    logits_of: Callable[..., Tensor],
    tokens: Ids,
    block_size: int,
    device: torch.device,
    *,
    starts: np.ndarray | None = None,
    batch_size: int = 32,
    mask_documents: bool = False,
    tokens_per_byte: float | None = None,
    processes: Processes | None = None,
) -> Evaluation:
    """Evaluate a function ``idx [B, T] -> logits [B, T, V]`` on a stream of at least two tokens.

    Several processes share the work: each computes every world_size-th batch, and all get the same result, which is
    that of one process. All make the same number of forward passes, so that sharded weights can be gathered.

    Args:
        logits_of: the model, already in eval mode.
        tokens: the stream ``[N]``.
        block_size: window length T; the last window may be shorter.
        device: where to compute.
        starts: windows to use, from :func:`subset`; all of them by default.
        batch_size: windows per forward pass.
        mask_documents: whether to pass ``document_ids`` and ``position_ids``, both ``[B, T]``, to the function.
        tokens_per_byte: of the text; None if the tokenizer is lossy.
        processes: the processes that share the work, all of which call this.
    """
    starts = np.arange(0, len(tokens) - 1, block_size) if starts is None else starts
    assert len(starts), "an empty stream has no loss"
    processes = processes or Processes()
    lengths = np.minimum(block_size, len(tokens) - 1 - starts)
    batches: list[np.ndarray] = []  # indices of windows, all of one length
    for i in range(0, len(starts), batch_size):
        chosen = np.arange(i, min(i + batch_size, len(starts)))
        batches += [chosen[lengths[chosen] == length] for length in np.unique(lengths[chosen])[::-1]]
    sums = torch.zeros(len(starts), dtype=torch.float64)  # of the losses of each window
    for first in range(0, len(batches), processes.world_size):
        mine = first + processes.rank
        rows = batches[min(mine, len(batches) - 1)]  # with nothing left to do, repeat the last, and do not count it
        losses = _losses(logits_of, tokens, starts[rows], int(lengths[rows[0]]), device, mask_documents)
        if mine < len(batches):
            sums[rows] = losses
    total = int(lengths.sum())
    means = (found := processes.sum(sums).numpy()) / lengths
    stderr = float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else math.nan
    loss = math.fsum(found) / total
    bits = None if tokens_per_byte is None else loss * tokens_per_byte / math.log(2)
    return Evaluation(loss, stderr, total, bits)


def _losses(
    logits_of: Callable[..., Tensor], tokens: Ids, starts: np.ndarray, T: int, device: torch.device, masked: bool
) -> Tensor:
    """The summed loss of each window ``[starts]``, in float64 on the CPU: not every device has float64."""
    window = torch.from_numpy(tokens[starts[:, None] + np.arange(T + 1)].astype(np.int64)).to(device)  # [B, T + 1]
    documents = {}
    if masked:
        parts = document_positions(tokens, starts, T)
        documents = dict(
            zip(("document_ids", "position_ids"), (torch.from_numpy(p).to(device) for p in parts), strict=True)
        )
    logits = logits_of(window[:, :-1], **documents)  # [B, T, V]
    losses = F.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten(), reduction="none")  # [B T]
    return losses.view(len(starts), T).cpu().double().sum(dim=1)


@dataclass(frozen=True)
class Baselines:
    """Losses of simpler models on the validation tokens, in nats, to compare a Transformer's with.

    Attributes:
        uniform: every token equally likely, ln V.
        unigram: by token frequencies in the training tokens (add-one smoothing).
        bigram: by the token before, too (counts of pairs with absolute discounting, backing off to the unigram model;
            Ney, Essen and Kneser 1994).
    """

    uniform: float
    unigram: float
    bigram: float


def counting_baselines(train_ids: Ids, val_ids: Ids, vocab_size: int) -> Baselines:
    """The losses of counting models, fitted to the first ten million training tokens, on the validation tokens.

    Both are ids ``[N]``. The losses are in nats per token.
    """
    train, val = (np.asarray(tokens[:10_000_000], dtype=np.int64) for tokens in (train_ids, val_ids))
    unigram = (np.bincount(train, minlength=vocab_size) + 1) / (len(train) + vocab_size)  # [V]
    pairs, counts = np.unique(train[:-1] * vocab_size + train[1:], return_counts=True)
    before = pairs // vocab_size
    followed = np.bincount(train[:-1], minlength=vocab_size)  # how often a token has a successor, [V]
    successors = np.bincount(before, minlength=vocab_size)  # how many different ones, [V]
    wanted = val[:-1] * vocab_size + val[1:]
    place = np.minimum(np.searchsorted(pairs, wanted), max(len(pairs) - 1, 0))
    seen = counts[place] * (pairs[place] == wanted) if len(pairs) else np.zeros(len(wanted))
    context = np.maximum(followed[val[:-1]], 1)
    left_over = np.where(followed[val[:-1]] > 0, DISCOUNT * successors[val[:-1]] / context, 1.0)
    bigram = np.maximum(seen - DISCOUNT, 0) / context + left_over * unigram[val[1:]]
    return Baselines(math.log(vocab_size), _surprise(unigram[val]), _surprise(bigram))


def _surprise(probabilities: np.ndarray) -> float:
    """The mean of -ln p; 0 for none."""
    return float(-np.log(probabilities).mean()) if len(probabilities) else 0.0

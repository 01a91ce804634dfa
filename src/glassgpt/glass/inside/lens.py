"""The logit lens: what the residual stream would already predict after each block (nostalgebraist 2020)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from glassgpt.errors import GenerationError
from glassgpt.glass.inside.prompt import Prompt, read_prompt, token_text
from glassgpt.model import GPT
from glassgpt.recording import evaluation_mode, record
from glassgpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Lens:
    """Predictions by layer and position: row 0 is from the embeddings, row ``l + 1`` from the output of block ``l``.

    The last row is what the model predicts.

    Attributes:
        prompt: the tokens that the model reads.
        tokens: the most likely next token, ``[L + 1, T]``.
        probability: the probability of that token, ``[L + 1, T]``.
        rank: the place of the model's own prediction, that of the last row, among all tokens in this row; 1 is the
            most likely. ``[L + 1, T]``.
        texts: ``tokens`` as printable texts, ``[L + 1][T]``.
    """

    prompt: Prompt
    tokens: np.ndarray
    probability: np.ndarray
    rank: np.ndarray
    texts: list[list[str]]


def row_name(row: int) -> str:
    """Return the name of a row of a lens: ``embeddings``, ``block 0``, ..."""
    return f"block {row - 1}" if row else "embeddings"


@torch.no_grad()
def lens(model: GPT, tokenizer: Tokenizer, prompt: str) -> Lens:
    """Apply the model's final norm and head to its residual stream after the embeddings and after each block.

    The logits of one layer at a time are in memory: ``[T, V]``.

    Raises:
        GlassError: if the prompt cannot be read (see :func:`~glassgpt.glass.inside.prompt.read_prompt`), or if the
            logits are not finite.
    """
    read = read_prompt(model, tokenizer, prompt)
    recording = record(model, read.idx(model), ("embeddings", "residual after mlp"), attention="fused")
    final = recording.logits[0].argmax(dim=-1)  # [T]
    stream = [recording.get("embeddings"), *recording.layers("residual after mlp")]  # each [1, T, C]
    del recording  # and its logits
    with evaluation_mode(model):
        rows = [_predict(model, residual, final, row) for row, residual in enumerate(stream)]
    tokens, probability, rank = (np.stack(column) for column in zip(*rows, strict=True))
    names = {i: token_text(tokenizer, i) for i in np.unique(tokens).tolist()}
    return Lens(read, tokens, probability, rank, [[names[i] for i in row] for row in tokens.tolist()])


def _predict(model: GPT, residual: Tensor, final: Tensor, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the top token, its probability, and the rank of ``final [T]``; each ``[T]``."""
    logits = model.head(model.final_norm(residual))[0].float()  # [T, V]
    if not all(extreme.isfinite() for extreme in logits.aminmax()):  # NaN if any is NaN
        raise GenerationError(
            f"the logits after {row_name(row)} are not all finite numbers; the model's weights are damaged"
        )
    tokens = logits.argmax(dim=-1)
    probability = logits.softmax(dim=-1).gather(-1, tokens[:, None])[:, 0]
    return tokens.cpu().numpy(), probability.cpu().numpy(), ranks(logits, final)


def ranks(logits: Tensor, tokens: Tensor) -> np.ndarray:
    """Return the place of each of ``tokens [T]`` in its row of ``logits [T, V]``, float32; 1 is the largest: ``[T]``.

    Probabilities would not do: those of unlikely tokens can all be rounded to 0.
    """
    places = zip(logits.cpu().numpy(), tokens.tolist(), strict=True)
    return np.array([1 + np.count_nonzero(row > row[i]) for row, i in places], dtype=np.int64)  # one [V] at a time

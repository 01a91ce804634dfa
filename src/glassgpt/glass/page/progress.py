"""What a page shows of every block at once: how much it changed the residual stream, and what it would predict."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from glassgpt.glass.inside.lens import ranks
from glassgpt.model import GPT
from glassgpt.recording import Recording

#: Tokens that are listed per position and depth.
LISTED = 5
#: The recorded tensors that the summary needs.
SUMMARIZED = (
    "idx", "embeddings", "attention output", "residual after attention", "mlp output", "residual after mlp",
)  # fmt: skip


@torch.no_grad()
def summarize(model: GPT, recording: Recording) -> dict[str, Any]:
    """Return these numbers as JSON values.

    The tokens that the residual stream would predict are found with the final norm and the head at every depth (the
    logit lens). Depth 0 is the embeddings, depth n the residual stream after n blocks.

    Returns:
        ``attention_change`` and ``mlp_change`` ``[L][T]``: the norm of what is added, over that of what it is added to;
        ``top`` and ``top_probability`` ``[L + 1][T][5]``: the likeliest tokens at each depth, the likeliest first;
        ``final_probability`` and ``final_rank`` ``[L + 1][T]``: of the token that is likeliest in the end; rank 1 is
        the likeliest; ``next_probability`` and ``next_rank`` ``[T - 1]``: of the token that follows in the prompt.
    """
    before = [recording.get("embeddings")[0], *(x[0] for x in recording.layers("residual after mlp")[:-1])]
    middle = [x[0] for x in recording.layers("residual after attention")]
    attention, mlp = recording.layers("attention output"), recording.layers("mlp output")
    final = recording.logits[0].argmax(dim=-1)  # [T]
    depths = [*before, recording.layers("residual after mlp")[-1][0]]
    lens = [_predict(model, x, final) for x in depths]
    logits, following = recording.logits[0, :-1].float(), recording.get("idx")[0, 1:]  # [T - 1, V], [T - 1]
    return {
        "next_probability": _rounded(_probability_of(logits.softmax(dim=-1), following)),
        "next_rank": ranks(logits, following).tolist(),
        "attention_change": [_change(added[0], x) for added, x in zip(attention, before, strict=True)],
        "mlp_change": [_change(added[0], x) for added, x in zip(mlp, middle, strict=True)],
    } | {key: [depth[key] for depth in lens] for key in lens[0]}


def _change(added: Tensor, to: Tensor) -> list[float]:
    ratio = added.float().norm(dim=-1) / to.float().norm(dim=-1).clamp(min=1e-30)  # [T]
    return _rounded(ratio)


def _predict(model: GPT, x: Tensor, final: Tensor) -> dict[str, Any]:
    """Apply the final norm and the head to ``x [T, C]``; ``final [T]`` are the tokens predicted in the end."""
    logits = model.head(model.final_norm(x)).float()  # [T, V]
    probability = logits.softmax(dim=-1)  # [T, V]
    values, ids = probability.sort(dim=-1, descending=True, stable=True)
    return {
        "top": ids[:, :LISTED].tolist(),
        "top_probability": _rounded(values[:, :LISTED]),
        "final_probability": _rounded(_probability_of(probability, final)),
        "final_rank": ranks(logits, final).tolist(),
    }


def _probability_of(probability: Tensor, tokens: Tensor) -> Tensor:
    """Return the probability of each of ``tokens [T]`` in its row of ``probability [T, V]``: ``[T]``."""
    return probability.gather(-1, tokens[:, None])[:, 0]


def _rounded(values: Tensor) -> Any:
    """Return numbers to six significant digits; those that are not finite (an overflow on the way) as 0."""
    array = np.nan_to_num(values.double().cpu().numpy(), nan=0.0, posinf=0.0, neginf=0.0)
    return np.vectorize(lambda x: float(f"{x:.6g}"), otypes=[float])(array).tolist()

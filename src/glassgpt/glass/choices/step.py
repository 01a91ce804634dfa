"""One step of generation as plain values: the random number, what each stage dropped, and the candidates."""

from collections.abc import Sequence
from typing import Any

from glassgpt.inference.decode import DecodeStep
from glassgpt.sampling import SamplingConfig, cuts, explain, interval, probabilities, stages
from glassgpt.tokenizer import Tokenizer


def describe_step(
    step: DecodeStep, sampling: SamplingConfig, previous_ids: Sequence[int], tokenizer: Tokenizer, count: int
) -> dict[str, Any]:
    """Describe the first row of a step as JSON values.

    Args:
        step: of :func:`glassgpt.inference.decode.generate_text`.
        sampling: the settings of the row.
        previous_ids: the ids of the row before this step, the prompt included.
        tokenizer: gives the texts of the tokens.
        count: how many of the most likely candidates to list; the chosen one is listed, too.

    Returns:
        ``chosen``; ``draw``, the random number; ``interval``, the cumulative probabilities [from, to) of the chosen
        token; ``cuts``, as :class:`glassgpt.sampling.Cut`; ``candidates``, as :class:`glassgpt.sampling.Candidate`.
        Cuts and candidates have the texts of their tokens, too; the text of an id without a token is None.
    """
    logits, chosen = step.logits[0], step.tokens[0]
    shown = explain(logits, sampling, min(count, tokenizer.vocab_size), previous_ids, chosen)
    after = stages(logits, sampling, previous_ids)
    unused = tokenizer.unused_ids()

    def text(token: int | None) -> str | None:
        return None if token is None or token in unused else tokenizer.decode([token])

    return {
        "chosen": chosen,
        "draw": float(step.uniform[0]),
        "interval": list(interval(after[-1].softmax(dim=-1), chosen)),
        "cuts": [
            vars(cut) | {"last_kept_text": text(cut.last_kept), "first_dropped_text": text(cut.first_dropped)}
            for cut in cuts(logits, after)
        ],
        "candidates": [{"text": text(c.token), **vars(c)} for c in shown],
    }


def step_probabilities(
    step: DecodeStep, sampling: SamplingConfig, previous_ids: Sequence[int], count: int
) -> tuple[tuple[float, float], list[tuple[int, float]]]:
    """Return how likely the token of the first row of a step was, and the most likely other tokens.

    Returns:
        The model's probability of the chosen token, and that after the sampling settings; then ``count`` other tokens,
        most likely first, with the model's probability.
    """
    chosen, model = step.tokens[0], step.logits[0].double().softmax(dim=-1)
    best = model.topk(min(count + 1, len(model))).indices.tolist()
    others = [i for i in best if i != chosen][:count]
    after = float(probabilities(step.logits[0], sampling, previous_ids)[chosen])
    return (float(model[chosen]), after), [(i, float(model[i])) for i in others]

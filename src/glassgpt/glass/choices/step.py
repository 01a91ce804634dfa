"""One step of generation as plain values: the random number, what each stage dropped, and the candidates."""

from collections.abc import Sequence
from typing import Any

from glassgpt.inference.decode import DecodeStep
from glassgpt.sampling import SamplingConfig, cuts, explain, interval, stages
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

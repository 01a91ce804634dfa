"""Run a model again as a ledger says, and compare every step with it."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glassgpt.files import Progress
from glassgpt.glass.choices.ledger import Ledger, describe, model_id
from glassgpt.glass.inside.prompt import token_text
from glassgpt.inference.decode import DecodeStep, generate_text
from glassgpt.model import GPT
from glassgpt.tokenizer import Tokenizer
from glassgpt.tokenizer.specs import identity_of

#: The part of the largest absolute logit (at least 1) by which logits may differ from rounding, on other hardware.
ROUNDING = 1e-3


@dataclass(frozen=True)
class Replay:
    """The result of a replay.

    Attributes:
        text: what was generated now, up to the first step that differs.
        steps: how many steps are equal, but perhaps for rounding.
        difference: what differs in the step after these; empty if nothing does.
        largest: the largest difference between logits in the equal steps; 0 if all are equal, bit for bit.
        largest_at: where that is: "step 3, token 17 ' the'".
        notes: sentences that the user should see.
    """

    text: str
    steps: int
    difference: str
    largest: float
    largest_at: str
    notes: list[str]


def replay(model: GPT, tokenizer: Tokenizer, ledger: Ledger, *, progress: Progress | None = None) -> Replay:
    """Generate the text of a ledger again, and stop at the first step that differs from it.

    ``progress`` is called with the steps that are equal.

    Raises:
        ConfigError: if an end token of the ledger is not in the vocabulary.
        GenerationError: if the model does not have a token of the prompt, or its logits are not numbers.
    """
    notes = []
    if model_id(model) != ledger.model_id:
        notes.append(f"the ledger is of a model with other weights or another configuration: {ledger.model}")
    if identity_of(tokenizer) != ledger.tokenizer_id:
        notes.append("the ledger is of another tokenizer")
    text, equal, difference, largest, largest_at = "", 0, "", 0.0, ""
    for step, streamers in generate_text(model, tokenizer, [ledger.request]):
        if equal == len(ledger.steps):
            difference = f"step {equal + 1}: the ledger ends, the text goes on" if ledger.complete else ""
            break
        text = streamers[0].text
        reasons, apart, token = _compare(ledger, equal, step, tokenizer)
        if reasons:
            difference = f"step {equal + 1}: {'; '.join(reasons)}"
            break
        if apart > largest:
            largest, largest_at = apart, f"step {equal + 1}, {_named(tokenizer, token)}"
        equal += 1
        if progress:
            progress("replaying", equal, len(ledger.steps))
    if not difference and equal < len(ledger.steps):
        difference = f"step {equal + 1}: the text ends, the ledger has {len(ledger.steps)} steps"
    if not difference and text != ledger.text:
        difference = "all steps are equal, but the ledger's text is not that of its tokens"
    return Replay(text, equal, difference, largest, largest_at, notes)


def _compare(ledger: Ledger, number: int, step: DecodeStep, tokenizer: Tokenizer) -> tuple[list[str], float, int]:
    """Return what differs in a step, and the largest difference of logits that may be rounding, and its token."""
    recorded, logits, ours = ledger.steps[number], ledger.logits(number), step.logits[0]
    reasons, apart, token = _compare_logits(logits, ours, tokenizer)
    if (draw := float(step.uniform[0])) != recorded["draw"]:
        reasons.append(f"the random number is {recorded['draw']!r} in the ledger, {draw!r} here")
    if (chosen := step.tokens[0]) != recorded["chosen"]:
        theirs = _named(tokenizer, recorded["chosen"])
        reasons.append(f"the chosen token is {theirs} in the ledger, {_named(tokenizer, chosen)} here")
    if not reasons and torch.equal(logits, ours):
        expected: dict[str, Any] = describe(step, ledger.request.sampling, ledger.previous_ids(number), tokenizer)
        wrong = [name for name, value in expected.items() if _json(recorded[name]) != _json(value)]
        reasons += [f"in the ledger, {name} is not what follows from the logits" for name in wrong]
    return reasons, apart, token


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)  # in Python, True equals 1


def _compare_logits(theirs: Tensor, ours: Tensor, tokenizer: Tokenizer) -> tuple[list[str], float, int]:
    """Return what differs beyond rounding between logits ``[V]``; the largest difference, and its token."""
    if len(theirs) != len(ours):
        return [f"the ledger has {len(theirs):,} logits, the model {len(ours):,}"], 0.0, 0
    apart = torch.where(theirs == ours, 0.0, (theirs - ours).abs()).nan_to_num(nan=torch.inf)  # -inf equals -inf
    token = int(apart.argmax())
    largest = float(apart[token])
    finite = ours[ours.isfinite()].abs()
    if largest > ROUNDING * max(1.0, float(finite.max())):
        return [f"the logits differ by up to {largest:.4g}, at {_named(tokenizer, token)}"], largest, token
    return [], largest, token


def _named(tokenizer: Tokenizer, token: int) -> str:
    return f"token {token} '{token_text(tokenizer, token)}'"

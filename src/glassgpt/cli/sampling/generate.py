"""Generate the samples of ``glassgpt sample``: printed as they come, explained step by step, or kept in a ledger."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassgpt.cli.printing.output import byte_size, pluralize, print_json, say
from glassgpt.cli.printing.steps import print_step
from glassgpt.errors import GenerationError

if TYPE_CHECKING:
    from glassgpt.glass.choices.ledger import Ledger
    from glassgpt.inference.decode import Request
    from glassgpt.inference.decoders import Decoder
    from glassgpt.model import GPT
    from glassgpt.tokenizer import Tokenizer


def print_samples(
    model: "GPT", tokenizer: "Tokenizer", request: "Request", num_samples: int, *,
    prompt: str, chat: bool, name: str, candidates: int, ledger: Path | None, json: bool,
    decoder: "Decoder | None" = None,
) -> None:  # fmt: skip
    """Generate samples of a request, and print them: one as it comes, several with a line between them, or as JSON.

    Args:
        model: any model.
        tokenizer: its tokenizer.
        request: the first sample.
        num_samples: how many; they differ in their random numbers.
        prompt: the text of the prompt, for people.
        chat: whether it is in the model's chat template, and so not printed.
        name: of the model, for the ledger.
        candidates: how many to show at every step; 0 shows only the text.
        ledger: the file to write, if any.
        json: whether to print JSON.
        decoder: computes each token; by default the model itself.
    """
    prefix = "" if chat else prompt
    live = not json and num_samples == 1
    with _saved_ledger(ledger, model, tokenizer, request, name=name, prompt=prompt, chat=chat) as record:
        rows = _generate(model, tokenizer, request, num_samples, record, prefix if live else None, candidates, decoder)
    if json:
        print_json([{"prompt": prompt, **row} for row in rows])
    elif not live:
        print(f"\n{'-' * 40}\n".join(prefix + row["text"] for row in rows))


def _generate(
    model: "GPT", tokenizer: "Tokenizer", request: "Request", num_samples: int, ledger: "Ledger | None",
    prefix: str | None, candidates: int, decoder: "Decoder | None",
) -> list[dict[str, Any]]:  # fmt: skip
    """Generate the text and tokens of every sample, and add every step to the ledger.

    With a prefix, print it, and then the first sample as it comes. With ``candidates``, explain its steps by that many.
    """
    from glassgpt.glass.choices.step import describe_step
    from glassgpt.inference.decode import generate_text

    requests = [dataclasses.replace(request, sample_index=index) for index in range(num_samples)]
    steps: list[dict[str, Any]] = []
    printed, live = "", prefix is not None
    if live and not candidates:
        print(prefix, end="", flush=True)
    try:
        for step, streamers in generate_text(model, tokenizer, requests, decoder=decoder):
            text = streamers[0].text
            if ledger:
                ledger.add(step, tokenizer, text)
            if candidates:
                previous_ids = [*request.prompt, *streamers[0].tokens[: len(steps)]]
                steps.append(describe_step(step, request.sampling, previous_ids, tokenizer, candidates))
                if live:
                    print_step(len(steps), steps[-1], f"{prefix}{printed}", request.sampling, tokenizer)
            elif live:
                print(text[len(printed) :], end="", flush=True)
            printed = text
    except (GenerationError, KeyboardInterrupt):
        if live:
            print()  # the message begins on a line of its own
        raise
    if ledger:
        ledger.complete = True
    if live:
        print(f"\n{prefix}{printed}" if candidates else "")
    extra = {"steps": steps} if candidates else {}
    return [{"text": streamer.text, "tokens": streamer.tokens} | extra for streamer in streamers]


@contextlib.contextmanager
def _saved_ledger(
    path: Path | None, model: "GPT", tokenizer: "Tokenizer", request: "Request", **about: Any
) -> Iterator["Ledger | None"]:
    """Keep a ledger while the context lasts, and write it at the end, also after an error or an interruption.

    Without a path there is none. ``about`` as for :func:`glassgpt.glass.choices.ledger.begin`.
    """
    if path is None:
        yield None
        return
    from glassgpt.glass.choices.ledger import begin

    ledger = begin(model, tokenizer, request, **about)
    try:
        yield ledger
    finally:
        ledger.save(path)
        part = "" if ledger.complete else ", as far as it came"
        say(f"ledger: {path}, {pluralize(len(ledger.steps), 'step')}, {byte_size(path.stat().st_size)}{part}")

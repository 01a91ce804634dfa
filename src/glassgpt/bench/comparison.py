"""Compare generation with other programs: the same weights, prompts and threads, greedily, in turn.

Everything is measured from end to end: reading the prompt, computing and choosing the tokens. In every round each
program generates once, in the opposite order of the round before, and the ratios are those within a round.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from statistics import median
from typing import Protocol

from glassgpt.bench.generation import PAUSE, Grid, alternated, make_decoder, random_prompts, reason_for
from glassgpt.bench.peers import PEER_TYPES, Generated, running, why_not
from glassgpt.errors import GlassError
from glassgpt.inference.decode import generate
from glassgpt.inference.decoders import Decoder
from glassgpt.model import GPT
from glassgpt.runtime import synchronise
from glassgpt.sampling import SamplingConfig
from glassgpt.tokenizer import Tokenizer
from glassgpt.weights.folder import save_model, write_folder
from glassgpt.weights.gguf.export import write_gguf

OURS = "glassgpt"


@dataclass(frozen=True)
class Compared:
    """The speed of one program; medians of the rounds. None if it was not measured, or has no meaning."""

    program: str  # glassgpt or the peer
    stored: str  # how the program holds the weights, or how glassgpt computes
    dtype: str  # of our weights, which it is compared with
    batch: int  # rows, each with a prompt of its own
    context: int  # tokens of a prompt and its new tokens
    prefill_tokens_per_second: float | None = None  # prompt tokens of all rows / first_token_seconds
    first_token_seconds: float | None = None
    tokens_per_second: float | None = None  # of all rows, after the first token of each
    slowest: float | None = None  # of the rounds
    fastest: float | None = None  # of the rounds
    #: Of a peer: tokens/s of our fastest decoder / its own, by round: the median, the lowest and the highest.
    ratio: float | None = None
    lowest_ratio: float | None = None
    highest_ratio: float | None = None
    #: New tokens of the first row that equal those of our first decoder, from the first one on, and all of them.
    same_tokens: int | None = None
    new_tokens: int | None = None
    skipped: str = ""  # why it was not measured; else empty


class Program(Protocol):
    """Continues prompts of equal length greedily."""

    def generate(self, prompts: Sequence[Sequence[int]], new: int) -> Generated:
        """Continue the prompts by ``new`` tokens each, through end tokens."""


class Own:
    """glassgpt with one decoder."""

    def __init__(self, model: GPT, decoder: Decoder):
        self.model, self.decoder = model, decoder

    def generate(self, prompts: Sequence[Sequence[int]], new: int) -> Generated:
        """Continue the prompts by ``new`` tokens each, through end tokens."""
        times, tokens = [time.perf_counter()], list[list[int]]()
        for step in generate(self.model, prompts, new, SamplingConfig(temperature=0), decoder=self.decoder):
            synchronise(self.model.device)
            times.append(time.perf_counter())
            tokens.append(step.tokens)
        first, *steps = [end - start for start, end in pairwise(times)]
        return Generated(first, steps, [list(row) for row in zip(*tokens, strict=True)])


class Exports:
    """The model in the forms that peers read, in a temporary folder; each is written when it is first needed."""

    def __init__(self, load: Callable[[], GPT], tokenizer: Tokenizer, folder: Path):
        self._load, self._tokenizer, self._folder = load, tokenizer, folder

    def path(self, peer: str, stored: str) -> str:
        """Write the model for a peer, unless it is there; return its path.

        Raises:
            GlassError: if the model cannot be expressed in that form.
        """
        target = self._folder / ("hf" if peer == "transformers" else f"{stored}.gguf")
        if not target.exists():
            if peer == "transformers":
                with write_folder(target) as folder:
                    save_model(folder, self._load(), self._tokenizer)
            else:
                write_gguf(target, self._load(), self._tokenizer, dtype=stored)
        return str(target.resolve())


def compare(
    models: dict[str, GPT],
    load: Callable[[], GPT],
    tokenizer: Tokenizer,
    peers: Sequence[str],
    grid: Grid,
    threads: int,
    progress: Callable[[str], None] | None = None,
) -> list[Compared]:
    """Measure our decoders and the peers side by side.

    Args:
        models: by the type of their weights; all on one device, in eval mode.
        load: returns the model with plain weights in float32, to be written for the peers.
        tokenizer: of the model; it is written with the weights.
        peers: names in PEER_TYPES.
        grid: what to measure; ``steps`` is the number of new tokens, and a prompt fills the rest of the context.
        threads: of the peers; the caller has set those of torch.
        progress: called with a description before each measurement.
    """
    notify = progress or (lambda message: None)
    results: list[Compared] = []
    with tempfile.TemporaryDirectory(prefix="glassgpt-bench-") as folder:
        exports = Exports(load, tokenizer, Path(folder))
        for dtype, model in models.items():
            rows = [Compared(OURS, name, dtype, 0, 0) for name in grid.decoders]
            rows += [
                Compared(peer, PEER_TYPES[peer][dtype], dtype, 0, 0) for peer in peers if dtype in PEER_TYPES[peer]
            ]
            with ExitStack() as stack:
                programs: dict[Compared, Program | str] = {}
                for row in rows:
                    notify(f"{row.program} ({row.stored}): loading")
                    programs[row] = _start(row, model, exports, max(grid.contexts), threads, stack)
                for batch, context in product(grid.batches, grid.contexts):
                    case = {replace(row, batch=batch, context=context): program for row, program in programs.items()}
                    results += _rounds(case, model, tokenizer, grid, notify)
    return results


def _start(row: Compared, model: GPT, exports: Exports, context: int, threads: int, stack: ExitStack) -> Program | str:
    """Start a program; return why, if it cannot be."""
    if row.program == OURS:
        decoder = make_decoder(row.stored, model)
        return decoder if isinstance(decoder, str) else Own(model, decoder)
    if reason := why_not(row.program, 1, model.device.type):
        return reason
    try:
        settings = {"path": exports.path(row.program, row.stored), "stored": row.stored, "device": str(model.device)}
        return stack.enter_context(running(row.program, **settings, threads=threads, context=context))
    except GlassError as error:
        return str(error)


def _rounds(
    case: dict[Compared, Program | str], model: GPT, tokenizer: Tokenizer, grid: Grid, notify: Callable[[str], None]
) -> Iterator[Compared]:
    """Measure the programs at one batch and context, in turn."""
    batch, context = next((row.batch, row.context) for row in case)
    new = max(1, min(grid.steps + 1, context - 1))  # the first one comes with the prompt
    prompts = random_prompts(min(tokenizer.vocab_size, model.config.vocab_size), batch, max(1, context - new))
    skipped = {row: program if isinstance(program, str) else _skip(row, model) for row, program in case.items()}
    measured: dict[Compared, list[Generated]] = {row: [] for row in case}
    for row, program in case.items():  # the first time compiles, reserves memory and fills caches
        if not isinstance(program, str) and not skipped[row]:
            notify(f"{row.program} ({row.stored}), batch {batch}, context {context:,}: the first text")
            try:
                program.generate(prompts, min(new, 4))
            except Exception as error:
                skipped[row] = str(error) if isinstance(error, GlassError) else reason_for(error, row.stored)
    for row, program in alternated(list(case.items()), grid.rounds):
        if not isinstance(program, str) and not skipped[row]:
            notify(f"{row.program} ({row.stored}), batch {batch}, context {context:,}")
            time.sleep(PAUSE)
            measured[row].append(program.generate(prompts, new))
    yield from _compared(measured, skipped, len(prompts[0]), tokenizer)


def _skip(row: Compared, model: GPT) -> str:
    return "" if row.program == OURS else why_not(row.program, row.batch, model.device.type)


def _compared(
    measured: dict[Compared, list[Generated]], skipped: dict[Compared, str], length: int, tokenizer: Tokenizer
) -> Iterator[Compared]:
    """Summarise the rounds of each program, and hold the peers against our fastest decoder."""
    speeds = {
        row: [row.batch * len(r.step_seconds) / sum(r.step_seconds) for r in rounds if r.step_seconds]
        for row, rounds in measured.items()
    }
    ours = [row for row, rounds in measured.items() if row.program == OURS and rounds]
    best = max(ours, key=lambda row: median(speeds[row] or [0]), default=None)
    expected = (measured[ours[0]][0].tokens or [[]])[0] if ours else []
    for row, rounds in measured.items():
        if not rounds:
            yield replace(row, skipped=skipped[row])
            continue
        first, speed = median(round.first_token_seconds for round in rounds), speeds[row]
        ratios = (
            [] if best is None or row.program == OURS else [a / b for a, b in zip(speeds[best], speed, strict=True)]
        )
        yield replace(
            row,
            prefill_tokens_per_second=row.batch * length / first,
            first_token_seconds=first,
            tokens_per_second=median(speed) if speed else None,
            slowest=min(speed, default=None),
            fastest=max(speed, default=None),
            ratio=median(ratios) if ratios else None,
            lowest_ratio=min(ratios, default=None),
            highest_ratio=max(ratios, default=None),
            same_tokens=_same(expected, rounds[0], tokenizer) if expected else None,
            new_tokens=len(expected) or None,
        )


def _same(expected: list[int], generated: Generated, tokenizer: Tokenizer) -> int:
    """Count the first tokens that a program generated, too; by their text, if it gives no tokens."""
    lengths = range(1, len(expected) + 1)
    if generated.tokens is None:
        return max((n for n in lengths if generated.text.startswith(tokenizer.decode(expected[:n]))), default=0)
    return next((n - 1 for n in lengths if generated.tokens[0][:n] != expected[:n]), len(expected))

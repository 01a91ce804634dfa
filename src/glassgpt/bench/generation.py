"""Speed of generation: prefill and decode steps, compared with the bytes that they read and the memory bandwidth.

A decode step reads every weight once, whatever the number of rows, and the cached keys and values of every row. So at
best it takes (weights + rows x cache) / bandwidth, and that is the yardstick of this benchmark.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from statistics import median
from typing import NamedTuple, TypeVar

import torch

from glassgpt.bench.roofline import read_bandwidth
from glassgpt.errors import ConfigError, first_line, is_out_of_memory
from glassgpt.estimate import format_bytes
from glassgpt.files import Progress
from glassgpt.inference.decode import Request, Row, generate_rows
from glassgpt.inference.decoders import Decoder, choose_decoder
from glassgpt.model import GPT, KVCache
from glassgpt.planning.compute_dtype import inference_dtype
from glassgpt.planning.memory import free_memory
from glassgpt.runtime import synchronise
from glassgpt.sampling import SamplingConfig
from glassgpt.tokenizer import Tokenizer
from glassgpt.transforms.quantize import is_quantized, quantize
from glassgpt.weights.loading import load_source
from glassgpt.weights.sources import WeightSource

#: The types that weights can have here, the largest first, and the ways to compute a step.
DTYPES, DECODERS = ("float32", "bfloat16", "int8", "int4"), ("eager", "kernels", "compiled")
#: Of the types, those that are made by quantising.
BITS = {"int8": 8, "int4": 4}
#: One more: as the model is stored, if that is quantised, such as a .gguf file in Q8_0; else float32.
STORED = "stored"
#: Seconds after which a round of decode steps ends, though not before MIN_STEPS; seconds that a prefill may take, by
#: the speed of one of SHORT tokens.
ROUND_SECONDS, MIN_STEPS, PREFILL_SECONDS, SHORT = 1.0, 3, 20.0, 128
#: Tokens after which a prompt repeats itself.
PERIOD = 16
#: Seconds between two measurements, in which the threads of the one before stop waiting for work.
PAUSE = 0.05

T = TypeVar("T")


@dataclass(frozen=True)
class Prefill:
    """Time to read a prompt and to choose the first new token; medians of the rounds. None if it was not measured."""

    dtype: str
    batch: int  # rows, each with a prompt of its own
    context: int  # tokens of each prompt
    first_token_seconds: float | None = None
    tokens_per_second: float | None = None  # prompt tokens of all rows / first_token_seconds
    skipped: str = ""  # why it was not measured; else empty


@dataclass(frozen=True)
class Decode:
    """The speed of decode steps with a full cache. None if it was not measured."""

    dtype: str  # of the weights
    decode: str  # eager, kernels or compiled
    batch: int  # rows, one new token each
    context: int  # tokens that each new one attends to, itself included
    tokens_per_second: float | None = None  # of all rows; of the median step of all rounds
    slowest: float | None = None  # tokens/s of the median step of the slowest round
    fastest: float | None = None  # and of the fastest round
    first_step_seconds: float | None = None  # the very first step: with a compiler, mostly compiling
    weight_bytes: int | None = None  # read by a step
    cache_bytes: int | None = None  # keys and values that a step reads, of all rows
    bytes_per_token: float | None = None  # (weight_bytes + cache_bytes) / batch
    bytes_per_second: float | None = None  # bytes_per_token x tokens_per_second
    bandwidth_share: float | None = None  # bytes_per_second / the measured read bandwidth
    skipped: str = ""  # why it was not measured; else empty


@dataclass(frozen=True)
class GenerationBench:
    """All measurements of one model."""

    read_bandwidth: float  # bytes/s of this device, measured before and after the steps: the larger one
    prefill: list[Prefill]
    decode: list[Decode]


class Grid(NamedTuple):
    """What to measure: every combination, in rounds."""

    decoders: Sequence[str]
    batches: Sequence[int]
    contexts: Sequence[int]  # at most the model's block_size
    rounds: int
    steps: int  # decode steps of a round, at most


def weight_bytes(model: GPT, rows: int) -> int:
    """Bytes of weights that a decode step of ``rows`` rows reads: each once, of the embedding tables a row per token.

    A head that is tied to the embedding is read as a whole. Scales of quantised weights count, rotary tables do not.
    """
    parts = (model.blocks, model.final_norm, model.head)
    read = {t.data_ptr(): t.nbytes for part in parts for t in chain(part.parameters(), part.buffers())}
    tables = [table for table in (model.token_embedding, model.position_embedding) if table is not None]
    row_bytes = [t[:1].nbytes for table in tables for t in chain(table.parameters(), table.buffers())]
    return sum(read.values()) + rows * sum(row_bytes)


def cache_bytes(model: GPT, rows: int, context: int) -> int:
    """Bytes of keys and values that a decode step reads if each new token is the ``context``-th of its row."""
    config = model.config
    tokens = sum(min(context, window or context) for window in config.windows)  # of all layers
    return 2 * rows * tokens * config.n_kv_head * config.head_dim * model.dtype.itemsize


def bench_generation(
    models: Mapping[str, GPT], grid: Grid, *, progress: Callable[[str], None] | None = None
) -> GenerationBench:
    """Measure the prefill and the decode steps of a model.

    The prefill reads random prompts. A decode step follows a cache of random keys and values, so that no long prompt
    has to be read for it. What is compared runs in turn, in rounds, each in the opposite order of the one before.

    Args:
        models: by the type of their weights, one of DTYPES; all of one configuration, on one device, in eval mode.
        grid: what to measure.
        progress: called with a description before each measurement.
    """
    notify = progress or (lambda message: None)
    device = next(iter(models.values())).device
    notify("read bandwidth")
    before = read_bandwidth(device)
    prefills = Prefills(models, grid.rounds, notify)
    prefill = [row for case in product(grid.batches, grid.contexts) for row in prefills.measure(*case)]
    pairs = list(product(models, grid.decoders))
    decoders = {(dtype, name): make_decoder(name, models[dtype]) for dtype, name in pairs}
    measured = [
        (batch, context, _decode_rounds(models, decoders, batch, context, grid, notify))
        for batch, context in product(grid.batches, grid.contexts)
    ]
    notify("read bandwidth")
    bandwidth = max(before, read_bandwidth(device))
    decode = [
        _decode_row(models[dtype], Decode(dtype, name, batch, context), result, bandwidth)
        for batch, context, results in measured
        for (dtype, name), result in results.items()
    ]
    return GenerationBench(bandwidth, prefill, decode)


def make_decoder(name: str, model: GPT) -> Decoder | str:
    """Return the decoder of that name, or the reason why it cannot be used here."""
    if name == "compiled":  # once for each dtype, batch and context: more often than the 8 times that torch allows
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 128)
    try:
        return choose_decoder(model, name)[0]
    except ConfigError as error:
        return str(error)


def random_prompts(vocab_size: int, batch: int, tokens: int) -> list[list[int]]:
    """Make ``batch`` prompts, always the same: each repeats PERIOD random tokens.

    A trained model continues the repetition, and no two of the next tokens are equally likely. So programs that round
    differently generate the same text.
    """
    generator = torch.Generator().manual_seed(0)
    period = torch.randint(vocab_size, (batch, PERIOD), generator=generator)
    return period.repeat(1, -(-tokens // PERIOD))[:, :tokens].tolist()


class Prefills:
    """Measures how long it takes to read prompts and to choose the first new token, in rounds."""

    def __init__(self, models: Mapping[str, GPT], rounds: int, notify: Callable[[str], None]):
        self.models, self.rounds, self.notify = models, rounds, notify
        self.speeds: dict[str, float] = {}  # tokens/s of a short prompt, by dtype
        for dtype, model in models.items():
            notify(f"a short prefill, {dtype}")
            prompts = random_prompts(model.config.vocab_size, 1, min(SHORT, model.config.block_size))
            self.speeds[dtype] = len(prompts[0]) / min(self.seconds(dtype, prompts) for _ in range(2))

    def seconds(self, dtype: str, prompts: Sequence[Sequence[int]]) -> float:
        """Read the prompts once, and return the seconds."""
        rows = [Row(Request(prompt, 1, SamplingConfig(temperature=0))) for prompt in prompts]
        start = time.perf_counter()
        next(generate_rows(self.models[dtype], rows))
        return time.perf_counter() - start

    def measure(self, batch: int, context: int) -> list[Prefill]:
        """Measure the prefill of every model in turn; only once if it takes long, and not at all if very long."""
        seconds: dict[str, list[float]] = {dtype: [] for dtype in self.models}
        skipped: dict[str, str] = {}
        prompts = random_prompts(next(iter(self.models.values())).config.vocab_size, batch, context)
        for dtype in alternated(list(self.models), self.rounds):
            if (expected := batch * context / self.speeds[dtype]) > PREFILL_SECONDS:
                skipped[dtype] = f"the prefill of {batch} x {context:,} tokens would take {expected:,.0f} s or more"
            if dtype in skipped or sum(seconds[dtype]) > PREFILL_SECONDS / 4:
                continue
            self.notify(f"prefill of {batch} x {context:,} tokens, {dtype}")
            try:
                seconds[dtype].append(self.seconds(dtype, prompts))
            except (RuntimeError, MemoryError) as error:
                skipped[dtype] = reason_for(error, "eager")
        middle = {dtype: median(times) if times else None for dtype, times in seconds.items()}
        return [
            Prefill(dtype, batch, context, first, batch * context / first if first else None, skipped.get(dtype, ""))
            for dtype, first in middle.items()
        ]


class Timings(NamedTuple):
    """Seconds of the very first step, and of each step of every round."""

    first: float
    rounds: list[list[float]]


class Steps:
    """Decode steps of one configuration; each is the ``context``-th token of every row, as the cache forgets it again.

    Attributes:
        timings: so far.
    """

    @torch.inference_mode()  # a compiled step distinguishes tensors that were made in this mode from others
    def __init__(self, decoder: Decoder, cache: KVCache, device: torch.device):
        self.decoder, self.cache, self.device = decoder, cache, device
        self.tokens = torch.zeros(len(cache.lengths), 1, dtype=torch.int64)  # [B, 1]
        self.timings = Timings(self.step(), [])

    @torch.inference_mode()
    def step(self) -> float:
        """Make a step that chooses the most likely tokens; return its seconds."""
        start = time.perf_counter()
        logits = self.decoder(self.tokens, self.cache)  # [B, 1, V]
        self.tokens = logits[:, -1].argmax(-1, keepdim=True)  # [B, 1]
        synchronise(self.device)
        seconds = time.perf_counter() - start
        for row, length in enumerate(self.cache.lengths):
            self.cache.roll_back(row, length - 1)
        return seconds

    def measure(self, steps: int) -> None:
        """Measure a round, after one step that is not counted."""
        self.step()
        seconds: list[float] = []
        while len(seconds) < steps and (len(seconds) < MIN_STEPS or sum(seconds) < ROUND_SECONDS):
            seconds.append(self.step())
        self.timings.rounds.append(seconds)


def _decode_rounds(
    models: Mapping[str, GPT],
    decoders: Mapping[tuple[str, str], Decoder | str],
    batch: int,
    context: int,
    grid: Grid,
    notify: Callable[[str], None],
) -> dict[tuple[str, str], Timings | str]:
    """Measure the steps of every decoder in turn; the result is a string where one is skipped: why."""
    results: dict[tuple[str, str], Timings | str] = {}
    running: dict[tuple[str, str], Steps] = {}
    caches: dict[tuple[torch.dtype, str], KVCache] = {}  # one for all models that decode alike
    for (dtype, name), decoder in decoders.items():
        model = models[dtype]
        if isinstance(decoder, str):
            results[dtype, name] = decoder
            continue
        notify(f"batch {batch}, context {context:,}: {dtype}, {name}, the first step")
        try:
            if (model.dtype, name) not in caches:
                caches[model.dtype, name] = _filled_cache(model, batch, context)
            running[dtype, name] = Steps(decoder, caches[model.dtype, name], model.device)
            results[dtype, name] = running[dtype, name].timings
        except Exception as error:
            results[dtype, name] = reason_for(error, name)
    for key in alternated(list(running), grid.rounds):
        notify(f"batch {batch}, context {context:,}: {', '.join(key)}")
        time.sleep(PAUSE)
        running[key].measure(grid.steps)
    return results


def _filled_cache(model: GPT, rows: int, context: int) -> KVCache:
    """Make a cache with room for ``context`` tokens per row, and random keys and values of all but one."""
    config = model.config
    needed = 2 * rows * context * config.n_layer * config.n_kv_head * config.head_dim * model.dtype.itemsize
    if needed > free_memory(model.device) // 2:
        raise MemoryError(f"the cache takes {format_bytes(needed)}, more than half of what is free")
    cache = KVCache(config, rows, capacity=context, device=model.device, dtype=model.dtype)
    for tensor in (cache.keys, cache.values):
        tensor.normal_()
    cache.lengths = [context - 1] * rows
    return cache


def reason_for(error: Exception, decode: str) -> str:
    """Say why a step failed: for lack of memory, or in a compiler; other errors are raised again."""
    if decode == "eager" and not is_out_of_memory(error):
        raise error
    return f"{decode}: {first_line(error)}"


def _decode_row(model: GPT, row: Decode, result: Timings | str, bandwidth: float) -> Decode:
    if isinstance(result, str):
        return replace(row, skipped=result)
    step = median(chain.from_iterable(result.rounds))
    rounds = [row.batch / median(seconds) for seconds in result.rounds]
    weights, cached = weight_bytes(model, row.batch), cache_bytes(model, row.batch, row.context)
    return replace(
        row,
        tokens_per_second=row.batch / step,
        slowest=min(rounds),
        fastest=max(rounds),
        first_step_seconds=result.first,
        weight_bytes=weights,
        cache_bytes=cached,
        bytes_per_token=(weights + cached) / row.batch,
        bytes_per_second=(weights + cached) / step,
        bandwidth_share=(weights + cached) / step / bandwidth,
    )


def load_models(
    source: WeightSource, dtypes: Sequence[str], device: torch.device, progress: Progress | None = None
) -> tuple[dict[str, GPT], Tokenizer]:
    """Load a model once for each of DTYPES; INT8 and INT4 are quantised from float32, and compute as in ``sample``.

    Raises:
        GlassError: if it cannot be loaded.
    """
    assert dtypes
    models: dict[str, GPT] = {}
    for dtype in dtypes:
        floating = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        models[dtype], tokenizer = load_source(
            source, dtype=floating, device=device, keep_quantized=dtype == STORED, progress=progress
        )
        if dtype in BITS:
            quantize(models[dtype], BITS[dtype])
        if is_quantized(models[dtype]):
            models[dtype].to(inference_dtype(floating, True, device)[0])
    return models, tokenizer


def alternated(items: Sequence[T], rounds: int) -> list[T]:
    """Repeat the items so many times, every second time in the opposite order: what drifts then hits all alike."""
    return [item for number in range(rounds) for item in (items if number % 2 == 0 else items[::-1])]

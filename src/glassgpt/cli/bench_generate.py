"""``glassgpt bench generate``: measure generation, and compare it with other programs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glassgpt.cli.arguments import JSON_OPTION, RUNS_OPTION
from glassgpt.cli.printing.output import ProgressLine, byte_size, pluralize, print_json, print_table, print_text, say
from glassgpt.cli.prompt import DEVICE_OPTION, RUN_ARGUMENT, open_run
from glassgpt.config import RuntimeConfig
from glassgpt.errors import ConfigError

if TYPE_CHECKING:
    from glassgpt.bench.comparison import Compared
    from glassgpt.bench.generation import GenerationBench
    from glassgpt.runtime import Runtime


def generate(
    run: str = RUN_ARGUMENT,
    batch: str = typer.Option("1", "--batch", metavar="B,B,...", help="Numbers of texts that are generated together."),
    context: str = typer.Option(
        "128", "--context", metavar="T,T,...", help="Numbers of tokens in the cache before a step."
    ),
    dtype: str = typer.Option(
        "",
        "--dtype",
        metavar="A,B,...",
        help="float32, bfloat16, int8, int4 (default: all four), or stored: as quantised in the folder.",
    ),
    decode: str = typer.Option(
        "",
        "--decode",
        metavar="A,B,...",
        help="eager, kernels, compiled; default: eager, and kernels on a CPU or compiled on CUDA.",
    ),
    against: str = typer.Option(
        "", "--against", metavar="A,B", help="Other programs to compare with: transformers, xllamacpp (llama.cpp)."
    ),
    steps: int = typer.Option(
        32, "--steps", min=1, max=10**6, help="Decode steps in a round; a round ends after a second."
    ),
    rounds: int = typer.Option(
        3, "--rounds", min=1, max=10_000, help="Rounds. In each round, all that is compared runs once."
    ),
    threads: int = typer.Option(0, "--threads", min=0, max=1024, help="CPU threads for every program; 0: its default."),
    device: str = DEVICE_OPTION,
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Measure generation: tokens/s, and the bytes read for them.

    The prefill reads a prompt of each context length. A decode step makes one token per text after a cache of that
    length, which holds random numbers. The bytes that a step reads are compared with the read bandwidth of this device.
    With --against, other programs generate from the same weights and prompts, in turn with this one.
    """
    from glassgpt.bench.comparison import compare
    from glassgpt.bench.generation import DECODERS, DTYPES, STORED, Grid, bench_generation, load_models
    from glassgpt.bench.peers import PEER_TYPES, require_installed
    from glassgpt.estimate import count_parameters
    from glassgpt.runtime import resolve
    from glassgpt.weights.loading import load_source

    batches, contexts = _numbers("--batch", batch, 2**16), _numbers("--context", context, 2**31)
    dtypes = _names("--dtype", dtype, (*DTYPES, STORED)) or list(DTYPES)
    decoders = _names("--decode", decode, DECODERS)
    peers = _names("--against", against, tuple(PEER_TYPES))
    require_installed(peers)
    runtime = resolve(RuntimeConfig(device=device, threads=threads))
    decoders = decoders or ["eager", "kernels" if runtime.device.type == "cpu" else "compiled"]
    source = open_run(run, runs)
    with ProgressLine() as progress:
        models, tokenizer = load_models(source, dtypes, runtime.device, progress)
    config = models[dtypes[0]].config
    if max(contexts) > config.block_size:
        say(f"note: the model's context is {config.block_size:,} tokens; longer ones are measured with that")
    contexts = list(dict.fromkeys(min(length, config.block_size) for length in contexts))
    grid = Grid(decoders, batches, contexts, rounds, steps)
    compared: list[Compared] = []
    with ProgressLine() as progress:
        show = None if json else progress
        result = bench_generation(models, grid, progress=show)
        if peers:
            compared = compare(models, lambda: load_source(source)[0], tokenizer, peers, grid, runtime.threads, show)
    parameters = sum(count_parameters(config).values())
    if json:
        settings = {"model": str(source.path), "device": str(runtime.device), "threads": runtime.threads}
        settings |= {"parameters": parameters, "steps": steps, "rounds": rounds}
        print_json(settings | dataclasses.asdict(result) | {"compared": [dataclasses.asdict(row) for row in compared]})
        return
    print_text(f"{source.path}: {parameters:,} parameters, context {config.block_size:,}\n{_place(runtime)}")
    _print_result(result)
    _print_compared(compared)


def _names(option: str, text: str, known: Sequence[str]) -> list[str]:
    """Parse a list of known names, without repetitions."""
    names = list(dict.fromkeys(text.split(","))) if text else []
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"{option}: {unknown[0]!r} is not one of {', '.join(known)}")
    return names


def _numbers(option: str, text: str, highest: int) -> list[int]:
    """Parse a list of whole numbers from 1 to ``highest``, without repetitions."""
    try:
        numbers = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ConfigError(f"{option}: {text[:100]!r} is not a list of whole numbers such as 1,2,4") from None
    if wrong := [number for number in numbers if not 1 <= number <= highest]:
        raise ConfigError(f"{option}: {str(wrong[0])[:20]} is not between 1 and {highest:,}")
    return numbers


def _place(runtime: "Runtime") -> str:
    threads = f", {pluralize(runtime.threads, 'thread')}" if runtime.device.type == "cpu" else ""
    return f"device {runtime.device}{threads}"


def _print_result(result: "GenerationBench") -> None:
    print_text(f"read bandwidth, measured now: {byte_size(round(result.read_bandwidth))}/s\n\nprefill:")
    rows = []
    for row in result.prefill:
        cells = ["-", "-"]
        if row.tokens_per_second and row.first_token_seconds:
            cells = [_speed(row.tokens_per_second), f"{1000 * row.first_token_seconds:,.1f}"]
        rows.append([row.dtype, str(row.batch), f"{row.context:,}", *cells])
    print_table(["dtype", "batch", "context", "tokens/s", "first token (ms)"], rows, right=range(1, 5))
    print_text("\ndecode:")
    rows = []
    for step in result.decode:
        cells = ["-"] * 7
        if step.tokens_per_second and step.weight_bytes and step.bytes_per_second and step.bandwidth_share:
            cells = [
                _speed(step.tokens_per_second), _range(step.slowest, step.fastest), f"{step.weight_bytes / 1e6:,.1f}",
                f"{(step.cache_bytes or 0) / 1e6:,.1f}", f"{(step.bytes_per_token or 0) / 1e6:,.1f}",
                f"{step.bytes_per_second / 1e9:,.1f}", f"{step.bandwidth_share:.0%}",
            ]  # fmt: skip
        rows.append([step.dtype, step.decode, str(step.batch), f"{step.context:,}", *cells])
    header = ["dtype", "decode", "batch", "context", "tokens/s", "rounds", "weights (MB)", "cache (MB)", "MB/token"]
    print_table([*header, "GB/s", "of bandwidth"], rows, right=range(2, 11))
    print_text(
        "\ntokens/s: of all texts, median of the steps; rounds: medians of the slowest and of the fastest\n"
        "weights, cache: read by a step; of bandwidth: (weights + cache) / time, as a share of the read bandwidth"
    )
    skipped = [(row.dtype, row.skipped) for row in result.prefill]
    _print_skipped([*skipped, *((row.dtype, row.skipped) for row in result.decode)])


def _print_compared(compared: Sequence["Compared"]) -> None:
    if not compared:
        return
    print_text("\nside by side, from end to end:")
    rows = []
    for row in compared:
        cells = ["-"] * 6
        if row.prefill_tokens_per_second and row.first_token_seconds:
            cells = [
                _speed(row.prefill_tokens_per_second), f"{1000 * row.first_token_seconds:,.1f}",
                _speed(row.tokens_per_second), _range(row.slowest, row.fastest),
                f"{row.ratio:.2f} ({_range(row.lowest_ratio, row.highest_ratio)})" if row.ratio else "",
                f"{row.same_tokens}/{row.new_tokens}",
            ]  # fmt: skip
        rows.append([row.dtype, f"{row.program} {row.stored}", str(row.batch), f"{row.context:,}", *cells])
    header = ["dtype", "program", "batch", "context", "prefill/s", "first token (ms)", "tokens/s", "rounds", "ratio"]
    print_table([*header, "same"], rows, right=range(2, 10))
    print_text(
        "\nratio: glassgpt's fastest way / this program in tokens/s, median of the rounds (lowest and highest)\n"
        "same: first new tokens that equal those of glassgpt's first way; types that round differently part sooner"
    )
    _print_skipped([(f"{row.program}, {row.dtype}", row.skipped) for row in compared])


def _print_skipped(reasons: Sequence[tuple[str, str]]) -> None:
    for name, reason in dict.fromkeys(reasons):
        if reason:
            print_text(f"- {name}: {reason}")


def _speed(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def _range(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "-"
    digits = 2 if high < 10 else 1 if high < 100 else 0
    return f"{low:,.{digits}f} to {high:,.{digits}f}"

"""``glassgpt bench train | generate | attention | tokenizer``: measure speed and memory on this machine."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glassgpt.cli.arguments import JSON_OPTION, PATTERNS_HELP, PICTURES, check_out, split_arguments, verb_group
from glassgpt.cli.bench_generate import generate
from glassgpt.cli.printing.output import ProgressLine, byte_size, pluralize, print_json, print_table, print_text, say
from glassgpt.config import RunConfig, build, parse_overrides
from glassgpt.errors import ConfigError

if TYPE_CHECKING:
    from glassgpt.bench.attention import AttentionBench
    from glassgpt.bench.throughput import TrainBench
    from glassgpt.bench.tokenizer import TokenizerBench
    from glassgpt.planning.run_plan import RunPlan
    from glassgpt.runtime import Runtime

app = verb_group("bench", "Measure speed and memory on this machine.")

PRESET = "small-modern"
CONTEXTS = "128,256,512,1024,2048,4096"
#: The key=value settings of `bench attention`.
ATTENTION_SETTINGS = ("device", "dtype", "threads")
ATTENTION_KEYS = ", ".join(f"{key}=" for key in ATTENTION_SETTINGS)


@app.command()
def train(
    arguments: list[str] = typer.Argument(
        None, metavar="FILE.toml | preset=NAME | key=value",
        help=f"The configuration, as for `glassgpt train`; by default preset={PRESET}.",
    ),
    steps: int = typer.Option(
        0, "--steps", min=0, max=10**6, help="Optimiser steps to measure after a warm-up; 0: those of 10 seconds."
    ),
    json: bool = JSON_OPTION,
) -> None:  # fmt: skip
    """Measure training: tokens/s, MFU and memory.

    Takes real optimiser steps on random tokens, then measures the fastest matrix product and the memory bandwidth of
    this device for comparison.
    """
    from glassgpt.bench.throughput import bench_train

    plan, user_steps = _plan(arguments or [])
    config, runtime = plan.config, plan.runtime
    assert runtime is not None
    if "not compiled" in runtime.reason:
        say(f"warning: {runtime.reason}")
    with ProgressLine() as progress:
        result = bench_train(config, runtime, steps or user_steps, progress=None if json else progress)
    if json:
        print_json({"config": config.to_dict(), **runtime.resolved(), **dataclasses.asdict(result)})
    else:
        _print_train(config, runtime, result)


app.command()(generate)


@app.command()
def attention(
    settings: list[str] = typer.Argument(None, metavar="key=value", help=f"Settings: {ATTENTION_KEYS}."),
    heads: int = typer.Option(12, "--heads", min=1, max=2**16, help="Heads; the defaults are one layer of GPT-2."),
    head_dim: int = typer.Option(64, "--head-dim", min=1, max=2**16, help="Width of each head."),
    batch: int = typer.Option(1, "--batch", min=1, max=2**16, help="Batch size, in sequences."),
    contexts: str = typer.Option(CONTEXTS, "--contexts", metavar="T,T,...", help="Context lengths, in tokens."),
    plot: Path = typer.Option(None, "--plot", metavar="FILE.png", help="Also plot the results, as PNG or SVG."),
    json: bool = JSON_OPTION,
) -> None:
    """Measure time and memory of attention against the context length.

    Times causal attention of one layer by itself, fused and explicit (with the scores written out), in about half a
    minute. A measurement that does not fit into memory or into that time is shown as "-".
    """
    lengths = _lengths(contexts)
    config = _attention_config(settings or [])
    from glassgpt.bench.attention import bench_attention
    from glassgpt.bench.plots import draw_attention
    from glassgpt.glass.pictures import require_matplotlib
    from glassgpt.planning.compute_dtype import measured_dtype
    from glassgpt.runtime import resolve

    if plot:
        require_matplotlib()
        check_out(plot, "--plot", suffix=PICTURES)
    runtime = resolve(config.runtime)
    if config.runtime.dtype == "auto":
        runtime, _ = measured_dtype(config, runtime)
    with ProgressLine() as progress:
        rows = bench_attention(
            lengths, heads, head_dim, runtime, batch=batch,
            progress=None if json else lambda context, kind: progress(f"context {context:,}, {kind}"),
        )  # fmt: skip
    title = f"causal attention of one layer: {heads} heads of {head_dim}, batch {batch}, {_place(runtime)}"
    if plot:
        draw_attention(rows, title, plot)
    if json:
        shape = {"heads": heads, "head_dim": head_dim, "batch": batch}
        print_json(shape | runtime.resolved() | {"rows": [dataclasses.asdict(row) for row in rows]})
        return
    print_text(f"{title}\n")
    _print_attention(rows, runtime)
    if plot:
        print_text(f"\n{plot}")


@app.command()
def tokenizer(
    text: str = typer.Argument("shakespeare", metavar="[TEXT]", help="A text file, or a corpus by name."),
    vocab_size: int = typer.Option(
        8192, "--vocab-size", min=257, max=2**24, help="Tokens to train, including a special one."
    ),
    pattern: str = typer.Option("gpt2", "--pattern", help=f"How to split the text: {PATTERNS_HELP}."),
    processes: int = typer.Option(
        0, "--processes", min=0, max=1024, help="Processes for training; 0: chosen by its length."
    ),
    repeat: int = typer.Option(3, "--repeat", min=1, max=10_000, help="Rounds; the figures are medians over them."),
    only_train: bool = typer.Option(False, "--only-train", help="Do not measure encoding."),
    only_encode: bool = typer.Option(False, "--only-encode", help="Train once, and measure only encoding."),
    json: bool = JSON_OPTION,
) -> None:
    """Measure byte-level BPE: training, and encoding in Python and by tiktoken's engine.

    Every measurement runs in a process of its own. tiktoken is left out if it is not installed.
    """
    if only_train and only_encode:
        raise ConfigError("--only-train and --only-encode exclude each other: give one of them")
    from glassgpt.bench.tokenizer import ENCODING, TRAINING, bench_tokenizer
    from glassgpt.data.sources.source import read_text

    source = read_text(text)
    only = TRAINING if only_train else ENCODING if only_encode else ""
    with ProgressLine() as progress:
        result = bench_tokenizer(
            source.content, vocab_size, pattern=pattern, processes=processes or None, repeat=repeat, only=only,
            progress=None if json else progress,
        )  # fmt: skip
    if json:
        settings = {"pattern": pattern, "processes": processes or None, "repeat": repeat, "cpus": os.cpu_count()}
        print_json({"text": source.source} | settings | dataclasses.asdict(result))
        return
    tokens = f"; {result.tokens:,} tokens, {result.bytes / result.tokens:.2f} bytes each" if result.tokens else ""
    print_text(
        f"{source.name}: {byte_size(result.bytes)} of UTF-8, split pattern {pattern}; vocabulary of "
        f"{result.vocab_size:,}, {result.merges:,} merges{tokens}\n{os.cpu_count()} CPUs, median of {repeat}\n"
    )
    _print_tokenizer(result)


def _plan(arguments: Sequence[str]) -> tuple["RunPlan", int]:
    """The plan of a training without a text, and the steps that the user set as ``steps=``."""
    from glassgpt import api

    preset, source, overrides = split_arguments(arguments)
    if source:
        raise ConfigError(
            f"bench train uses random tokens and no text; leave out {source!r}, and set vocab_size= to that of its "
            "tokenizer"
        )
    plan = api.plan(preset or PRESET, overrides=overrides, with_text=False, measure="choices")
    # The steps of a file or a preset are the length of a training, not of a measurement.
    return plan, overrides[-1].get("train", {}).get("steps", 0)


def _lengths(text: str) -> list[int]:
    """Parse ``--contexts``."""
    try:
        lengths = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--contexts: {text!r} is not a list of whole numbers such as {CONTEXTS}") from None
    if min(lengths) < 1:
        raise ConfigError(f"--contexts: {min(lengths)} is too small; the minimum is 1 token")
    if max(lengths) > 2**31:
        raise ConfigError(f"--contexts: {max(lengths)} is too large; the maximum is 2^31 tokens")
    return lengths


def _attention_config(settings: Sequence[str]) -> RunConfig:
    """A configuration that says where and in which type to compute, and nothing else."""
    layer = parse_overrides(settings)
    unused = [f"{section}.{key}" for section, values in layer.items() for key in values]
    unused = [key for key in unused if key.removeprefix("runtime.") not in ATTENTION_SETTINGS]
    if unused:
        raise ConfigError(
            f"bench attention has no use for {', '.join(unused)}; it takes {ATTENTION_KEYS}, --heads, --head-dim, "
            "--batch and --contexts"
        )
    return build("", [{"train": {"micro_batch_size": 1}}, layer])


def _print_train(config: RunConfig, runtime: "Runtime", result: "TrainBench") -> None:
    from glassgpt.estimate import LARGE_VOCABULARY

    train, model = config.train, config.model
    print_text(
        f"{config.preset}: {result.parameters:,} parameters, {train.batch_size} x {model.block_size} = "
        f"{result.tokens:,} tokens per step, {config.optim.optimizer}\n"
        f"{_place(runtime)}, {'compiled' if runtime.compile else 'not compiled (compile=true compiles)'}"
    )
    if runtime.reason != "user setting":
        print_text(runtime.reason)
    if result.micro_batches > 1:
        timed = result.micro_batches_timed
        scaled = f"; {timed} of them timed, and scaled up" if timed < result.micro_batches else ""
        print_text(f"{result.micro_batches} micro-batches per step{scaled}")
    step = result.step_seconds
    rows = [
        ["tokens per second", f"{result.tokens_per_second:,.0f}", "", f"median of {result.steps} steps"],
        ["time per step", *_scaled(step, "s"), f"the first took {result.first_step_seconds:,.2f} s"],
        ["  forward", *_scaled(result.forward_seconds, "s"), f"{result.forward_seconds / step:.0%}"],
        ["  backward", *_scaled(result.backward_seconds, "s"), f"{result.backward_seconds / step:.0%}"],
        ["  clipping and optimiser", *_scaled(result.update_seconds, "s"), f"{result.update_seconds / step:.0%}"],
        ["model FLOPs per token", *_scaled(result.flops_per_token, "FLOP"), "forward and backward"],
        ["optimiser FLOPs per step", *_scaled(result.optimizer_flops, "FLOP"), "not in the MFU"],
        ["model FLOPs per second", *_scaled(result.flops_per_second, "FLOP/s"), ""],
        ["fastest matrix product", *_scaled(result.matrix_peak, "FLOP/s"), "measured now, in the same dtype"],
        ["MFU", f"{result.mfu:.1%}", "", "model FLOPs per second / fastest matrix product"],
        ["memory bandwidth", *_scaled(result.memory_bandwidth, "B/s"), "measured now: a copy, bytes read and written"],
        ["peak memory", _memory(result.peak_memory), "", _memory_note(runtime, result)],
    ]
    if model.vocab_size >= LARGE_VOCABULARY:
        rows[2][-1] += ", with the head's gradients: the loss of a large vocabulary computes both together"
    print_text()
    print_table([], [[name, f"{number} {unit}", note] for name, number, unit, note in rows])


def _memory_note(runtime: "Runtime", result: "TrainBench") -> str:
    if result.peak_memory is None or result.base_memory is None:
        return "not reported by this system"
    estimate = f"estimated for training: {_memory(result.planned_memory)}"
    if runtime.device.type == "cuda":
        return f"of tensors on the GPU; {estimate}"
    return f"of this process; {_memory(result.base_memory)} before the model was built; {estimate}"


def _print_attention(rows: Sequence["AttentionBench"], runtime: "Runtime") -> None:
    by_key = {(row.context, row.kind): row for row in rows}
    memory = "peak memory (MiB)" if runtime.device.type == "cuda" else "saved (MiB)"
    quantities = [("forward (ms)", "forward_seconds", 1000), ("forward and backward (ms)", "training_seconds", 1000)]
    for title, field, scale in (*quantities, (memory, "memory", 2**-20)):
        table = []
        for context in sorted({row.context for row in rows}):
            fused, explicit = (getattr(by_key[context, kind], field) for kind in ("fused", "explicit"))
            ratio = f"{explicit / fused:.1f}" if fused and explicit else "-"
            table.append([f"{context:,}", _number(fused, scale), _number(explicit, scale), ratio])
        print_text(f"{title}:")
        print_table(["context", "fused", "explicit", "ratio"], table, right=range(4))
        print_text()
    print_text("ratio: explicit / fused")
    if runtime.device.type != "cuda":
        print_text("saved: what autograd saves in the forward pass for the backward pass, including q, k and v")
    for row in rows:
        if row.skipped:
            print_text(f"- {row.kind} at {row.context:,} tokens: {row.skipped}")


def _print_tokenizer(result: "TokenizerBench") -> None:
    rows = []
    for row in result.rows:
        cells = ["-", "-", "-"]
        if row.seconds and row.bytes_per_second:
            cells = [f"{row.seconds:,.2f}", f"{row.bytes_per_second / 1e6:,.2f}", _memory(row.peak_memory)]
        rows.append([row.work, row.method, *cells])
    print_table(["", "", "seconds", "MB/s", "peak memory"], rows, right=(2, 3, 4))
    print_text("\nMB: 10^6 bytes; peak memory: of the process and its child processes, including the text")
    for reason in {row.skipped for row in result.rows if row.skipped}:
        print_text(f"-: {reason}")


def _number(value: float | None, scale: float) -> str:
    if value is None:
        return "-"
    return f"{value * scale:,.2f}" if value * scale < 100 else f"{value * scale:,.0f}"


def _scaled(value: float, unit: str) -> tuple[str, str]:
    """A value with a prefix that keeps it readable, in two cells: ``("12.3", "ms")``, ``("1.50", "GFLOP/s")``."""
    from glassgpt.estimate import with_prefix

    number, unit = with_prefix(value, unit).split()
    return number, unit


def _memory(value: int | None) -> str:
    from glassgpt.estimate import format_bytes

    return "-" if value is None else format_bytes(value)


def _place(runtime: "Runtime") -> str:
    threads = f" with {pluralize(runtime.threads, 'thread')}" if runtime.device.type == "cpu" else ""
    return f"device {runtime.device}{threads}, {runtime.resolved()['dtype']}"

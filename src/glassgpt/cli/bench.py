"""``glassgpt bench train | attention | tokenizer``: how fast, and how close to what this machine can do."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glassgpt.cli.common import JSON_OPTION, print_json, print_table, say, show_line, split_arguments
from glassgpt.config import build, parse_overrides
from glassgpt.errors import ConfigError

if TYPE_CHECKING:
    from glassgpt.bench.attention import AttentionBench
    from glassgpt.bench.throughput import TrainBench
    from glassgpt.bench.tokenizer import Measured, TokenizerBench
    from glassgpt.config import RunConfig
    from glassgpt.runtime import Runtime

app = typer.Typer(
    name="bench", help="How fast, and how close to what this machine can do.", no_args_is_help=True,
    rich_markup_mode=None,
)  # fmt: skip

PRESET = "small-modern"
CONTEXTS = "128,256,512,1024,2048,4096"
#: What `bench attention` takes as key=value.
ATTENTION_SETTINGS = ("device", "dtype", "threads")
ATTENTION_HELP = f"Settings: {', '.join(f'{key}=' for key in ATTENTION_SETTINGS)}."
#: Prefixes of units, largest first.
PREFIXES = {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "": 1.0, "m": 1e-3, "µ": 1e-6}


@app.command()
def train(
    arguments: list[str] = typer.Argument(
        None, metavar="FILE.toml | preset=NAME | key=value",
        help=f"What to train, as for `glassgpt train`; by default preset={PRESET}.",
    ),
    steps: int = typer.Option(
        0, "--steps", min=0, help="Optimiser steps to measure, after a warm-up; 0: as many as fit in 10 seconds."
    ),
    json: bool = JSON_OPTION,
) -> None:  # fmt: skip
    """Measure training: tokens/s, MFU and memory.

    Takes real optimiser steps on random tokens, then measures the fastest matrix product and the memory bandwidth of
    this device to hold them against.
    """
    from glassgpt.bench.throughput import bench_train, settle

    config, runtime, asked = _resolve(arguments or [])
    if config.runtime.compile == "true" and not runtime.compile:
        say("warning: not compiled: torch.compile needs a C++ compiler, and none was found")
    config, runtime = settle(config, runtime)
    result = bench_train(config, runtime, steps or asked, progress=None if json else _show_steps)
    show_line("")
    if json:
        print_json({"config": config.to_dict(), **_where(runtime), **dataclasses.asdict(result)})
    else:
        _print_train(config, runtime, result)


@app.command()
def attention(
    settings: list[str] = typer.Argument(None, metavar="key=value", help=ATTENTION_HELP),
    heads: int = typer.Option(12, "--heads", min=1, help="Heads; the defaults are a layer of GPT-2."),
    head_dim: int = typer.Option(64, "--head-dim", min=1, help="Width of a head."),
    batch: int = typer.Option(1, "--batch", min=1, help="Sequences at a time."),
    contexts: str = typer.Option(CONTEXTS, "--contexts", metavar="T,T,...", help="Context lengths, in tokens."),
    plot: Path = typer.Option(None, "--plot", metavar="FILE.png", help="Draw the table to a PNG."),
    json: bool = JSON_OPTION,
) -> None:
    """Measure what attention costs as the context grows.

    Times causal attention of one layer by itself, fused and explicit (with the scores written out), in about half a
    minute. What does not fit into memory or that time is shown as "-".
    """
    lengths = _lengths(contexts)
    config = _attention_config(settings or [])
    if plot:
        from glassgpt.bench.plots import require_plotting

        require_plotting(plot)
    from glassgpt.bench.attention import bench_attention
    from glassgpt.bench.throughput import settle
    from glassgpt.runtime import resolve

    _, runtime = settle(config, resolve(config.runtime))
    show = None if json else lambda context, kind: show_line(f"context {context:,}, {kind}")
    rows = bench_attention(lengths, heads, head_dim, runtime, batch=batch, progress=show)
    show_line("")
    title = f"causal attention of one layer: {heads} heads of {head_dim}, batch {batch}, {_place(runtime)}"
    if plot:
        from glassgpt.bench.plots import draw_attention

        draw_attention(rows, title, plot)
    if json:
        shape = {"heads": heads, "head_dim": head_dim, "batch": batch}
        print_json(shape | _where(runtime) | {"rows": [dataclasses.asdict(row) for row in rows]})
        return
    print(f"{title}\n")
    _print_attention(rows, runtime)
    if plot:
        print(f"\n{plot}")


@app.command()
def tokenizer(
    text: str = typer.Argument("shakespeare", metavar="[TEXT]", help="A text file, or a corpus by name."),
    vocab_size: int = typer.Option(8192, "--vocab-size", min=257, help="Tokens to train, a special one among them."),
    pattern: str = typer.Option("gpt2", "--pattern", help="How to split the text: gpt2, llama3 or qwen2."),
    processes: int = typer.Option(
        0, "--processes", min=0,
        help="Processes that glassgpt counts in, and threads of the others; 0: as many as each takes by itself.",
    ),
    repeat: int = typer.Option(3, "--repeat", min=1, help="Rounds; medians are reported."),
    only_train: bool = typer.Option(False, "--only-train", help="Leave out encoding."),
    only_encode: bool = typer.Option(False, "--only-encode", help="Train once to encode with it, and do not measure."),
    json: bool = JSON_OPTION,
) -> None:  # fmt: skip
    """Measure byte-level BPE: training and encoding, beside `tokenizers` and tiktoken.

    Every measurement is a process of its own, on the same text. Whether all find the same merges and the same ids is
    checked. Libraries that are not installed are left out.
    """
    if only_train and only_encode:
        raise ConfigError("--only-train leaves out encoding and --only-encode leaves out training: give one of them")
    from glassgpt.bench.tokenizer import bench_tokenizer, versions
    from glassgpt.data.sources.source import read_text

    source = read_text(text)
    only = "training" if only_train else "encoding" if only_encode else ""
    result = bench_tokenizer(
        source.content, vocab_size, pattern=pattern, processes=processes or None, repeat=repeat, only=only,
        progress=None if json else show_line,
    )  # fmt: skip
    show_line("")
    settings = {
        "text": source.source, "pattern": pattern, "processes": processes or None, "repeat": repeat,
        "cpus": os.cpu_count(), "versions": versions(),
    }  # fmt: skip
    if json:
        print_json(settings | dataclasses.asdict(result))
    else:
        _print_tokenizer(source.name, settings, result)


def _resolve(arguments: Sequence[str]) -> tuple["RunConfig", "Runtime", int]:
    """The whole configuration of what to train, without a text; where; and the steps asked for as ``steps=``."""
    from glassgpt.config import presets
    from glassgpt.runtime import resolve
    from glassgpt.training.budget import require_memory

    preset, source, layers = split_arguments(arguments)
    if source:
        raise ConfigError(
            f"bench train takes random tokens and no text; leave out {source!r}, and set vocab_size= to that of "
            "its tokenizer"
        )
    preset = preset or PRESET
    described = preset == "auto" and any("model" in layer for layer in layers)  # by the run.toml of an earlier run
    if preset == "auto" and not described:
        raise ConfigError("bench train cannot choose a size without a text; name a preset, such as preset=small")
    config = build(preset, [{} if described else presets.get(preset).layer, *layers])
    require_memory(config.model)
    # Those of a file or a preset are how long a training is, and say nothing of how long to measure.
    return config, resolve(config.runtime), layers[-1].get("train", {}).get("steps", 0)


def _lengths(text: str) -> list[int]:
    """The contexts asked for."""
    try:
        lengths = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--contexts: {text!r} is no list of whole numbers such as {CONTEXTS}") from None
    if min(lengths) < 1:
        raise ConfigError(f"--contexts: {min(lengths)} is too small; the least is 1 token")
    return lengths


def _attention_config(settings: Sequence[str]) -> "RunConfig":
    """A configuration that says where and in which type to compute, and nothing else."""
    layer = parse_overrides(settings)
    unused = [f"{section}.{key}" for section, values in layer.items() for key in values]
    unused = [key for key in unused if key.removeprefix("runtime.") not in ATTENTION_SETTINGS]
    if unused:
        known = ", ".join(f"{key}=" for key in ATTENTION_SETTINGS)
        raise ConfigError(
            f"bench attention has no use for {', '.join(unused)}; it takes {known}, --heads, --head-dim, --batch "
            "and --contexts"
        )
    return build("", [{"train": {"micro_batch_size": 1}}, layer])


def _print_train(config: "RunConfig", runtime: "Runtime", result: "TrainBench") -> None:
    from glassgpt.training.objective import LARGE_VOCABULARY

    train, model = config.train, config.model
    print(
        f"{config.preset}: {result.parameters:,} parameters, {train.batch_size} x {model.block_size} = "
        f"{result.tokens:,} tokens per step, {config.optim.optimizer}\n"
        f"{_place(runtime)}, {'compiled' if runtime.compile else 'not compiled (compile=true does)'}"
    )
    if runtime.reason != "asked for":
        print(runtime.reason)
    if result.micro_batches > 1:
        timed = result.micro_batches_timed
        scaled = f"; {timed} of them timed, and scaled to all" if timed < result.micro_batches else ""
        print(f"{result.micro_batches} micro-batches per step{scaled}")
    step = result.step_seconds
    parts = {
        "forward": result.forward_seconds,
        "backward": result.backward_seconds,
        "clipping and optimiser": result.update_seconds,
    }
    rows = [
        ["tokens per second", f"{result.tokens_per_second:,.0f}", "", f"median of {result.steps} steps"],
        ["time per step", *_scaled(step, "s"), f"the first took {result.first_step_seconds:,.2f} s"],
        *([f"  {name}", *_scaled(value, "s"), f"{value / step:.0%}"] for name, value in parts.items()),
        ["model FLOPs per token", *_scaled(result.flops_per_token, "FLOP"), "forward and backward"],
        ["optimiser FLOPs per step", *_scaled(result.optimizer_flops, "FLOP"), "not in the MFU"],
        ["model FLOPs per second", *_scaled(result.flops_per_second, "FLOP/s"), ""],
        ["fastest matrix product", *_scaled(result.matrix_peak, "FLOP/s"), "measured here, in the same type"],
        ["MFU", f"{result.mfu:.1%}", "", "model FLOPs per second / fastest matrix product"],
        ["memory bandwidth", *_scaled(result.memory_bandwidth, "B/s"), "measured here: a copy, read and written"],
        ["peak memory", *_memory(result.peak_memory), _memory_note(runtime, result)],
    ]
    if model.vocab_size >= LARGE_VOCABULARY:
        rows[2][-1] += ", with the gradients of the head: a large vocabulary's loss makes them at once"
    print()
    for name, number, unit, note in rows:
        print(f"{name:<25} {number:>8} {unit:<7} {note}".rstrip())


def _memory_note(runtime: "Runtime", result: "TrainBench") -> str:
    if result.peak_memory is None or result.base_memory is None:
        return "this system does not tell"
    planned = f"{' '.join(_memory(result.planned_memory))} planned for training by arithmetic"
    if runtime.device.type == "cuda":
        return f"of tensors on the GPU; {planned}"
    return f"of this process; {' '.join(_memory(result.base_memory))} before the model was built, {planned}"


def _print_attention(rows: Sequence["AttentionBench"], runtime: "Runtime") -> None:
    found = {(row.context, row.kind): row for row in rows}
    kept = "peak memory (MiB)" if runtime.device.type == "cuda" else "kept (MiB)"
    print(f"{'context':>8}   {'forward (ms)':^28}   {'forward and backward (ms)':^28}   {kept:^19}")
    timed = ("fused", "explicit", "ratio")
    _print_cells("(tokens)", *timed, *timed, "fused", "explicit")
    for context in sorted({row.context for row in rows}):
        fused, explicit = found[context, "fused"], found[context, "explicit"]
        cells = []
        for field in ("forward_seconds", "training_seconds"):
            quick, slow = getattr(fused, field), getattr(explicit, field)
            cells += [_number(quick, 1000), _number(slow, 1000), f"{slow / quick:.1f}" if quick and slow else "-"]
        _print_cells(f"{context:,}", *cells, _number(fused.memory, 2**-20), _number(explicit.memory, 2**-20))
    print("\nratio: explicit / fused")
    if runtime.device.type != "cuda":
        print("kept: memory that the forward pass keeps for the backward pass, q, k and v among it")
    for row in rows:
        if row.skipped:
            print(f"- {row.kind} at {row.context:,} tokens: {row.skipped}")


def _print_tokenizer(name: str, settings: dict[str, Any], result: "TokenizerBench") -> None:
    tokens = f"; {result.tokens:,} tokens, {result.bytes / result.tokens:.2f} bytes each" if result.tokens else ""
    limit = settings["processes"]
    used = f"processes or threads: {limit}" if limit else "each library takes as many as it does by itself"
    versions = "".join(f", {library} {version}" for library, version in settings["versions"].items())
    print(
        f"{name}: {result.bytes / 1e6:,.2f} MB of UTF-8, split as {settings['pattern']}; vocabulary of "
        f"{result.vocab_size:,}, {result.merges:,} merges{tokens}\n"
        f"{settings['cpus']} CPUs, {used}; medians of {settings['repeat']}{versions}"
    )
    for work in ("training", "encoding"):
        rows = [row for row in result.rows if row.work == work]
        if rows:
            same = "merges" if work == "training" else "ids"
            print()
            print_table(
                [work, "", "seconds", "MB/s", "built in (s)", "peak memory", same],
                [[row.library, row.how, *_tokenizer_cells(row)] for row in rows],
                right=(2, 3, 4, 5),
            )
    print("\nMB: 10^6 bytes; peak memory: of the whole process and those it starts, the text included")
    took = {row.library: row.seconds for row in result.rows if row.work == "training" and row.seconds}
    if len(took) == 2:
        print(f"training takes {took['glassgpt'] / took['tokenizers']:.2f} times as long as by tokenizers")
    for row in result.rows:
        if row.difference:
            print(f"differs: {row.library} {row.how}: {row.difference}")


def _tokenizer_cells(row: "Measured") -> list[str]:
    """What a row says besides its name."""
    if row.skipped:
        return ["-", "-", "-", "-", row.skipped]
    assert row.seconds and row.bytes_per_second
    built = "" if row.build_seconds is None else f"{row.build_seconds:.3f}"
    found = {None: "", "": "the same"}.get(row.difference, "DIFFERENT")
    memory = " ".join(_memory(row.peak_memory))
    return [f"{row.seconds:,.2f}", f"{row.bytes_per_second / 1e6:,.2f}", built, memory.strip(), found]


def _print_cells(context: str, *cells: str) -> None:
    groups = cells[:3], cells[3:6], cells[6:]
    print("   ".join([f"{context:>8}", *(" ".join(f"{cell:>9}" for cell in group) for group in groups)]))


def _number(value: float | None, scale: float) -> str:
    if value is None:
        return "-"
    return f"{value * scale:,.2f}" if value * scale < 100 else f"{value * scale:,.0f}"


def _scaled(value: float, unit: str) -> tuple[str, str]:
    """A value with a prefix that keeps it readable: ``("12.3", "ms")``, ``("1.50", "GFLOP/s")``."""
    fitting = (prefix for prefix, size in PREFIXES.items() if abs(value) >= size and not (unit == "s" and size > 1))
    prefix = next(fitting, "")
    number = value / PREFIXES[prefix]
    return f"{number:.{2 if number < 100 else 1}f}", prefix + unit


def _memory(value: int | None) -> tuple[str, str]:
    if value is None:
        return "-", ""
    return (f"{value / 2**30:,.2f}", "GiB") if value >= 2**30 else (f"{value / 2**20:,.1f}", "MiB")


def _place(runtime: "Runtime") -> str:
    threads = f" with {runtime.threads} threads" if runtime.device.type == "cpu" else ""
    return f"device {runtime.device}{threads.replace(' 1 threads', ' 1 thread')}, {_where(runtime)['dtype']}"


def _where(runtime: "Runtime") -> dict[str, Any]:
    """Where it was computed, as JSON values: device, dtype, threads, compile."""
    return runtime.resolved()


def _show_steps(done: int, steps: int, seconds_left: float) -> None:
    show_line(f"step {done} of {steps}, {seconds_left:.0f} s left")

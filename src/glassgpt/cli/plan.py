"""``glassgpt plan``: the cost of a training run, before it runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glassgpt.cli.arguments import JSON_OPTION, MEASURE_OPTION, RUNS_OPTION, split_arguments
from glassgpt.cli.printing.output import print_json, print_table, print_text, say
from glassgpt.errors import ConfigError
from glassgpt.estimate import SHARE_OF_FREE, format_bytes, format_flops

if TYPE_CHECKING:
    from glassgpt.config import RunConfig
    from glassgpt.planning.report import Machine


def plan(
    arguments: list[str] = typer.Argument(
        None, metavar="TEXT | FILE.toml | preset=NAME | key=value", help="The run to plan; as for train."
    ),
    measure: bool = MEASURE_OPTION,
    no_measure: bool = typer.Option(False, "--no-measure", help="Arithmetic only; measure no speed."),
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Show what training would cost, before anything runs.

    Parameters, FLOPs, and memory against context by arithmetic; tokens per second and time from a few steps on this
    machine. A text is optional: without one, the preset's vocabulary and random tokens are used. No run is made.
    """
    from glassgpt import api
    from glassgpt.planning.report import Machine, cost_report, memory_problem
    from glassgpt.planning.run_plan import names_a_text, size_is_open

    preset, _, overrides = split_arguments(arguments or [])
    preset, problem = preset or "auto", ""
    if measure and no_measure:
        raise ConfigError("--measure and --no-measure exclude each other; leave one out")
    if no_measure or not names_a_text(overrides) or not size_is_open(preset, overrides):
        found = api.plan(preset, overrides=overrides, runs=runs, measure="nothing")
        machine = Machine.of(found.config, required=not no_measure)
        problem = "" if no_measure else memory_problem(found.config, machine)
    if not no_measure and not problem:
        if not json:
            say("measuring the speed of this machine" + " (unless it was measured today)" * (not measure) + " ...")
        found = api.plan(preset, overrides=overrides, runs=runs, measure="anew" if measure else "speed")
        machine = Machine.of(found.config, required=True)
    report = cost_report(found, machine, [problem] if problem else found.notes)
    if json:
        print_json(report)
    else:
        length = found.config.tune.max_length  # of rows, which is what a step computes
        _print(found.config.replace("model", block_size=length) if length else found.config, machine, report)


def _print(config: "RunConfig", machine: "Machine", report: dict[str, Any]) -> None:
    model = config.model
    print_text(
        f"{config.preset}: {model.n_layer} layers, {model.n_head} heads, {model.n_embd} wide, "
        f"context {model.block_size:,}, vocabulary {model.vocab_size:,}\n"
    )
    _print_parameters(report["parameters"])
    if lora := report["lora_parameters"]:
        print_text(f"LoRA trains {lora:,} parameters beside these, which are frozen")
    _print_flops(config, report)
    _print_memory(config, machine, report)
    if report["measured"]:
        _print_measured(config, report["measured"])
    for note in report["notes"]:
        print_text(f"note: {note}")


def _print_parameters(groups: dict[str, int]) -> None:
    total = groups["total"]
    rows = [[name, f"{count:,}", f"{count / total:.1%}"] for name, count in groups.items() if count]
    if not groups["head"]:
        rows.insert(-1, ["head (the token embedding)", "0", ""])
    print_table(["parameters", "", ""], rows, right=(1, 2))


def _print_flops(config: "RunConfig", report: dict[str, Any]) -> None:
    flops, update = report["flops_per_token"], report["optimizer_flops_per_step"]
    shares = ", ".join(f"{name} {flops[name] / flops['forward']:.1%}" for name in ("matrices", "attention", "head"))
    tokens = config.train.batch_size * config.model.block_size
    rows = [
        ["forward", format_flops(flops["forward"]), shares],
        [
            "training",
            format_flops(flops["training"]),
            "forward and backward" + ", for LoRA" * bool(report["lora_parameters"]),
        ],
    ]
    if update:
        rows.append(["Muon", format_flops(update / tokens), f"{format_flops(update)} a step of {tokens:,} tokens"])
    print_text()
    print_table([f"FLOPs per token at context {config.model.block_size:,}", "", ""], rows, right=(1,))


def _print_memory(config: "RunConfig", machine: "Machine", report: dict[str, Any]) -> None:
    rows, train = report["micro_batch_size"], config.train
    kind = "float32" if machine.bytes_per_weight == 4 else "16 bits, with float32 masters"
    extra = ", activation checkpointing" if train.activation_checkpointing else ""
    sequences = f"{rows:,} sequence{'s' * (rows != 1)} at a time"
    print_text(f"\nmemory of training against context: {sequences}, {kind}, {config.optim.optimizer}{extra}")
    names = ["weights", "masters", "gradients", "optimizer", "activations", "update", "total"]
    names = [name for name in names if any(row[name] for row in report["memory"])]
    cells = []
    for row in report["memory"]:
        fits = row["largest_micro_batch"]
        shown = ["-" if fits is None else f"{fits:,}" if fits else "none"]
        cells.append([f"{row['context']:,}", *(format_bytes(row[name]) for name in names), *shown])
        cells[-1].append(format_flops(row["training_flops_per_token"]))
    header = ["context", *names, "fits", "FLOPs/token"]
    print_table(header, cells, right=range(len(header)))
    if "update" in names:
        print_text("total: activations and the temporaries of the update are not there at once; the larger counts")
    if machine.free is not None:
        share = f"{SHARE_OF_FREE:.0%} of the {format_bytes(machine.free)} free here"
        print_text(
            f"fits: of {train.batch_size:,} sequences, as many at a time fit into {share}, in as few even passes"
        )
    if machine.device == "cpu":
        print_text("these are tensors; the process takes more: the libraries, and free blocks that its allocator keeps")


def _print_measured(config: "RunConfig", found: dict[str, Any]) -> None:
    from glassgpt.cli.printing.display import duration

    threads = found["threads"]
    where = f" with {threads} thread{'s' * (threads != 1)}" if found["device"] == "cpu" else ""
    compiled = "compiled" if found["compile"] == "true" else "not compiled"
    step, training, validation = found["seconds_per_step"], found["training_seconds"], found["validation_seconds"]
    print_text(f"\nmeasured on this machine: {found['device']}{where}, {found['dtype']}, {compiled}")
    print_text(f"speed  {found['tokens_per_second']:,.0f} tokens/s, {format_flops(found['flops_per_second'])}/s")
    print_text(f"step   {f'{step:.3g} s' if step < 100 else duration(step)} for {found['tokens_per_step']:,} tokens")
    if not found["steps"]:
        print_text(f"run    no step fits into time={config.train.time}")
        return
    steps = f"{found['steps']:,} step{'s' * (found['steps'] != 1)}"
    steps = f"about {steps} in time={config.train.time}" if found["timed"] else steps
    extra = f", and {duration(validation)} of validation" if validation >= 1 else ""
    print_text(f"run    {steps}: {duration(training)} of training{extra}")

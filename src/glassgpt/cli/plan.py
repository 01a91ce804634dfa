"""``glassgpt plan``: what a training run costs, before it runs."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import typer

from glassgpt.cli.common import JSON_OPTION, print_json, print_table, say, split_arguments
from glassgpt.config import ConfigOverrides, RunConfig, build, parse_duration
from glassgpt.errors import ConfigError
from glassgpt.estimate import SHARE_OF_FREE

if TYPE_CHECKING:
    from glassgpt.estimate import Memory
    from glassgpt.runtime import Runtime
    from glassgpt.training.budget import Speed

#: What has to be said of a model without a preset, if there is no text to choose it for.
SIZE = {"n_layer", "n_head", "n_embd"}


@dataclass(frozen=True)
class _Place:
    """Where it is to run: a device, the type computed in, and free memory, if the device is here."""

    device: str
    bytes_per_weight: int
    free: int | None


@dataclass(frozen=True)
class _Measured:
    """What a calibration found: the configuration with every number resolved, how it is computed, and how fast."""

    config: RunConfig
    runtime: "Runtime"
    speed: "Speed"
    timed: bool  # whether the number of steps came from `time`
    val_tokens: int  # in the validation split; 0 without a text
    notes: tuple[str, ...]


def plan(
    arguments: list[str] = typer.Argument(
        None, metavar="TEXT | FILE.toml | preset=NAME | key=value", help="What would be trained, and how; as for train."
    ),
    no_measure: bool = typer.Option(False, "--no-measure", help="Arithmetic only; measure no speed."),
    json: bool = JSON_OPTION,
) -> None:
    """Say what training would cost, before anything runs.

    Parameters, FLOPs, and memory against context by arithmetic; tokens per second and time from a few steps on this
    machine. A text is optional: without one, the preset's vocabulary and random tokens are taken. No run is made.
    """
    preset, _, layers = split_arguments(arguments or [])
    has_text = any("source" in layer.get("data", {}) for layer in layers)
    preset = preset or "auto"
    without_size = preset == "auto" and not SIZE.issubset(key for layer in layers for key in layer.get("model", {}))
    if without_size and (no_measure or not has_text):
        raise ConfigError(
            "what should be planned? Name a preset (`glassgpt plan preset=small`), or n_layer, n_head and n_embd; or "
            "give a text: its model's size is chosen by measuring, so not with --no-measure"
        )
    notes: list[str] = []
    measured: _Measured | None = None
    if without_size:
        measured = _measure_with_text(preset, layers, json)
    else:
        config = _describe(preset, layers, has_text)
        place = _place(config, measure=not no_measure)
        lack = "" if no_measure else _lack_of_memory(config, place)
        if lack:
            notes.append(lack)
        elif not no_measure:
            measured = _measure_with_text(preset, layers, json) if has_text else _measure_without_text(config, json)
    if measured is not None:
        config, notes = measured.config, [*measured.notes]
        place = replace(_place(config, measure=True), bytes_per_weight=measured.runtime.dtype.itemsize)
    report = _report(config, place, measured, notes)
    if json:
        print_json(report)
    else:
        _print(config, place, report)


def _describe(preset: str, layers: Sequence[ConfigOverrides], has_text: bool) -> RunConfig:
    """The configuration, with the vocabulary and at most the length of its text where these were not asked for."""
    from glassgpt import data
    from glassgpt.config import presets
    from glassgpt.weights.mapping import family_of

    base: ConfigOverrides = {"model": presets.MODERN} if preset == "auto" else presets.get(preset).layer
    config = build(preset, [base, *layers])
    if config.train.format == "hf":
        family_of(config.model)  # or a ConfigError, as in training
    if not has_text:
        return config
    asked = {key for layer in layers for key in layer.get("model", {})}
    stream = data.prepare(data.find_source(config.data), config.data)
    found = {
        "vocab_size": stream.info.vocab_size,
        "block_size": max(1, min(config.model.block_size, stream.info.tokens["train"] - 1)),
    }
    return config.replace("model", **{key: value for key, value in found.items() if key not in asked})


def _place(config: RunConfig, measure: bool) -> _Place:
    """Where it would run. Arithmetic alone needs no such device here."""
    from glassgpt.runtime import resolve
    from glassgpt.training.budget import free_memory

    try:
        device = resolve(config.runtime).device
        kind, free = device.type, free_memory(device)
    except ConfigError:
        if measure:
            raise
        kind, free = config.runtime.device.partition(":")[0], None
    short = config.runtime.dtype in ("bfloat16", "float16") or (config.runtime.dtype == "auto" and kind == "cuda")
    return _Place(kind, 2 if short else 4, free)


def _lack_of_memory(config: RunConfig, place: _Place) -> str:
    """Why this machine cannot train the model, even one sequence at a time; empty if it can."""
    from glassgpt.training.budget import require_memory

    needed = _memory(config, place, 1).total
    try:
        require_memory(config.model)
    except ConfigError as error:
        return f"{error}. Planned by arithmetic only"
    if place.free is None or needed <= place.free:
        return ""
    return (
        f"even one sequence at a time needs {_bytes(needed)}, and {_bytes(place.free)} are free here: "
        "planned by arithmetic only"
    )


def _memory(config: RunConfig, place: _Place, rows: int) -> "Memory":
    from glassgpt.estimate import memory

    return memory(config.model, rows, **_how(config, place))


def _how(config: RunConfig, place: _Place) -> dict[str, Any]:
    """What memory depends on besides the model and the rows."""
    return {
        "bytes_per_weight": place.bytes_per_weight,
        "optimizer": config.optim.optimizer,
        "recompute": config.train.activation_checkpointing,
        "device": place.device,
    }


def _measure_with_text(preset: str, layers: Sequence[ConfigOverrides], quiet: bool) -> _Measured:
    """What training on this text would do, resolved by the same function."""
    from glassgpt.training import setup

    _say_measuring(quiet)
    plan = setup.plan(preset, layers)
    return _Measured(plan.config, plan.runtime, plan.speed, plan.timed, plan.stream.info.tokens["val"], plan.notes)


def _measure_without_text(config: RunConfig, quiet: bool) -> _Measured:
    """The speed on random tokens, and from it the steps that fit into the time."""
    from glassgpt.runtime import resolve
    from glassgpt.training import budget, setup
    from glassgpt.training.calibration import calibrate

    _say_measuring(quiet)
    notes, runtime = [], replace(resolve(config.runtime), compile=False)
    if config.runtime.dtype == "auto":
        runtime, why = setup.measured_dtype(config, runtime)
        notes.append(why)
    config, why = setup.fit_memory(config, runtime)
    notes += [why] if why else []
    seconds = parse_duration(config.train.time)
    found = calibrate(config, runtime, min(1.5, 0.05 * seconds), left=seconds)
    timed = config.train.steps == 0
    if timed:
        config = config.replace("train", steps=int(seconds * budget.PLANNED / found.speed.step))
    return _Measured(config, found.runtime, found.speed, timed, 0, (*notes, *found.notes))


def _say_measuring(quiet: bool) -> None:
    if not quiet:
        say("measuring the speed of this machine ...")


def _report(config: RunConfig, place: _Place, measured: _Measured | None, notes: Sequence[str]) -> dict[str, Any]:
    """Everything that is printed, as JSON values; bytes, seconds and FLOPs are plain numbers."""
    from glassgpt.estimate import count_parameters, flops_per_token, optimizer_flops
    from glassgpt.training.optim import ITERATIONS

    model, train = config.model, config.train
    groups = count_parameters(model)
    flops = flops_per_token(model)
    update = optimizer_flops(model, config.optim.optimizer, ITERATIONS)
    rows = _rows(config, place)
    contexts = sorted({max(1, round(model.block_size * factor)) for factor in (0.25, 0.5, 1, 2, 4)})
    return {
        "preset": config.preset,
        "config": config.to_dict(),
        "parameters": groups | {"total": sum(groups.values())},
        "flops_per_token": dataclasses.asdict(flops) | {"forward": flops.forward, "training": flops.training},
        "optimizer_flops_per_step": update,
        "device": place.device,
        "bytes_per_weight": place.bytes_per_weight,
        "free_bytes": place.free,
        "micro_batch_size": rows,
        "memory": [_memory_row(config, place, rows, context) for context in contexts],
        "measured": _measured_values(config, measured, train.batch_size * model.block_size * flops.training + update),
        "notes": list(notes),
    }


def _rows(config: RunConfig, place: _Place) -> int:
    """Sequences per forward pass: as asked for, or as training would choose."""
    from glassgpt.estimate import largest_micro_batch

    train = config.train
    if train.micro_batch_size or place.free is None:
        return train.micro_batch_size or train.batch_size
    free = int(SHARE_OF_FREE * place.free)
    return largest_micro_batch(config.model, train.batch_size, free, **_how(config, place))


def _memory_row(config: RunConfig, place: _Place, rows: int, context: int) -> dict[str, Any]:
    """Memory of the model as it would be with another context."""
    from glassgpt.estimate import flops_per_token

    longer = config.replace("model", block_size=context)
    needed = _memory(longer, place, rows)
    row = {"context": context, **dataclasses.asdict(needed), "total": needed.total}
    row["training_flops_per_token"] = flops_per_token(longer.model).training
    row["largest_micro_batch"] = None
    if place.free is not None:
        fits = _memory(longer, place, 1).total <= place.free
        row["largest_micro_batch"] = _rows(longer.replace("train", micro_batch_size=0), place) if fits else 0
    return row


def _measured_values(config: RunConfig, measured: _Measured | None, flops: int) -> dict[str, Any] | None:
    """Speed and time. ``flops`` are those of a step."""
    if measured is None:
        return None
    speed, train = measured.speed, config.train
    tokens = train.batch_size * config.model.block_size
    validations = 1 + train.steps // train.eval_interval if train.eval_interval else 0
    validated = validations * min(train.eval_tokens, measured.val_tokens) + measured.val_tokens
    return {
        **measured.runtime.resolved(),
        "tokens_per_second": tokens / speed.step,
        "seconds_per_step": speed.step,
        "tokens_per_step": tokens,
        "flops_per_second": flops / speed.step,
        "steps": train.steps,
        "timed": measured.timed,
        "training_seconds": train.steps * speed.step,
        "validation_seconds": validated * speed.validation_token,
    }


def _print(config: RunConfig, place: _Place, report: dict[str, Any]) -> None:
    model = config.model
    print(
        f"{config.preset}: {model.n_layer} layers, {model.n_head} heads, {model.n_embd} wide, "
        f"context {model.block_size:,}, vocabulary {model.vocab_size:,}\n"
    )
    _print_parameters(report["parameters"])
    _print_flops(config, report)
    _print_memory(config, place, report)
    if report["measured"]:
        _print_measured(config, report["measured"])
    for note in report["notes"]:
        print(f"note: {note}")


def _print_parameters(groups: dict[str, int]) -> None:
    total = groups["total"]
    rows = [[name, f"{count:,}", f"{count / total:.1%}"] for name, count in groups.items() if count]
    if not groups["head"]:
        rows.insert(-1, ["head (the token embedding)", "0", ""])
    print_table(["parameters", "", ""], rows, right=(1, 2))


def _print_flops(config: RunConfig, report: dict[str, Any]) -> None:
    flops, update = report["flops_per_token"], report["optimizer_flops_per_step"]
    shares = ", ".join(f"{name} {flops[name] / flops['forward']:.1%}" for name in ("matrices", "attention", "head"))
    tokens = config.train.batch_size * config.model.block_size
    rows = [
        ["forward", _flops(flops["forward"]), shares],
        ["training", _flops(flops["training"]), "forward and backward"],
    ]
    if update:
        rows.append(["Muon", _flops(update / tokens), f"{_flops(update)} a step of {tokens:,} tokens"])
    print()
    print_table([f"FLOPs per token at context {config.model.block_size:,}", "", ""], rows, right=(1,))


def _print_memory(config: RunConfig, place: _Place, report: dict[str, Any]) -> None:
    rows, train = report["micro_batch_size"], config.train
    kind = "float32" if place.bytes_per_weight == 4 else "16 bits, with float32 masters"
    extra = ", activation checkpointing" if train.activation_checkpointing else ""
    sequences = f"{rows:,} sequence{'s' * (rows != 1)} at a time"
    print(f"\nmemory of training against context: {sequences}, {kind}, {config.optim.optimizer}{extra}")
    names = ["weights", "masters", "gradients", "optimizer", "activations", "update", "total"]
    names = [name for name in names if any(row[name] for row in report["memory"])]
    cells = []
    for row in report["memory"]:
        fits = row["largest_micro_batch"]
        shown = ["-" if fits is None else f"{fits:,}" if fits else "none"]
        cells.append([f"{row['context']:,}", *(_bytes(row[name]) for name in names), *shown])
        cells[-1].append(_flops(row["training_flops_per_token"]))
    header = ["context", *names, "fits", "FLOPs/token"]
    print_table(header, cells, right=range(len(header)))
    if "update" in names:
        print("total: activations and the temporaries of the update are not there at once; the larger counts")
    if place.free is not None:
        share = f"{SHARE_OF_FREE:.0%} of the {_bytes(place.free)} free here"
        print(f"fits: of {train.batch_size:,} sequences, as many at a time fit into {share}, in as few even passes")
    if place.device == "cpu":
        print("these are tensors; the process takes more: the libraries, and free blocks that its allocator keeps")


def _print_measured(config: RunConfig, found: dict[str, Any]) -> None:
    from glassgpt.cli.display import duration

    threads = found["threads"]
    where = f" with {threads} thread{'s' * (threads != 1)}" if found["device"] == "cpu" else ""
    compiled = "compiled" if found["compile"] == "true" else "not compiled"
    step, training, validation = found["seconds_per_step"], found["training_seconds"], found["validation_seconds"]
    print(f"\nmeasured on this machine: {found['device']}{where}, {found['dtype']}, {compiled}")
    print(f"speed  {found['tokens_per_second']:,.0f} tokens/s, {_flops(found['flops_per_second'])}/s")
    print(f"step   {f'{step:.3g} s' if step < 100 else duration(step)} for {found['tokens_per_step']:,} tokens")
    if not found["steps"]:
        print(f"run    no step fits into time={config.train.time}")
        return
    steps = f"{found['steps']:,} step{'s' * (found['steps'] != 1)}"
    steps = f"about {steps} in time={config.train.time}" if found["timed"] else steps
    extra = f", and {duration(validation)} of validation" if validation >= 1 else ""
    print(f"run    {steps}: {duration(training)} of training{extra}")


def _flops(value: float) -> str:
    """``12.3 MFLOP``, ``1.50 GFLOP``."""
    return _scaled(value, 1000, ["", "k", "M", "G", "T", "P", "E"]) + "FLOP"


def _bytes(value: float) -> str:
    """``12.3 MiB``, ``1.50 GiB``."""
    return _scaled(value, 1024, ["", "Ki", "Mi", "Gi", "Ti", "Pi"]) + "B"


def _scaled(value: float, base: int, prefixes: Sequence[str]) -> str:
    """A number of about three digits, and the prefix that goes with it."""
    power = 0
    while value >= base and power < len(prefixes) - 1:
        value, power = value / base, power + 1
    return f"{value:,.{2 if value < 10 and power else 1 if value < 100 and power else 0}f} {prefixes[power]}"

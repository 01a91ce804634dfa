"""``glassgpt tune sft``, ``tune lora``, ``tune show``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glassgpt.cli.arguments import (
    JSON_OPTION,
    MEASURE_OPTION,
    RUNS_OPTION,
    merged,
    options_help,
    split_arguments,
    verb_group,
)
from glassgpt.cli.printing.endings import exit_unless_finished
from glassgpt.cli.printing.output import print_configuration
from glassgpt.cli.tune.show import show
from glassgpt.config import ConfigOverrides, DataConfig, TuneConfig
from glassgpt.config.tuning import tuning_defaults
from glassgpt.errors import ConfigError, shell_command
from glassgpt.files import path_exists

if TYPE_CHECKING:
    from glassgpt.planning.run_plan import Measure
    from glassgpt.training.loop import Result

app = verb_group("tune", "Fine-tune a model on conversations.")
_ARGUMENTS = typer.Argument(
    None,
    metavar="MODEL DATA [key=value ...]",
    help="A run, folder, .gguf file, asset or hub name; a .jsonl file of conversations, or `tutor`; settings.",
)
_RESUME = typer.Option(None, "--resume", metavar="RUN", help="Resume this run, to its end or for more steps.")
_NAME = typer.Option(None, "--name", help="Name of the run; by default that of the file.")
_DRY_RUN = typer.Option(False, "--dry-run", help="Show the resolved configuration; train nothing.")


def _settings(method: str) -> str:
    sections = ["tune", "data", "train", "optim", "runtime"]
    lora = [f"tune.{key}" for key in TuneConfig.__dataclass_fields__ if "lora" in key] if method == "sft" else []
    data = [f"data.{key}" for key in DataConfig.__dataclass_fields__ if key != "val_fraction"]
    unused = ["tune.method", "train.init_from", *lora, *data]
    return options_help(sections, tuning_defaults(method), unused)


@app.command(epilog=_settings("lora"))
def lora(
    arguments: list[str] = _ARGUMENTS,
    resume: str | None = _RESUME,
    name: str | None = _NAME,
    dry_run: bool = _DRY_RUN,
    measure: bool = MEASURE_OPTION,
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Fine-tune with LoRA: small matrices beside frozen weights.

    `glassgpt tune lora smollm2-135m-instruct my.jsonl` needs no setting, and ends within 5 minutes (time=30m for more).
    Only the assistant's tokens are trained. Checkpoints hold the adapter alone, in PEFT's format.
    """
    _tune("lora", arguments or [], resume, name, dry_run, measure, runs, json)


@app.command(epilog=_settings("sft"))
def sft(
    arguments: list[str] = _ARGUMENTS,
    resume: str | None = _RESUME,
    name: str | None = _NAME,
    dry_run: bool = _DRY_RUN,
    measure: bool = MEASURE_OPTION,
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Fine-tune all weights (supervised fine-tuning).

    A model without a chat template gets ChatML. Only the assistant's tokens are trained.
    """
    _tune("sft", arguments or [], resume, name, dry_run, measure, runs, json)


app.command()(show)


def _tune(
    method: str,
    arguments: Sequence[str],
    resume: str | None,
    name: str | None,
    dry_run: bool,
    anew: bool,
    runs: Path,
    json: bool,
) -> None:
    from glassgpt import api
    from glassgpt.cli.printing.display import make_reporter

    if resume is not None:
        if _named(arguments) or dry_run or anew or name is not None:
            raise ConfigError(
                "--resume RUN keeps the run's own model, data, name and speed; give only key=value settings"
            )
        _require_method(resume, method, runs)
        _, _, layers = split_arguments(arguments)
        result = api.resume(resume, merged(layers), runs=runs, reporter=make_reporter(quiet=json))
        _print_result_and_exit(result, json)
        return
    layers = _layers(method, arguments)
    measure: Measure = "anew" if anew else "speed"
    if dry_run:
        print_configuration(api.plan(overrides=layers, runs=runs, measure=measure), json)
        return
    result = api.start_run("auto", layers, name=name, runs=runs, reporter=make_reporter(quiet=json), measure=measure)
    _print_result_and_exit(result, json)


def _require_method(resume: str, method: str, runs: Path) -> None:
    """Refuse a run of another verb; the message has the command that resumes it."""
    from glassgpt import api

    run = api.find_run(resume, runs)
    found = run.config().tune.method
    if found != method:
        verb = ["train"] if found == "none" else ["tune", found]
        raise ConfigError(
            f"{run.path} is not a run of tune {method}; resume it with: " + shell_command(*verb, "--resume", run.path)
        )


def _layers(method: str, arguments: Sequence[str]) -> list[ConfigOverrides]:
    """The settings of ``MODEL DATA [FILE.toml] [key=value ...]``.

    Raises:
        ConfigError: with every problem found.
    """
    named = _named(arguments)
    rest = [a for a in arguments if not named or a is not named[0]]
    preset, _, layers = split_arguments(rest)
    initial: ConfigOverrides = {"train": {"init_from": named[0]}} if named else {}
    layers = [*layers, initial, {"tune": {"method": method}}]
    given = merged(layers)
    example = f"for example `glassgpt tune {method} smollm2-135m-instruct my.jsonl`"
    if preset is not None:
        raise ConfigError("tune takes the model's own shape; leave out preset=")
    if not given.get("train", {}).get("init_from"):
        raise ConfigError(f"which model should be tuned, on which conversations? {example}")
    if not given.get("data", {}).get("source"):
        raise ConfigError(
            f"what should {named[0] if named else 'the model'} be tuned on? Give a .jsonl file: {example}"
        )
    return layers


def _named(arguments: Sequence[str]) -> list[str]:
    """The model and the data: what is neither a setting nor a file of settings."""
    return [a for a in arguments if not a.endswith(".toml") and ("=" not in a or path_exists(a))]


def _print_result_and_exit(result: "Result", json: bool) -> None:
    """Print how it ended, answers before and after, and the next commands; after a signal, exit with its code."""
    resume = shell_command("tune", result.run.config().tune.method, "--resume", result.run.path)
    exit_unless_finished(result, resume)
    from glassgpt.cli.tune.ending import print_ending

    print_ending(result, resume, json)

"""``glassgpt train`` and ``glassgpt quickstart``."""

import math
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
)
from glassgpt.cli.printing.endings import exit_unless_finished, how_it_ended, print_next
from glassgpt.cli.printing.output import print_configuration, print_json
from glassgpt.config import ConfigOverrides
from glassgpt.config.presets import SHORT_RUN
from glassgpt.errors import AssetError, ConfigError, GlassError, shell_command
from glassgpt.files import path_exists, write_text

if TYPE_CHECKING:
    from glassgpt.doctor.watching import Watcher
    from glassgpt.model import GPT
    from glassgpt.planning.run_plan import Measure
    from glassgpt.tokenizer import Tokenizer
    from glassgpt.training.loop import Result
    from glassgpt.training.metrics import Reporter

#: What quickstart's page shows the model reading, by corpus.
PAGE_PROMPTS = {"shakespeare": "To be, or not to be", "python": "def __init__(self"}
#: Time that quickstart gives its training: with the installation, well under six minutes.
QUICKSTART_TIME = "2m"


OPTIONS_HELP = options_help(("model", "data", "train", "optim", "runtime"))


def train(
    arguments: list[str] = typer.Argument(
        None, metavar="TEXT | FILE.toml | preset=NAME | key=value", help="What to train on, and how."
    ),
    resume: str | None = typer.Option(
        None, "--resume", metavar="RUN", help="Resume this run, to its end or for more steps."
    ),
    name: str | None = typer.Option(None, "--name", help="Name of the run; by default the text's name."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show the resolved configuration; train nothing."),
    profile: bool = typer.Option(
        False, "--profile", help="Trace a few steps into RUN/profile, and print the ten costliest operations."
    ),
    doctor: bool = typer.Option(
        False, "--doctor", help="Look for bugs before the first step, and for trouble during training."
    ),
    measure: bool = MEASURE_OPTION,
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Train a model on a text.

    With only a text, the size is chosen for the text and this machine, and training ends within 5 minutes
    (time=30m for more). The run is kept in runs/NAME and never overwritten.
    """
    preset, source, layers = split_arguments(arguments or [])
    if resume is not None:
        if source or preset or dry_run or measure or name is not None:
            raise ConfigError(
                "--resume RUN keeps the run's own text, preset, name and speed; give only key=value settings"
            )
        _resume(resume, layers, runs, json, profile, doctor)
    elif not source and all("source" not in layer.get("data", {}) for layer in layers):
        raise ConfigError(
            "what should be trained on? Give a text file or a corpus: `glassgpt train my.txt`, "
            "`glassgpt train shakespeare`; or --resume RUN"
        )
    elif dry_run:
        from glassgpt import api

        how: Measure = "anew" if measure else "speed"
        print_configuration(api.plan(preset or "auto", overrides=layers, runs=runs, with_text=True, measure=how), json)
    else:
        _train(preset, layers, name, runs, json, profile, doctor=doctor, anew=measure)


def quickstart(
    settings: list[str] = typer.Argument(None, metavar="key=value", help="Settings, as for train."),
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Train a small GPT on Shakespeare's plays for two minutes.

    It ends with a sample, and writes RUN/glass.html, a page that shows the model inside.
    """
    from glassgpt import assets
    from glassgpt.cli.printing.output import say

    preset, source, layers = split_arguments(settings or [])
    if source:
        raise ConfigError(
            f"quickstart trains on its own corpus; for {source!r}: "
            + shell_command("train", Path(source) if path_exists(source) else source)
        )
    corpus = "shakespeare"
    try:
        assets.path(corpus)
    except AssetError as error:
        say(f"note: {error}\nnote: training on Python's own source code instead, which is always there")
        corpus = "python"
    given = merged(layers)
    all_its_own = preset in (None, "auto") and "optim" not in given and "init_from" not in given.get("train", {})
    optim = SHORT_RUN if all_its_own else {}
    base: ConfigOverrides = {"data": {"source": corpus}, "train": {"time": QUICKSTART_TIME}, "optim": optim}
    _train(preset, [base, *layers], "quickstart", runs, json, page_prompt=PAGE_PROMPTS[corpus])


def _train(
    preset: str | None,
    layers: list[ConfigOverrides],
    name: str | None,
    runs: Path,
    json: bool,
    profile: bool = False,
    page_prompt: str = "",
    doctor: bool = False,
    anew: bool = False,
) -> None:
    from glassgpt import api

    reporter, watcher = _reporter(json, doctor)
    result = api.start_run(
        preset or "auto", layers, name=name, runs=runs, reporter=reporter, watcher=watcher, profile=profile,
        measure="anew" if anew else "speed",
    )  # fmt: skip
    _print_result_and_exit(result, json, page_prompt, watcher)


def _resume(run: str, layers: list[ConfigOverrides], runs: Path, json: bool, profile: bool, doctor: bool) -> None:
    from glassgpt import api

    reporter, watcher = _reporter(json, doctor)
    result = api.resume(run, merged(layers), runs=runs, reporter=reporter, watcher=watcher, profile=profile)
    _print_result_and_exit(result, json, watcher=watcher)


def _reporter(quiet: bool, doctor: bool) -> "tuple[Reporter, Watcher | None]":
    """Make what shows the training, and what watches it if that is asked for."""
    from glassgpt.cli.printing.display import make_reporter

    reporter = make_reporter(quiet=quiet)
    if not doctor:
        return reporter, None
    from glassgpt.doctor.watching import Watcher

    return reporter, Watcher(reporter)


def _write_page(model: "GPT", tokenizer: "Tokenizer", run: Path, prompt: str) -> Path | None:
    """Write RUN/glass.html; None, with a note, if the model cannot read the prompt, or the file cannot be written."""
    from glassgpt.cli.printing.output import say
    from glassgpt.glass.page.writing import glass_page

    try:
        write_text(target := run / "glass.html", glass_page(model, tokenizer, prompt, name=run.name).html)
    except (GlassError, OSError) as error:
        say(f"note: no page was written: {error}")
        return None
    return target


def _print_result_and_exit(
    result: "Result", json: bool, page_prompt: str = "", watcher: "Watcher | None" = None
) -> None:
    """Print how it ended, a sample of best/, and the next commands; with a prompt, write the page that follows it.

    An interrupted run exits with its signal's code.
    """
    from glassgpt import api

    path = result.run.path
    resume = shell_command("train", "--resume", path)
    exit_unless_finished(result, resume)
    assert result.final is not None
    model, tokenizer = api.load(result.run.best, device=result.run.config().runtime.device)
    text = api.generate(model, tokenizer, max_new_tokens=400)
    page = _write_page(model, tokenizer, path, page_prompt) if page_prompt else None
    if json:
        values = {"loss": result.final.loss, "stderr": result.final.stderr, "bits_per_byte": result.final.bits_per_byte}
        ending = {"run": str(path), "reason": result.reason, "step": result.step, "validation": values, "sample": text}
        if (trace := path / "profile" / "trace.json").exists():
            ending["profile"] = str(trace)
        if page:
            ending["page"] = str(page)
        if watcher:
            ending["doctor"] = watcher.as_json()
        print_json(ending)
        return
    print(f"\n{how_it_ended(result, resume)}")
    error = f" ± {result.final.stderr:.4f}" if math.isfinite(result.final.stderr) else ""
    print(
        f"validation loss {result.final.loss:.4f}{error} nats per token on the full split "
        f"({result.final.tokens:,} tokens), "
        + (
            f"{result.final.bits_per_byte:.4f} bits per byte"
            if result.final.bits_per_byte is not None
            else "no bits per byte: the tokenizer is lossy"
        )
    )
    print(f"\n--- a sample of {path / 'best'} ---\n{text.strip()}\n---\n")
    if page:
        print(f"{page}\n  open it in a browser: it follows {page_prompt!r} through your model, number by number\n")
    print_next(
        {
            shell_command("sample", path, "--prompt", "..."): "let it continue a text",
            shell_command("sample", path, "--explain"): "see every choice it makes",
            shell_command("glass", path, "--prompt", "..."): "see every number that it computes for a text",
            shell_command("plot", path): "draw its curve",
            shell_command("train", "my.txt"): "train on a text of your own",
        }
    )

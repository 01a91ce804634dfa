"""The ``glassgpt`` command."""

import io
import sys

import typer

from glassgpt import __version__
from glassgpt.cli import bench, data, models, plan, runs, sample, tokenizer, train
from glassgpt.errors import GlassError, TrainingStopped

app = typer.Typer(
    name="glassgpt",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(train.quickstart)
app.command(epilog=train.OPTIONS_HELP)(train.train)
app.command()(sample.sample)
app.command()(models.pull)
app.command()(models.export)
app.command()(runs.plot)
app.command()(runs.presets)
app.command()(plan.plan)
app.add_typer(runs.app)
app.add_typer(data.app)
app.add_typer(tokenizer.app)
app.add_typer(bench.app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"glassgpt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", help="Print the version.", is_eager=True, callback=_print_version),
) -> None:
    """A GPT with readable code: from a text file to a language model of your own."""


def main() -> None:
    """Run the command line. It exits with 2 after a user's mistake, and with 1 after a failed run or a system error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # print ? for a character that the terminal cannot show
    try:
        app(prog_name="glassgpt")
    except GlassError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, TrainingStopped) else 2)
    except OSError as error:  # disk full, no permission
        print(f"error: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)

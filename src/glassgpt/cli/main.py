"""The ``glassgpt`` command."""

import os
import sys

import typer

from glassgpt import __version__
from glassgpt.cli import data, inspect, sample, train
from glassgpt.errors import GlassError

app = typer.Typer(
    name="glassgpt",
    help="A GPT you can see through: from a text file to a language model of your own.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(train.quickstart)
app.command(epilog=train.OPTIONS_HELP)(train.train)
app.command()(sample.sample)
app.command()(inspect.plot)
app.command()(inspect.presets)
app.add_typer(inspect.runs)
app.add_typer(data.app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"glassgpt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", help="Print the version.", is_eager=True, callback=_print_version),
) -> None:
    """A GPT you can see through: from a text file to a language model of your own."""


def main() -> None:
    """Run the command line. A user's mistake prints one message and exits with 2."""
    try:
        app(prog_name="glassgpt")
    except GlassError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # for example `glassgpt sample ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)

"""The ``glassgpt`` command."""

import io
import os
import sys
from pathlib import Path
from typing import Any

import typer
import typer.core

from glassgpt import __version__
from glassgpt.cli import bench, data, models, plan, runs, sample, tokenizer, train
from glassgpt.cli.inside import ablate, attention, film, lens, reach, score, trace, why
from glassgpt.cli.printing.output import discard_unread_output
from glassgpt.errors import GlassError, TrainingStopped, is_out_of_memory

#: The verbs under their headings, in the order of `glassgpt --help`.
HEADINGS = {
    "Begin": ["quickstart"],
    "Data": ["data", "tokenizer"],
    "Train": ["train", "plan", "presets", "runs", "plot"],
    "See inside": ["trace", "attention", "lens", "why", "ablate", "reach", "score", "film"],
    "Use": ["sample"],
    "Share": ["pull", "export"],
    "Measure": ["bench"],
}


class _GroupedVerbs(typer.core.TyperGroup):
    """A group whose help lists the verbs under headings."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each heading with its verbs."""
        width = max(map(len, self.commands))
        limit = formatter.width - 6 - width
        for heading, verbs in HEADINGS.items():
            rows = [(f"{verb:<{width}}", self.commands[verb].get_short_help_str(limit)) for verb in verbs]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


app = typer.Typer(
    name="glassgpt",
    cls=_GroupedVerbs,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(train.quickstart)
app.command(epilog=train.OPTIONS_HELP)(train.train)
for verb in (
    trace.trace, attention.attention, film.film,
    lens.lens, why.why, ablate.ablate, reach.reach, score.score,
    sample.sample, models.pull, models.export, runs.plot, runs.presets, plan.plan,
):  # fmt: skip
    app.command()(verb)
for group in (runs.app, data.app, tokenizer.app, bench.app):
    app.add_typer(group)


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
    """Run the command line. It exits with 2 after a user's mistake, and with 1 after a failed run or a system error.

    When the reader of its output has ended (``| head``), it ends without a message, with 0. Training goes on.
    """
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":
        # LC_ALL=C without Python's UTF-8 mode: start again in that mode, once
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"PYTHONUTF8": "1"})
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # `>&-` closes it
    sys.stderr = sys.stderr or sys.stdout
    code, message = 0, ""
    try:
        code, message = _run()
        if message:
            print(message, file=sys.stderr)
        sys.stdout.flush()
    except BrokenPipeError:
        if not discard_unread_output():
            raise
    sys.exit(code)


def _run() -> tuple[int, str]:
    """Run the verb; return the exit code, and the message for the user's mistake or a system error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # print ? for a character that the terminal cannot show
    try:
        app(prog_name="glassgpt")
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # Typer's exit code for that is 1
            raise end.__context__ from None
        return int(end.code or 0), ""
    except GlassError as error:
        return 1 if isinstance(error, TrainingStopped) else 2, f"error: {error}"
    except BrokenPipeError:
        raise
    except OSError as error:  # disk full, no permission
        return 1, f"error: {error.filename or 'the system'}: {error.strerror or error}"
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return 1, "error: memory ran out; choose a smaller model, context or batch, or fewer samples"
    return 0, ""

"""The ``glassgpt`` command."""

import io
import itertools
import os
import sys
from pathlib import Path
from typing import Any

import typer
import typer.core

from glassgpt import __version__
from glassgpt.cli import bench, chat, data, doctor, learn, models, plan, quantize, runs, sample, tokenizer, train
from glassgpt.cli.inside import ablate, attention, film, lens, page, reach, score, trace, why
from glassgpt.cli.printing.output import discard_unread_output, error_message
from glassgpt.cli.tune import verbs as tune
from glassgpt.errors import GlassError, TrainingStopped

#: The verbs and groups of verbs under their headings, in the order of `glassgpt --help`.
VERBS: dict[str, list[Any]] = {
    "Begin": [train.quickstart, learn.learn],
    "Data": [data.app, tokenizer.app],
    "Train": [train.train, tune.app, plan.plan, runs.presets, runs.app, runs.plot],
    "See inside": [
        page.glass, trace.trace, attention.attention, lens.lens, why.why, ablate.ablate, reach.reach, score.score,
        film.film,
    ],
    "Find bugs": [doctor.doctor],
    "Use": [sample.sample, chat.chat],
    "Share": [models.pull, models.export, quantize.quantize],
    "Measure": [bench.app],
}  # fmt: skip


def _name(verb: Any) -> str:
    return str(verb.info.name if isinstance(verb, typer.Typer) else verb.__name__)


class _VerbsUnderHeadings(typer.core.TyperGroup):
    """A group whose help lists the verbs under headings."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each heading with its verbs."""
        width = max(map(len, self.commands))
        limit = formatter.width - 4 - width
        for heading, verbs in VERBS.items():
            names = [_name(verb) for verb in verbs]
            with formatter.section(heading):
                formatter.write_dl([(f"{n:<{width}}", self.commands[n].get_short_help_str(limit)) for n in names])


app = typer.Typer(
    name="glassgpt",
    cls=_VerbsUnderHeadings,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in itertools.chain(*VERBS.values()):
    if isinstance(verb, typer.Typer):
        app.add_typer(verb)
    else:
        app.command(epilog=train.OPTIONS_HELP if verb is train.train else None)(verb)


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
    except BrokenPipeError:
        raise
    except Exception as error:
        if not (message := error_message(error)):
            raise
        return 2 if isinstance(error, GlassError) and not isinstance(error, TrainingStopped) else 1, message
    return 0, ""

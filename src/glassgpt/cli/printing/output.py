"""Print results as JSON or as tables, and progress and messages on standard error."""

import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassgpt.errors import GlassError, is_out_of_memory

if TYPE_CHECKING:
    from rich.progress import Progress

    from glassgpt.planning.run_plan import RunPlan

#: Units of progress, by the label that is reported with it. Under any other label, bytes are counted.
UNITS = {
    "counting pre-tokens": "characters",
    "merging": "merges",
    "loading": "parameters",
    "writing": "tensors",
    "timing": "steps",
    "filming": "checkpoints",
    "ablating": "passes",
    "scoring": "tokens",
    "replaying": "steps",
    "answering": "questions",
    "measuring and quantising": "steps",
    "generating a text to fit INT4 to": "tokens",
    "fitting INT4": "layers",
}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def print_json(value: Any) -> None:
    """Print a value as JSON; infinities and NaN become null."""
    print(json.dumps(_nan_to_none(value), indent=2, ensure_ascii=False, allow_nan=False))


def print_configuration(plan: "RunPlan", json: bool) -> None:
    """Print the configuration of a planned run, as a TOML file with its notes as comments, or as JSON."""
    if json:
        print_json({"config": plan.config.to_dict(), "notes": list(plan.notes)})
        return
    import tomli_w

    for note in plan.notes:
        print(f"# {note}")
    print(tomli_w.dumps(plan.config.to_dict()), end="")


def _nan_to_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_text(text: str = "") -> None:
    """Print a text; in a terminal, break lines that are too long for it between words."""
    columns = _terminal_columns()
    if columns is None or all(_width(line) <= columns for line in text.splitlines()):
        print(text)
    else:
        from rich.text import Text

        _print_in_terminal(Text.from_ansi(text))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Print aligned columns; the columns with an index in ``right`` are right-aligned. The header may be empty.

    In a terminal that is too narrow, cells are wrapped; if not even their words fit, each row becomes a table of its
    own, with the header in its first column.
    """
    lines = [header, *rows] if header else rows
    cell_widths = [[_width(cell) for cell in line] for line in lines]
    widths = [max(column) for column in zip(*cell_widths, strict=True)]
    columns, gaps = _terminal_columns(), 2 * (len(widths) - 1)
    if columns is not None and sum(widths) + gaps > columns:
        words = [
            max(_width(word) for cell in column for word in cell.split() or [""]) for column in zip(*lines, strict=True)
        ]
        if header and len(header) > 2 and sum(words) + gaps > columns:
            for number, row in enumerate(rows):
                print(end="\n" if number else "")
                _print_wrapped(list(zip(header, row, strict=True)), right=())
        else:
            _print_wrapped(lines, right)
        return
    for line, line_widths in zip(lines, cell_widths, strict=True):
        gap = [" " * (width - cell_width) for width, cell_width in zip(widths, line_widths, strict=True)]
        padded = [gap[i] + cell if i in right else cell + gap[i] for i, cell in enumerate(line)]
        print("  ".join(padded).rstrip())


def _print_wrapped(lines: Sequence[Sequence[str]], right: Sequence[int]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for i in range(len(lines[0])):
        table.add_column(justify="right" if i in right else "left", overflow="fold")
    for line in lines:
        table.add_row(*map(Text.from_ansi, line))
    _print_in_terminal(table)


def _print_in_terminal(content: Any) -> None:
    from rich.console import Console

    Console(color_system="256", highlight=False).print(content)


def _terminal_columns() -> int | None:
    """Return the width of the terminal; None if standard output is a pipe or a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _width(cell: str) -> int:
    """Return the columns that a text takes in a terminal: two for wide characters, none for colours."""
    if cell.isascii() and cell.isprintable():
        return len(cell)
    from rich.cells import cell_len

    return cell_len(_COLOUR.sub("", cell))


def printable(text: str, otherwise: str) -> str:
    """Return the text, or ``otherwise`` if standard output cannot encode it."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return otherwise
    return text


def byte_size(size: int) -> str:
    """Write a number of bytes as disks and networks count: ``640 bytes``, ``2.2 GB``."""
    from rich.filesize import decimal

    return decimal(size)


def pluralize(number: int, noun: str) -> str:
    """Write a number with its noun: ``1 token``, ``2,000 tokens``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class ProgressLine:
    """A progress callback: a bar, the amount, the rate and the time left, in a terminal. Its context removes them."""

    def __init__(self) -> None:
        self.label = ""
        self._began, self._shown = time.monotonic(), 0.0
        self._bars: Progress | None = None

    def __call__(self, label: str, done: int = 0, total: int = 0) -> None:
        """Show the progress, ten times a second at most. Work done before the first call does not count as speed."""
        now = time.monotonic()
        if label == self.label and now - self._shown < 0.1:
            return
        is_new, self.label, self._shown = label != self.label, label, now
        if not sys.stderr.isatty():
            return
        if self._bars is None and total and now - self._began < 0.5:
            return  # most of what takes a moment has ended then, and rich need not be imported
        if self._bars is None:
            self._bars, is_new = _progress_bars(), True
            self._bars.start()
        if is_new:
            for earlier in self._bars.task_ids:
                self._bars.remove_task(earlier)
            self._bars.add_task(label, completed=done, total=total or None, amount="")
        (task,) = self._bars.tasks
        self._bars.update(task.id, completed=done, total=total or None)
        unit = f" {UNITS[label]}" if label in UNITS else ""
        write = "{:,.0f}".format if unit else byte_size
        amount = (write(done) if done or total else "") + (f" of {write(total)}" if total else "") + unit
        if task.speed:
            amount += f", {write(round(task.speed))}{unit}/s"
        self._bars.update(task.id, amount=amount, refresh=True)

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars:
            self._bars.stop()


def _progress_bars() -> "Progress":
    """Make rich's bars for standard error; messages are printed above them. No thread: others fork this process."""
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False), progress.BarColumn(20),
        progress.TextColumn("{task.fields[amount]}"), progress.TimeRemainingColumn(),
        console=Console(stderr=True), auto_refresh=False, transient=True, redirect_stdout=False,
        get_time=time.monotonic,
    )  # fmt: skip


def say(message: str) -> None:
    """Print a message to standard error, apart from the results."""
    print(message, file=sys.stderr)


def error_message(error: Exception) -> str:
    """Return the message for a user's mistake or a system error; empty for an error of the program."""
    if isinstance(error, GlassError):
        return f"error: {error}"
    if isinstance(error, OSError):  # disk full, no permission
        return f"error: {error.filename or 'the system'}: {error.strerror or error}"
    if is_out_of_memory(error):
        return "error: memory ran out; choose a smaller model, context or batch, or fewer samples"
    return ""


def discard_unread_output() -> bool:
    """Discard from now on what is printed to a pipe whose reader has ended; return whether there is one."""
    import select

    if not hasattr(select, "poll"):  # Windows
        return False
    found = False
    for stream in filter(None, (sys.__stdout__, sys.__stderr__)):
        poll = select.poll()
        poll.register(stream, 0)  # errors are reported always
        if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
            found = True
    return found

"""Print results as JSON or as tables, and progress and messages on standard error."""

import json
import math
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

#: Units of progress, by the label that is reported with it. Under any other label, bytes are counted.
UNITS = {
    "counting pre-tokens": "characters",
    "merging": "merges",
    "loading": "parameters",
    "writing": "tensors",
    "timing": "steps",
}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def print_json(value: Any) -> None:
    """Print a value as JSON; infinities and NaN become null."""
    print(json.dumps(_nan_to_none(value), indent=2, ensure_ascii=False, allow_nan=False))


def _nan_to_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Print aligned columns; the columns with an index in ``right`` are right-aligned."""
    cell_widths = [[_width(cell) for cell in row] for row in (header, *rows)]
    widths = [max(column) for column in zip(*cell_widths, strict=True)]
    for row, row_widths in zip((header, *rows), cell_widths, strict=True):
        gaps = [" " * (width - cell_width) for width, cell_width in zip(widths, row_widths, strict=True)]
        padded = [gap + cell if i in right else cell + gap for i, (cell, gap) in enumerate(zip(row, gaps, strict=True))]
        print("  ".join(padded).rstrip())


def _width(cell: str) -> int:
    """Return the columns that a text takes in a terminal: two for wide characters, none for colours."""
    if cell.isascii() and cell.isprintable():
        return len(cell)
    from rich.cells import cell_len

    return cell_len(_COLOUR.sub("", cell))


def pluralize(number: int, noun: str) -> str:
    """Write a number with its noun: ``1 token``, ``2,000 tokens``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class ProgressLine:
    """A progress callback: percentage, rate and time left on one line of the terminal. Its context clears the line."""

    def __init__(self) -> None:
        self.label = ""
        self._first_done, self._first_time, self._last_time = 0, 0.0, 0.0

    def __call__(self, label: str, done: int, total: int) -> None:
        """Show the progress, ten times a second at most. Work done before the first call does not count as speed."""
        now = time.monotonic()
        if label != self.label:
            self.label, self._first_done, self._first_time, self._last_time = label, done, now, now - 1
        if now - self._last_time < 0.1:
            return
        self._last_time = now
        from glassgpt.assets.asset import format_bytes

        unit, amount = "", format_bytes
        if label in UNITS:
            unit, amount = f" {UNITS[label]}", "{:,.0f}".format
        line = f"{label}: {amount(done)}" + (f" of {amount(total)}{unit}, {done / total:.0%}" if total else unit)
        seconds = now - self._first_time
        if seconds >= 0.5 and done > self._first_done:
            rate = (done - self._first_done) / seconds
            line += f", {amount(rate)}{unit}/s" + (f", {(total - done) / rate:,.0f} s left" if total else "")
        show_line(line)

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *exception: object) -> None:
        show_line("")


def show_line(text: str) -> None:
    """Replace the line that this function last printed on the terminal; print nothing if stderr is not a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def say(message: str) -> None:
    """Print a message to standard error, apart from the results."""
    print(message, file=sys.stderr)

"""What several verbs share: options, arguments, tables, JSON."""

import json
import math
import os
import re
import stat
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from glassgpt.config import ConfigOverrides, build, parse_overrides, presets, read_toml
from glassgpt.errors import ConfigError
from glassgpt.files import path_exists

SOURCE_HELP = "A run, a model folder, a .gguf file, an asset by its name, or a model on the hub (gpt2, ORG/NAME)."
JSON_OPTION = typer.Option(False, "--json", help="Print JSON, for other programs.")
RUNS_OPTION = typer.Option(Path("runs"), "--runs-dir", help="Folder that holds the runs.")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, str | None, list[ConfigOverrides]]:
    """Sort ``[TEXT] [FILE.toml] [preset=NAME] [key=value ...]`` into the preset, the source and the layers.

    Raises:
        ConfigError: with every problem found.
    """
    preset: str | None = None
    sources: list[str] = []
    layers: list[ConfigOverrides] = []
    last: dict[str, dict[str, Any]] = {}  # what stands on the command line wins over files, wherever it stands
    problems: list[str] = []
    for argument in arguments:
        try:
            if argument.startswith("preset="):
                preset = argument.removeprefix("preset=")
                if preset != "auto":
                    presets.get(preset)
            elif "=" in argument and not path_exists(argument):
                for section, values in parse_overrides([argument]).items():
                    last.setdefault(section, {}).update(values)
            elif argument.endswith(".toml"):
                found, layer = read_toml(Path(argument))
                preset = preset or found
                layers.append(layer)
            else:
                sources.append(argument)
        except ConfigError as error:
            problems += error.problems
    if len(sources) > 1:
        problems.append(f"one text at a time, got {', '.join(sources)}; settings are written key=value")
    layers.append(last)
    if sources:
        layers.append({"data": {"source": sources[0]}})
    if problems:  # say what is wrong with the rest, too
        base: ConfigOverrides = presets.PRESETS[preset].layer if preset in presets.PRESETS else {}
        try:
            build("", [base, *layers])
        except ConfigError as error:
            problems += error.problems
        raise ConfigError(problems)
    return preset, sources[0] if sources else None, layers


def print_json(value: Any) -> None:
    """Print a value as JSON; what is not a finite number becomes null."""
    print(json.dumps(_finite(value), indent=2, ensure_ascii=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Print aligned columns; those numbered in ``right`` are right-aligned."""
    taken = [[_width(cell) for cell in row] for row in (header, *rows)]
    widths = [max(column) for column in zip(*taken, strict=True)]
    for row, filled in zip((header, *rows), taken, strict=True):
        gaps = [" " * (width - cells) for width, cells in zip(widths, filled, strict=True)]
        padded = [gap + cell if i in right else cell + gap for i, (cell, gap) in enumerate(zip(row, gaps, strict=True))]
        print("  ".join(padded).rstrip())


def _width(cell: str) -> int:
    """Columns that a terminal takes for it: two for wide characters, none for colours."""
    if cell.isascii() and cell.isprintable():
        return len(cell)
    from rich.cells import cell_len

    return cell_len(_COLOUR.sub("", cell))


def counted(number: int, noun: str) -> str:
    """``1 token``, ``2,000 tokens``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def something_piped_in() -> bool:
    """Whether standard input is a pipe or a file; a terminal, or nothing at all, is not."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


class ProgressLine:
    """Tells on one line of the terminal how far something is; silent where standard error is no terminal.

    Args:
        units: what is counted, by what is being done.
    """

    def __init__(self, units: Mapping[str, str]):
        self.units = units
        self._doing, self._began, self._shown = "", 0.0, 0.0

    def __call__(self, doing: str, done: int, total: int) -> None:
        """Show it, ten times a second at most, with the rate and the time left."""
        now = time.monotonic()
        if doing != self._doing:
            self._doing, self._began, self._shown = doing, now, now
        if not sys.stderr.isatty() or now - self._shown < 0.1 or not done:
            return
        self._shown = now
        rate = done / (now - self._began)
        line = f"{doing}: {done / total:.0%}, " if total else f"{doing}: {done:,}, "
        line += f"{rate:,.0f} {self.units.get(doing, 'steps')}/s"
        self.line(f"{line}, {(total - done) / rate:.0f} s left" if total else line)

    def line(self, text: str) -> None:
        """Show any text instead."""
        show_line(text)

    def clear(self) -> None:
        """Leave the line empty."""
        show_line("")


def show_line(text: str) -> None:
    """Put a text on the one line of a terminal that the next one overwrites; silent where there is none."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def say(message: str) -> None:
    """Print to standard error, where it does not mix with results."""
    print(message, file=sys.stderr)

"""What several verbs share: options, arguments, tables, JSON."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from glassgpt.config import Layer, parse_overrides, read_toml
from glassgpt.errors import ConfigError

JSON_OPTION = typer.Option(False, "--json", help="Print JSON, for other programs.")
RUNS_OPTION = typer.Option(Path("runs"), "--runs-dir", help="Folder that holds the runs.")


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, str | None, list[Layer]]:
    """Sort ``[TEXT] [FILE.toml] [preset=NAME] [key=value ...]`` into the preset, the source and the layers.

    Raises:
        ConfigError: with every problem found.
    """
    preset: str | None = None
    sources: list[str] = []
    overrides: list[str] = []
    layers: list[Layer] = []
    for argument in arguments:
        if argument.startswith("preset="):
            preset = argument.removeprefix("preset=")
        elif "=" in argument and not Path(argument).exists():
            overrides.append(argument)
        elif argument.endswith(".toml"):
            found, layer = read_toml(Path(argument))
            preset = preset or found
            layers.append(layer)
        else:
            sources.append(argument)
    if len(sources) > 1:
        raise ConfigError(f"one text at a time, got {', '.join(sources)}; settings are written key=value")
    layers.append(parse_overrides(overrides))
    if sources:
        layers.append({"data": {"source": sources[0]}})
    return preset, sources[0] if sources else None, layers


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Print aligned columns; those numbered in ``right`` are right-aligned."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def say(message: str) -> None:
    """Print to standard error, where it does not mix with results."""
    print(message, file=sys.stderr)

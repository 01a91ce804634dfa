"""What several verbs share: options, arguments, tables, JSON."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from glassgpt import presets
from glassgpt.config import Layer, build, parse_overrides, read_toml
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
    layers: list[Layer] = []
    last: dict[str, dict[str, Any]] = {}  # what stands on the command line wins over files, wherever it stands
    problems: list[str] = []
    for argument in arguments:
        try:
            if argument.startswith("preset="):
                preset = argument.removeprefix("preset=")
                if preset != "auto":
                    presets.get(preset)
            elif "=" in argument and not _is_file(argument):
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
        base: Layer = presets.PRESETS[preset].layer if preset in presets.PRESETS else {}
        try:
            build("", [base, *layers])
        except ConfigError as error:
            problems += error.problems
        raise ConfigError(problems)
    return preset, sources[0] if sources else None, layers


def _is_file(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # too long for a name, for example
        return False


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
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def say(message: str) -> None:
    """Print to standard error, where it does not mix with results."""
    print(message, file=sys.stderr)

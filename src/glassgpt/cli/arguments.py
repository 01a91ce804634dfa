"""Options that several verbs share, and the arguments of verbs that take a configuration."""

import os
import shlex
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from glassgpt.config import ConfigOverrides, build, describe_options, parse_overrides, presets, read_toml
from glassgpt.errors import ConfigError
from glassgpt.files import path_exists, why_not_writable

SOURCE_HELP = "A run, a model folder, a .gguf file, an asset by its name, or a model on the hub (gpt2, ORG/NAME)."
PATTERNS_HELP = "gpt2, llama3, qwen2, o200k or a regular expression"
JSON_OPTION = typer.Option(False, "--json", help="Print JSON, for other programs.")
RUNS_OPTION = typer.Option(Path("runs"), "--runs-dir", help="Folder that holds the runs.")
MEASURE_OPTION = typer.Option(False, "--measure", help="Measure the speed anew, even if it was measured within a day.")
#: Endings of the pictures that can be written.
PICTURES = (".png", ".svg")


def verb_group(name: str, help: str) -> typer.Typer:
    """Create a group of verbs, as ``glassgpt data``."""
    return typer.Typer(name=name, help=help, no_args_is_help=True, rich_markup_mode=None)


def options_help(
    sections: Sequence[str], defaults: ConfigOverrides | None = None, leave_out: Sequence[str] = ()
) -> str:
    """List the settings of these sections, for the end of a verb's help; ``defaults`` are those of the verb."""
    options = [option for option in describe_options(sections, defaults) if option.key not in leave_out]
    rows = [(option.key, option.type, option.default, option.help) for option in options]
    width = max(len(row[0]) for row in rows)
    lines = [f"  {key:<{width}}  {help} [{kind}; default {default or '(empty)'}]" for key, kind, default, help in rows]
    example = rows[0][0].partition(".")[2]
    return f"\b\nSettings, as key=value (a bare name is enough: {example}=8):\n" + "\n".join(lines)


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, str | None, list[ConfigOverrides]]:
    """Split ``[TEXT] [FILE.toml] [preset=NAME] [key=value ...]`` into the preset, the text and the overrides.

    Settings of the command line win over those of files, in any order.

    Raises:
        ConfigError: with every problem found.
    """
    preset: str | None = None
    sources: list[str] = []
    overrides: list[ConfigOverrides] = []
    command_line: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for argument in arguments:
        try:
            if argument.startswith("preset="):
                preset = argument.removeprefix("preset=")
                if preset != "auto":
                    presets.get(preset)
            elif "=" in argument and not path_exists(argument):
                for section, values in parse_overrides([argument]).items():
                    command_line.setdefault(section, {}).update(values)
            elif argument.endswith(".toml"):
                file_preset, file_overrides = read_toml(Path(argument))
                preset = preset or file_preset
                overrides.append(file_overrides)
            else:
                sources.append(argument)
        except ConfigError as error:
            problems += error.problems
    if sources and "source" in command_line.get("data", {}):
        sources.append(command_line["data"]["source"])
    if len(sources) > 1:
        problems.append(f"one text at a time, got {', '.join(sources)}; settings are written key=value")
    overrides.append(command_line)
    if sources:
        overrides.append({"data": {"source": sources[0]}})
    if problems:  # add those of the settings that could be read
        base: ConfigOverrides = presets.PRESETS[preset].layer if preset in presets.PRESETS else {}
        try:
            build("", [base, *overrides])
        except ConfigError as error:
            problems += error.problems
        raise ConfigError(problems)
    return preset, sources[0] if sources else None, overrides


def merged(layers: Sequence[ConfigOverrides]) -> dict[str, dict[str, Any]]:
    """Merge overrides into one; later ones win."""
    changes: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for section, values in layer.items():
            changes.setdefault(section, {}).update(values)
    return changes


def check_out(
    out: Path | None, option: str = "--out", *, folder: bool = False, suffix: str | tuple[str, ...] = ""
) -> None:
    """Check, before anything takes long, that the file or folder that an option names can be written.

    The folder itself is made later; its parent, or that of a file, has to exist.

    Raises:
        ConfigError: if it cannot, a folder is a file or the other way round, or the name does not end in ``suffix``.
    """
    if out is None:
        return
    problem = why_not_writable(out)
    if not problem and out.exists() and out.is_dir() != folder:
        problem = "it is a file; name a folder" if out.is_file() else "it is a folder; name a file"
    if not problem and not out.name.lower().endswith(suffix):
        endings = (suffix,) if isinstance(suffix, str) else suffix
        problem = f"the file name should end in {' or '.join(endings)}"
    if problem:
        raise ConfigError(f"{option} {shlex.quote(str(out))} cannot be written: {problem}")


def decode_argument(option: str, text: str) -> str:
    """Return the text of an option; its bytes are UTF-8.

    Raises:
        ConfigError: if they are not.
    """
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError as error:
        raise ConfigError(f"{option} is not UTF-8: {error}") from None


def stdin_is_piped() -> bool:
    """Return whether standard input is a pipe or a file, not a terminal."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)

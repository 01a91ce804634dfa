"""Sections of the configuration: dataclasses whose fields have a help text and bounds, checked on construction."""

import dataclasses
import difflib
import functools
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from glassgpt.errors import ConfigError


def option(
    default: Any,
    help: str,
    *,
    min_value: float | None = None,
    max_value: float | None = None,
    check: Callable[[Any], object] | None = None,
) -> Any:
    """A dataclass field with its help text, inclusive bounds, and a check that raises ValueError for a bad value."""
    metadata = {"help": help, "min_value": min_value, "max_value": max_value, "check": check}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Section:
    """A part of the configuration; checks the type and bounds of its fields on construction."""

    section: ClassVar[str]

    def __post_init__(self) -> None:
        problems = field_problems(self)
        if not problems:
            self._fill_derived_fields()
            problems = self._cross_field_errors()
        if problems:
            raise ConfigError(problems)

    def _fill_derived_fields(self) -> None:
        """Set the fields that are derived from others; called when every field is valid by itself."""

    def _cross_field_errors(self) -> list[str]:
        """Problems that involve more than one field."""
        return []


def annotation(part: type, name: str) -> Any:
    """The type of a field of a section."""
    return _annotations(part)[name]


@functools.cache
def _annotations(part: type) -> dict[str, Any]:
    return typing.get_type_hints(part)


def field_problems(part: Section) -> list[str]:
    """Check each field's type, choices and bounds. Whole floats and ints are not confused with bools."""
    problems = []
    for field in dataclasses.fields(part):
        value, kind = getattr(part, field.name), annotation(type(part), field.name)
        where = f"{part.section}.{field.name}"
        choices = typing.get_args(kind)
        if choices:
            if value not in choices:
                near = difflib.get_close_matches(str(value), choices, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                problems.append(f"{where}: {value!r} is not one of {', '.join(choices)}{hint}")
            continue
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            problems.append(f"{where}: expected {kind.__name__}, got {value!r}")
            continue
        min_value, max_value = field.metadata["min_value"], field.metadata["max_value"]
        if isinstance(value, int) and abs(value) >= 2**63:
            problems.append(f"{where}: a number of {len(str(abs(value)))} digits does not fit into 64 bits")
        elif kind in (int, float) and not math.isfinite(value):
            problems.append(f"{where}: {value} is not a finite number")
        elif min_value is not None and value < min_value:
            problems.append(f"{where}: {value} is too small; the minimum is {min_value:g}")
        elif max_value is not None and value > max_value:
            problems.append(f"{where}: {value} is too large; the maximum is {max_value:g}")
        elif field.metadata["check"] is not None:
            try:
                field.metadata["check"](value)
            except ValueError as error:
                problems.append(f"{where}: {error}")
    return problems

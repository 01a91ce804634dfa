"""Bars of text, for tables."""

import sys


def bar(value: float, largest: float, width: int) -> str:
    """Return a bar for a value from 0 to ``largest``, of at most ``width`` characters."""
    return _block() * (round(width * abs(value) / largest) if largest else 0)


def two_sided_bar(value: float, largest: float, width: int) -> str:
    """Return a bar to the left of a line for a negative value, to the right for a positive one, each of ``width``."""
    drawn = bar(value, largest, width)
    return f"{drawn if value < 0 else '':>{width}}|{drawn if value > 0 else ''}"


def _block() -> str:
    """Return ``█``, or ``#`` if standard output cannot encode that."""
    try:
        "█".encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return "#"
    return "█"

"""Bars of text, for tables."""

from glassgpt.cli.printing.output import printable


def bar(value: float, largest: float, width: int) -> str:
    """Return a bar for a value from 0 to ``largest``, of at most ``width`` characters."""
    return printable("█", "#") * (round(width * abs(value) / largest) if largest else 0)


def two_sided_bar(value: float, largest: float, width: int) -> str:
    """Return a bar to the left of a line for a negative value, to the right for a positive one, each of ``width``."""
    drawn = bar(value, largest, width)
    return f"{drawn if value < 0 else '':>{width}}|{drawn if value > 0 else ''}"

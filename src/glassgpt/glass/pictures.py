"""What the pictures of this room share: figures, colours, token labels, and writing them as PNG or SVG."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassgpt.errors import CheckpointError, MissingExtraError
from glassgpt.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Characters of a token on an axis, at most.
_MAX_LABEL = 14


def require_matplotlib() -> None:
    """Raise MissingExtraError, with the command that installs it, if matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MissingExtraError("matplotlib", "plot", "drawing") from None


def new_figure(width: float, height: float) -> "Figure":
    """Create a figure of that size in inches, for a function that draws.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", target: Path) -> None:
    """Write a figure as PNG, or as SVG if the name says so.

    Raises:
        CheckpointError: if the file cannot be written.
    """
    try:
        with atomic_write(target) as temporary:
            figure.savefig(temporary, dpi=120, format=target.suffix.lower().removeprefix("."))
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error.strerror}") from None


def label(token: str) -> str:
    """Return a token as an axis shows it: shortened, spaces visible, and ``U+1F600`` for what the font lacks."""
    drawn = drawable(token.replace(" ", "\u2423"))
    drawn = drawn if len(drawn) <= _MAX_LABEL else drawn[: _MAX_LABEL - 1] + "…"
    return drawn.replace("$", r"\$")  # not a formula


def drawable(text: str) -> str:
    """Write ``U+1F600`` for what the font lacks."""
    return "".join(c if ord(c) in _drawable() else f"U+{ord(c):X}" for c in text)


@functools.cache
def _drawable() -> frozenset[int]:
    """Code points of the font that matplotlib carries with it."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def label_tokens(axes: Any, *, rows: Sequence[str] = (), columns: Sequence[str] = (), size: float = 8) -> None:
    """Write tokens along the left and the top of a picture, one per row and column."""
    if columns:
        axes.set_xticks(range(len(columns)), [label(token) for token in columns], rotation=90, fontsize=size)
        axes.xaxis.tick_top()
    if rows:
        axes.set_yticks(range(len(rows)), [label(token) for token in rows], fontsize=size)
    axes.tick_params(length=0)

"""Print a text with the surprise at each token: as colours, or as marks under the text; and its worst tokens."""

from bisect import bisect_right
from typing import TYPE_CHECKING

from rich.cells import cell_len

from glassgpt.cli.printing.output import pluralize, print_table, print_text
from glassgpt.cli.printing.token_tables import has_colours, paint
from glassgpt.glass.inside.prompt import token_text
from glassgpt.glass.inside.score import LEVELS, Score
from glassgpt.glass.tokens import escaped, quoted

if TYPE_CHECKING:
    from glassgpt.tokenizer import Tokenizer

#: Backgrounds of the 256 colours and marks, by level of surprise; a token below the first level has neither.
_COLOURS, _MARKS = (230, 222, 215, 203), ".-=#"
_LINE = 100  # columns of a text with marks
_CONTEXT = 32  # characters before one of the worst tokens


def print_surprise(score: Score, tokenizer: "Tokenizer", shown: int) -> None:
    """Print the first ``shown`` tokens (0: all) with their surprise, after a legend."""
    contents = [escaped(tokenizer.token_bytes(i), line_breaks=True) for i in score.ids[: shown or None]]
    levels = [0, *(bisect_right(LEVELS, bits) for bits in score.bits[1 : len(contents)].tolist())]
    if has_colours():
        _print_coloured(contents, levels)
    else:
        _print_marked(contents, levels)
    if len(contents) < len(score.ids):
        print_text(f"... and {pluralize(len(score.ids) - len(contents), 'more token')} (--tokens 0 shows all)")


def _print_coloured(contents: list[str], levels: list[int]) -> None:
    names = [f" {low} to {high} " for low, high in zip(LEVELS, [*LEVELS[1:], 0], strict=True)]
    names[-1] = f" {LEVELS[-1]} or more "
    legend = "".join(paint(name, colour) for name, colour in zip(names, _COLOURS, strict=True))
    print_text(f"surprise in bits: {legend}\n")
    places = zip(contents, levels, strict=True)
    painted = "".join(paint(content, _COLOURS[level - 1]) if level else content for content, level in places)
    print_text(painted.rstrip("\n"))


def _print_marked(contents: list[str], levels: list[int]) -> None:
    """Print each line of text above a line of marks; a line with nothing marked has none."""
    marks = ", ".join(f"{mark} {level} bits or more" for level, mark in zip(LEVELS, _MARKS, strict=True))
    print_text(f"surprise, marked under the text: {marks}\n")
    line, under = "", ""
    for content, level in zip(contents, levels, strict=True):
        mark = _MARKS[level - 1] if level else " "
        for part in content.splitlines(keepends=True):
            text = part.removesuffix("\n")
            if line and cell_len(line + text) > _LINE:
                _print_pair(line, under)
                line, under = "", ""
            line, under = line + text, under + mark * cell_len(text)
            if text != part:
                _print_pair(line, under)
                line, under = "", ""
    if line:
        _print_pair(line, under)


def _print_pair(line: str, under: str) -> None:
    print(line)
    if under.strip():
        print(under.rstrip())


def print_worst(score: Score, tokenizer: "Tokenizer", count: int) -> None:
    """Print the most surprising tokens, with what was expected and the text before."""
    rows = []
    for position in score.worst(count):
        before = "".join(score.tokens[max(0, position - _CONTEXT) : position])[-_CONTEXT:]
        expected = f"{_named(tokenizer, int(score.expected[position]))} {score.expected_probability[position]:.1%}"
        row = [f"{position:,}", _named(tokenizer, score.ids[position]), f"{score.bits[position]:.2f}"]
        rows.append([*row, f"{score.ranks[position]:,}", expected, before])
    print_table(["position", "token", "bits", "rank", "expected", "after"], rows, right=(0, 2, 3))


def _named(tokenizer: "Tokenizer", i: int) -> str:
    """Write a token in quotes; ``<id 7>`` where the vocabulary has no token of that id."""
    shown = token_text(tokenizer, i)
    return shown if shown == f"<id {i}>" else quoted(tokenizer.token_bytes(i))

"""WikiText as a text of marked articles: the publishers' file has nothing between them but the next title."""

import re
from collections.abc import Iterable, Iterator

#: The line between two articles.
SEPARATOR = b"<|endoftext|>"
_TITLE = re.compile(rb" = (?!= ).+ = \r?\n")  # one pair of =; sections have two or more


def divided(lines: Iterable[bytes]) -> Iterator[bytes]:
    r"""WikiText's lines as they are, with a line ``<|endoftext|>`` before each article's title but the first.

    A title has one pair of ``=`` and stands between blank lines; without the blank lines, two lines in the middle of
    formulas of the test file would count as titles. So divided, the validation and test files have 60 articles each,
    as their paper says (Merity et al. 2016, arXiv:1609.07843, table 1).

    >>> text = [b" \n", b" = A = \n", b" \n", b" x \n", b" \n", b" = = B = = \n", b" \n", b" = C = \n", b" \n"]
    >>> b"".join(divided(text))
    b' \n = A = \n \n x \n \n = = B = = \n \n<|endoftext|>\n = C = \n \n'
    """
    held, before_is_blank, begun = b"", True, False  # held: a line that is a title if the next one is blank
    for line in lines:
        blank = not line.strip()
        if held:
            if blank and begun:
                yield SEPARATOR + b"\n"
            begun = True
            yield held
            held = b""
        if before_is_blank and _TITLE.fullmatch(line):
            held = line
        else:
            begun = begun or not blank
            yield line
        before_is_blank = blank
    if held:
        yield held

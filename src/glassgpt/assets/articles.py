"""Divide WikiText into articles. In the publisher's file nothing but the next title separates them."""

import re
from collections.abc import Iterable, Iterator

#: The line between two articles.
SEPARATOR = b"<|endoftext|>"
_TITLE = re.compile(rb" = (?!= ).+ = \r?\n")  # one pair of =; sections have two or more


def separate_articles(lines: Iterable[bytes]) -> Iterator[bytes]:
    r"""Insert a line ``<|endoftext|>`` before the title of each of WikiText's articles except the first.

    A title has one pair of ``=`` and is between blank lines; without the second condition, two lines in formulas of
    the test file would count as titles. With it, the validation and test files have 60 articles each, as in their
    paper (Merity et al. 2016, arXiv:1609.07843, table 1).

    >>> text = [b" \n", b" = A = \n", b" \n", b" x \n", b" \n", b" = = B = = \n", b" \n", b" = C = \n", b" \n"]
    >>> b"".join(separate_articles(text))
    b' \n = A = \n \n x \n \n = = B = = \n \n<|endoftext|>\n = C = \n \n'
    """
    held, after_blank, has_text = b"", True, False  # held: a line that is a title if the next line is blank
    for line in lines:
        blank = not line.strip()
        if held:
            if blank and has_text:
                yield SEPARATOR + b"\n"
            has_text = True
            yield held
            held = b""
        if after_blank and _TITLE.fullmatch(line):
            held = line
        else:
            has_text = has_text or not blank
            yield line
        after_blank = blank
    if held:
        yield held

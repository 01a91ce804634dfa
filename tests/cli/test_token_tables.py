"""Tokens as printed text: boundaries and escapes are unambiguous."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from glassgpt.cli.printing.token_tables import separated


def read_back(shown: str) -> list[bytes]:
    """Parse the output of `separated`."""
    found = [b""]
    for raw, escape, mark, plain in re.findall(
        r"<((?:[0-9A-F]{2} ?)+)>|(\\(?:x..|u.{4}|U.{8}|.))|(│)|([^│\\])", shown, re.DOTALL
    ):
        if mark:
            found.append(b"")
        elif raw:
            found[-1] += bytes.fromhex(raw)
        elif escape in ("\\│", "\\<"):
            found[-1] += escape[1:].encode("utf-8")
        elif escape:
            found[-1] += escape.encode("ascii").decode("unicode_escape").encode("utf-8")
        else:
            found[-1] += plain.encode("utf-8")
    return found


LIKE_MARKS = st.sampled_from(
    ["│", "|", "\\", "<E4>", "<E4 BD>", "\\<", "\\n", "\n", "\\x41", "<", "你", "\x1b[31m", "\xa0"]
)
CONTENTS = st.one_of(st.binary(max_size=4), st.lists(LIKE_MARKS).map(lambda parts: "".join(parts).encode("utf-8")))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(contents=st.lists(CONTENTS, min_size=1, max_size=6))
def test_separators_and_escapes_cannot_be_confused_with_the_text(contents: list[bytes]) -> None:
    shown = separated(contents)
    assert shown.isprintable()
    assert read_back(shown) == contents
    assert separated(contents, line_breaks=True).replace("\\n\n", "\\n") == shown

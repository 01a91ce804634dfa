"""Tokens to text as they come: characters, end token, stop strings."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glassgpt.errors import ConfigError
from glassgpt.inference.stream import TextStreamer


class Bytes:
    """A byte is a token; 256 is the end token."""

    def token_bytes(self, i: int) -> bytes:
        return bytes([i])

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


class Pieces(Bytes):
    """A token is any of the given pieces."""

    def __init__(self, *pieces: bytes):
        self.pieces = pieces

    def token_bytes(self, i: int) -> bytes:
        return self.pieces[i]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=12))
def test_a_character_comes_whole_with_its_last_byte(text: str) -> None:
    stream = TextStreamer(Bytes())
    for character in text:
        pieces = [stream.push(byte) for byte in character.encode("utf-8")]
        assert pieces == [""] * (len(pieces) - 1) + [character]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=24))
def test_any_bytes_give_a_growing_part_of_their_text(data: bytes) -> None:
    """A model may generate bytes that are not valid UTF-8; the text after them is not affected."""
    stream = TextStreamer(Bytes())
    shown = ""
    for i, byte in enumerate(data, 1):
        shown += stream.push(byte)
        whole = Bytes().decode(list(data[:i]))
        assert whole.startswith(shown)
        assert set(whole[len(shown) :]) <= {"\ufffd"}
    assert shown + "".join(stream.push(byte) for byte in b"end") == data.decode("utf-8", errors="replace") + "end"


def test_tokens_of_several_characters_and_parts_of_them() -> None:
    u, euro = "ü".encode(), "\N{EURO SIGN}".encode()
    stream = TextStreamer(Pieces(b"Gr", u[:1], u[1:] + b"ns", b"pa" + euro[:-1], euro[-1:] + b"!"))
    assert [stream.push(i) for i in (0, 1, 2, 3, 4, 0)] == ["Gr", "", "üns", "pa", "€!", "Gr"]


# --- the end token and stop strings


def cut_at_first_stop(text: str, stop: list[str]) -> tuple[str, bool]:
    """Brute force: the stop string that is complete first; of several, the longest."""
    for end in range(1, len(text) + 1):
        found = [s for s in stop if text[:end].endswith(s)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


few_letters = st.text("abc\u00fc", max_size=30)
stops = st.lists(st.text("abc\u00fc", min_size=1, max_size=4), max_size=4)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(few_letters, stops, st.lists(st.integers(1, 5), min_size=40, max_size=40))
def test_text_is_cut_at_the_first_stop_string_and_never_taken_back(
    text: str, stop: list[str], sizes: list[int]
) -> None:
    """However the bytes are cut into tokens; and what is held back could still become a stop string."""
    data, pieces = text.encode(), []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    pieces = [piece for piece in [*pieces, data] if piece]
    stream, shown = TextStreamer(Pieces(*pieces), stop), ""
    for i in range(len(pieces)):
        shown += stream.push(i)
        so_far = b"".join(pieces[: i + 1]).decode("utf-8", errors="ignore")
        expected, stopped = cut_at_first_stop(so_far, stop)
        assert expected.startswith(shown)
        assert shown == stream.text
        assert stream.stopped == stopped
        held = expected[len(shown) :]
        assert not (stopped and held), "all of the text is final"
        assert not held or any(s.startswith(held) for s in stop)
    assert shown + stream.finish() == stream.text == cut_at_first_stop(text, stop)[0]
    assert stream.finish() == ""


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 255), max_size=20), stops)
def test_the_end_token_is_not_text_and_releases_what_is_held_back(ids: list[int], stop: list[str]) -> None:
    stream = TextStreamer(Bytes(), stop, end_token_ids=[300, 256])
    shown = "".join(stream.push(token) for token in [*ids, 256])
    assert shown == stream.text == cut_at_first_stop(Bytes().decode(ids), stop)[0]
    assert stream.tokens == ids
    assert stream.finish() == ""


def test_one_stop_string_may_be_given_as_a_string() -> None:
    stream = TextStreamer(Bytes(), "bc")
    assert [stream.push(byte) for byte in b"abca"] == ["a", "", "", ""]
    assert stream.stopped


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ConfigError, match="stop: an empty string"):
        TextStreamer(Bytes(), ["a", ""])

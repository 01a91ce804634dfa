"""Examination of tokens; its results are also tested through `glassgpt tokenizer show`."""

from glassgpt.glass.tokens import partial_characters


def test_a_character_in_parts_is_named_wherever_it_is_cut() -> None:
    stream = "a你b🦜".encode()
    notes = {
        (1, 2): "byte 1 of 3 of '你'", (1, 3): "bytes 1-2 of 3 of '你'", (2, 4): "bytes 2-3 of 3 of '你'",
        (3, 5): "byte 3 of 3 of '你'", (2, 3): "byte 2 of 3 of '你'", (0, 2): "byte 1 of 3 of '你'",
        (3, 7): "byte 3 of 3 of '你', bytes 1-2 of 4 of '🦜'", (6, 8): "bytes 2-3 of 4 of '🦜'",
    }  # fmt: skip
    for (begin, end), note in notes.items():
        assert partial_characters(stream, begin, end) == note
    assert partial_characters(b"a\xff", 1, 2) == "not UTF-8"

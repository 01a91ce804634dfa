"""Hashed words equal those of plain Python, however the text is split."""

import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wording import plain_words

from glassgpt.data.audit import words
from glassgpt.data.audit.words import blocks, runs

AWKWARD = (
    "aAéÉ\u0301ßſΣσςİıﬁ'’‘-_.,—¼²٣中文々ひカｶ한\u1100\u1161का\u093f\u0301👍🏽\u200d🦊𐍈𝔘"
    "\U00020000\U0010ffff\ud800 \n\t\u00ad\u200b\ufeff"
)
ANY_TEXT = st.text(st.one_of(st.sampled_from(AWKWARD), st.characters()), max_size=60)


def all_words(text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Their hashes; start and end of each."""
    hashes, spans = words.words(text)
    return hashes.tolist(), list(zip(*spans.tolist(), strict=True))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(ANY_TEXT)
@example("Don’t -- DON'T, e\u0301te\u0301; ÉTÉ été 中文字 日本のカナ")
def test_the_words_are_those_of_plain_python(text: str) -> None:
    hashes, places = all_words(text)
    names: dict[int, str] = {}
    for value, word, (start, end) in zip(hashes, plain_words(text), places, strict=True):
        assert names.setdefault(value, word) == word  # one word to a hash
        assert plain_words(text[start:end]) == [word]
    assert len(set(names.values())) == len(names)  # and one hash to a word


def test_every_character_is_what_plain_python_says() -> None:
    """Alone, and between letters: whether it divides the word, joins it, or is not there."""
    codes = {*range(0x3500), *range(0xF8FF, 0x11000), *range(0x1AF00, 0x1B200), *range(0, 0x42000, 11)}
    for part in np.array_split(sorted(codes), 10):
        text = " ".join(f"{chr(code)} x{chr(code)}y" for code in part.tolist())
        hashes, places = all_words(text)
        assert [plain_words(text[start:end]) for start, end in places] == [[word] for word in plain_words(text)]
        assert len(set(hashes)) == len(set(plain_words(text)))


def test_what_counts_as_the_same_word() -> None:
    assert plain_words("Don’t stop--DON'T; ÉTÉ e\u0301te\u0301") == ["dont", "stop", "dont", "ete", "ete"]
    assert plain_words("日本のカナ abc中d") == ["日", "本", "の", "カ", "ナ", "abc", "中", "d"]
    hashes, _ = all_words("Don’t stop--DON'T; ÉTÉ e\u0301te\u0301 the theth e")
    assert hashes[0] == hashes[2] and hashes[3] == hashes[4]
    assert len(set(hashes)) == 6


def test_blocks_hold_every_run_of_words_once_however_a_text_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(1)
    for size, block in ((2, 30), (5, 100), (13, 300)):
        monkeypatch.setattr(words, "BLOCK", block)
        text = "".join(generator.choices(["a ", "bc ", "d, ", "\u4e2d", "ab\n"], k=900))
        cuts = sorted(generator.choices(range(len(text)), k=40))
        parts = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        found = list(blocks(text, size))
        assert list(blocks(parts, size)) == found and len(found) > 3
        assert all(text[offset:].startswith(content) and len(content) <= 2 * block for content, offset in found)
        every = [value for content, _ in found for value in runs(words.words(content)[0], size).tolist()]
        assert every == runs(words.words(text)[0], size).tolist()
    assert list(blocks("", 5)) == [("", 0)]
    text = "x" * 5000  # a word without end is divided
    assert all(len(content) <= 600 for content, _ in blocks(text, 13))


def test_hashes_of_runs_tell_runs_apart() -> None:
    """All runs of 1 to 4 of three words: 120 of them, in any order and with any repetition."""
    text = " ".join(random.Random(1).choices(["a", "b", "c"], k=5000))
    hashes, plain = words.words(text)[0], text.split()
    names: dict[int, tuple[str, ...]] = {}
    for size in range(1, 5):
        for place, value in enumerate(runs(hashes, size).tolist()):
            assert names.setdefault(value, tuple(plain[place : place + size])) == tuple(plain[place : place + size])
    assert len(names) == len(set(names.values())) == 3 + 9 + 27 + 81
    bits = np.array([[value >> bit & 1 for bit in range(64)] for value in names])
    assert (np.abs(bits.mean(axis=0) - 0.5) < 0.25).all()  # no bit is stuck

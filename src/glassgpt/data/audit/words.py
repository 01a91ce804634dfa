"""Texts as hashed words: what finding duplicates and leaks has in common. Everything is a pure function of the text.

A word is a run of letters and digits. Case and accents do not count (``É``, ``é`` and ``e`` followed by a combining
accent are the same letter), apostrophes and invisible characters are left out (``don't`` is ``dont``), and everything
else lies between words. Chinese characters and Japanese kana are words by themselves, as no spaces divide them. What is
a letter is what the running Python's Unicode tables say.

Texts are worked through in blocks, so memory does not grow with them; a run of letters that is longer than a block is
divided there. Hashes have 64 bits: of a million n-grams and a billion others, one pair in 20,000 such comparisons is
expected to agree by accident.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import TypeAlias

import numpy as np

#: Characters that are worked on at a time, about: the arrays then fit into a processor's cache.
BLOCK = 1 << 17
#: A text, whole or in parts (which divide it anywhere, and are taken before the next text is asked for).
Text: TypeAlias = str | Iterable[str]

_GAP, _LETTER, _WORD, _NOTHING = range(4)  # what a character is: _WORD is a word by itself
_TABLE = 0x20000  # characters from here up to _CHINESE are Chinese, those beyond neither letters nor digits
_CHINESE = 0x40000
_ALONE = (  # ranges of Chinese characters and kana; letters among them are words by themselves
    *((0x3005, 0x3008), (0x3040, 0x3100), (0x31F0, 0x3200), (0x3400, 0x4DC0), (0x4E00, 0xA000)),
    *((0xF900, 0xFB00), (0xFF66, 0xFFA0), (0x1AFF0, 0x1B170)),
)
_LEFT_OUT = "'‘’ʼ＇\u00ad\u200c\u200d\u2060\ufeff"
_BASE = 0x5851F42D4C957F2D  # any number that is 5 modulo 8: its powers repeat as late as they can


@dataclass(frozen=True)
class Words:
    """Some consecutive words of a stream of texts, in order.

    Attributes:
        hashes: of each word, ``[n]`` uint64.
        texts: the number of its text in the stream, from 0, ``[n]`` int64.
        starts: its first character in that text, ``[n]`` int64.
        ends: the character behind it, ``[n]`` int64.
        complete: all texts with smaller numbers have no words after these.
    """

    hashes: np.ndarray
    texts: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    complete: int

    def __len__(self) -> int:
        return len(self.hashes)


@dataclass(frozen=True)
class Stretch:
    """Words to be looked at through a window of some consecutive ones.

    Attributes:
        words: the words; the first ``carried`` of them were at the end of the stretch before, and belong to a text
            that goes on here.
        carried: fewer than the size of the window.
        short: of texts that end here with fewer words than the window: the first word, and the one behind the last,
            ``[2, texts]`` int64.
    """

    words: Words
    carried: int
    short: np.ndarray

    def windows(self, size: int) -> np.ndarray:
        """The first words of all windows of ``size`` words in one text that end with a word not carried, ``[w]``."""
        words = self.words
        first = np.arange(max(0, self.carried - size + 1), len(words) - size + 1)
        return first[words.texts[first] == words.texts[first + size - 1]]

    def hashes(self, first: np.ndarray, end: np.ndarray) -> np.ndarray:
        """A hash of the words from ``first`` to before ``end``, for each pair, ``[w]`` uint64."""
        return _fold(self.words.hashes, first, end)


def stretches(texts: Iterable[Text], size: int) -> Iterator[Stretch]:
    """A stream of texts as hashed words, for windows of up to ``size`` words, in constant memory."""
    carry, seen = None, 0  # the last words of the text that goes on, and how many it had
    for block in hashed_words(texts):
        words = _joined(carry, block) if carry else block
        carried = len(carry) if carry else 0
        open_words = int(np.count_nonzero(block.texts == block.complete))
        yield Stretch(words, carried, _short(words, size, seen > carried))
        if carry is None or carry.texts[0] < block.complete:
            seen = 0
        seen += open_words
        left = min(size - 1, seen, len(words))
        carry = _last(words, left) if left else None


def _short(words: Words, size: int, longer: bool) -> np.ndarray:
    """The texts of fewer than ``size`` words; ``longer`` if the first one had more than are here."""
    borders = np.flatnonzero(np.diff(words.texts)) + 1
    first = np.concatenate([[0], borders]) if len(words) else borders
    end = np.append(borders, len(words)) if len(words) else borders
    short = (end - first < size) & (words.texts[first] < words.complete)
    if longer and len(first):
        short[0] = False
    return np.stack([first[short], end[short]])


def _joined(one: Words, other: Words) -> Words:
    return Words(
        np.concatenate([one.hashes, other.hashes]),
        np.concatenate([one.texts, other.texts]),
        np.concatenate([one.starts, other.starts]),
        np.concatenate([one.ends, other.ends]),
        other.complete,
    )


def _last(words: Words, count: int) -> Words:
    rest = slice(len(words) - count, None)
    return Words(words.hashes[rest], words.texts[rest], words.starts[rest], words.ends[rest], words.complete)


def hashed_words(texts: Iterable[Text]) -> Iterator[Words]:
    """A stream of texts as hashed words. Short texts come several at a time, long ones in blocks."""
    waiting: list[str] = []
    size = number = 0  # characters that wait, the number of the next text
    for text in map(_whole_if_short, texts):
        if isinstance(text, str) and len(text) <= BLOCK:
            waiting.append(text)
            size += len(text) + 1
            number += 1
            if size < BLOCK:
                continue
        if waiting:
            yield _words(waiting, number - len(waiting), 0, number)
            waiting, size = [], 0
        if not isinstance(text, str) or len(text) > BLOCK:
            offset = 0
            for part, is_last in _parts(text):
                yield _words([part], number, offset, number + is_last)
                offset += len(part)
            number += 1
    if waiting:
        yield _words(waiting, number - len(waiting), 0, number)


def _whole_if_short(text: Text) -> Text:
    if isinstance(text, str):
        return text
    parts, whole = iter(text), ""
    for part in parts:
        whole += part
        if len(whole) > BLOCK:
            return chain([whole], parts)
    return whole


def _parts(text: Text) -> Iterator[tuple[str, bool]]:
    """A long text in parts that are cut between words, and whether it is the last one; alike however it is given."""
    buffer = ""
    for given in (text,) if isinstance(text, str) else text:
        for begin in range(0, len(given), BLOCK):
            buffer += given[begin : begin + BLOCK]
            while len(buffer) > BLOCK:
                kinds = _kinds(_values(buffer[:BLOCK]))
                safe = np.flatnonzero((kinds == _GAP) | (kinds == _WORD))
                cut = int(safe[-1]) + 1 if len(safe) else BLOCK
                yield buffer[:cut], False
                buffer = buffer[cut:]
    yield buffer, True


def _words(texts: Sequence[str], number: int, offset: int, complete: int) -> Words:
    """The words of some texts, of which the first has that number and begins with that character of it."""
    values = _values("\n".join(texts))
    kinds, places = _kinds(values), None
    is_there = kinds != _NOTHING
    if not is_there.all():
        places = np.flatnonzero(is_there)
        kinds, values = kinds[places], values[places]
    is_word, is_alone = kinds != _GAP, kinds == _WORD
    joined = is_word[1:] & is_word[:-1] & ~(is_alone[1:] | is_alone[:-1])  # with the character before
    begins, ends = is_word.copy(), is_word.copy()
    begins[1:] &= ~joined
    ends[:-1] &= ~joined
    first, last = np.flatnonzero(begins), np.flatnonzero(ends)
    hashes = _fold(values, first, last + 1)
    if places is not None:
        first, last = places[first], places[last]
    borders = np.cumsum([0] + [len(text) + 1 for text in texts])
    which = np.searchsorted(borders, first, side="right") - 1
    moved = offset - borders[which]
    return Words(hashes, which + number, first + moved, last + 1 + moved, complete)


def _values(text: str) -> np.ndarray:
    """A number for each character, ``[n]`` uint64; its lowest two bits say what the character is."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    values = _table().take(codes.astype(np.intp), mode="clip")  # as the index, the fastest type and mode
    if len(codes) and codes.max() >= _TABLE:
        beyond = np.flatnonzero(codes >= _TABLE)
        kinds = np.where(codes[beyond] < _CHINESE, _WORD, _GAP).astype(np.uint64)
        values[beyond] = mixed(codes[beyond].astype(np.uint64)) & ~np.uint64(3) | kinds
    return values


def _kinds(values: np.ndarray) -> np.ndarray:
    return values.astype(np.uint8) & 3


@lru_cache(maxsize=1)
def _table() -> np.ndarray:
    kinds = np.zeros(_TABLE, dtype=np.uint8)
    letters = np.arange(_TABLE, dtype=np.uint64)
    for code in range(_TABLE):
        character = chr(code)
        if character in _LEFT_OUT or unicodedata.category(character) == "Mn":
            kinds[code] = _NOTHING
        elif character.isalnum() or unicodedata.category(character) == "Mc":
            kinds[code] = _LETTER
            letters[code] = ord(_letter(character))
    for first, end in _ALONE:
        alone = kinds[first:end]
        alone[alone == _LETTER] = _WORD
    return mixed(letters) & ~np.uint64(3) | kinds


def _letter(character: str) -> str:
    """The letter that stands for a character: small, without accents."""
    small = character.casefold()[0]
    parts = unicodedata.normalize("NFD", small)
    return parts[0] if all(unicodedata.category(part) == "Mn" for part in parts[1:]) else small


def _fold(values: np.ndarray, first: np.ndarray, end: np.ndarray) -> np.ndarray:
    """A hash of the values from ``first`` to before ``end``, for each pair: a polynomial modulo 2 ** 64, mixed."""
    power, inverse = _powers(1 << max(10, len(values).bit_length()))
    sums = np.zeros(len(values) + 1, dtype=np.uint64)
    np.cumsum(values * power[: len(values)], out=sums[1:])
    return mixed((sums[end] - sums[first]) * inverse[first])


@lru_cache(maxsize=16)
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The powers of the base, and of its inverse, modulo 2 ** 64, ``[count]`` uint64 each."""
    both = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        factors = np.full(count, base, dtype=np.uint64)
        factors[0] = 1
        both.append(np.cumprod(factors, dtype=np.uint64))
    return both[0], both[1]


def mixed(numbers: np.ndarray) -> np.ndarray:
    """Numbers scattered over all of 64 bits, one to one (the finaliser of Steele, Lea and Flood's SplitMix64)."""
    x = numbers + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

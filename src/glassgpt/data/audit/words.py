"""Hash the words of texts, for finding duplicates and leaks. Everything is a pure function of the text.

A word is a run of letters and digits. Case and accents are ignored (``É``, ``é`` and ``e`` with a combining accent are
the same letter), apostrophes and invisible characters are removed (``don't`` is ``dont``), and all other characters
separate words. Each Chinese character or Japanese kana is a word, because there are no spaces between them. Python's
Unicode tables decide which characters are letters.

Texts are processed in blocks, so memory does not grow with their length; a run of letters that is longer than a block
is split. Hashes have 64 bits: if a million n-grams are compared with a billion others, the chance that any pair agrees
by accident is 1 in 20,000.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import TypeAlias

import numpy as np

from glassgpt.data.hashing import splitmix64

#: About how many characters are processed at a time: the arrays then fit into the processor's cache.
BLOCK = 1 << 17
#: A text, or its parts, split anywhere. The parts of a text are read before the next text.
TextOrParts: TypeAlias = str | Iterable[str]

_GAP, _LETTER, _WORD, _REMOVED = range(4)  # kinds of characters; _WORD is a word by itself
_TABLE = 0x20000  # characters from here to _CHINESE are Chinese; later ones are neither letters nor digits
_CHINESE = 0x40000
_ALONE = (  # ranges of Chinese characters and kana: each letter in them is a word
    *((0x3005, 0x3008), (0x3040, 0x3100), (0x31F0, 0x3200), (0x3400, 0x4DC0), (0x4E00, 0xA000)),
    *((0xF900, 0xFB00), (0xFF66, 0xFFA0), (0x1AFF0, 0x1B170)),
)
_IGNORED = "'‘’ʼ＇\u00ad\u200c\u200d\u2060\ufeff"
_BASE = 0x5851F42D4C957F2D  # 5 modulo 8: its powers have the longest period


@dataclass(frozen=True)
class Words:
    """Some consecutive words of a stream of texts, in order."""

    complete: int  # texts with smaller numbers have no more words after these
    hashes: np.ndarray  # of each word, [n] uint64
    texts: np.ndarray  # the number of its text in the stream, from 0, [n] int64
    starts: np.ndarray  # its first character in that text, [n] int64
    ends: np.ndarray  # the character after it, [n] int64

    def __len__(self) -> int:
        return len(self.hashes)


@dataclass(frozen=True)
class Stretch:
    """Consecutive words, for windows of a fixed number of words.

    The first ``carried`` words are repeated from the end of the stretch before, because their text continues here.
    ``short`` are the texts that end here and have fewer words than the window: the first word of each, and the one
    after its last, ``[2, texts]`` int64.
    """

    words: Words
    carried: int  # less than the size of the window
    short: np.ndarray

    def windows(self, size: int) -> np.ndarray:
        """Give the first word of each new window: ``size`` words of one text, the last not carried, ``[w]``."""
        words = self.words
        first = np.arange(max(0, self.carried - size + 1), len(words) - size + 1)
        return first[words.texts[first] == words.texts[first + size - 1]]

    def hashes(self, first: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Hash the words from ``first`` up to (not including) ``end``, for each pair, ``[w]`` uint64."""
        return _fold(self.words.hashes, first, end)


def stretches(texts: Iterable[TextOrParts], size: int) -> Iterator[Stretch]:
    """Hash the words of a stream of texts, for windows of up to ``size`` words, in constant memory."""
    carry, seen = None, 0  # the last words of an unfinished text, and how many words it has had
    for block in hashed_words(texts):
        words, carried = block, 0
        if carry:
            both = zip(_columns(carry), _columns(block), strict=True)
            words, carried = Words(block.complete, *map(np.concatenate, both)), len(carry)
        open_words = int(np.count_nonzero(block.texts == block.complete))
        yield Stretch(words, carried, _short(words, size, seen > carried))
        if carry is None or carry.texts[0] < block.complete:
            seen = 0
        seen += open_words
        kept = min(size - 1, seen, len(words))
        carry = Words(words.complete, *(column[-kept:] for column in _columns(words))) if kept else None


def _short(words: Words, size: int, longer: bool) -> np.ndarray:
    """Find the texts of fewer than ``size`` words; ``longer``: the first text has more words than are here."""
    borders = np.flatnonzero(np.diff(words.texts)) + 1
    first = np.concatenate([[0], borders]) if len(words) else borders
    end = np.append(borders, len(words)) if len(words) else borders
    short = (end - first < size) & (words.texts[first] < words.complete)
    if longer and len(first):
        short[0] = False
    return np.stack([first[short], end[short]])


def _columns(words: Words) -> tuple[np.ndarray, ...]:
    return words.hashes, words.texts, words.starts, words.ends


def hashed_words(texts: Iterable[TextOrParts]) -> Iterator[Words]:
    """Hash the words of a stream of texts: several short texts at a time, long texts in blocks."""
    waiting: list[str] = []
    size = number = 0  # characters in waiting texts, number of the next text
    for text in map(_join_if_short, texts):
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


def _join_if_short(text: TextOrParts) -> TextOrParts:
    if isinstance(text, str):
        return text
    parts, joined = iter(text), ""
    for part in parts:
        joined += part
        if len(joined) > BLOCK:
            return chain([joined], parts)
    return joined


def _parts(text: TextOrParts) -> Iterator[tuple[str, bool]]:
    """Split a long text between words; give each part, and whether it is the last. Input parts make no difference."""
    buffer = ""
    for content in (text,) if isinstance(text, str) else text:
        for begin in range(0, len(content), BLOCK):
            buffer += content[begin : begin + BLOCK]
            while len(buffer) > BLOCK:
                kinds = _kinds(_values(buffer[:BLOCK]))
                safe = np.flatnonzero((kinds == _GAP) | (kinds == _WORD))
                cut = int(safe[-1]) + 1 if len(safe) else BLOCK
                yield buffer[:cut], False
                buffer = buffer[cut:]
    yield buffer, True


def _words(texts: Sequence[str], number: int, offset: int, complete: int) -> Words:
    """Hash the words of some texts; the first is text ``number`` from character ``offset`` on."""
    values = _values("\n".join(texts))
    kinds, places = _kinds(values), None
    is_kept = kinds != _REMOVED
    if not is_kept.all():
        places = np.flatnonzero(is_kept)
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
    return Words(complete, hashes, which + number, first + moved, last + 1 + moved)


def _values(text: str) -> np.ndarray:
    """Give a number for each character, ``[n]`` uint64; its lowest two bits are the kind of the character."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    values = _table().take(codes.astype(np.intp), mode="clip")  # the fastest index type and mode
    if len(codes) and codes.max() >= _TABLE:
        beyond = np.flatnonzero(codes >= _TABLE)
        kinds = np.where(codes[beyond] < _CHINESE, _WORD, _GAP).astype(np.uint64)
        values[beyond] = splitmix64(codes[beyond].astype(np.uint64)) & ~np.uint64(3) | kinds
    return values


def _kinds(values: np.ndarray) -> np.ndarray:
    return values.astype(np.uint8) & 3


@lru_cache(maxsize=1)
def _table() -> np.ndarray:
    kinds = np.zeros(_TABLE, dtype=np.uint8)
    letters = np.arange(_TABLE, dtype=np.uint64)
    for code in range(_TABLE):
        character = chr(code)
        if character in _IGNORED or unicodedata.category(character) == "Mn":
            kinds[code] = _REMOVED
        elif character.isalnum() or unicodedata.category(character) == "Mc":
            kinds[code] = _LETTER
            letters[code] = ord(_letter(character))
    for first, end in _ALONE:
        alone = kinds[first:end]
        alone[alone == _LETTER] = _WORD
    return splitmix64(letters) & ~np.uint64(3) | kinds


def _letter(character: str) -> str:
    """Give the letter of a character: lower case, without accents."""
    small = character.casefold()[0]
    parts = unicodedata.normalize("NFD", small)
    return parts[0] if all(unicodedata.category(part) == "Mn" for part in parts[1:]) else small


def _fold(values: np.ndarray, first: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Hash the values from ``first`` up to ``end``, for each pair: a polynomial modulo 2 ** 64, mixed."""
    power, inverse = _powers(1 << max(10, len(values).bit_length()))
    sums = np.zeros(len(values) + 1, dtype=np.uint64)
    np.cumsum(values * power[: len(values)], out=sums[1:])
    return splitmix64((sums[end] - sums[first]) * inverse[first])


@lru_cache(maxsize=16)
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute the powers of the base, and of its inverse, modulo 2 ** 64, ``[count]`` uint64 each."""
    both = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        factors = np.full(count, base, dtype=np.uint64)
        factors[0] = 1
        both.append(np.cumprod(factors, dtype=np.uint64))
    return both[0], both[1]

"""Hash the words of texts, for finding duplicates and leaks. Everything is a pure function of the text.

A word is a run of letters and digits. Case and accents are ignored (``É``, ``é`` and ``e`` with a combining accent are
the same letter), apostrophes and invisible characters are removed (``don't`` is ``dont``), and all other characters
separate words. Each Chinese character or Japanese kana is a word, because there are no spaces between them. Python's
Unicode tables decide which characters are letters. (The table of characters and numpy are ours because a regular
expression and a hash for each word take 12 times as long.)

Long texts are processed in blocks, so memory does not grow with their length. Hashes have 64 bits: if a million n-grams
are compared with a billion others, the chance that any pair agrees by accident is 1 in 20,000.
"""

import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TypeAlias

import numpy as np

from glassgpt.data.hashing import splitmix64

#: Most new characters in a block: the arrays then fit into the processor's cache.
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


def words(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Hash the words of a text, ``[n]`` uint64; give the first character of each and the one after it, ``[2, n]``."""
    values = _values(text)
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
    spans = np.stack([first, last]) if places is None else places[[first, last]]
    spans[1] += 1
    return hashes, spans


def runs(hashes: np.ndarray, size: int) -> np.ndarray:
    """Hash each run of ``size`` consecutive words, ``[n - size + 1]`` uint64; none if there are fewer words."""
    first = np.arange(max(0, len(hashes) - size + 1))
    return _fold(hashes, first, first + size)


def blocks(text: TextOrParts, size: int) -> Iterator[tuple[str, int]]:
    """Divide a text into blocks, each with its first character's place; how the text is given makes no difference.

    A block begins with the last ``size - 1`` words of the block before it, so each run of ``size`` words is in one.
    """
    buffer, offset = "", 0
    for part in (text,) if isinstance(text, str) else text:
        for begin in range(0, len(part), BLOCK):
            buffer += part[begin : begin + BLOCK]
            while len(buffer) > 2 * BLOCK:
                cut = max(buffer.rfind(" ", BLOCK, 2 * BLOCK), buffer.rfind("\n", BLOCK, 2 * BLOCK)) + 1 or 2 * BLOCK
                yield buffer[:cut], offset
                last = cut - BLOCK // 2  # words of more characters are divided
                again = words(buffer[last:cut])[1][0, 1 - size :]
                kept = last + int(again[0]) if len(again) else cut
                buffer, offset = buffer[kept:], offset + kept
    yield buffer, offset


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

"""Pre-tokenization: splitting text into pre-tokens, roughly words with the space before them, and counting these.

No BPE token crosses the border of two pre-tokens, so BPE can learn from the distinct pre-tokens and their counts.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TypeAlias

import numpy as np
import regex

from glassgpt.errors import TokenizerError
from glassgpt.files import Progress
from glassgpt.workers import run_tasks

#: The published split patterns: of GPT-2 (openai/gpt-2, encoder.py), Llama 3 (meta-llama, which is that of
#: tiktoken's cl100k_base), Qwen 2 (as Llama 3's, with every digit by itself) and GPT-4o (tiktoken's o200k_base).
PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "o200k": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
#: Places where all published patterns start a new pre-token, whatever comes before and after: before a space between
#: two letters, and before a letter that begins a line. A text may be cut there and its parts split separately.
_SAFE_CUT = regex.compile(r"\p{L}(?= \p{L})|\S\n(?=\p{L})")
#: A string that contains such a place, or can in some text.
_SPANS_CUT = regex.compile(r"\p{L} (?:\p{L}|$)|(?:^|\S)\n\p{L}")
#: Code points assigned since Unicode 17. tiktoken 0.14 and tokenizers 0.23 use Unicode 16, where these are unassigned;
#: `regex` adds new ones with every release.
_SINCE_UNICODE_17 = (
    "558 58b-58c 5c8-5c9 88f b53-b54 c5c cdc 1acf-1af0 208f 209d-209f 20c1-20c4 2b96 2e60-2e63 a7ce-a7cf a7d2 a7d4 "
    "a7dd a7e2 a7f1 ab6c-ab6d fbc3-fbd2 fd90-fd91 fdc8-fdce 107bb-107bf 10940-10959 10ec5-10ec7 10ec9-10eee "
    "10ef0-10efb 11b0a 11b60-11b67 11db0-11ddb 11de0-11de9 11df0-11df1 1246f 12475-1247f 12550-12686 16ea0-16eb8 "
    "16ebb-16ed3 16ff2-16ff6 187f8-187ff 18cd6-18cda 18d09-18d20 18d80-18df2 18e00-19191 191a0-191d2 1b123-1b128 1b168 "
    "1ccfa-1ccfc 1ceba-1ced0 1ced2-1ced4 1cedd-1cefd 1d127-1d128 1d1eb-1d1ff 1d250-1d281 1d6a6 1db00-1db1c "
    "1df1f-1df24 1df2b-1df81 1df90-1df96 1dfcd-1dfff 1e6c0-1e6de 1e6e0-1e6f5 1e6fe-1e6ff 1f1ae 1f6d8-1f6d9 "
    "1f777-1f77a 1f7da-1f7db 1f7f1-1f7ff 1f8d0-1f8d8 1fa54-1fa57 1fa8a-1fa8e 1fac8 1facc-1facd 1fadd 1faea-1faeb 1faef "
    "1faf9-1fafa 1fbfa 2b73a-2b73f 2b81e 2cea2-2cead 323b0-33479 3d000-3fc3f"
)
_SYMBOL = "\ue000"  # a private-use character: never a letter, mark, digit or space
#: The only character whose kind has changed since Unicode 16, from \\p{Ll} to \\p{Lo}; and another letter of that kind.
_MOVED, _LIKE_MOVED = 0x295, 0x250
#: Characters to split at a time; the pre-tokens of that many fit into memory easily.
CHUNK = 1 << 20
#: Characters from which counting in several processes pays for starting them.
_MIN_PARALLEL = 8 << 20
#: Default limit of counting processes; each takes about 100 MB.
_MAX_PROCESSES = 8

#: A text, or the parts of one; no pre-token reaches from one part into the next.
Texts: TypeAlias = str | Iterable[str]


class PreTokenizer:
    """Splits text into pre-tokens by regular expressions; the pre-tokens, joined, are the text.

    Args:
        patterns: applied in order. The first splits the text, each next one the parts so far; text between two matches
            is a part, too.

    Raises:
        TokenizerError: if a pattern is not a valid regular expression.
    """

    def __init__(self, patterns: Sequence[str]):
        self.patterns = tuple(patterns)
        self._compiled = []
        for pattern in patterns:
            try:
                self._compiled.append(regex.compile(pattern))
            except regex.error as error:
                raise TokenizerError(f"the split pattern {pattern!r} is not a valid regex: {error}") from None
        #: Whether cutting a text at safe places leaves its pre-tokens as they are.
        self.can_encode_in_chunks = bool(patterns) and all(pattern in PATTERNS.values() for pattern in patterns)

    def split(self, text: str) -> list[str]:
        """Split a text into pre-tokens."""
        as_16 = as_unicode_16(text)
        parts = [as_16]
        for pattern in self._compiled:
            parts = [inner for part in parts for inner in _split_once(pattern, part)]
        if as_16 is text:
            return parts
        ends = list(accumulate(map(len, parts)))
        return [text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]

    def chunks(self, text: str, size: int = CHUNK) -> Iterator[str]:
        """Cut a text into chunks of about ``size`` characters that have the same pre-tokens as the whole text."""
        begin = 0
        while self.can_encode_in_chunks and len(text) - begin > size:
            cut = safe_cut(text, begin + size)
            if cut is None:
                break
            yield text[begin:cut]
            begin = cut
        if begin < len(text):
            yield text[begin:]


def safe_cut(text: str, begin: int = 0) -> int | None:
    """The first place from ``begin`` on where a text may be cut without changing its tokens, or None.

    Valid for the published patterns, for the word tokenizer, and (trivially) for characters.
    """
    cut = _SAFE_CUT.search(text, max(begin - 1, 0))
    return cut.end() if cut else None


def can_span_cut(name: str) -> bool:
    """Whether :func:`safe_cut` may cut a text inside this string."""
    return bool(_SPANS_CUT.search(name))


def _since_unicode_17() -> np.ndarray:
    """Which code points are assigned since Unicode 17: bool ``[code points]``; the last entry is for all beyond."""
    ranges = [[int(end, 16) for end in item.split("-")] for item in _SINCE_UNICODE_17.split()]
    table = np.zeros(ranges[-1][-1] + 2, dtype=bool)
    for ends in ranges:
        table[ends[0] : ends[-1] + 1] = True
    return table


_NEWER = _since_unicode_17()


def as_unicode_16(text: str) -> str:
    """Replace characters that are new or changed since Unicode 16; return the same object if there are none.

    So pre-tokens do not depend on the installed version of `regex` (2024.9.11 or later).
    """
    if text.isascii():
        return text
    codes = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
    newer, moved = _NEWER[np.minimum(codes, len(_NEWER) - 1)], codes == _MOVED
    if not (newer.any() or moved.any()):
        return text
    codes = np.where(newer, ord(_SYMBOL), np.where(moved, _LIKE_MOVED, codes))
    return codes.astype("<u4").tobytes().decode("utf-32-le", errors="surrogatepass")


def _split_once(pattern: "regex.Pattern[str]", text: str) -> list[str]:
    matches: list[str] = [] if pattern.groups else pattern.findall(text)  # with groups, findall returns the groups
    if sum(map(len, matches)) == len(text):  # the usual case: the pattern matches everything
        return matches
    parts, end = [], 0
    for match in pattern.finditer(text):
        if match.start() > end:
            parts.append(text[end : match.start()])
        if match.end() > match.start():
            parts.append(match[0])
        end = match.end()
    return [*parts, text[end:]] if end < len(text) else parts


def count_pre_tokens(
    texts: Texts,
    pre_tokenizer: PreTokenizer,
    processes: int | None = None,
    progress: Progress | None = None,
    characters: int | None = None,
) -> Counter[str]:
    """Count the pre-tokens of a text of any length; memory holds a part of it and the distinct pre-tokens.

    By default one process counts, or for long texts one per CPU and at most 8. ``characters`` is the approximate length
    of all parts together, if known.
    """
    if isinstance(texts, str):
        texts, characters = [texts], len(texts)
    characters = characters or 0
    if processes is None:
        processes = min(usable_cpus(), _MAX_PROCESSES) if characters >= _MIN_PARALLEL else 1
    chunks = _reported((chunk for text in texts for chunk in pre_tokenizer.chunks(text)), progress, characters)
    counts: Counter[str] = Counter()
    if processes > 1 and pre_tokenizer.can_encode_in_chunks:
        for _, found in run_tasks(_Counter, pre_tokenizer.patterns, _grouped(chunks), processes):
            counts.update(found)
        return counts
    for chunk in chunks:
        counts.update(pre_tokenizer.split(chunk))
    return counts


def _reported(chunks: Iterable[str], progress: Progress | None, total: int) -> Iterator[str]:
    """Yield chunks, and report their characters."""
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        if progress:
            progress("counting pre-tokens", done, total)


def _grouped(chunks: Iterable[str]) -> Iterator[list[str]]:
    """Chunks in groups of about ``CHUNK`` characters."""
    group, size = list[str](), 0
    for chunk in chunks:
        group.append(chunk)
        size += len(chunk)
        if size >= CHUNK:
            yield group
            group, size = [], 0
    if group:
        yield group


def usable_cpus() -> int:
    """The number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Counter:
    """Counts the pre-tokens of groups of texts, in any process."""

    def __init__(self, patterns: Sequence[str]):
        self.pre_tokenizer = PreTokenizer(patterns)

    def __call__(self, group: list[str]) -> Counter[str]:
        counts = Counter[str]()
        for text in group:
            counts.update(self.pre_tokenizer.split(text))
        return counts

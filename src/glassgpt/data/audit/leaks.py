"""Text that one side shares with another: validation or evaluation text that is in the training text, too.

Counted by 13-grams, as usual since GPT-3 (Brown et al. 2020, "Language Models are Few-Shot Learners", appendix C): runs
of 13 consecutive words, where case, accents and punctuation do not count (see :mod:`glassgpt.data.audit.words`). As
there, a document of 8 to 12 words is one n-gram of all its words, and shorter ones are not looked for: their words
stand together in any large text.

One side is small (a validation text, an evaluation file) and is held in memory, with about 150 bytes a word; the other
goes by as a stream.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

import numpy as np

from glassgpt.data.audit.words import Stretch, Text, stretches

#: Words of an n-gram.
GRAM = 13
#: Documents of fewer words are not looked for.
LEAST = 8
#: Hits in a row that are settled at once; a longer row is settled in parts.
_MOST_WAITING = 1 << 16
#: Words of a passage that :func:`describe` shows.
_SHOWN_WORDS = 40


@dataclass(frozen=True)
class Grams:
    """The n-grams of the small side. They are numbered in the order of its documents and of their words.

    Attributes:
        texts: the documents, as they were given.
        names: what to call them.
        distinct: the hashes of all n-grams, each once, ascending, ``[G]`` uint64.
        which: the place in ``distinct`` of each n-gram, ``[n]`` int64.
        documents: the place in ``texts`` of its document, ``[n]`` int64, ascending.
        starts: its first character there, ``[n]`` int64.
        ends: the character behind it, ``[n]`` int64.
        sizes: its words, ``[n]`` int64: 13, or all that its document has.
    """

    texts: list[str]
    names: list[str]
    distinct: np.ndarray
    which: np.ndarray
    documents: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, texts: Iterable[Text], names: Iterable[str] | None = None) -> "Grams":
        """The n-grams of some documents, which are kept in memory.

        Args:
            texts: the documents, whole or each in parts.
            names: of the documents, at least as many; "document 1" and so on by default.

        Raises:
            ValueError: if there are fewer names than texts.
        """
        kept: list[str] = []
        called: list[str] = []

        def passed() -> Iterator[str]:
            for text, name in _with_names(texts, names, "document"):
                kept.append(text if isinstance(text, str) else "".join(text))
                called.append(name)
                yield kept[-1]

        columns = [_grams(stretch) for stretch in stretches(passed(), GRAM)]
        hashes, *others = (np.concatenate(parts) for parts in zip(_grams(None), *columns, strict=True))
        distinct, which = np.unique(hashes, return_inverse=True)
        return cls(kept, called, distinct, which, *others)


@dataclass(frozen=True)
class Passage:
    """Words that stand on both sides, the longest of a document.

    Attributes:
        document: the name of the document on the small side.
        offset: the first character of the passage there.
        other: the name of the text on the large side, and the offset there.
        other_offset: the first character of the passage there.
        words: how many there are.
        text: as it stands on the small side.
        grams: n-grams of the document, repetitions counted.
        found: those that are on the large side.
    """

    document: str
    offset: int
    other: str
    other_offset: int
    words: int
    text: str
    grams: int
    found: int


@dataclass(frozen=True)
class Overlap:
    """How much of the small side is on the large side.

    Attributes:
        documents: documents of the small side with at least 8 words.
        short: the others, which were not looked for.
        hit: documents with at least one n-gram that is on the large side.
        grams: different n-grams of the small side.
        found: those that are on the large side.
        passages: of the documents with the longest ones, the longest of each; if there is only one document, its
            longest ones.
    """

    documents: int
    short: int
    hit: int
    grams: int
    found: int
    passages: list[Passage]

    def to_json(self) -> dict[str, Any]:
        """All of it, for :func:`json.dumps`."""
        return asdict(self)


def overlap(grams: Grams, texts: Iterable[Text], names: Iterable[str] | None = None, shown: int = 10) -> Overlap:
    """Look for the n-grams of the small side in the large one.

    The counts are exact. The place given for an n-gram that occurs several times on the large side is the one within
    the longest row of n-grams of the small side there, or the first of several such; the longest passages are put
    together from these places.

    Args:
        grams: of the small side.
        texts: the large side, whole texts or each in parts; read once, as a stream.
        names: of these texts, at least as many; "text 1" and so on by default.
        shown: how many passages to give at most.

    Raises:
        ValueError: if there are fewer names than texts.
    """
    search = _Search(grams)
    recent: dict[int, str] = {}  # names of texts whose words may still come

    def passed() -> Iterator[Text]:
        for number, (text, name) in enumerate(_with_names(texts, names, "text")):
            recent[number] = name
            yield text

    for stretch in stretches(passed(), GRAM):
        search.look(stretch, recent)
        for number in [number for number in recent if number < stretch.words.complete]:
            del recent[number]
    search.settle_waiting()
    return _result(grams, search, shown)


def describe(found: Overlap, small: str = "validation", large: str = "training") -> list[str]:
    """An overlap as lines for people; ``small`` and ``large`` are what to call the two sides."""
    if not found.documents:
        return [f"{small}: no document has {LEAST} words; nothing can be looked for in the {large} text"]
    lines = [
        f"{found.hit:,} of {found.documents:,} {small} documents ({_percent(found.hit, found.documents)}) have "
        f"{GRAM} consecutive words in common with the {large} text",
        f"{found.found:,} of their {found.grams:,} different {GRAM}-grams ({_percent(found.found, found.grams)}) are "
        "there, too",
    ]
    if found.short:
        lines.append(f"{found.short:,} documents of fewer than {LEAST} words were not looked for")
    for passage in found.passages:
        words = passage.text.split()
        more = f" ... ({len(words) - _SHOWN_WORDS} more)" if len(words) > _SHOWN_WORDS else ""
        lines += [
            f"{passage.words:,} words: {passage.document}, character {passage.offset:,}, and {passage.other}, "
            f"character {passage.other_offset:,} ({_percent(passage.found, passage.grams)} of the document's "
            f"{GRAM}-grams)",
            f"    {' '.join(words[:_SHOWN_WORDS])}{more}",
        ]
    return lines


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if not 0 < part / whole < 0.001 else "under 0.1%"


def _with_names(texts: Iterable[Text], names: Iterable[str] | None, kind: str) -> Iterator[tuple[Text, str]]:
    named = (f"{kind} {number}" for number in count(1)) if names is None else iter(names)
    for number, text in enumerate(texts):
        name = next(named, None)
        if name is None:
            raise ValueError(f"there are only {number} names, and more texts")
        yield text, name


def _grams(stretch: Stretch | None) -> tuple[np.ndarray, ...]:
    """The hashes, documents, starts, ends and sizes of the small side's n-grams in some words, in order."""
    if stretch is None:
        return np.empty(0, dtype=np.uint64), *(np.empty(0, dtype=np.int64) for _ in range(4))
    windows = stretch.windows(GRAM)
    short = stretch.short[:, stretch.short[1] - stretch.short[0] >= LEAST]
    first = np.concatenate([windows, short[0]])
    end = np.concatenate([windows + GRAM, short[1]])
    order = np.argsort(first)
    first, end = first[order], end[order]
    words = stretch.words
    return stretch.hashes(first, end), words.texts[first], words.starts[first], words.ends[end - 1], end - first


class _Search:
    """Where the n-grams of the small side are on the large side, so far.

    Hits are columns of ``[4, n]`` int64: the n-gram's place among the distinct ones, the number of its first word in
    the whole stream, the number of its text, its first character there.
    """

    def __init__(self, grams: Grams):
        self.distinct = grams.distinct
        self.sizes = np.unique(grams.sizes).tolist()
        self.words, self.texts, self.starts = (np.full(len(self.distinct), -1) for _ in range(3))
        self.rows = np.zeros(len(self.distinct), dtype=np.int64)  # consecutive hits around that place
        self.names: dict[int, str] = {}
        self.passed = 0  # words
        self.waiting = np.empty((4, 0), dtype=np.int64)  # a row of hits that may go on
        bits = min(24, max(16, len(self.distinct).bit_length() + 4))
        self.mask = np.uint64((1 << bits) - 1)
        self.maybe = np.zeros(1 << bits, dtype=bool)  # for the end of a hash: whether any n-gram has it
        self.maybe[self.distinct & self.mask] = True

    def look(self, stretch: Stretch, names: dict[int, str]) -> None:
        """Look through some words; ``names`` are of all texts they come from."""
        words = stretch.words
        number = self.passed - stretch.carried  # of the first word
        self.passed += len(words) - stretch.carried
        for size in self.sizes:
            first = stretch.windows(size)
            hashes = stretch.hashes(first, first + size)
            candidates = np.flatnonzero(self.maybe.take((hashes & self.mask).astype(np.intp)))
            places = np.searchsorted(self.distinct, hashes[candidates])
            places[places == len(self.distinct)] = 0
            is_hit = self.distinct[places] == hashes[candidates]
            places, first = places[is_hit], first[candidates[is_hit]]
            hits = np.stack([places, number + first, words.texts[first], words.starts[first]])
            self.names |= {text: names[text] for text in np.unique(hits[2]).tolist()}
            if size == GRAM:
                self._in_rows(hits)
            else:
                self._settle(hits, np.ones(len(first), dtype=np.int64))
        if len(self.names) > 2 * len(self.distinct) + 1000:
            used = {*self.texts.tolist(), *self.waiting[2].tolist()}
            self.names = {text: name for text, name in self.names.items() if text in used}

    def _in_rows(self, hits: np.ndarray) -> None:
        """Settle all rows of hits but the last, which may go on."""
        hits = np.concatenate([self.waiting, hits], axis=1)
        begins = np.flatnonzero(np.append(True, np.diff(hits[1]) != 1)) if hits.size else np.empty(0, dtype=np.int64)
        lengths = np.diff(np.append(begins, hits.shape[1]))
        rows = np.repeat(lengths, lengths)
        goes_on = hits.size and lengths[-1] <= _MOST_WAITING
        over = int(begins[-1]) if goes_on else hits.shape[1]
        self._settle(hits[:, :over], rows[:over])
        self.waiting = hits[:, over:]

    def settle_waiting(self) -> None:
        """Settle the last row: nothing follows."""
        self._settle(self.waiting, np.full(self.waiting.shape[1], self.waiting.shape[1]))
        self.waiting = self.waiting[:, :0]

    def _settle(self, hits: np.ndarray, rows: np.ndarray) -> None:
        """Take note of hits in longer rows than those so far."""
        better = np.flatnonzero(rows > self.rows[hits[0]])
        better = better[np.lexsort((-hits[1, better], rows[better]))]  # of several, the last assignment stays
        places = hits[0, better]
        self.words[places], self.texts[places], self.starts[places] = hits[1:, better]
        self.rows[places] = rows[better]


def _result(grams: Grams, search: _Search, shown: int) -> Overlap:
    is_found = search.rows[grams.which] > 0
    of_document = np.bincount(grams.documents, minlength=len(grams.texts))
    found = np.bincount(grams.documents[is_found], minlength=len(grams.texts))
    documents = int(np.count_nonzero(of_document))
    # runs of n-grams that follow each other in one document and in one text
    goes_on = is_found[1:] & is_found[:-1] & (np.diff(grams.documents) == 0)
    goes_on &= np.diff(search.words[grams.which]) == 1
    begins = np.flatnonzero(is_found & np.append(True, ~goes_on)[: len(is_found)])
    ends = np.flatnonzero(is_found & np.append(~goes_on, True)[: len(is_found)])
    words = grams.sizes[begins] + ends - begins
    order = np.argsort(-words, kind="stable")
    if documents > 1:
        _, best = np.unique(grams.documents[begins[order]], return_index=True)
        order = order[np.sort(best)]
    passages = []
    for run in order[:shown].tolist():
        first, last = int(begins[run]), int(ends[run])
        document, place = int(grams.documents[first]), int(grams.which[first])
        passages.append(
            Passage(
                document=grams.names[document],
                offset=int(grams.starts[first]),
                other=search.names[int(search.texts[place])],
                other_offset=int(search.starts[place]),
                words=int(words[run]),
                text=grams.texts[document][int(grams.starts[first]) : int(grams.ends[last])],
                found=int(found[document]),
                grams=int(of_document[document]),
            )
        )
    return Overlap(
        documents=documents,
        short=len(grams.texts) - documents,
        hit=int(np.count_nonzero(found)),
        grams=len(grams.distinct),
        found=int(np.count_nonzero(search.rows)),
        passages=passages,
    )

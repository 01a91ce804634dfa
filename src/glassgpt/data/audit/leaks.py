"""Find leaks: validation or evaluation text that is also in the training text.

Leaks are counted in 13-grams, as usual since GPT-3 (Brown et al. 2020, "Language Models are Few-Shot Learners",
appendix C): runs of 13 consecutive words, without case, accents and punctuation (see
:mod:`glassgpt.data.audit.words`). As there, a document of 8 to 12 words is one n-gram, and shorter documents are
skipped: their words occur together in any large text.

The small side (validation text, an evaluation file) is held in memory, with about 150 bytes per word; the large side is
read as a stream.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from glassgpt.data.audit.words import Stretch, TextOrParts, stretches

#: Words in an n-gram.
GRAM = 13
#: Documents of fewer words are skipped.
MIN_WORDS = 8
#: Most consecutive hits that are recorded at once; a longer run is recorded in parts.
_MOST_WAITING = 1 << 16
#: Most words of a passage that :func:`describe` shows.
_SHOWN_WORDS = 40


@dataclass(frozen=True)
class Grams:
    """The n-grams of the small side, in the order of its documents and of their words."""

    texts: list[str]  # the documents
    names: list[str]  # of the documents
    distinct: np.ndarray  # the hashes of all n-grams, each once, ascending, [G] uint64
    which: np.ndarray  # index of each n-gram in distinct, [n] int64
    documents: np.ndarray  # index of its document in texts, [n] int64, ascending
    starts: np.ndarray  # its first character there, [n] int64
    ends: np.ndarray  # the character after it, [n] int64
    sizes: np.ndarray  # its number of words, [n] int64: 13, or all words of a short document

    @classmethod
    def of(cls, texts: Iterable[TextOrParts], names: Iterable[str] | None = None) -> "Grams":
        """Collect the n-grams of documents, and keep them in memory.

        Args:
            texts: the documents, or the parts of each.
            names: of the documents, at least as many; "document 1" and so on by default.

        Raises:
            ValueError: if there are fewer names than texts.
        """
        kept_texts: list[str] = []
        kept_names: list[str] = []

        def kept() -> Iterator[str]:
            for text, name in _with_names(texts, names, "document"):
                kept_texts.append(text if isinstance(text, str) else "".join(text))
                kept_names.append(name)
                yield kept_texts[-1]

        columns = [_grams(stretch) for stretch in stretches(kept(), GRAM)]
        hashes, *others = (np.concatenate(parts) for parts in zip(_grams(None), *columns, strict=True))
        distinct, which = np.unique(hashes, return_inverse=True)
        return cls(kept_texts, kept_names, distinct, which, *others)


@dataclass(frozen=True)
class Passage:
    """The longest run of words of a document that is on both sides."""

    document: str  # the name of the document on the small side
    offset: int  # first character of the passage in that document
    other: str  # the name of the text on the large side
    other_offset: int  # first character of the passage in that text
    words: int  # number of words
    text: str  # the passage, from the small side
    grams: int  # n-grams of the document, with repetitions
    found: int  # how many of them are on the large side


@dataclass(frozen=True)
class Overlap:
    """How much of the small side is on the large side."""

    documents: int  # documents of the small side with at least 8 words
    short: int  # the other documents, which are skipped
    hit: int  # documents with at least one n-gram on the large side
    grams: int  # different n-grams of the small side
    found: int  # how many of them are on the large side
    passages: list[Passage]  # the longest passages, one of each document; of a single document, its longest ones


def overlap(grams: Grams, texts: Iterable[TextOrParts], names: Iterable[str] | None = None, shown: int = 10) -> Overlap:
    """Find the n-grams of the small side in the large side.

    The counts are exact. For an n-gram that occurs several times on the large side, the place in the longest run of
    hits is used, or the first of several such places; the passages are made from these places.

    Args:
        grams: of the small side.
        texts: the large side, texts or the parts of each; read once, as a stream.
        names: of these texts, at least as many; "text 1" and so on by default.
        shown: most passages to give.

    Raises:
        ValueError: if there are fewer names than texts.
    """
    search = _Search(grams)
    recent: dict[int, str] = {}  # names of the texts that are not finished

    def named() -> Iterator[TextOrParts]:
        for number, (text, name) in enumerate(_with_names(texts, names, "text")):
            recent[number] = name
            yield text

    for stretch in stretches(named(), GRAM):
        search.add(stretch, recent)
        for number in [number for number in recent if number < stretch.words.complete]:
            del recent[number]
    search.finish()
    return _result(grams, search, shown)


def describe(found: Overlap, small: str = "validation", large: str = "training") -> list[str]:
    """Describe an overlap in lines of text; ``small`` and ``large`` name the two sides."""
    if not found.documents:
        return [f"{small}: no document has {MIN_WORDS} words; nothing can be compared with the {large} text"]
    lines = [
        f"{found.hit:,} of {found.documents:,} {small} documents ({_percent(found.hit, found.documents)}) have "
        f"{GRAM} consecutive words in common with the {large} text",
        f"{found.found:,} of their {found.grams:,} different {GRAM}-grams ({_percent(found.found, found.grams)}) are "
        "in it",
    ]
    if found.short:
        lines.append(f"{found.short:,} documents of fewer than {MIN_WORDS} words were skipped")
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


def _with_names(
    texts: Iterable[TextOrParts], names: Iterable[str] | None, kind: str
) -> Iterator[tuple[TextOrParts, str]]:
    named = (f"{kind} {number}" for number in count(1)) if names is None else iter(names)
    for number, text in enumerate(texts):
        name = next(named, None)
        if name is None:
            raise ValueError(f"there are only {number} names for more texts")
        yield text, name


def _grams(stretch: Stretch | None) -> tuple[np.ndarray, ...]:
    """Give the hashes, documents, starts, ends and sizes of the n-grams in a stretch of the small side, in order."""
    if stretch is None:
        return np.empty(0, dtype=np.uint64), *(np.empty(0, dtype=np.int64) for _ in range(4))
    windows = stretch.windows(GRAM)
    short = stretch.short[:, stretch.short[1] - stretch.short[0] >= MIN_WORDS]
    first = np.concatenate([windows, short[0]])
    end = np.concatenate([windows + GRAM, short[1]])
    order = np.argsort(first)
    first, end = first[order], end[order]
    words = stretch.words
    return stretch.hashes(first, end), words.texts[first], words.starts[first], words.ends[end - 1], end - first


class _Search:
    """Records where the n-grams of the small side are on the large side.

    A hit is a column of ``[4, n]`` int64: the n-gram's index among the distinct ones, the number of its first word in
    the stream, the number of its text, its first character there.
    """

    def __init__(self, grams: Grams):
        self.distinct = grams.distinct
        self.sizes = np.unique(grams.sizes).tolist()
        self.words, self.texts, self.starts = (np.full(len(self.distinct), -1) for _ in range(3))
        self.runs = np.zeros(len(self.distinct), dtype=np.int64)  # length of the run of hits at that place
        self.names: dict[int, str] = {}
        self.num_words = 0  # read so far
        self.waiting = np.empty((4, 0), dtype=np.int64)  # a run of hits that may continue
        bits = min(24, max(16, len(self.distinct).bit_length() + 4))
        self.mask = np.uint64((1 << bits) - 1)
        self.maybe = np.zeros(1 << bits, dtype=bool)  # whether any n-gram's hash has these lowest bits
        self.maybe[self.distinct & self.mask] = True

    def add(self, stretch: Stretch, names: dict[int, str]) -> None:
        """Search the next words; ``names`` has the names of their texts."""
        words = stretch.words
        number = self.num_words - stretch.carried  # of the first word
        self.num_words += len(words) - stretch.carried
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
                self._record_runs(hits)
            else:
                self._record(hits, np.ones(len(first), dtype=np.int64))
        if len(self.names) > 2 * len(self.distinct) + 1000:
            used = {*self.texts.tolist(), *self.waiting[2].tolist()}
            self.names = {text: name for text, name in self.names.items() if text in used}

    def _record_runs(self, hits: np.ndarray) -> None:
        """Record all runs of consecutive hits but the last, which may continue."""
        hits = np.concatenate([self.waiting, hits], axis=1)
        begins = np.flatnonzero(np.append(True, np.diff(hits[1]) != 1)) if hits.size else np.empty(0, dtype=np.int64)
        lengths = np.diff(np.append(begins, hits.shape[1]))
        runs = np.repeat(lengths, lengths)
        may_continue = hits.size and lengths[-1] <= _MOST_WAITING
        end = int(begins[-1]) if may_continue else hits.shape[1]
        self._record(hits[:, :end], runs[:end])
        self.waiting = hits[:, end:]

    def finish(self) -> None:
        """Record the last run."""
        self._record(self.waiting, np.full(self.waiting.shape[1], self.waiting.shape[1]))
        self.waiting = self.waiting[:, :0]

    def _record(self, hits: np.ndarray, runs: np.ndarray) -> None:
        """Record hits in longer runs than those before; ``runs`` are the lengths of their runs."""
        better = np.flatnonzero(runs > self.runs[hits[0]])
        better = better[np.lexsort((-hits[1, better], runs[better]))]  # for equal places, the last assignment stays
        places = hits[0, better]
        self.words[places], self.texts[places], self.starts[places] = hits[1:, better]
        self.runs[places] = runs[better]


def _result(grams: Grams, search: _Search, shown: int) -> Overlap:
    is_found = search.runs[grams.which] > 0
    per_document = np.bincount(grams.documents, minlength=len(grams.texts))
    found = np.bincount(grams.documents[is_found], minlength=len(grams.texts))
    documents = int(np.count_nonzero(per_document))
    # runs of n-grams that are consecutive on both sides
    continues = is_found[1:] & is_found[:-1] & (np.diff(grams.documents) == 0)
    continues &= np.diff(search.words[grams.which]) == 1
    begins = np.flatnonzero(is_found & np.append(True, ~continues)[: len(is_found)])
    ends = np.flatnonzero(is_found & np.append(~continues, True)[: len(is_found)])
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
                grams=int(per_document[document]),
            )
        )
    return Overlap(
        documents=documents,
        short=len(grams.texts) - documents,
        hit=int(np.count_nonzero(found)),
        grams=len(grams.distinct),
        found=int(np.count_nonzero(search.runs)),
        passages=passages,
    )

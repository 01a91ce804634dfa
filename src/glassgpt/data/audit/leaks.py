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

from glassgpt.data.audit.words import TextOrParts, blocks, runs, words

#: Words in an n-gram.
GRAM = 13
#: Documents of fewer words are skipped.
MIN_WORDS = 8
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

        columns = [np.empty((4, 0), dtype=np.int64)]
        hashes = [np.empty(0, dtype=np.uint64)]
        for text, name in _with_names(texts, names, "document"):
            kept_texts.append(text if isinstance(text, str) else "".join(text))
            kept_names.append(name)
            for block, offset in blocks(kept_texts[-1], GRAM):
                of_words, (begins, ends) = words(block)
                size = min(GRAM, max(MIN_WORDS, len(of_words)))
                hashes.append(runs(of_words, size))
                count = len(hashes[-1])
                number, sizes = np.full(count, len(kept_texts) - 1), np.full(count, size)
                places = offset + begins[:count], offset + ends[size - 1 :]
                columns.append(np.stack([number, *places, sizes]))
        distinct, which = np.unique(np.concatenate(hashes), return_inverse=True)
        return cls(kept_texts, kept_names, distinct, which, *np.concatenate(columns, axis=1))


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

    The counts are exact. For an n-gram that occurs several times on the large side, the place in the longest run (in a
    block) of hits is used, or the first of several such places; the passages are made from these places.

    Args:
        grams: of the small side.
        texts: the large side, texts or the parts of each; read once, as a stream.
        names: of these texts, at least as many; "text 1" and so on by default.
        shown: most passages to give.

    Raises:
        ValueError: if there are fewer names than texts.
    """
    search = _Search(grams)
    for text, name in _with_names(texts, names, "text"):
        for block, offset in blocks(text, GRAM):
            search.add(block, offset, name)
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


class _Search:
    """Records where each distinct n-gram of the small side is on the large side."""

    def __init__(self, grams: Grams):
        self.distinct = grams.distinct
        self.sizes = np.unique(grams.sizes).tolist()
        self.words, self.starts = (np.full(len(self.distinct), -1) for _ in range(2))  # number and place of its word
        self.runs = np.zeros(len(self.distinct), dtype=np.int64)  # length of the run of hits at that place
        self.names = np.empty(len(self.distinct), dtype=object)  # of its text
        self.num_words = 0  # before the block
        bits = min(24, max(16, len(self.distinct).bit_length() + 4))
        self.mask = np.uint64((1 << bits) - 1)
        self.maybe = np.zeros(1 << bits, dtype=bool)  # whether any n-gram's hash has these lowest bits
        self.maybe[self.distinct & self.mask] = True

    def add(self, block: str, offset: int, name: str) -> None:
        """Search a block of the text ``name``."""
        hashes, (begins, _) = words(block)
        self.num_words += 1 if offset == 0 else 1 - GRAM  # a gap between texts; else the last words come again
        for size in self.sizes:
            grams = runs(hashes, size)
            first = np.flatnonzero(self.maybe.take((grams & self.mask).astype(np.intp)))
            places = np.searchsorted(self.distinct, grams[first])
            places[places == len(self.distinct)] = 0
            is_hit = self.distinct[places] == grams[first]
            places, first = places[is_hit], first[is_hit]
            if not len(first):
                continue
            lengths = np.diff(np.flatnonzero(np.concatenate([[True], np.diff(first) != 1, [True]])))
            in_run = np.repeat(lengths, lengths) if size == GRAM else np.ones(len(first), dtype=np.int64)
            better = np.flatnonzero(in_run > self.runs[places])
            better = better[np.lexsort((-first[better], in_run[better]))]  # of equal places, the last assignment stays
            places, first = places[better], first[better]
            self.words[places], self.runs[places] = self.num_words + first, in_run[better]
            self.starts[places], self.names[places] = offset + begins[first], name
        self.num_words += len(hashes)


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
                other=search.names[place],
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

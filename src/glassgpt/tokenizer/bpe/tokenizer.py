"""Byte-level byte-pair encoding (BPE): learned from a text, then applied to any text.

The method of GPT-2 (Radford et al. 2019), after Sennrich et al. 2016 (arXiv:1508.07909). A text is split into pieces
(see :mod:`glassgpt.tokenizer.pretokenize`), and a piece into its UTF-8 bytes; these are the first 256 tokens. Learning
joins the most frequent pair of neighbours into a new token, again and again. Encoding a piece applies the same merges
in the order in which they were learned. Whatever the text, its bytes are there, so nothing is unknown and nothing lost.

**A word is held as a str, one character per token:** the token with id i is ``chr(i)``. So a pair of neighbours is a
str of two characters, and merging it everywhere in a word, from left to right, is ``word.replace(pair, new)``.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import regex

from glassgpt.errors import TokenizerError
from glassgpt.tokenizer.base import END_OF_TEXT, json_file
from glassgpt.tokenizer.bpe import bytelevel
from glassgpt.tokenizer.bpe.bytelevel import BPEModel
from glassgpt.tokenizer.bpe.engine import Engine, Engines, agrees, engine_fails
from glassgpt.tokenizer.bpe.normal import normalize
from glassgpt.tokenizer.pretokenize import (
    PATTERNS,
    Splitter,
    Texts,
    as_unicode_16,
    count_pieces,
    reaches_across,
    usable_cpus,
)

#: Distinct pieces whose ids are remembered; most pieces of a text have occurred before.
CACHE = 1 << 18
#: Bytes of a piece from which merging one pair after another by a queue is faster than looking at all pairs each time.
_LONG = 128


# --- learning --------------------------------------------------------------------------------------------------------


def learn_merges(
    words: Mapping[bytes, int],
    merges: int,
    min_frequency: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[int, int]]:
    """Learn merges from the distinct pieces of a text and how often each occurs.

    Each merge takes the pair of neighbours that is most frequent then; of equally frequent pairs the one with the
    smallest ids, first in its left token, then in its right. Ids 0 to 255 are the bytes in GPT-2's order
    (:data:`bytelevel.BYTES`), and 256 + i is what merge i makes. Pairs are counted once; after that, a merge looks
    only at the words that contain its pair, and counts what changes around it.

    Args:
        words: the UTF-8 bytes of each piece, and its count.
        merges: to learn at most; fewer are learned when no pair occurs ``min_frequency`` times any more.
        min_frequency: of a pair.
        progress: called with the merges learned so far, and those asked for.

    Returns:
        The pairs of ids, in order.
    """
    spelled = [bytelevel.spell(word) for word in words]
    counts = list(words.values())
    pair_counts: defaultdict[str, int] = defaultdict(int)
    places: defaultdict[str, list[int]] = defaultdict(list)  # pair -> words it is, or was, in
    for i, (word, count) in enumerate(zip(spelled, counts, strict=True)):
        for pair in map(str.__add__, word, word[1:]):
            pair_counts[pair] += count
            places[pair].append(i)
    most_frequent = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(most_frequent)
    learned: list[str] = []
    min_frequency = max(min_frequency, 1)  # pairs that are gone are not made anew
    while most_frequent and len(learned) < merges:
        negative, pair = heapq.heappop(most_frequent)
        count = pair_counts[pair]
        if count < min_frequency:
            continue
        if count != -negative:  # other merges took some of its occurrences since it was queued
            heapq.heappush(most_frequent, (-count, pair))
            continue
        created = _merge_everywhere(pair, chr(256 + len(learned)), spelled, counts, pair_counts, places)
        for new_pair in created:
            heapq.heappush(most_frequent, (-pair_counts[new_pair], new_pair))
        learned.append(pair)
        if progress and (len(learned) % 64 == 0 or len(learned) == merges):
            progress(len(learned), merges)
    return [(ord(pair[0]), ord(pair[1])) for pair in learned]


def _merge_everywhere(
    pair: str,
    new: str,
    spelled: list[str],
    counts: list[int],
    pair_counts: defaultdict[str, int],
    places: defaultdict[str, list[int]],
) -> set[str]:
    """Merge a pair in all words, and keep the counts of pairs and their places true. Returns the pairs that are new."""
    left, right = pair[0], pair[1]
    created: set[str] = set()
    for i in places.pop(pair):
        parts = spelled[i].split(pair)
        if len(parts) == 1:
            continue  # it is there no more, or the word was in the list twice
        spelled[i], count = new.join(parts), counts[i]
        for number, (before, after) in enumerate(pairwise(parts)):  # an occurrence of the pair lies between the two
            made = []
            if before:
                pair_counts[before[-1] + left] -= count
                made.append(before[-1] + new)
            elif number > 0:  # right after another occurrence
                pair_counts[right + left] -= count
                made.append(new + new)
            if after:
                pair_counts[right + after[0]] -= count
                made.append(new + after[0])
            for new_pair in made:
                pair_counts[new_pair] += count
                places[new_pair].append(i)
                created.add(new_pair)
    del pair_counts[pair]
    return created


# --- applying --------------------------------------------------------------------------------------------------------


class Merge(NamedTuple):
    """A step of encoding a piece: its tokens, and the rank of the merge that comes next (None after the last)."""

    tokens: list[bytes]
    rank: int | None


class BPETokenizer:
    """Text to ids by byte-level BPE, and back without loss.

    Args:
        model: vocabulary and merges.
        content: the tokenizer.json it was read from, kept so that saving writes the same.

    Raises:
        TokenizerError: if the parts do not fit together.
    """

    kind = "bpe"

    def __init__(self, model: BPEModel, content: Mapping[str, Any] | None = None):
        self.model, self.content = model, content
        model.check()
        self._in_order = model.in_order()  # only then a pair may be merged everywhere at once
        self._splitter = Splitter(model.patterns)
        named = {**model.special, **model.added}
        self.vocab_size = 1 + max([*model.vocab.values(), *named.values()])
        self._bytes = [b""] * self.vocab_size
        for token, i in [*model.vocab.items(), *((name.encode("utf-8"), i) for name, i in named.items())]:
            self._bytes[i] = token
        singles = {byte: model.vocab.get(bytes([byte])) for byte in range(256)}
        self._first = {
            byte: None if i is None else chr(i) for byte, i in singles.items()
        }  # None: str.translate drops it
        self._ranks: dict[str, int] = {}  # pair -> rank
        self._merged: dict[str, str] = {}  # pair -> token
        for rank, (left, right) in enumerate(model.merges):
            pair = chr(model.vocab[left]) + chr(model.vocab[right])
            self._ranks[pair], self._merged[pair] = rank, chr(model.vocab[left + right])
        self._named = _alternatives(named)
        self._cache: dict[str, list[int]] = {}
        self._engines = Engines(model, self._merge)
        self.can_encode_in_chunks = self._splitter.can_encode_in_chunks and not any(map(reaches_across, model.added))
        self.eos_token_id = named[model.eos] if model.eos else None
        self.bos_token_id = named[model.bos] if model.bos else None

    @classmethod
    def train(
        cls,
        text: Texts,
        vocab_size: int,
        *,
        pattern: str = "gpt2",
        special: Sequence[str] = (END_OF_TEXT,),
        min_frequency: int = 2,
        processes: int | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        characters: int | None = None,
    ) -> "BPETokenizer":
        """Learn a vocabulary of a text, or of several.

        The same text and settings give the same tokenizer, with any processes.

        Args:
            text: to learn from.
            vocab_size: all tokens: 256 bytes, then what is learned, then the special ones. Smaller in the end if
                no pair occurs ``min_frequency`` times any more.
            pattern: a name from :data:`PATTERNS`.
            special: names of special tokens; `<|endoftext|>`, if among them, ends documents.
            min_frequency: that a pair must have to become a token.
            processes: as in :func:`count_pieces`.
            progress: called with "counting words" or "merging", what is done, and of how much.
            characters: as in :func:`count_pieces`.

        Raises:
            TokenizerError: if the vocabulary is smaller than the bytes and the special tokens, a special token has no
                name of its own, or the text is none.
        """
        if pattern not in PATTERNS:
            raise TokenizerError(f"there is no split pattern {pattern!r}; there are {', '.join(PATTERNS)}")
        splitter = Splitter([PATTERNS[pattern]])
        bytelevel.check_special(special, splitter)
        least = 256 + len(special)
        if vocab_size < least:
            raise TokenizerError(
                f"a byte-level vocabulary has at least {least} tokens (256 bytes, and special: {', '.join(special)}); "
                f"got vocab_size {vocab_size}"
            )
        counting = (lambda done, total: progress("counting words", done, total)) if progress else None
        merging = (lambda done, total: progress("merging", done, total)) if progress else None
        pieces = count_pieces(text, splitter, processes, counting, characters)
        words = {piece.encode("utf-8"): count for piece, count in pieces.items()}
        learned = learn_merges(words, vocab_size - least, min_frequency, merging)
        tokens = list(bytelevel.BYTES)
        for left, right in learned:
            tokens.append(tokens[left] + tokens[right])
        assert len(set(tokens)) == len(tokens), "two merges cannot make the same bytes"
        model = BPEModel(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[(tokens[left], tokens[right]) for left, right in learned],
            patterns=(PATTERNS[pattern],),
            special={name: len(tokens) + i for i, name in enumerate(special)},
            eos=END_OF_TEXT if END_OF_TEXT in special else None,
        )
        return cls(model)

    def encode(self, text: str, allow_special: bool = False, engine: Engine = "auto") -> list[int]:
        """Ids of a text.

        Args:
            text: any text.
            allow_special: whether special tokens written in the text become those tokens. Never for text of users.
            engine: who merges: this code, or tiktoken's engine with the same result; "auto" takes tiktoken for long
                texts where it is installed.

        Raises:
            TokenizerError: if the text holds lone surrogates, which no UTF-8 can express.
        """
        ids: list[int] = []
        for part, named in self._parts(text, allow_special):
            if named is not None:
                ids.append(named)
            else:
                part = self._normal(part)
                quick = self._engine(engine, part)
                ids += quick.encode_ordinary(part) if quick else self._merge_pieces(part)
        return ids

    def encode_array(self, text: str, engine: Engine = "auto") -> np.ndarray:
        """As :meth:`encode`, to an int64 array ``[tokens]``; with tiktoken's engine, on all CPUs."""
        parts = [np.zeros(0, dtype=np.int64)]
        for part, named in self._parts(text, allow_special=False):
            if named is not None:
                parts.append(np.array([named]))
                continue
            part = self._normal(part)
            quick = self._engine(engine, part)
            chunks = self._splitter.chunks(part)
            if quick:
                to_ids = partial(quick.encode_to_numpy, disallowed_special=())
                with ThreadPoolExecutor(usable_cpus()) as pool:
                    parts += [ids.astype(np.int64) for ids in pool.map(to_ids, chunks)]
            else:
                parts += [np.array(self._merge_pieces(chunk), dtype=np.int64) for chunk in chunks]
        return np.concatenate(parts)

    def expect(self, characters: int) -> None:
        """Told how much text is to come, in many short parts: then tiktoken's engine may be worth building at once."""
        self._engines.get("auto", characters)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids of any bytes, the same as tiktoken's. Decoding gives the bytes back.

        Up to the first byte that is not UTF-8 they are split as text. The last piece before it (with all white space
        there), that byte and whatever follows are merged as one piece.
        """
        try:
            valid, rest = data.decode("utf-8"), b""
        except UnicodeDecodeError as error:
            valid, rest = data[: error.start].decode("utf-8"), data[error.start :]
        ids: list[int] = []
        last: list[int] = []
        for piece in self._splitter.split(valid):
            ids += last
            last = self._merge(piece.encode("utf-8"))
        if not rest:
            return ids + last
        while last and ids and not self._bytes[last[0]].strip(b" \n\t") and not self._bytes[ids[-1]].strip(b" \n\t"):
            last.insert(0, ids.pop())
        return ids + self._merge(self.decode_bytes(last) + rest)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids. Bytes that do not make a character become U+FFFD; special tokens their names.

        Raises:
            TokenizerError: for an id that is not in the vocabulary.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of these ids, exactly.

        Raises:
            TokenizerError: for an id that is not in the vocabulary.
        """
        return b"".join(map(self.token_bytes, ids))

    def token_bytes(self, i: int) -> bytes:
        """The bytes that a token stands for; those of its name for a special token.

        Raises:
            TokenizerError: for an id that is not in the vocabulary.
        """
        if not 0 <= i < self.vocab_size:
            raise TokenizerError(f"ids are from 0 to {self.vocab_size - 1}, got {i}")
        return self._bytes[i]

    def special_tokens(self) -> dict[str, str]:
        """The named ones: ``{"eos_token": ..., "bos_token": ...}``, as far as there are any."""
        names = {"bos_token": self.model.bos, "eos_token": self.model.eos}
        return {role: name for role, name in names.items() if name}

    def special_ids(self) -> dict[str, int]:
        """Every special token and its id."""
        return dict(self.model.special)

    def replay(self, text: str) -> list[list[Merge]]:
        """How a text comes to its tokens: for each piece, the tokens before every merge and after the last one.

        Raises:
            TokenizerError: as for :meth:`encode`.
        """
        return [self._replay(piece.encode("utf-8")) for piece in self._splitter.split(self._normal(text))]

    def _replay(self, piece: bytes) -> list[Merge]:
        steps: list[Merge] = []
        word = piece.decode("latin-1").translate(self._first)
        while True:
            pair = self._next_pair(word)
            rank = None if pair is None else self._ranks[pair]
            steps.append(Merge([self._bytes[ord(token)] for token in word], rank))
            if pair is None:
                return steps
            word = word.replace(pair, self._merged[pair], -1 if self._in_order else 1)

    def to_json(self) -> dict[str, Any]:
        """The content of tokenizer.json, which `tokenizers` and `transformers` read with the same ids."""
        return dict(self.content) if self.content else bytelevel.to_json(self.model)

    def files(self) -> dict[str, bytes]:
        """What a model folder holds of it, beside tokenizer_config.json."""
        return json_file(self.to_json())

    def ranks_are_ids(self) -> bool:
        """Whether merging by ids gives the same tokens as merging by ranks, as tiktoken's format needs it."""
        return agrees(self.model, self._merge)

    def _parts(self, text: str, allow_special: bool) -> Iterable[tuple[str, int | None]]:
        """The text between the tokens that are found whole, and those tokens' ids."""
        ids = {**self.model.special, **self.model.added} if allow_special else self.model.added
        parts: list[tuple[str, int | None]] = []
        begin = 0
        for match in self._named.finditer(text) if self._named and ids else ():
            if match[0] in ids:  # a special token that is not allowed is text, and what is in its name is, too
                parts += [(text[begin : match.start()], None), (match[0], ids[match[0]])]
                begin = match.end()
        return [(part, i) for part, i in [*parts, (text[begin:], None)] if part]

    def _engine(self, engine: Engine, text: str) -> Any:
        """tiktoken's engine, where it is to encode this text and splits it as we do."""
        quick = self._engines.get(engine, len(text))
        return quick if quick and not engine_fails(text) and as_unicode_16(text) is text else None

    def _normal(self, text: str) -> str:
        """The text in its normal form, if the model has one; refused if it is no text."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"the text holds U+{ord(text[error.start]):04X} at position {error.start}, half of a character, which "
                "no UTF-8 can express; use encode_bytes for bytes that are not text"
            ) from None
        return normalize(self.model.normal_form, text) if self.model.normal_form else text

    def _merge_pieces(self, text: str) -> list[int]:
        ids: list[int] = []
        cache = self._cache
        for piece in self._splitter.split(text):
            known = cache.get(piece)
            if known is None:
                known = self._merge(piece.encode("utf-8"))
                if len(cache) < CACHE:
                    cache[piece] = known
            ids += known
        return ids

    def _merge(self, piece: bytes) -> list[int]:
        """Ids of one piece: the merge of the lowest rank first, for as long as there is one."""
        if self.model.whole_pieces and piece in self.model.vocab:
            return [self.model.vocab[piece]]
        word = piece.decode("latin-1").translate(self._first)
        if len(word) >= _LONG or not self._in_order:
            return self._merge_long(word)
        while (pair := self._next_pair(word)) is not None:
            word = word.replace(pair, self._merged[pair])
        return [ord(token) for token in word]

    def _next_pair(self, word: str) -> str | None:
        """The pair of neighbours with the lowest rank."""
        ranks = self._ranks
        ranked = [(ranks[pair], pair) for pair in map(str.__add__, word, word[1:]) if pair in ranks]
        return min(ranked)[1] if ranked else None

    def _merge_long(self, word: str) -> list[int]:
        """The same for a long piece, in n log n steps: a queue of pairs, and links between the tokens left."""
        tokens: list[str | None] = list(word)
        before, after = list(range(-1, len(word) - 1)), list(range(1, len(word) + 1))
        pairs = map(str.__add__, word, word[1:])
        waiting = [(self._ranks[pair], at, pair) for at, pair in enumerate(pairs) if pair in self._ranks]
        heapq.heapify(waiting)
        while waiting:
            _, at, pair = heapq.heappop(waiting)
            follower = after[at]
            if tokens[at] != pair[0] or follower >= len(word) or tokens[follower] != pair[1]:
                continue  # one of the two was merged with another meanwhile
            tokens[at], tokens[follower] = self._merged[pair], None
            after[at] = after[follower]
            if after[at] < len(word):
                before[after[at]] = at
            for first, second in ((before[at], at), (at, after[at])):
                if first >= 0 and second < len(word):
                    neighbours = f"{tokens[first]}{tokens[second]}"
                    if neighbours in self._ranks:
                        heapq.heappush(waiting, (self._ranks[neighbours], first, neighbours))
        return [ord(token) for token in tokens if token is not None]


def _alternatives(names: Iterable[str]) -> "regex.Pattern[str] | None":
    """A pattern that finds any of these, the longest first."""
    ordered = sorted(names, key=len, reverse=True)
    return regex.compile("|".join(map(regex.escape, ordered))) if ordered else None

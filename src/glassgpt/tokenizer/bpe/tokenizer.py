"""Byte-level byte-pair encoding (BPE), the tokenizer of GPT-2.

The method of Radford et al. 2019, after Sennrich et al. 2016 (arXiv:1508.07909). A text is split into pre-tokens
(:mod:`glassgpt.tokenizer.pretokenize`), and a pre-token into its UTF-8 bytes, which are the first 256 tokens. Training
(:mod:`glassgpt.tokenizer.bpe.training`) joins the most frequent pair of neighbours into a new token, again and again.
Encoding applies the same merges to each pre-token in the order in which they were learned. Every byte is a token, so
no text is unknown and nothing is lost. As in training, the token with id i is held as the character ``chr(i)``.
"""

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import regex

from glassgpt.errors import TokenizerError
from glassgpt.files import Progress
from glassgpt.tokenizer.base import END_OF_TEXT, Tokenizer, join_surrogates, json_file
from glassgpt.tokenizer.bpe import bytelevel
from glassgpt.tokenizer.bpe.bytelevel import BPEModel
from glassgpt.tokenizer.bpe.engine import Engine, LazyEngine, agrees, engine_fails
from glassgpt.tokenizer.bpe.normal import normalize
from glassgpt.tokenizer.bpe.training import learn_merges
from glassgpt.tokenizer.pretokenize import (
    PreTokenizer,
    Texts,
    as_unicode_16,
    can_span_cut,
    count_pre_tokens,
    usable_cpus,
)

#: Distinct pre-tokens whose ids are cached; most pre-tokens of a text have occurred before.
CACHE = 1 << 18
#: Bytes of a pre-token from which a heap of pairs is faster than looking at all pairs before each merge.
_HEAP_FROM = 128


class MergeStep(NamedTuple):
    """A step of encoding a pre-token: its tokens, and the rank of the next merge (None after the last)."""

    tokens: list[bytes]
    rank: int | None


class BPETokenizer(Tokenizer):
    """Byte-level BPE: text to ids, and back without loss.

    Args:
        model: vocabulary and merges.
        content: of the tokenizer.json that the model was read from; saving writes it unchanged.

    Raises:
        TokenizerError: if the parts of the model do not fit together.
    """

    kind = "bpe"

    def __init__(self, model: BPEModel, content: Mapping[str, Any] | None = None):
        self.model, self.content, self._special = model, content, model.special
        model.check()
        self._in_order = model.merges_in_order()  # only then may a pair be merged everywhere at once
        self._pre_tokenizer = PreTokenizer(model.patterns)
        named = {**model.special, **model.added}
        self.vocab_size = 1 + max([*model.vocab.values(), *named.values()])
        self._bytes = [b""] * self.vocab_size
        for token, i in [*model.vocab.items(), *((name.encode("utf-8"), i) for name, i in named.items())]:
            self._bytes[i] = token
        self._byte_symbols = {  # for str.translate, which drops what maps to None
            byte[0]: chr(model.vocab[byte]) if byte in model.vocab else None for byte in bytelevel.BYTES
        }
        self._ranks: dict[str, int] = {}  # pair -> rank
        self._merged: dict[str, str] = {}  # pair -> token
        for rank, (left, right) in enumerate(model.merges):
            pair = chr(model.vocab[left]) + chr(model.vocab[right])
            self._ranks[pair], self._merged[pair] = rank, chr(model.vocab[left + right])
        longest_first = sorted(named, key=len, reverse=True)
        self._named_pattern = regex.compile("|".join(map(regex.escape, longest_first)) or r"(?!)")
        self._cache: dict[str, list[int]] = {}
        self._engine = LazyEngine(model, self._merge)
        self.can_encode_in_chunks = self._pre_tokenizer.can_encode_in_chunks and not any(map(can_span_cut, model.added))
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
        progress: Progress | None = None,
        characters: int | None = None,
    ) -> "BPETokenizer":
        """Learn a vocabulary from a text; the result does not depend on the number of processes.

        Args:
            text: the training text.
            vocab_size: number of tokens: 256 bytes, the learned ones, then the special ones. The vocabulary becomes
                smaller if no pair occurs ``min_frequency`` times any more.
            pattern: a name from :data:`PATTERNS`, or a regular expression: see :func:`bytelevel.split_pattern`.
            special: names of special tokens; `<|endoftext|>`, if among them, ends documents.
            min_frequency: the least count of a pair that becomes a token.
            processes, characters: as for :func:`count_pre_tokens`.
            progress: callback with the labels "counting pre-tokens" and "merging".

        Raises:
            TokenizerError: if there is no such pattern, the vocabulary has no room for the bytes and special tokens,
                the name of a special token cannot be used, or the text is not valid Unicode.
        """
        pre_tokenizer = PreTokenizer([bytelevel.split_pattern(pattern)])
        bytelevel.check_special_names(special, pre_tokenizer)
        min_size = 256 + len(special)
        if vocab_size < min_size:
            raise TokenizerError(
                f"a byte-level vocabulary has at least {min_size} tokens (256 bytes; special: {', '.join(special)}); "
                f"got vocab_size {vocab_size}"
            )
        counts = count_pre_tokens(text, pre_tokenizer, processes, progress, characters)
        pre_tokens = {pre_token.encode("utf-8"): count for pre_token, count in counts.items()}
        merges = learn_merges(pre_tokens, vocab_size - min_size, min_frequency, progress)
        tokens = list(bytelevel.BYTES)
        for left, right in merges:
            tokens.append(tokens[left] + tokens[right])
        assert len(set(tokens)) == len(tokens), "two merges cannot create the same bytes"
        model = BPEModel(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[(tokens[left], tokens[right]) for left, right in merges],
            patterns=pre_tokenizer.patterns,
            special={name: len(tokens) + i for i, name in enumerate(special)},
            eos=END_OF_TEXT if END_OF_TEXT in special else None,
        )
        return cls(model)

    def encode(
        self,
        text: str,
        allow_special: bool | Collection[str] = False,
        *,
        forbid_special: bool | Collection[str] = False,
        engine: Engine = "auto",
    ) -> list[int]:
        """Encode a text, as :meth:`Tokenizer.encode`.

        ``engine`` is "python" for this code, "tiktoken" for tiktoken's, with the same result; "auto" uses tiktoken for
        long texts if it is installed.

        Raises:
            TokenizerError: if the text is not valid Unicode (has lone surrogates), or has the name of a forbidden
                token.
        """
        text = join_surrogates(text)
        return self._encode(text, self._allowed(text, allow_special, forbid_special), engine)

    def _encode(self, text: str, allowed: Mapping[str, int], engine: Engine = "auto") -> list[int]:
        ids: list[int] = []
        for part, named in self._parts(text, allowed):
            if named is not None:
                ids.append(named)
            else:
                part = self._normalize(part)
                encoding = self._tiktoken_for(engine, part)
                ids += encoding.encode_ordinary(part) if encoding else self._encode_plain(part)
        return ids

    def encode_array(self, text: str, engine: Engine = "auto") -> np.ndarray:
        """Encode a text to an int64 array ``[tokens]``; with tiktoken's engine, on all CPUs."""
        arrays = [np.zeros(0, dtype=np.int64)]
        for part, named in self._parts(join_surrogates(text), {}):
            if named is not None:
                arrays.append(np.array([named]))
                continue
            part = self._normalize(part)
            encoding = self._tiktoken_for(engine, part)
            chunks = self._pre_tokenizer.chunks(part)
            if encoding:
                to_ids = partial(encoding.encode_to_numpy, disallowed_special=())
                with ThreadPoolExecutor(usable_cpus()) as pool:
                    arrays += [ids.astype(np.int64) for ids in pool.map(to_ids, chunks)]
            else:
                arrays += [np.array(self._encode_plain(chunk), dtype=np.int64) for chunk in chunks]
        return np.concatenate(arrays)

    def warm_up(self, characters: int) -> None:
        """Build tiktoken's engine now, if it pays for this many characters that will be encoded in short parts."""
        self._engine.get("auto", characters)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Encode any bytes, with tiktoken's ids; decoding restores the bytes.

        The bytes before the first invalid UTF-8 are split as text. The last pre-token of these (with all white space
        there) and everything that follows are merged as one pre-token.
        """
        try:
            valid, rest = data.decode("utf-8"), b""
        except UnicodeDecodeError as error:
            valid, rest = data[: error.start].decode("utf-8"), data[error.start :]
        ids, last = list[int](), list[int]()
        for pre_token in self._pre_tokenizer.split(valid):
            ids += last
            last = self._merge(pre_token.encode("utf-8"))
        if not rest:
            return ids + last
        while last and ids and not self._bytes[last[0]].strip(b" \n\t") and not self._bytes[ids[-1]].strip(b" \n\t"):
            last.insert(0, ids.pop())
        return ids + self._merge(self.decode_bytes(last) + rest)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to text. Invalid UTF-8 becomes U+FFFD; special tokens become their names."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Decode ids to bytes, exactly."""
        return b"".join(map(self.token_bytes, ids))

    def token_bytes(self, i: int) -> bytes:
        """The bytes of a token; for a special token, of its name.

        Raises:
            TokenizerError: for an id outside the vocabulary.
        """
        if not 0 <= i < self.vocab_size:
            raise TokenizerError(f"ids are from 0 to {self.vocab_size - 1}, got {i}")
        return self._bytes[i]

    def unused_ids(self) -> tuple[int, ...]:
        """Ids below vocab_size that have no token."""
        model = self.model
        used = {*model.vocab.values(), *model.special.values(), *model.added.values()}
        return tuple(i for i in range(self.vocab_size) if i not in used)

    def special_tokens(self) -> dict[str, str]:
        """Special tokens by role: ``{"eos_token": ..., "bos_token": ...}``, if there are any."""
        names = {"bos_token": self.model.bos, "eos_token": self.model.eos}
        return {role: name for role, name in names.items() if name}

    def replay(self, text: str) -> list[list[MergeStep]]:
        """Encode a text step by step: for each pre-token, its tokens before every merge and after the last one.

        Raises:
            TokenizerError: as for :meth:`encode`.
        """
        return [
            self._replay(part.encode("utf-8"))
            for part in self._pre_tokenizer.split(self._normalize(join_surrogates(text)))
        ]

    def _replay(self, pre_token: bytes) -> list[MergeStep]:
        steps: list[MergeStep] = []
        symbols = self._to_symbols(pre_token)
        while True:
            pair = self._next_pair(symbols)
            rank = None if pair is None else self._ranks[pair]
            steps.append(MergeStep([self._bytes[ord(token)] for token in symbols], rank))
            if pair is None:
                return steps
            symbols = symbols.replace(pair, self._merged[pair], -1 if self._in_order else 1)

    def to_json(self) -> dict[str, Any]:
        """The content of tokenizer.json; `tokenizers` and `transformers` give the same ids with it."""
        return dict(self.content) if self.content else bytelevel.to_json(self.model)

    def files(self) -> dict[str, bytes]:
        """The files for a model folder, by name."""
        return json_file(self.to_json())

    def ranks_are_ids(self) -> bool:
        """Whether merging by ids gives the same tokens as merging by ranks, as tiktoken's format requires."""
        return agrees(self.model, self._merge)

    def _parts(self, text: str, allowed: Mapping[str, int]) -> Iterable[tuple[str, int | None]]:
        """Cut a text at added tokens and allowed special tokens into (part, id of such a token or None)."""
        ids = {**allowed, **self.model.added}
        parts, begin = list[tuple[str, int | None]](), 0
        for match in self._named_pattern.finditer(text) if ids else ():
            if match[0] in ids:  # if not allowed, a special token is plain text, with all that is inside its name
                parts += [(text[begin : match.start()], None), (match[0], ids[match[0]])]
                begin = match.end()
        return [(part, i) for part, i in [*parts, (text[begin:], None)] if part]

    def _tiktoken_for(self, engine: Engine, text: str) -> Any:
        """tiktoken's engine, if it is to encode this text and splits it as we do; else None."""
        encoding = self._engine.get(engine, len(text))
        return encoding if encoding and not engine_fails(text) and as_unicode_16(text) is text else None

    def _normalize(self, text: str) -> str:
        """Normalise the text, if the model says so; raise if it is not valid Unicode."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"the text is not valid Unicode: it has the lone surrogate U+{ord(text[error.start]):04X} at position "
                f"{error.start}, which UTF-8 cannot express; use encode_bytes for bytes that are not text"
            ) from None
        return normalize(self.model.normal_form, text) if self.model.normal_form else text

    def _encode_plain(self, text: str) -> list[int]:
        """Encode a normalised text without special tokens."""
        ids: list[int] = []
        cache = self._cache
        for pre_token in self._pre_tokenizer.split(text):
            cached = cache.get(pre_token)
            if cached is None:
                cached = self._merge(pre_token.encode("utf-8"))
                if len(cache) < CACHE:
                    cache[pre_token] = cached
            ids += cached
        return ids

    def _merge(self, pre_token: bytes) -> list[int]:
        """Encode one pre-token: apply the merge of the lowest rank, for as long as there is one."""
        if self.model.ignore_merges and pre_token in self.model.vocab:
            return [self.model.vocab[pre_token]]
        symbols = self._to_symbols(pre_token)
        if len(symbols) >= _HEAP_FROM or not self._in_order:
            return self._merge_with_heap(symbols)
        while (pair := self._next_pair(symbols)) is not None:
            symbols = symbols.replace(pair, self._merged[pair])
        return [ord(token) for token in symbols]

    def _to_symbols(self, pre_token: bytes) -> str:
        return pre_token.decode("latin-1").translate(self._byte_symbols)

    def _next_pair(self, symbols: str) -> str | None:
        """The pair of neighbours with the lowest rank."""
        ranks = self._ranks
        ranked = [(ranks[pair], pair) for pair in map(str.__add__, symbols, symbols[1:]) if pair in ranks]
        return min(ranked)[1] if ranked else None

    def _merge_with_heap(self, symbols: str) -> list[int]:
        """The same in n log n steps: a heap of pairs, and links between the remaining tokens."""
        tokens: list[str | None] = list(symbols)
        before, after = list(range(-1, len(symbols) - 1)), list(range(1, len(symbols) + 1))
        pairs = map(str.__add__, symbols, symbols[1:])
        heap = [(self._ranks[pair], at, pair) for at, pair in enumerate(pairs) if pair in self._ranks]
        heapq.heapify(heap)
        while heap:
            _, at, pair = heapq.heappop(heap)
            follower = after[at]
            if tokens[at] != pair[0] or follower >= len(symbols) or tokens[follower] != pair[1]:
                continue  # one of the two has been merged with another token
            tokens[at], tokens[follower] = self._merged[pair], None
            after[at] = after[follower]
            if after[at] < len(symbols):
                before[after[at]] = at
            for first, second in ((before[at], at), (at, after[at])):
                if first >= 0 and second < len(symbols):
                    neighbours = f"{tokens[first]}{tokens[second]}"
                    if neighbours in self._ranks:
                        heapq.heappush(heap, (self._ranks[neighbours], first, neighbours))
        return [ord(token) for token in tokens if token is not None]


def require_bpe(tokenizer: Tokenizer, purpose: str) -> BPETokenizer:
    """Return a tokenizer that is plain byte-level BPE; ``purpose`` begins the message, as in "tiktoken runs".

    Raises:
        TokenizerError: if it is not, with the reason.
    """
    if isinstance(tokenizer, BPETokenizer):
        return tokenizer
    reason = bytelevel.from_json(tokenizer.content) if tokenizer.content else f"it is of the kind {tokenizer.kind!r}"
    raise TokenizerError(
        f"{purpose} plain byte-level BPE, and this tokenizer is not: {reason}. Train with tokenizer=bpe:N, or use the "
        "tokenizer.json of export --to hf"
    )

"""tiktoken's engine with our vocabularies: the same ids, faster, if tiktoken is installed.

tiktoken merges by the rank of the *joined* bytes, BPE by the rank of the *pair*. The two agree for every vocabulary
that was learned from a text; :func:`agrees` proves it for a given one, so a published file cannot change ids silently.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

from glassgpt.errors import MissingExtraError
from glassgpt.tokenizer.base import END_OF_TEXT
from glassgpt.tokenizer.bpe.bytelevel import BPEModel
from glassgpt.tokenizer.pretokenize import PATTERNS

#: The code that merges: this project's, tiktoken's, or "auto": tiktoken's for long texts if it can be used.
Engine = Literal["auto", "python", "tiktoken"]
#: :func:`fingerprint` of vocabularies for which :func:`agrees` is known to hold (a test checks it): GPT-2's.
PROVEN = frozenset({"de1cbc6e793182c26bdf2a87e1370e3569f5cead7f872dec2032402c0390852f"})
#: Characters of text from which building the engine pays (a fifth of a second for 50,000 tokens).
_MIN_CHARACTERS = 1 << 18
#: Characters of a block. Any run of white space twice as long contains a block of white space only.
_BLOCK = 1 << 17


def agrees(model: BPEModel, merge: Callable[[bytes], list[int]]) -> bool:
    """Whether merging by the rank of joined bytes gives the same ids as merging by the rank of pairs, for every text.

    It does if ids grow with ranks, and either every token is created by exactly one merge and its own bytes merge back
    to it (then, by induction over ranks, the neighbours that join to a token are always its pair), or all splits of
    each token are merges, as in files converted from tiktoken's. ``merge`` encodes a pre-token by the ranks of pairs.
    """
    ids = [model.vocab[left + right] for left, right in model.merges]
    tokens = [token for token in model.vocab if len(token) > 1]
    if any(before > after for before, after in pairwise(ids)):
        return False
    counts = Counter(ids)
    if model.ignore_merges:
        return all(counts[model.vocab[token]] == _num_splits(token, model) for token in tokens)
    return len(counts) == len(ids) == len(tokens) and all(merge(token) == [model.vocab[token]] for token in tokens)


def _num_splits(token: bytes, model: BPEModel) -> int:
    return sum(token[:cut] in model.vocab and token[cut:] in model.vocab for cut in range(1, len(token)))


def fingerprint(model: BPEModel) -> str:
    """SHA-256 of a vocabulary, its ids and its merges."""
    parts = [b"whole" if model.ignore_merges else b"merged"]
    parts += sorted(b"%d:%d:%b" % (i, len(token), token) for token, i in model.vocab.items())
    parts += [b"%d:%d:%b%b" % (len(left), len(right), left, right) for left, right in model.merges]
    return hashlib.sha256(b",".join(parts)).hexdigest()


def engine_fails(text: str) -> bool:
    """Whether the text may have a run of white space that tiktoken's regex cannot split (a million characters)."""
    return any(text[begin : begin + _BLOCK].isspace() for begin in range(0, len(text) - _BLOCK + 1, _BLOCK))


class LazyEngine:
    """Builds tiktoken's engine for a vocabulary when it first pays."""

    def __init__(self, model: BPEModel, merge: Callable[[bytes], list[int]]):
        self._model, self._merge, self._tried = model, merge, False
        self._encoding: Any = None

    def get(self, engine: Engine, characters: int) -> Any:
        """A `tiktoken.Encoding`, or None to use this project's own code for a text of so many characters.

        Raises:
            MissingExtraError: for "tiktoken", if it is not installed.
        """
        if engine == "python" or (engine == "auto" and characters < _MIN_CHARACTERS and self._encoding is None):
            return None
        if not self._tried:
            self._encoding, self._tried = self._build(required=engine == "tiktoken"), True
        assert self._encoding or engine == "auto", "tiktoken cannot express this vocabulary"
        return self._encoding

    def _build(self, required: bool) -> Any:
        model = self._model
        published = len(model.patterns) == 1 and model.patterns[0] in PATTERNS.values()  # tiktoken splits these alike
        if not published or model.missing_bytes() or not (fingerprint(model) in PROVEN or agrees(model, self._merge)):
            return None
        try:
            import tiktoken
        except ImportError:
            if required:
                raise MissingExtraError("tiktoken", "tiktoken", "encoding with tiktoken's engine") from None
            return None
        ranks = dict(model.vocab)
        # Never allowed in a text; but without any, encode_to_numpy looks for "" at every character, at half the speed.
        special = {END_OF_TEXT: 1 + max(ranks.values())}
        return tiktoken.Encoding("glassgpt", pat_str=model.patterns[0], mergeable_ranks=ranks, special_tokens=special)

"""tiktoken's engine under our vocabularies: the same ids, sooner, where it is installed.

tiktoken merges by the rank of the *joined* bytes, BPE by the rank of the *pair*. The two agree wherever a vocabulary
was learned; :func:`agrees` proves it for a given one, so a file from elsewhere cannot change ids silently.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

from glassgpt.errors import MissingExtraError
from glassgpt.tokenizer.bpe.bytelevel import BPEModel
from glassgpt.tokenizer.pretokenize import PATTERNS

#: Who merges: this project's code, tiktoken's, or "auto": tiktoken's for long texts where it can be had.
Engine = Literal["auto", "python", "tiktoken"]
#: Vocabularies of which :func:`agrees` is known to hold (the tests say so again), by :func:`fingerprint`: GPT-2's.
PROVEN = frozenset({"de1cbc6e793182c26bdf2a87e1370e3569f5cead7f872dec2032402c0390852f"})
#: Characters from which a text is worth building the engine (a fifth of a second for 50,000 tokens).
_WORTH = 1 << 18
#: Characters of a part of a text. One that is white space throughout lies in any run of twice as many.
_BLANK = 1 << 17


def agrees(model: BPEModel, merge: Callable[[bytes], list[int]]) -> bool:
    """Whether merging by the rank of joined bytes gives the ids of merging by the rank of pairs, for every text.

    It does if ids grow with ranks, and either every token is made by exactly one merge and its own bytes merge back
    to it (then, by induction over ranks, the neighbours that join to a token are always its pair), or a token has
    all its splits for merges, as in files made from tiktoken's.

    Args:
        model: the vocabulary.
        merge: the ids of a piece, by the ranks of pairs.
    """
    made = [model.vocab[left + right] for left, right in model.merges]
    tokens = [token for token in model.vocab if len(token) > 1]
    if any(before > after for before, after in pairwise(made)):
        return False
    counts = Counter(made)
    if model.whole_pieces:
        return all(counts[model.vocab[token]] == _splits(token, model) for token in tokens)
    return len(counts) == len(made) == len(tokens) and all(merge(token) == [model.vocab[token]] for token in tokens)


def fingerprint(model: BPEModel) -> str:
    """SHA-256 of a vocabulary, its ids and its merges."""
    parts = [b"whole" if model.whole_pieces else b"merged"]
    parts += sorted(b"%d:%d:%b" % (i, len(token), token) for token, i in model.vocab.items())
    parts += [b"%d:%d:%b%b" % (len(left), len(right), left, right) for left, right in model.merges]
    return hashlib.sha256(b",".join(parts)).hexdigest()


def engine_fails(text: str) -> bool:
    """Whether the text has so much white space in a row that tiktoken's splitting gives up (from a million on)."""
    return any(text[begin : begin + _BLANK].isspace() for begin in range(0, len(text) - _BLANK + 1, _BLANK))


def _splits(token: bytes, model: BPEModel) -> int:
    return sum(token[:cut] in model.vocab and token[cut:] in model.vocab for cut in range(1, len(token)))


class Engines:
    """Builds the engine of one vocabulary when it is first worth it."""

    def __init__(self, model: BPEModel, merge: Callable[[bytes], list[int]]):
        self._model, self._merge = model, merge
        self._built: Any = None
        self._asked = False

    def get(self, engine: Engine, characters: int) -> Any:
        """A `tiktoken.Encoding`, or None where this project's own code is to do the work.

        Args:
            engine: what is asked for.
            characters: of the text to encode.

        Raises:
            MissingExtraError: if tiktoken is asked for by name, and is not installed.
        """
        if engine == "python" or (engine == "auto" and characters < _WORTH and self._built is None):
            return None
        if not self._asked:
            self._built = self._build(required=engine == "tiktoken")
            self._asked = True
        assert self._built or engine == "auto", "tiktoken cannot express this vocabulary"
        return self._built

    def _build(self, required: bool) -> Any:
        model = self._model
        known = len(model.patterns) == 1 and model.patterns[0] in PATTERNS.values()  # both split alike by these
        if not known or model.missing() or not (fingerprint(model) in PROVEN or agrees(model, self._merge)):
            return None
        try:
            import tiktoken
        except ImportError:
            if required:
                raise MissingExtraError("tiktoken", "fast", "encoding with tiktoken's engine") from None
            return None
        ranks = dict(model.vocab)
        # Never allowed in a text; but having none, encode_to_numpy looks for "" at every character, at half the speed.
        special = {"<|endoftext|>": 1 + max(ranks.values())}
        return tiktoken.Encoding("glassgpt", pat_str=model.patterns[0], mergeable_ranks=ranks, special_tokens=special)

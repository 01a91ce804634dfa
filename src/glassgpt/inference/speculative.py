"""Speculative decoding: draft the next tokens cheaply, and let the model check all of them in one pass.

One token at a time, a model is limited by memory: it reads all of its weights for every token. A pass over several
tokens reads them once. So a proposer drafts tokens d1 ... dn, and the model reads the last token and the drafts in one
pass, which gives the logits after each of them. As long as the token that is chosen from these logits is the drafted
one, the next logits are there already, and no pass is needed. At the first other token, the rest of the drafts is
rolled back from the cache.

The drafts never decide a token. Every token is chosen as without speculation: from the model's logits, with the
sampling settings and the random number of its position. So the text is the same, token for token, greedy or sampled.
This needs no rejection sampling (Leviathan et al., 2023, arXiv:2211.17192). For a proposer that is sure of its drafts,
as prompt lookup is, both accept a draft with the same probability, the model's. A draft model draws with the random
numbers that the model will draw with, which accepts somewhat less often than rejection sampling would.

One difference is left: the logits of a pass over several tokens equal those of passes over one token only to rounding,
unless the decoder adds up in the same order (:func:`is_invariant`; the kernels mostly do, PyTorch does not). Rounding
can change a token that is almost a tie: in float32 rarely, in bfloat16 once in some tens of tokens. So the number of
drafts may depend on measured time only with an invariant decoder. With others it depends on the text alone, and the
same seed gives the same text every time.
"""

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from glassgpt.errors import ConfigError, wrong_type
from glassgpt.inference.decoders import Decoder, EagerDecoder, choose_decoder
from glassgpt.model import GPT, KVCache
from glassgpt.sampling import next_token, next_uniform
from glassgpt.tokenizer import Tokenizer
from glassgpt.tokenizer.base import same_tokens

if TYPE_CHECKING:
    from glassgpt.inference.decode import Row

#: How to speculate without a draft model. "auto" is lookup with an invariant decoder: there it cannot change the text,
#: and it is measured whether it is faster. With other decoders it is off.
SPECULATE = ("off", "auto", "lookup")
#: Tokens that are drafted at a time, at most.
MAX_DRAFTS = 8
#: The longest and the shortest n-gram that prompt lookup searches. Single tokens were drafted in vain too often.
MAX_NGRAM, MIN_NGRAM = 3, 2
#: Cost of reading one more token in a pass, as a part of a pass over one token, by decoder; before it is measured.
TOKEN_COST = {"eager": 0.1, "kernels": 0.4}
#: Tokens of a prompt that a draft model reads at a time.
_CHUNK = 512


class Proposer(Protocol):
    """Drafts the next tokens of a row.

    Attributes:
        cost: of drafting a token, as a part of a pass of the model; an estimate.
    """

    cost: float

    def begin(self, row: "Row") -> None:
        """Start with a new row."""

    def propose(self, count: int) -> list[int]:
        """Draft at most ``count`` tokens that may follow ``row.ids``."""


class PromptLookup:
    """Drafts what followed the newest earlier occurrence of the last n tokens of the row, for the largest n found."""

    cost = 0.0

    def begin(self, row: "Row") -> None:
        """Start with a new row."""
        self.ids = row.ids
        self._next: dict[tuple[int, ...], int] = {}  # n-gram -> index of the token after its newest occurrence
        self._indexed = MIN_NGRAM  # n-grams that end before this index are in the table

    def propose(self, count: int) -> list[int]:
        """Draft at most ``count`` tokens; none if no n-gram occurred before."""
        ids, sizes = self.ids, range(MAX_NGRAM, MIN_NGRAM - 1, -1)
        for end in range(self._indexed, len(ids)):
            self._next.update((tuple(ids[end - n : end]), end) for n in sizes if n <= end)
        self._indexed = max(self._indexed, len(ids))
        found = next((self._next[ngram] for n in sizes if (ngram := tuple(ids[-n:])) in self._next), len(ids))
        drafts = ids[found : found + count]
        while drafts and len(drafts) < count:  # the text repeats itself: the drafts follow themselves
            drafts += drafts[: count - len(drafts)]
        return drafts


class DraftModel:
    """Drafts with a smaller model of the same vocabulary, which keeps a key/value cache of its own.

    Args:
        model: that drafts, in eval mode.
        target: the model to draft for.
        decoder: of the model that drafts; by default the model itself.
    """

    def __init__(self, model: GPT, target: GPT, decoder: Decoder | None = None):
        self.model, self.decoder = model, decoder or EagerDecoder(model)
        self.vocab_size = target.config.vocab_size
        self.cost = _weight_bytes(model) / _weight_bytes(target)
        self._cache = KVCache(model.config, 1, capacity=0)
        self._cached_ids: list[int] = []

    def begin(self, row: "Row") -> None:
        """Start with a new row. The cache is kept: it serves the tokens with which both rows begin."""
        self.row = row
        self._start = 0  # index of the first id that this model sees

    def propose(self, count: int) -> list[int]:
        """Draft at most ``count`` tokens, up to an end token. Of a context that is full, the newest half is kept."""
        row, context = self.row, self.model.config.block_size
        self._start = max(self._start, row.start)
        if len(row.ids) - self._start + count > context:
            self._start = len(row.ids) - max(1, context // 2)
        unread = self._unread(row.ids[self._start :], count)
        generator = torch.Generator()
        generator.set_state(row.generator.get_state())  # the random numbers of the next tokens
        drafts: list[int] = []
        while len(drafts) < count and self._cache.longest + len(unread) <= context:
            logits = self.decoder(torch.tensor([unread]), self._cache)[0, -1, : self.vocab_size]  # [V]
            self._cached_ids += unread
            unread = [int(next_token(logits, row.request.sampling, next_uniform(generator), [*row.ids, *drafts]))]
            drafts += unread
            if unread[0] in row.request.end_token_ids:
                break
        return drafts

    def _unread(self, ids: list[int], count: int) -> list[int]:
        """Fill the cache with all but the last few ids, and make room for ``count`` more; return the ids not read."""
        pairs = enumerate(zip(self._cached_ids, ids, strict=False))
        common = next((i for i, (a, b) in pairs if a != b), min(len(self._cached_ids), len(ids) - 1))
        self._cache.roll_back(0, common)
        del self._cached_ids[common:]  # what follows may be interrupted
        model, needed = self.model, len(ids) + count
        if self._cache.capacity < needed:
            held, capacity = self._cache, min(model.config.block_size, 2 * needed)
            self._cache = KVCache(model.config, 1, rows=0, capacity=capacity, device=model.device, dtype=model.dtype)
            self._cache.admit(held)
        end = common if len(ids) - common <= MAX_DRAFTS + 1 else len(ids) - 1
        for start in range(common, end, _CHUNK):
            idx = torch.tensor([ids[start : min(start + _CHUNK, end)]], device=model.device)
            model(idx, cache=self._cache, apply_head=False)
        self._cached_ids = ids[:end]
        return ids[end:]


def _weight_bytes(model: GPT) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


class Pace:
    """Decides how many tokens to draft: the number with the most expected tokens per cost.

    If a draft is accepted with probability a, n drafts give 1 + a + ... + a^n tokens. A pass over n drafts costs
    1 + n * slope passes over one token. Both are running means. Where drafting does not pay, they slowly return to
    their first values, so that it is tried again now and then.

    Args:
        slope: its first value.
        timed: measure the slope. It may only be measured where it cannot change a token: a text may not depend on time.
    """

    ACCEPTANCE, RATE, TIME_RATE, FORGET = 0.6, 0.1, 0.3, 0.002
    REFRESH = 50  # passes, of which one is over one token, to measure its time

    def __init__(self, slope: float, timed: bool):
        self.acceptance, self.slope, self.first_slope, self.timed = self.ACCEPTANCE, slope, slope, timed
        self.seconds, self._passes = 0.0, 0  # seconds of a pass over one token

    def count(self, most: int) -> int:
        """Return how many tokens to draft, at most ``most``."""
        self._passes += 1
        if self.timed and self._passes % self.REFRESH == 1:
            return 0
        best, best_value, tokens = 0, 1.0, 1.0
        for n in range(1, most + 1):
            tokens += self.acceptance**n
            if (value := tokens / (1 + n * self.slope)) > best_value:
                best, best_value = n, value
        if not best:
            self.acceptance += self.FORGET * (self.ACCEPTANCE - self.acceptance)
            self.slope += self.FORGET * (self.first_slope - self.slope)
        return best

    def add_acceptance(self, drafted: int, accepted: int) -> None:
        """Learn from the drafts of a pass, up to the first that was rejected."""
        for accept in [1.0] * accepted + [0.0] * (accepted < drafted):
            self.acceptance += self.RATE * (accept - self.acceptance)

    def add_seconds(self, seconds: float, drafted: int) -> None:
        """Learn from the time of a pass. One that is far too long was interrupted, and counts for less."""
        if drafted and self.seconds:
            slope = min(max(0.0, seconds / self.seconds - 1) / drafted, 1.0)
            self.slope += self.TIME_RATE * (slope - self.slope)
        elif not drafted:
            slower = self.seconds + self.TIME_RATE * (min(seconds, 2 * self.seconds) - self.seconds)
            self.seconds = min(seconds, slower) if self.seconds else seconds


class SpeculativeDecoder:
    """A decoder that often has the logits after a token before it is asked for them.

    It speculates on one row; several rows at a time are decoded without speculation.

    Args:
        decoder: of the model.
        proposer: drafts the tokens.
        timed: as of :class:`Pace`.

    Attributes:
        tokens: that were read, without rejected drafts.
        passes: of the model, in which they were read.
        drafted: tokens that were drafted.
        accepted: of these.
    """

    def __init__(self, decoder: Decoder, proposer: Proposer, *, timed: bool = False):
        self.decoder, self.proposer, self.name = decoder, proposer, decoder.name
        self.pace = Pace(TOKEN_COST.get(decoder.name, 0.1) + proposer.cost, timed)
        self.tokens = self.passes = self.drafted = self.accepted = 0

    def begin(self, rows: "Sequence[Row]") -> None:
        """Start with new rows."""
        self._row = rows[0] if len(rows) == 1 else None
        self._ahead = deque[tuple[int, Tensor]]()  # drafts that were read, with the logits [V] after them
        self._place: tuple[KVCache, int] | None = None  # the cache and its length, before the first of them
        self._drafted = 0  # in the last pass
        if self._row:
            self.proposer.begin(self._row)

    def __call__(self, idx: Tensor, cache: KVCache) -> Tensor:
        """``idx [B, T] -> logits [B, T, V]``; only these tokens join the cache."""
        if self._row is None:
            return self.decoder(idx, cache)
        self.tokens += idx.size(1)
        if self._ahead and self._place == (cache, cache.longest) and idx.tolist() == [[self._ahead[0][0]]]:
            cache.advance(1)  # its key and value are there
            self.accepted += 1
            logits = self._ahead.popleft()[1].clone()[None, None]  # a copy, so that it does not keep the others
        else:
            logits = self._pass(self._row, idx, cache)
        self._place = cache, cache.longest
        return logits

    def _pass(self, row: "Row", idx: Tensor, cache: KVCache) -> Tensor:
        """Read ``idx [1, T]`` and drafts; return the logits ``[1, T, V]``, and keep those after the drafts."""
        self.pace.add_acceptance(self._drafted, self._drafted - len(self._ahead))
        began, T = time.perf_counter(), idx.size(1)
        room = min(MAX_DRAFTS, row.remaining - 1, cache.capacity - cache.longest - T)  # the last token is never read
        count = self.pace.count(room)
        drafts = self.proposer.propose(count) if count else []
        logits = self.decoder(torch.cat([idx, torch.tensor([drafts], dtype=idx.dtype)], dim=1), cache)
        cache.roll_back(0, cache.longest - len(drafts))
        if T == 1 and self.pace.timed:
            self.pace.add_seconds(time.perf_counter() - began, len(drafts))
        self._ahead = deque(zip(drafts, logits[0, T:], strict=True))
        self._drafted = len(drafts)
        self.passes += 1
        self.drafted += len(drafts)
        return logits[:, :T].clone()

    def summary(self) -> str:
        """Say in one line how many tokens a pass gave; nothing if prompt lookup drafted nothing."""
        if not self.drafted:
            return "speculation: nothing was drafted, because it would not be faster" if self.proposer.cost else ""
        return (
            f"speculation: {self.tokens / self.passes:.1f} tokens per pass of the model; "
            f"{self.accepted:,} of {self.drafted:,} drafted tokens accepted"
        )


@torch.inference_mode()
def is_invariant(decoder: Decoder, model: GPT) -> bool:
    """Return whether the logits of a pass over several tokens are those of passes over one, to the last bit.

    A pass over MAX_DRAFTS + 1 tokens is compared. The kernels sum several tokens at a time and the others one by one,
    by two compiled loops: if their order of summation differed, some of these many sums would. PyTorch may choose
    another way for each size, so a comparison would prove nothing.
    """
    if decoder.name != "kernels":
        return False
    T = min(MAX_DRAFTS + 1, model.config.block_size)
    cache = KVCache(model.config, 1, capacity=T, device=model.device, dtype=model.dtype)
    idx = (torch.arange(T) * 7919 % model.config.vocab_size)[None]  # [1, T]: different tokens
    together = decoder(idx, cache)
    cache.roll_back(0, 0)
    return torch.equal(together, torch.cat([decoder(idx[:, i : i + 1], cache) for i in range(T)], dim=1))


def speculate_problems(how: object) -> list[str]:
    """Return what is wrong with a value of ``how`` of :func:`add_speculation`."""
    if isinstance(how, tuple) and len(how) == 2 and isinstance(how[0], GPT) and isinstance(how[1], Tokenizer):
        return []
    if isinstance(how, str) and how in SPECULATE:
        return []
    return [wrong_type("speculate", how, f"{', '.join(SPECULATE)}, or a model and its tokenizer, as load returns them")]


def add_speculation(
    decoder: Decoder, how: str | tuple[GPT, Tokenizer], model: GPT, tokenizer: Tokenizer, name: str = "the draft model"
) -> Decoder:
    """Let a decoder of this model speculate.

    Args:
        decoder: to speculate with.
        how: one of SPECULATE, or a smaller model with its tokenizer, which drafts.
        model: the large model.
        tokenizer: of this model.
        name: of the smaller model, for the error.

    Raises:
        ConfigError: if the decoder cannot speculate or cannot run the smaller model, or if that has other tokens.
    """
    if how == "off" or (how == "auto" and decoder.name != "kernels"):
        return decoder
    if decoder.name == "compiled":
        raise ConfigError(
            "speculation and decode=compiled do not go together: each number of tokens in a pass would be compiled for "
            "a minute. Choose decode=eager or kernels"
        )
    timed = is_invariant(decoder, model)
    if isinstance(how, str):
        return SpeculativeDecoder(decoder, PromptLookup(), timed=timed) if timed or how == "lookup" else decoder
    draft, draft_tokenizer = how
    if not same_tokens(tokenizer, draft_tokenizer):
        raise ConfigError(
            f"{name} cannot draft for this model: its {draft_tokenizer.vocab_size:,} tokens are not the "
            f"{tokenizer.vocab_size:,} of the model. Name a smaller model with the same tokenizer, or lookup"
        )
    draft_decoder, _ = choose_decoder(draft.eval(), decoder.name)
    return SpeculativeDecoder(decoder, DraftModel(draft, model, draft_decoder), timed=timed)

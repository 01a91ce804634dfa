"""Generation: a batch of requests in, one token per row and step out.

With the key/value cache, a step computes one token per row. When a row reaches the end of the context, its newest half
is kept and prefilled again: generation can go on for ever, and always equals the full forward pass of the tokens kept.
A row depends on its own request only, never on the other rows of the batch.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from glassgpt.errors import ConfigError, GenerationError, type_problems, wrong_type
from glassgpt.inference.decoders import Decoder, EagerDecoder
from glassgpt.inference.speculative import SpeculativeDecoder
from glassgpt.inference.stream import TextStreamer, encode_prompt, require_known
from glassgpt.model import GPT, KVCache
from glassgpt.sampling import SamplingConfig, next_token, next_uniform, row_generator
from glassgpt.tokenizer import Tokenizer

#: Tokens (rows x time) of one forward pass of the prefill: the memory of its activations does not grow with the prompt.
PREFILL_TOKENS = 4096
#: Unread tokens after a kept cache up to which the decoder reads them; the prefill reads more.
DECODER_TOKENS = 16


@dataclass(frozen=True)
class Request:
    """A prompt to continue, with its own settings and its own random numbers.

    Attributes:
        prompt: token ids, at least one. If it is longer than the context, the model reads the newest block_size tokens.
        max_new_tokens: tokens to generate at most.
        sampling: how tokens are chosen.
        seed: of the random numbers, which are a pure function of (seed, sample_index).
        sample_index: distinguishes requests with the same seed; :func:`generate` uses the row.
        stop: strings that end the text and are not part of it; only :func:`generate_text` finds them.
        min_new_tokens: before as many tokens, no end token is generated.
        end_token_ids: the row ends after generating one of them; :func:`generate_text` adds those of the tokenizer.

    Raises:
        ConfigError: with every setting of a wrong type or out of range.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: SamplingConfig
    seed: int = 0
    sample_index: int = 0
    stop: str | Sequence[str] = ()
    min_new_tokens: int = 0
    end_token_ids: Sequence[int] = ()

    def __post_init__(self) -> None:
        if problems := request_problems(
            max_new_tokens=self.max_new_tokens, min_new_tokens=self.min_new_tokens, seed=self.seed, stop=self.stop,
            end_token_ids=self.end_token_ids,
        ):  # fmt: skip
            raise ConfigError(problems)


def request_problems(
    *, max_new_tokens: Any, min_new_tokens: Any, seed: Any, stop: Any, end_token_ids: Any
) -> list[str]:
    """Return what is wrong with these settings of a :class:`Request`."""
    counts = {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens}
    problems: list[str] = []
    for name, value in counts.items():
        wrong = type_problems(name, value, Integral, "a whole number")
        problems += wrong or [f"{name}: {value} is negative"] * bool(value < 0)
    if not problems and min_new_tokens > max_new_tokens:
        problems.append(f"min_new_tokens: {min_new_tokens} is more than max_new_tokens, {max_new_tokens}")
    problems += type_problems("seed", seed, Integral, "a whole number")
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, Sequence) or not all(isinstance(text, str) for text in stops):
        problems.append(wrong_type("stop", stop, "a text or a list of texts"))
    elif "" in stops:
        problems.append("stop: an empty string would end every text at once; leave it out")
    if not isinstance(end_token_ids, Sequence) or any(type_problems("", i, Integral, "") for i in end_token_ids):
        problems.append(wrong_type("end_token_ids", end_token_ids, "a list of token ids"))
    return problems


class Row:
    """A request while it is being generated.

    Attributes:
        ids: the prompt and the tokens generated so far.
        start: index of the first id that the model sees.
        active: whether the row is still generating. Set it to False to end the row early.
    """

    def __init__(self, request: Request):
        assert request.prompt, "a prompt needs at least one token"
        self.request = request
        self.ids = list(request.prompt)
        self.start = 0
        self.remaining = request.max_new_tokens
        self.active = self.remaining > 0
        self.generator = row_generator(request.seed, request.sample_index)

    @property
    def must_continue(self) -> bool:
        """Whether the row may not end yet."""
        return len(self.ids) - len(self.request.prompt) < self.request.min_new_tokens

    def append(self, token: int) -> None:
        """Add a token, unless the row has ended; the row ends with an end token or the last token it may have."""
        if self.active:
            self.ids.append(token)
            self.remaining -= 1
            self.active = self.remaining > 0 and token not in self.request.end_token_ids


@dataclass(frozen=True)
class DecodeStep:
    """One token per row.

    Attributes:
        tokens: the token chosen in each row, ``[B]``; without meaning in rows that have ended.
        active: which rows were still generating, that is, had not ended before this step.
        logits: the logits that the tokens were chosen from, ``[B, V]``, on the CPU.
        uniform: the random numbers that they were chosen with, ``[B]``.
    """

    tokens: list[int]
    active: list[bool]
    logits: Tensor
    uniform: Tensor


@torch.inference_mode()
def generate_rows(
    model: GPT,
    rows: Sequence[Row],
    *,
    vocab_size: int | None = None,
    unused_ids: Sequence[int] = (),
    cache: KVCache | None = None,
    decoder: Decoder | None = None,
) -> Iterator[DecodeStep]:
    """Generate until every row has ended; yields each step, after its tokens were added to the rows.

    Args:
        model: in eval mode.
        rows: new rows; they may differ in everything.
        vocab_size: the tokenizer's; tokens beyond it, where a model's vocabulary is padded, are never generated.
        unused_ids: ids below it that have no token; they are never generated either.
        cache: of a single row: it holds the first tokens of the prompt, but not all, and only the others are read. The
            new ones are added to it, up to its capacity.
        decoder: computes the decode steps; by default the model itself. The prefill is always the model's.

    Raises:
        GenerationError: if a prompt has a token that the model does not have, or if no token can be chosen because
            logits are NaN or infinite.
    """
    V = model.config.vocab_size
    decoder = decoder or EagerDecoder(model)
    if isinstance(decoder, SpeculativeDecoder):
        decoder.begin(rows)
    for r, row in enumerate(rows):
        require_known(row.ids, V, f"row {r}: the prompt")
        row.start = max(0, len(row.ids) - model.config.block_size)
    padding = range(V if vocab_size is None else vocab_size, V)
    never = torch.tensor([*(i for i in unused_ids if i < V), *padding], dtype=torch.int64)
    unread = [row.ids[cache.longest :] for row in rows] if cache is not None else []
    assert cache is None or (len(rows) == 1 and unread[0] and len(rows[0].ids) <= cache.capacity)
    for number in itertools.count(1):
        active = [row.active for row in rows]
        if not any(active):
            return
        if cache is None or cache.longest == cache.capacity:
            cache, logits = _prefill(model, rows)
        elif len(unread[0]) > DECODER_TOKENS:
            logits = _read(model, unread, cache)  # [B, V]
        else:
            logits = decoder(torch.tensor(unread), cache)[:, -1]  # [B, V] after [B, 1]; at first perhaps more tokens
        logits = logits.float().cpu()
        logits.index_fill_(1, never, float("-inf"))
        for r, row in enumerate(rows):
            if row.must_continue:
                logits[r, [i for i in row.request.end_token_ids if 0 <= i < V]] = float("-inf")
        _check_logits(logits, active, number)
        uniform = torch.stack([next_uniform(row.generator) for row in rows])  # [B]
        tokens = [int(next_token(logits[r], row.request.sampling, uniform[r], row.ids)) for r, row in enumerate(rows)]
        for row, token in zip(rows, tokens, strict=True):
            row.append(token)
        unread = [[row.ids[-1]] for row in rows]
        yield DecodeStep(tokens, active, logits, uniform)


def _check_logits(logits: Tensor, active: Sequence[bool], step: int) -> None:
    """Raise a GenerationError if a row ``[V]`` that is still generating has a NaN, a +inf, or nothing but -inf."""
    for r, largest in enumerate(logits.amax(dim=-1).tolist()):  # NaN if any is NaN
        if active[r] and not math.isfinite(largest):
            nan, infinite = int(logits[r].isnan().sum()), int(logits[r].isposinf().sum())
            raise GenerationError(
                f"step {step}, row {r}: no token can be chosen, because "
                + (f"{nan} logits are NaN and {infinite} +inf" if nan or infinite else "every logit is -inf")
                + f" (of {logits.size(1)}). The weights are damaged, or too large for their dtype; try float32"
            )


def _prefill(model: GPT, rows: Sequence[Row]) -> tuple[KVCache, Tensor]:
    """Read all rows in one pass, padded on the right; return the cache and the logits ``[B, V]`` after the last tokens.

    Of a row that is longer than the context, the newest half of a context is read. Equal rows, as for many samples of a
    prompt, are read once. The cache has room for all tokens that are still to come, up to the context.
    """
    context = model.config.block_size
    for row in rows:
        if len(row.ids) - row.start > context:
            row.start = len(row.ids) - max(1, context // 2)
    all_visible = [tuple(row.ids[row.start :]) for row in rows]
    visible = list(dict.fromkeys(all_visible))  # U different ones
    place = {ids: at for at, ids in enumerate(visible)}
    sources = [place[ids] for ids in all_visible]
    capacity = min(context, max(map(len, visible)) + max(row.remaining for row in rows))
    cache = KVCache(
        model.config, len(rows), rows=len(visible), capacity=capacity, device=model.device, dtype=model.dtype
    )
    logits = _read(model, visible, cache)  # [U, V]
    cache.copy_rows(sources)
    return cache, logits[sources]


def _read(model: GPT, rows: Sequence[Sequence[int]], cache: KVCache) -> Tensor:
    """Add the tokens of each row to the cache, padded on the right; return the logits ``[B, V]`` after the last ones.

    The tokens are read in chunks of PREFILL_TOKENS, and the head computes the last logits only.
    """
    lengths = [len(ids) for ids in rows]
    longest, device = max(lengths), model.device
    before = list(cache.lengths)
    idx = torch.tensor([[*ids] + [0] * (longest - len(ids)) for ids in rows], device=device)  # [B, T]
    ends = torch.tensor(lengths, device=device) - 1  # [B]
    last = torch.empty(len(rows), model.config.n_embd, device=device, dtype=model.dtype)  # [B, C]
    width = max(1, PREFILL_TOKENS // len(rows))
    for start in range(0, longest, width):
        hidden_states = model(idx[:, start : start + width], cache=cache, apply_head=False)  # [B, width, C]
        ending = ((ends >= start) & (ends < start + width)).nonzero()[:, 0]  # rows whose last token is in this chunk
        last[ending] = hidden_states[ending, ends[ending] - start]
    for r, length in enumerate(lengths):
        cache.roll_back(r, before[r] + length)
    return model.head(last)


def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: SamplingConfig,
    *,
    seed: int = 0,
    end_token_ids: Sequence[int] = (),
    vocab_size: int | None = None,
    decoder: Decoder | None = None,
) -> Iterator[DecodeStep]:
    """Generate with the same settings for all prompts; row r uses the random numbers of (seed, r).

    Raises:
        ConfigError: with every setting of a wrong type or out of range.
        GenerationError: as :func:`generate_rows`.
    """
    rows = [
        Row(Request(ids, max_new_tokens, sampling, seed, r, end_token_ids=end_token_ids))
        for r, ids in enumerate(prompts)
    ]
    return generate_rows(model, rows, vocab_size=vocab_size, decoder=decoder)


def generate_text(
    model: GPT,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    *,
    cache: KVCache | None = None,
    decoder: Decoder | None = None,
) -> Iterator[tuple[DecodeStep, list[TextStreamer]]]:
    """Generate until every row has ended, also at a stop string; yields each step, and the text so far of every row.

    ``cache`` and ``decoder`` as for :func:`generate_rows`.

    Raises:
        ConfigError: if an end token is not in the vocabulary.
        GenerationError: as :func:`generate_rows`.
    """
    wrong = [i for request in requests for i in request.end_token_ids if not 0 <= i < tokenizer.vocab_size]
    if wrong:
        raise ConfigError(f"end_token_ids: {wrong[0]} is not one of the {tokenizer.vocab_size} tokens")
    rows = [
        Row(dataclasses.replace(request, end_token_ids=(*tokenizer.end_token_ids, *request.end_token_ids)))
        for request in requests
    ]
    streamers = [TextStreamer(tokenizer, row.request.stop, row.request.end_token_ids) for row in rows]
    unused_ids = tokenizer.unused_ids()
    for step in generate_rows(
        model, rows, vocab_size=tokenizer.vocab_size, unused_ids=unused_ids, cache=cache, decoder=decoder
    ):
        for row, streamer, token, active in zip(rows, streamers, step.tokens, step.active, strict=True):
            if active:
                streamer.push(token)
                row.active = row.active and not streamer.stopped
                if not row.active:
                    streamer.finish()
        yield step, streamers


def complete(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    sampling: SamplingConfig,
    *,
    seed: int = 0,
    stop: str | Sequence[str] = (),
    min_new_tokens: int = 0,
    end_token_ids: Sequence[int] = (),
    decoder: Decoder | None = None,
) -> list[str]:
    """Return the continuation of each prompt, without the prompt, the end token and the stop string.

    Raises:
        TokenizerError: if a prompt has characters that the tokenizer does not know.
        ConfigError: with every setting of a wrong type or out of range.
        GenerationError: as :func:`generate_rows`.
    """
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    requests = [
        Request(prompt, max_new_tokens, sampling, seed, r, stop, min_new_tokens, end_token_ids)
        for r, prompt in enumerate(ids)
    ]
    texts = [""] * len(prompts)
    for _, streamers in generate_text(model, tokenizer, requests, decoder=decoder):
        texts = [streamer.text for streamer in streamers]
    return texts

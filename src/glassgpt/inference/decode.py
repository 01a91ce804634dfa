"""Generation: a batch of requests in, one token per row and step out.

With the key/value cache, a step computes one token per row. When a row reaches the end of the context, its newest half
is kept and prefilled again: generation can go on for ever, and always equals the full forward pass of the tokens kept.
A row depends on its own request only, never on the other rows of the batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glassgpt.inference.stream import TextStreamer, encode_prompt
from glassgpt.model import GPT, KVCache
from glassgpt.sampling import SamplingConfig, next_token, next_uniform, row_generator
from glassgpt.tokenizer import Tokenizer


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
    """

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: SamplingConfig
    seed: int = 0
    sample_index: int = 0
    stop: str | Sequence[str] = ()


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

    def append(self, token: int, eos_token_id: int | None) -> None:
        """Add a token, unless the row has ended; the row ends with the end token or the last token it may have."""
        if self.active:
            self.ids.append(token)
            self.remaining -= 1
            self.active = self.remaining > 0 and token != eos_token_id


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
    model: GPT, rows: Sequence[Row], *, eos_token_id: int | None = None, vocab_size: int | None = None
) -> Iterator[DecodeStep]:
    """Generate until every row has ended; yields each step, after its tokens were added to the rows.

    Args:
        model: in eval mode.
        rows: new rows; they may differ in everything.
        eos_token_id: a row ends after generating it.
        vocab_size: the tokenizer's; tokens beyond it, where a model's vocabulary is padded, are never generated.
    """
    for row in rows:
        row.start = max(0, len(row.ids) - model.config.block_size)
    cache: KVCache | None = None
    while any(row.active for row in rows):
        if cache is None or cache.longest == cache.capacity:
            cache, logits = _prefill(model, rows)
        else:
            last = torch.tensor([[row.ids[-1]] for row in rows], device=model.device)  # [B, 1]
            logits = model(last, cache=cache)[:, -1]  # [B, V]
        logits = logits.float().cpu()
        if vocab_size is not None:
            logits[:, vocab_size:] = float("-inf")
        active = [row.active for row in rows]
        uniform = torch.stack([next_uniform(row.generator) for row in rows])  # [B]
        tokens = [int(next_token(logits[r], row.request.sampling, uniform[r], row.ids)) for r, row in enumerate(rows)]
        for row, token in zip(rows, tokens, strict=True):
            row.append(token, eos_token_id)
        yield DecodeStep(tokens, active, logits, uniform)


def _prefill(model: GPT, rows: Sequence[Row]) -> tuple[KVCache, Tensor]:
    """Read all rows in one pass, padded on the right; return the cache and the logits ``[B, V]`` after the last tokens.

    Of a row that is longer than the context, the newest half of a context is read. The cache has room for all tokens
    that are still to come, up to the context.
    """
    context = model.config.block_size
    for row in rows:
        if len(row.ids) - row.start > context:
            row.start = len(row.ids) - max(1, context // 2)
    visible = [row.ids[row.start :] for row in rows]
    lengths = [len(ids) for ids in visible]
    longest = max(lengths)
    idx = torch.tensor([ids + [0] * (longest - len(ids)) for ids in visible], device=model.device)  # [B, T]
    capacity = min(context, longest + max(row.remaining for row in rows))
    cache = KVCache(model.config, len(rows), capacity=capacity, device=model.device, dtype=model.dtype)
    hidden_states = model(idx, cache=cache, apply_head=False)  # [B, T, C]
    ends = torch.tensor(lengths, device=model.device) - 1
    logits = model.head(hidden_states[torch.arange(len(rows), device=model.device), ends])  # [B, V]
    for r, length in enumerate(lengths):
        cache.roll_back(r, length)
    return cache, logits


def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: SamplingConfig,
    *,
    seed: int = 0,
    eos_token_id: int | None = None,
    vocab_size: int | None = None,
) -> Iterator[DecodeStep]:
    """Generate with the same settings for all prompts; row r uses the random numbers of (seed, r)."""
    rows = [Row(Request(ids, max_new_tokens, sampling, seed, r)) for r, ids in enumerate(prompts)]
    return generate_rows(model, rows, eos_token_id=eos_token_id, vocab_size=vocab_size)


def generate_text(
    model: GPT, tokenizer: Tokenizer, requests: Sequence[Request]
) -> Iterator[tuple[DecodeStep, list[TextStreamer]]]:
    """Generate until every row has ended, also at a stop string; yields each step, and the text so far of every row.

    Raises:
        ConfigError: for an empty stop string.
    """
    rows = [Row(request) for request in requests]
    streamers = [TextStreamer(tokenizer, request.stop) for request in requests]
    for step in generate_rows(model, rows, eos_token_id=tokenizer.eos_token_id, vocab_size=tokenizer.vocab_size):
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
) -> list[str]:
    """Return the continuation of each prompt, without the prompt, the end token and the stop string.

    Raises:
        TokenizerError: if a prompt has characters that the tokenizer does not know.
        ConfigError: for an empty stop string.
    """
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    requests = [Request(prompt, max_new_tokens, sampling, seed, r, stop) for r, prompt in enumerate(ids)]
    texts = [""] * len(prompts)
    for _, streamers in generate_text(model, tokenizer, requests):
        texts = [streamer.text for streamer in streamers]
    return texts

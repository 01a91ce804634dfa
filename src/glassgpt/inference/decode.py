"""Generation: a batch of prompts in, one token per row and step out.

The key/value cache makes a step cost one token's work. When a row reaches the end of the context, the newest half of
it is kept and prefilled again, so generation can go on for ever and always equals the full forward pass of what was
kept. What a row generates depends on its own prompt and seed, never on the other rows of the batch.
"""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glassgpt.model import GPT, KVCache
from glassgpt.sampling import SamplingConfig, UniformStreams, next_token
from glassgpt.tokenizer import Tokenizer
from glassgpt.tokenizer.base import adds_bos_token


@dataclass(frozen=True)
class Step:
    """One step of generation.

    Attributes:
        tokens: the token chosen in each row, ``[B]``.
        active: which rows were still generating, that is, had not produced the end token before.
        logits: what they were chosen from, ``[B, V]``, on the CPU.
        uniform: the random numbers that decided, ``[B]``.
    """

    tokens: list[int]
    active: list[bool]
    logits: Tensor
    uniform: Tensor


@torch.inference_mode()
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    config: SamplingConfig,
    *,
    seed: int = 0,
    eos_token_id: int | None = None,
    vocab_size: int | None = None,
) -> Iterator[Step]:
    """Generate from prompts of any lengths, each at least one token; yields as it goes.

    Args:
        model: in eval mode.
        prompts: token ids per row. Of a prompt longer than the context, the newest block_size tokens are read.
        max_new_tokens: steps at most.
        config: how tokens are chosen.
        seed: of the draws; row r uses the stream (seed, r).
        eos_token_id: a row ends after producing it.
        vocab_size: the tokenizer's; tokens beyond it, where a model's vocabulary is padded, are never drawn.
    """
    assert prompts and all(prompts), "every row needs at least one token to start from"
    context = model.config.block_size
    rows = [list(prompt[-context:]) for prompt in prompts]  # what the model can see, per row
    active = [True] * len(rows)
    streams = UniformStreams(seed, len(rows))
    cache: KVCache | None = None
    for done in range(max_new_tokens):
        if cache is None or cache.longest == cache.capacity:
            rows = [row if len(row) <= context else row[-max(1, context // 2) :] for row in rows]
            cache, logits = _prefill(model, rows, room=max_new_tokens - done)
        else:
            last = torch.tensor([[row[-1]] for row in rows], device=model.device)  # [B, 1]
            logits = model(last, cache=cache)[:, -1]  # [B, V]
        logits = logits.float().cpu()
        if vocab_size is not None:
            logits[:, vocab_size:] = float("-inf")
        uniform = streams.next()
        tokens: list[int] = next_token(logits, config, uniform).tolist()
        yield Step(tokens, list(active), logits, uniform)
        for row, token in zip(rows, tokens, strict=True):
            row.append(token)
        active = [on and token != eos_token_id for on, token in zip(active, tokens, strict=True)]
        if not any(active):
            return


def _prefill(model: GPT, rows: list[list[int]], room: int) -> tuple[KVCache, Tensor]:
    """Read the rows at once, padded on the right; the cache and the logits ``[B, V]`` after each row's last token.

    The cache has room for as many tokens more as will be needed, up to the context.
    """
    lengths = [len(row) for row in rows]
    padded = [row + [0] * (max(lengths) - len(row)) for row in rows]
    idx = torch.tensor(padded, device=model.device)  # [B, T]
    capacity = min(model.config.block_size, max(lengths) + room)
    cache = KVCache(model.config, len(rows), capacity=capacity, device=model.device, dtype=model.dtype)
    hidden_states = model(idx, cache=cache, apply_head=False)  # [B, T, C]
    ends = torch.tensor(lengths, device=model.device) - 1
    logits = model.head(hidden_states[torch.arange(len(rows), device=model.device), ends])  # [B, V]
    cache.set_lengths(lengths)
    return cache, logits


class TextStream:
    """Turns tokens into text as they come, holding back bytes that do not yet make a character."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        return self._decoder.decode(self.tokenizer.token_bytes(token))

    def finish(self) -> str:
        """What is still held back when no more tokens come, as it is."""
        return self._decoder.decode(b"", final=True)


def start_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Ids to generate from, begun as texts were in the model's training.

    For an empty prompt: the token that begins a text where models were trained with one, else a line end, else the
    first token there is.

    Raises:
        TokenizerError: if the prompt has characters that the tokenizer does not know.
    """
    if prompt:
        first = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None and adds_bos_token(tokenizer) else []
        return first + tokenizer.encode(prompt)
    if tokenizer.bos_token_id is not None:
        return [tokenizer.bos_token_id]
    return [next((i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b"\n"), 0)]


def complete(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    config: SamplingConfig,
    *,
    seed: int = 0,
) -> list[str]:
    """The continuation of each prompt, without the prompt and without the end token.

    Raises:
        TokenizerError: if a prompt has characters that the tokenizer does not know.
    """
    ids = [start_ids(tokenizer, prompt) for prompt in prompts]
    made: list[list[int]] = [[] for _ in prompts]
    known = {"eos_token_id": tokenizer.eos_token_id, "vocab_size": tokenizer.vocab_size}
    for step in generate(model, ids, max_new_tokens, config, seed=seed, **known):
        for row, token, active in zip(made, step.tokens, step.active, strict=True):
            if active and token != tokenizer.eos_token_id:
                row.append(token)
    return [b"".join(map(tokenizer.token_bytes, row)).decode("utf-8", errors="replace") for row in made]

"""The ways to compute a decode step: the logits after a few new tokens, given a cache that holds all tokens before."""

import statistics
import time
from typing import Protocol

import torch
from torch import Tensor

from glassgpt.errors import ConfigError, first_line
from glassgpt.model import GPT, KVCache

DECODE = ("auto", "eager", "kernels", "compiled")
#: New tokens, over all rows, below which "auto" measures nothing.
MIN_TOKENS = 16
#: Seconds of eager decoding below which "auto" does not load the kernels: importing numba and reading its cache take
#: about half of them.
MIN_SECONDS = 1.0


class Decoder(Protocol):
    """A decode step: ``(idx [B, T], cache) -> logits [B, T, V]``, a new tensor, float32 on the CPU.

    The tokens join the cache. Every row reads T tokens.
    """

    name: str

    def __call__(self, idx: Tensor, cache: KVCache) -> Tensor:
        """Compute the logits after each new token."""


class EagerDecoder:
    """The reference: the model itself, in PyTorch."""

    name = "eager"

    def __init__(self, model: GPT):
        self.model = model

    def __call__(self, idx: Tensor, cache: KVCache) -> Tensor:
        """Compute the logits after each new token."""
        return self.model(idx.to(self.model.device), cache=cache).float().cpu()


def choose_decoder(
    model: GPT,
    decode: str = "auto",
    *,
    rows: int = 1,
    context: int | None = None,
    new_tokens: int | None = None,
) -> tuple[Decoder, str]:
    """Choose how to decode; return the decoder, and a line that says which it is and why.

    "auto" is eager PyTorch or the kernels, whichever a few steps of the real model show to be faster. That takes about
    0.2 s, and the seconds that numba needs to compile the kernels on the first use on a machine. It is eager, without
    measuring the kernels, where these cannot run, or where so few tokens are to come that loading them costs more than
    they can save. A compiled step is for those who ask for it: it takes about a minute to compile.

    Args:
        model: in eval mode.
        decode: one of DECODE.
        rows: that will be decoded together.
        context: tokens of the prompt.
        new_tokens: that will be generated in each row; None for many.

    Raises:
        ConfigError: for an unknown ``decode``, or one that cannot run this model here.
    """
    check_decode(decode)
    eager = EagerDecoder(model)
    if decode == "eager":
        return eager, "decode: eager"
    if decode == "compiled":
        from glassgpt.inference.compiled import CompiledDecoder

        return CompiledDecoder(model), "decode: compiled (torch.compile); the first tokens wait until it is compiled"
    from glassgpt.inference import kernels

    if decode == "kernels":
        if reason := kernels.unsupported(model):
            raise ConfigError(f"decode=kernels cannot run this model here: {reason}. decode=eager can")
        return kernels.KernelDecoder(model), "decode: kernels (numba)"
    if new_tokens is not None and rows * new_tokens < MIN_TOKENS:
        return eager, f"decode: eager; {rows * new_tokens} new tokens are too few to measure anything faster"
    if reason := kernels.unsupported(model):
        return eager, f"decode: eager; not the kernels: {reason}"
    seconds = _seconds_per_step(eager, model, rows, context, new_tokens)
    speed = rows / seconds
    if new_tokens is not None and seconds * new_tokens < MIN_SECONDS:
        return eager, f"decode: eager, {speed:,.0f} tokens/s measured; loading the kernels would take longer"
    try:
        fast = kernels.KernelDecoder(model)
        fast_speed = rows / _seconds_per_step(fast, model, rows, context, new_tokens)
    except Exception as error:  # whatever numba and LLVM raise on a machine that they do not know
        return eager, f"decode: eager, {speed:,.0f} tokens/s measured; the kernels failed: {first_line(error)}"
    if fast_speed > speed:
        return fast, f"decode: kernels (numba), {fast_speed:,.0f} tokens/s measured; eager {speed:,.0f}"
    return eager, f"decode: eager, {speed:,.0f} tokens/s measured; kernels {fast_speed:,.0f}"


def check_decode(decode: str) -> None:
    """Raise a ConfigError if a value of ``decode`` is unknown."""
    if decode not in DECODE:
        raise ConfigError(f"decode: {decode!r} is not one of {', '.join(DECODE)}")


@torch.inference_mode()
def _seconds_per_step(decoder: Decoder, model: GPT, rows: int, context: int | None, new_tokens: int | None) -> float:
    """Measure a step of one token per row, half way through the new tokens; the first step is not counted."""
    middle = min((context or 0) + (new_tokens or 0) // 2, model.config.block_size - 1)
    cache = KVCache(model.config, rows, capacity=middle + 1, device=model.device, dtype=model.dtype)
    idx = torch.zeros(rows, 1, dtype=torch.int64)
    seconds: list[float] = []
    for _ in range(6):
        cache.lengths = [middle] * rows
        began = time.perf_counter()
        decoder(idx, cache)
        seconds.append(time.perf_counter() - began)
        if sum(seconds[1:]) > 0.05:
            break
    return statistics.median(seconds[1:])

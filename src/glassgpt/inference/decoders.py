"""The ways to compute a decode step: the logits after a few new tokens, given a cache that holds all tokens before."""

import math
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from glassgpt.errors import ConfigError, first_line
from glassgpt.model import GPT, KVCache
from glassgpt.model.quantized import is_quantized

if TYPE_CHECKING:
    from glassgpt.inference.kernel_decoder import KernelDecoder

DECODE = ("auto", "eager", "kernels", "compiled")
#: New tokens per row below which "auto" measures nothing.
MIN_TOKENS = 16
#: Seconds of eager decoding below which "auto" measures nothing: loading the kernels takes about as long.
MIN_SECONDS = 1.0
#: The same where the kernels must be compiled first, about how long that takes.
COMPILE_SECONDS = 10.0
#: Tokens in the cache of a measured step at most.
LONGEST_MEASURED = 4096


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
    notify: Callable[[str], None] | None = None,
) -> tuple[Decoder, str]:
    """Choose how to decode; return the decoder, and a line that says which it is and why, empty if nothing was tried.

    "auto" is eager PyTorch or the kernels, whichever a few steps of the real model show to be faster. That takes about
    0.2 s, and on the first use on a machine the seconds that numba compiles for. It is eager without measuring where
    the kernels cannot run, or where so few tokens are to come that loading or compiling the kernels costs more time
    than they can save. "auto" never chooses a compiled step: compiling takes about a minute.

    Args:
        model: in eval mode.
        decode: one of DECODE.
        rows: that will be decoded together.
        context: tokens of the prompt.
        new_tokens: that will be generated in each row; None for many.
        notify: gets a line before numba compiles, which takes long.

    Raises:
        ConfigError: for an unknown ``decode``, or one that cannot run this model here.
    """
    if problems := decode_problems(decode):
        raise ConfigError(problems)
    eager = EagerDecoder(model)
    if decode == "eager":
        return eager, "decode: eager"
    if decode == "compiled":
        from glassgpt.inference.compiled import CompiledDecoder

        return CompiledDecoder(model), "decode: compiled (torch.compile); the first tokens wait until it is compiled"
    from glassgpt.inference.kernel_decoder import KernelDecoder, unsupported

    if decode == "kernels":
        if reason := unsupported(model):
            raise ConfigError(f"decode=kernels cannot run this model here: {reason}. decode=eager can")
        fast = KernelDecoder(model)
        if not fast.is_compiled():
            _announce_compiling(fast, notify)
        return fast, "decode: kernels (numba)"
    seconds = math.inf if new_tokens is None else new_tokens * _eager_seconds(model)
    if new_tokens is not None and (new_tokens < MIN_TOKENS or seconds < MIN_SECONDS):
        return eager, ""
    if reason := unsupported(model):
        return eager, f"decode: eager; not the kernels: {reason}"
    middle = (context or 0) + (new_tokens or 0) // 2
    try:
        fast = KernelDecoder(model)
        if not fast.is_compiled():
            if seconds < COMPILE_SECONDS:
                return eager, (
                    "decode: eager; the kernels are not compiled yet, which would take longer than these tokens; "
                    "decode=kernels compiles them, once on this machine"
                )
            _announce_compiling(fast, notify)
        return _faster(eager, fast, model, rows, min(middle, model.config.block_size - 1, LONGEST_MEASURED))
    except Exception as error:  # whatever numba and LLVM raise on a machine that they do not support
        return eager, f"decode: eager; the kernels failed: {first_line(error)}"


def _announce_compiling(fast: "KernelDecoder", notify: Callable[[str], None] | None) -> None:
    """Say that numba will compile, and how often."""
    if notify:
        again = "once on this machine" if fast.keeps_compiled() else "each time: numba cannot write its cache"
        notify(f"compiling the kernels for weights of this type, {again} (10 to 20 s)")


def decode_problems(decode: object) -> list[str]:
    """Return what is wrong with a value of ``decode``."""
    return [] if decode in DECODE else [f"decode: {decode!r} is not one of {', '.join(DECODE)}"]


def _eager_seconds(model: GPT) -> float:
    """Estimate an eager step on a CPU: the calls of each block, and the weights at 15 GB/s, or 1 GB/s if quantised."""
    weights = sum(
        tensor.nbytes * (1 if tensor.is_floating_point() else 15) for tensor in (*model.parameters(), *model.buffers())
    )
    return 0.0004 * model.config.n_layer + weights / 15e9


def _faster(eager: EagerDecoder, fast: "KernelDecoder", model: GPT, rows: int, tokens: int) -> tuple[Decoder, str]:
    """Measure a step of eager PyTorch and of the kernels on a cache of so many tokens; return the faster one.

    Of a quantised model, only the kernels are tried: an eager step dequantises every weight, which is ten times slower.
    """
    speed, eager_speed = 0.0, "would dequantise every weight in each step"
    if not is_quantized(model):
        speed = rows / seconds_per_step(eager, model, rows, tokens)
        eager_speed = f"{speed:,.0f}"
    fast_speed = rows / seconds_per_step(fast, model, rows, tokens)
    if fast_speed > speed:
        return fast, f"decode: kernels (numba), {fast_speed:,.0f} tokens/s measured; eager {eager_speed}"
    return eager, f"decode: eager, {speed:,.0f} tokens/s measured; kernels {fast_speed:,.0f}"


@torch.inference_mode()
def seconds_per_step(decoder: Decoder, model: GPT, rows: int, tokens: int) -> float:
    """Measure a step of one token per row after so many tokens; the first step, which may compile, is not counted."""
    cache = KVCache(model.config, rows, capacity=tokens + 1, device=model.device, dtype=model.dtype)
    idx = torch.zeros(rows, 1, dtype=torch.int64)
    seconds: list[float] = []
    for _ in range(6):
        cache.lengths = [tokens] * rows
        began = time.perf_counter()
        decoder(idx, cache)
        seconds.append(time.perf_counter() - began)
        if sum(seconds[1:]) > 0.05:
            break
    return statistics.median(seconds[1:])

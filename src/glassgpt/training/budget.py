"""What fits into a time: measure this machine on the real model, then choose steps, and a size where it is free."""

import itertools
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from glassgpt.config import ConfigOverrides, ModelConfig, RunConfig, build
from glassgpt.config.presets import MODERN
from glassgpt.data import TokenStream
from glassgpt.data.batch import Batch
from glassgpt.errors import ConfigError
from glassgpt.estimate import count_parameters
from glassgpt.loss import subset
from glassgpt.model import GPT
from glassgpt.runtime import Runtime, compiler_found, synchronise
from glassgpt.training import guard
from glassgpt.training.metrics import Reporter
from glassgpt.training.objective import next_token_loss
from glassgpt.training.optim import Optimizers
from glassgpt.training.precision import MasterWeights
from glassgpt.transforms.blocks import prepare_blocks

#: Runs that are predicted to take so many seconds try compiling, on a CPU and on a GPU. Compiling takes 15 to 30 s.
COMPILE_FROM = (300.0, 90.0)
#: Share of the time that is planned for; the rest is for a machine that slows down.
PLANNED = 0.75
#: Validations in a run whose intervals are derived, the one at step 0 included.
VALIDATIONS = 11
#: Share of the time for them, where the number of validation tokens is derived; but never fewer tokens than these.
VALIDATION_SHARE = 0.1
FEWEST_VALIDATION_TOKENS = 5_000
MOST_VALIDATION_TOKENS = 100_000
#: Sizes tried when the choice is free, smallest first: layers, heads, width, context, sequences per step.
SIZES = (
    (4, 4, 64, 64, 32),
    (4, 4, 128, 128, 16),
    (4, 6, 192, 128, 16),
    (6, 8, 256, 256, 16),
    (6, 6, 384, 256, 32),
    (12, 12, 768, 512, 32),
)
#: A size is worth its cost if the time allows at least so many tokens per parameter. Measured with Muon on
#: tinyshakespeare: in 100 s, 0.86 M parameters at 0.9 tokens each end at 1.65, 1.9 M at 0.24 end at 1.72.
TOKENS_PER_PARAMETER = 0.5
#: And if the text has at least one token for so many parameters: more parameters would learn it by heart.
PARAMETERS_PER_TEXT_TOKEN = 8.0


@dataclass(frozen=True)
class Speed:
    """Measured seconds: of an optimiser step, and of the forward pass of a token in validation."""

    step: float
    validation_token: float


def measure(config: RunConfig, vocab_size: int, runtime: Runtime, seconds: float = 1.5, *, processes: int = 1) -> Speed:
    """Time real optimiser steps on random tokens, for about so many seconds; three at least, unless they are slow.

    Large batches are timed on one micro-batch of at most 8,192 tokens and scaled; several processes share a batch.
    Where the runtime compiles, compiling is not part of the time.
    """
    model_config, train = replace(config.model, vocab_size=vocab_size), config.train
    share = math.ceil(train.batch_size / processes)
    rows = min(train.micro_batch_size or share, share)
    if not runtime.compile:  # else what is compiled here should serve the run, too
        rows = min(rows, max(1, 8192 // model_config.block_size))
    model = GPT(model_config)
    model.init_weights(0)
    model = model.to(runtime.device).train()
    optimizers = Optimizers(model, config.optim, MasterWeights(model, runtime.dtype))
    prepare_blocks(model, recompute=train.activation_checkpointing, compile=runtime.compile)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab_size, (rows, model_config.block_size + 1), generator=generator).to(runtime.device)
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())

    def forward_backward() -> None:
        (next_token_loss(model, batch) / ids[:, 1:].numel()).backward()
        optimizers.weights.collect()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(optimizers.weights.named.values(), 1.0)
        optimizers.step(0.0)
        optimizers.zero_grad()

    def forward() -> None:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            next_token_loss(model, batch)

    if runtime.compile:
        forward_backward()
        optimizers.zero_grad()

    gradients: list[float] = []
    updates: list[float] = []
    passes: list[float] = []
    began = time.perf_counter()
    for attempt in itertools.count():
        for kind, timings in ((forward_backward, gradients), (update, updates), (forward, passes)):
            start = time.perf_counter()
            kind()
            synchronise(runtime.device)
            timings.append(time.perf_counter() - start)
        spent = time.perf_counter() - began
        if spent > seconds and (attempt >= 2 or spent > 4 * seconds):
            break
    if len(gradients) > 1:  # the first pass paid for allocations
        gradients, updates, passes = gradients[1:], updates[1:], passes[1:]
    step = _median(gradients) * share / rows + _median(updates)
    return Speed(step, _median(passes) / batch.idx.numel())


def earns_compiling_back(config: RunConfig, speed: Speed, seconds: float, device: torch.device) -> bool:
    """Whether a run is long enough for compiling to be worth its time, if it speeds up the steps by a tenth."""
    predicted = speed.step * config.train.steps if config.train.steps else PLANNED * seconds
    return predicted > COMPILE_FROM[device.type == "cuda"]


def choose_compile(
    config: RunConfig, eager: Speed, seconds: float, runtime: Runtime, reporter: Reporter, processes: int = 1
) -> tuple[Runtime, Speed, str]:
    """Compile if that was asked for, or if it is measured to be faster and the run is long enough.

    ``runtime`` and ``eager`` are those without compiling.

    Returns:
        The runtime and its speed, and a sentence that says why; empty if there was nothing to decide.
    """
    asked = config.runtime.compile
    if asked == "false" or not compiler_found(runtime.device):
        why = "" if asked == "false" else "not compiled: torch.compile needs a C++ compiler, and none was found"
        return runtime, eager, why
    if asked == "auto" and not earns_compiling_back(config, eager, seconds, runtime.device):
        return runtime, eager, ""
    reporter.note("compiling the blocks, to see whether that is faster")
    compiled_runtime = replace(runtime, compile=True)
    began = time.monotonic()
    try:
        compiled = measure(config, config.model.vocab_size, compiled_runtime, processes=processes)
    except RuntimeError as error:
        if not guard.is_compile_failure(error):
            raise
        reason = str(error).strip().splitlines()[0][:200]
        return runtime, eager, f"not compiled: torch.compile does not work here ({reason})"
    took, gain = time.monotonic() - began, eager.step / compiled.step
    why = f"compiled, the steps run {gain:.2f}x as fast; compiling and measuring took {took:.0f} s"
    if asked == "auto" and gain < 1.03:
        return runtime, eager, f"{why}: not worth it, so not compiled"
    return compiled_runtime, compiled, why


def fit_steps(
    config: RunConfig, stream: TokenStream, speed: Speed, seconds: float
) -> tuple[dict[str, int], float, str]:
    """Steps that fit into so many seconds with validations, samples and saving.

    Returns:
        Values for ``train`` (``steps`` and ``eval_tokens``), the seconds that validating the whole split at the end
        will take, and a sentence that says why.

    Raises:
        ConfigError: if not even a few steps fit.
    """
    tokens = config.train.batch_size * config.model.block_size
    overhead = _overhead(config, stream, speed, seconds)
    steps = int((seconds * PLANNED - overhead) / speed.step)
    if steps < 10:
        raise ConfigError(
            f"train.time: {config.train.time} is too short for this model on this machine: a step takes "
            f"{speed.step:.2f} s, and validating, sampling and saving {overhead:.0f} s. "
            "Give more time, a smaller model, fewer max_val_tokens, or the number of steps"
        )
    rate = tokens / speed.step
    why = f"{rate:,.0f} tokens/s measured: {steps:,} steps of {tokens:,} tokens fit into {config.train.time}"
    final_seconds = stream.info.tokens["val"] * speed.validation_token
    return {"steps": steps, "eval_tokens": eval_tokens(config, speed, seconds)}, final_seconds, why


def eval_tokens(config: RunConfig, speed: Speed, seconds: float) -> int:
    """Tokens of the validation subset: as asked for, or as many as a share of the time allows."""
    if config.train.eval_tokens:
        return config.train.eval_tokens
    affordable = int(seconds * VALIDATION_SHARE / VALIDATIONS / speed.validation_token)
    return min(max(affordable, FEWEST_VALIDATION_TOKENS), MOST_VALIDATION_TOKENS)


def smallest_size(layers: Sequence[ConfigOverrides]) -> ConfigOverrides:
    """The smallest size that goes with what was asked for, to check a configuration against.

    Raises:
        ConfigError: if none does: the problems with the smallest.
    """
    refused: list[ConfigError] = []
    for n_layer, n_head, n_embd, block_size, _ in SIZES:
        shape = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": block_size}
        base: ConfigOverrides = {"model": MODERN | shape}
        try:
            build("", [base, *layers])
            return base
        except ConfigError as error:
            refused.append(error)
    raise refused[0]


def choose_size(
    config: RunConfig, asked: set[str], stream: TokenStream, runtime: Runtime, seconds: float, processes: int = 1
) -> tuple[dict[str, Mapping[str, Any]], str]:
    """Model and batch for a text, a machine and a time: the largest size that can be trained well.

    Args:
        config: with what the user asked for.
        asked: the fields of ``model`` and ``train`` that the user set, which stay.
        stream: the text.
        runtime: the machine.
        seconds: the time.
        processes: how many share a batch.

    Returns:
        Layers for ``model`` and ``train``, and a sentence that says what was chosen and why.
    """
    text_tokens, vocab_size = stream.info.tokens["train"], stream.info.vocab_size
    chosen: tuple[RunConfig, int] | None = None
    reason = "the largest size there is"
    for n_layer, n_head, n_embd, block_size, batch_size in SIZES:
        shape = {
            "n_layer": n_layer,
            "n_head": n_head,
            "n_embd": n_embd,
            "block_size": min(block_size, text_tokens - 1),
        }
        values: dict[str, Any] = MODERN | shape
        batch_size = config.train.batch_size if "batch_size" in asked else batch_size
        try:
            candidate = _candidate(config, asked, values, batch_size, vocab_size)
        except ConfigError:  # what the user asked for does not go with this size
            continue
        parameters = _parameters(candidate.model)
        if chosen and parameters > PARAMETERS_PER_TEXT_TOKEN * text_tokens:
            reason = f"a larger model would learn a text of {text_tokens:,} tokens by heart"
            break
        speed = measure(candidate, vocab_size, runtime, seconds=0.5, processes=processes)
        left = seconds * PLANNED - _overhead(candidate, stream, speed, seconds)
        trained = left / speed.step * batch_size * candidate.model.block_size
        if chosen and trained < TOKENS_PER_PARAMETER * parameters:
            reason = f"a larger one would see too little text in {config.train.time}"
            break
        chosen = candidate, parameters
    if chosen is None:
        raise ConfigError(
            "no size goes with the model settings asked for; name a preset, and n_layer, n_head and n_embd"
        )
    model, train = chosen[0].model, chosen[0].train
    why = (
        f"chose {model.n_layer} layers, {model.n_embd} wide, context {model.block_size}: {chosen[1]:,} parameters "
        f"({reason})"
    )
    fields = (*MODERN, "n_layer", "n_head", "n_embd", "block_size")
    return {
        "model": {name: getattr(model, name) for name in fields if name not in asked},
        "train": {"batch_size": train.batch_size},
    }, why


def _candidate(
    config: RunConfig, asked: set[str], values: Mapping[str, Any], batch_size: int, vocab_size: int
) -> RunConfig:
    kept = {name: getattr(config.model, name) for name in asked if name in ModelConfig.__dataclass_fields__}
    model = ModelConfig(**{**values, "dropout": config.model.dropout, "vocab_size": vocab_size, **kept})
    return replace(config, model=model, train=replace(config.train, batch_size=batch_size))


def require_memory(config: ModelConfig) -> None:
    """Refuse a model whose weights, gradients and optimiser state cannot fit into this machine.

    Raises:
        ConfigError: with the numbers.
    """
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return  # not every system tells
    needed = 16 * _parameters(config)  # float32 weights, gradients and two moments
    if needed > there:
        raise ConfigError(
            f"this model has {_parameters(config):,} parameters and needs {needed / 2**30:,.0f} GiB to be trained; "
            f"this machine has {there / 2**30:,.0f} GiB. Choose a smaller preset"
        )


def free_memory(device: torch.device) -> int:
    """Bytes that this process could have, now; where the system does not tell, 4 GiB."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return 4 * 2**30


def _parameters(config: ModelConfig) -> int:
    return sum(count_parameters(config).values())


def _overhead(config: RunConfig, stream: TokenStream, speed: Speed, seconds: float) -> float:
    """Seconds that a run spends on anything but steps."""
    block_size = config.model.block_size
    validated = len(subset(stream.val, block_size, eval_tokens(config, speed, seconds))) * block_size
    tokens = VALIDATIONS * validated + stream.info.tokens["val"]
    sampled = VALIDATIONS / 2 * config.train.sample_tokens * 0.0004 * config.model.n_layer
    return tokens * speed.validation_token + sampled + 3.0


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]

"""Fit a run into a time: choose the number of steps, and the size of the model if it is free."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from glassgpt.config import ConfigOverrides, ModelConfig, RunConfig, build
from glassgpt.config.presets import MODERN
from glassgpt.data import TokenStream
from glassgpt.data.conversations.dataset import ChatData
from glassgpt.errors import ConfigError
from glassgpt.estimate import count_parameters
from glassgpt.loss import subset
from glassgpt.planning import timing as timings
from glassgpt.planning.timing import TIME_BUDGET_FRACTION, Timing
from glassgpt.runtime import Runtime

#: Validations in a run whose intervals are derived, the one at step 0 included.
VALIDATIONS = 11
#: Share of the time for them if the number of validation tokens is derived, and the bounds of that number.
VALIDATION_SHARE = 0.1
MIN_VALIDATION_TOKENS = 5_000
MAX_VALIDATION_TOKENS = 100_000
#: Share of the time that fine-tuning on conversations plans with; in the rest, it answers questions and writes files.
CHAT_TIME_FRACTION = 0.8
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
#: Parameters per training token at most; above that the model overfits.
PARAMETERS_PER_TEXT_TOKEN = 8.0


def fit_steps(
    config: RunConfig, stream: TokenStream, timing: Timing, seconds: float
) -> tuple[dict[str, int], float, str]:
    """Steps that fit into so many seconds with validations, samples and saving.

    Returns:
        Values for ``train`` (``steps`` and ``eval_tokens``), the seconds that validating the whole split at the end
        will take, and a sentence that says why.

    Raises:
        ConfigError: if not even a few steps fit.
    """
    tokens = config.tokens_per_step
    overhead = _overhead(config, stream, timing, seconds)
    steps = int((seconds * TIME_BUDGET_FRACTION - overhead) / timing.seconds_per_step)
    if steps < 10:
        raise ConfigError(
            f"train.time: {config.train.time} is too short for this model on this machine: a step takes "
            f"{timing.seconds_per_step:.2f} s, and validating, sampling and saving {overhead:.0f} s. "
            "Give more time, a smaller model, fewer max_val_tokens, or the number of steps"
        )
    rate = tokens / timing.seconds_per_step
    why = f"{rate:,.0f} tokens/s measured: {steps:,} steps of {tokens:,} tokens fit into {config.train.time}"
    final_seconds = stream.info.tokens["val"] * timing.seconds_per_val_token
    return {"steps": steps, "eval_tokens": eval_tokens(config, timing, seconds)}, final_seconds, why


def fit_chat_steps(
    config: RunConfig, chats: ChatData, timing: Timing, seconds: float, done: int = 0
) -> tuple[dict[str, int], str]:
    """Steps of fine-tuning that fit into so many seconds with validations.

    With those that are ``done``, they are at most ``tune.epochs`` passes over the conversations.

    Returns:
        Values for ``train`` (``steps`` and ``eval_tokens``), and a sentence that says why.

    Raises:
        ConfigError: if not even a few fit.
    """
    train, val_tokens = config.train, eval_tokens(config, timing, seconds)
    epoch = chats.batches(train.batch_size, train.seed, config.tune.packing).num_rows / train.batch_size  # steps
    validated = min(val_tokens, sum(len(row.ids) for row in chats.val))
    overhead = VALIDATIONS * config.models_validated * validated * timing.seconds_per_val_token
    fit = int((seconds * CHAT_TIME_FRACTION - overhead) / timing.seconds_per_step)
    if fit < 3:
        raise ConfigError(
            f"train.time: {train.time} is too short for this model on this machine: a step takes "
            f"{timing.seconds_per_step:.2f} s, and validating {overhead:.0f} s. Give more time, a smaller model, a "
            "smaller batch_size, fewer eval_tokens, or the number of steps"
        )
    steps = min(fit, max(3, round(config.tune.epochs * epoch)) - done)
    why = f"fit into {train.time}" if steps == fit else f"are {config.tune.epochs} passes over the conversations"
    why = f"{steps:,} steps of {timing.seconds_per_step:.2f} s {why} ({epoch:.1f} steps a pass)"
    return {"steps": steps, "eval_tokens": val_tokens}, why


def eval_tokens(config: RunConfig, timing: Timing, seconds: float) -> int:
    """Tokens of the validation subset: as the user set, or as many as a share of the time allows."""
    if config.train.eval_tokens:
        return config.train.eval_tokens
    evaluations = VALIDATIONS * config.models_validated
    affordable = int(seconds * VALIDATION_SHARE / evaluations / timing.seconds_per_val_token)
    return min(max(affordable, MIN_VALIDATION_TOKENS), MAX_VALIDATION_TOKENS)


def smallest_size(overrides: Sequence[ConfigOverrides]) -> ConfigOverrides:
    """The smallest size that fits the user's settings, to check a configuration with.

    Raises:
        ConfigError: if none does: the problems with the smallest.
    """
    refused: list[ConfigError] = []
    for n_layer, n_head, n_embd, block_size, _ in SIZES:
        shape = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": block_size}
        base: ConfigOverrides = {"model": MODERN | shape}
        try:
            build("", [base, *overrides])
            return base
        except ConfigError as error:
            refused.append(error)
    raise refused[0]


def choose_size(
    config: RunConfig,
    user_set_keys: set[str],
    stream: TokenStream,
    runtime: Runtime,
    seconds: float,
    world_size: int = 1,
) -> tuple[dict[str, Mapping[str, Any]], str]:
    """Model and batch for a text, a machine and a time: the largest size that can be trained well.

    Args:
        config: with the user's settings.
        user_set_keys: the fields of ``model`` and ``train`` that the user set, which stay.
        stream: the text.
        runtime: the machine.
        seconds: the time.
        world_size: how many processes share a batch.

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
        batch_size = config.train.batch_size if "batch_size" in user_set_keys else batch_size
        try:
            candidate = _candidate(config, user_set_keys, values, batch_size, vocab_size)
        except ConfigError:  # the user's settings do not fit this size
            continue
        parameters = _parameters(candidate.model)
        if chosen and parameters > PARAMETERS_PER_TEXT_TOKEN * text_tokens:
            reason = f"a larger model would overfit a text of {text_tokens:,} tokens"
            break
        timing = timings.measure_steps(candidate, runtime, seconds=0.5, world_size=world_size)
        left = seconds * TIME_BUDGET_FRACTION - _overhead(candidate, stream, timing, seconds)
        trained = left / timing.seconds_per_step * batch_size * candidate.model.block_size
        if chosen and trained < TOKENS_PER_PARAMETER * parameters:
            reason = f"a larger one would see too little text in {config.train.time}"
            break
        chosen = candidate, parameters
    if chosen is None:
        raise ConfigError("no size fits your model settings; name a preset, and set n_layer, n_head and n_embd")
    model, train = chosen[0].model, chosen[0].train
    why = (
        f"chose {model.n_layer} layers, {model.n_embd} wide, context {model.block_size}: {chosen[1]:,} parameters "
        f"({reason})"
    )
    fields = (*MODERN, "n_layer", "n_head", "n_embd", "block_size")
    return {
        "model": {name: getattr(model, name) for name in fields if name not in user_set_keys},
        "train": {"batch_size": train.batch_size},
    }, why


def _candidate(
    config: RunConfig, user_set_keys: set[str], values: Mapping[str, Any], batch_size: int, vocab_size: int
) -> RunConfig:
    kept = {name: getattr(config.model, name) for name in user_set_keys if name in ModelConfig.__dataclass_fields__}
    model = ModelConfig(**{**values, "dropout": config.model.dropout, "vocab_size": vocab_size, **kept})
    return replace(config, model=model, train=replace(config.train, batch_size=batch_size))


def _parameters(config: ModelConfig) -> int:
    return sum(count_parameters(config).values())


def _overhead(config: RunConfig, stream: TokenStream, timing: Timing, seconds: float) -> float:
    """Seconds that a run spends on anything but steps."""
    block_size = config.model.block_size
    validated = len(subset(stream.val, block_size, eval_tokens(config, timing, seconds))) * block_size
    tokens = VALIDATIONS * config.models_validated * validated + stream.info.tokens["val"]
    sampled = VALIDATIONS / 2 * config.train.sample_tokens * 0.0004 * config.model.n_layer
    return tokens * timing.seconds_per_val_token + sampled + 3.0

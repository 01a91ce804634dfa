"""Fit a run into a time: choose the number of steps, and the size of the model if it is free."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from glassgpt.config import ConfigOverrides, ModelConfig, RunConfig, build
from glassgpt.config.presets import MODERN
from glassgpt.data import TokenStream
from glassgpt.data.conversations.dataset import ChatData
from glassgpt.errors import ConfigError
from glassgpt.estimate import count_parameters
from glassgpt.loss import subset
from glassgpt.planning.timing import TIME_BUDGET_FRACTION, Timing, step_flops

#: Validations in a run whose intervals are derived, the one at step 0 included.
VALIDATIONS = 11
#: What they may cost, as a share of the training, if the number of validation tokens is derived.
VALIDATION_SHARE = 0.1
#: What validating a token costs at most, as a share of training on one: 0.25 to 0.3 was measured, 0.4 if the steps are
#: compiled, 0.5 with LoRA.
VALIDATION_COST = 0.5
#: The bounds of the number of validation tokens. With fewer, chance would decide which weights are the best.
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
#: The next larger model may make better use of a CPU, but not by more than this factor.
MAX_BETTER_USE = 2.0


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
    overhead = _overhead(config, stream, timing, _affordable(timing, seconds))
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
    return {"steps": steps, "eval_tokens": eval_tokens(config, steps)}, final_seconds, why


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
    train, affordable = config.train, int(seconds * CHAT_TIME_FRACTION / timing.seconds_per_step)  # steps
    val_tokens = eval_tokens(config, affordable)
    epoch = chats.batches(train.batch_size, train.seed, config.tune.packing).num_rows / train.batch_size  # steps
    overhead = chat_validation_seconds(config, chats, timing, affordable)
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


def eval_tokens(config: RunConfig, steps: int) -> int:
    """Tokens of the validation subset: as the user set, or so many that validations cost a tenth of these steps.

    It depends on no measurement: the same settings validate on the same tokens everywhere.
    """
    if config.train.eval_tokens:
        return config.train.eval_tokens
    affordable = VALIDATION_SHARE / VALIDATION_COST * steps * config.tokens_per_step / _validations(config, steps)
    return min(max(int(affordable), MIN_VALIDATION_TOKENS), MAX_VALIDATION_TOKENS)


def eval_interval(config: RunConfig, steps: int) -> int:
    """Steps between validations: as the user set, or for about ten in so many steps."""
    return config.train.eval_interval or max(1, steps // (VALIDATIONS - 1))


def _validations(config: RunConfig, steps: int) -> int:
    """How many models are validated, at step 0 and up to the end."""
    return 1 + config.models_validated * math.ceil(max(0, steps) / eval_interval(config, steps))


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
    seconds: float,
    *,
    measure: Callable[[RunConfig], Timing],
    flops_per_second: float = 0.0,
) -> tuple[dict[str, Mapping[str, Any]], str]:
    """Model and batch for a text, a machine and a time: the largest size that can be trained well.

    Args:
        config: with the user's settings.
        user_set_keys: the fields of ``model`` and ``train`` that the user set, which stay.
        stream: the text.
        seconds: the time.
        measure: times a step on this machine.
        flops_per_second: that steps reach about, on a machine where their time follows their operations: only sizes
            around the one that this fits are measured. 0: not known.

    Returns:
        Layers for ``model`` and ``train``, and a sentence that says what was chosen and why.
    """
    sizes, reason = _candidates(config, user_set_keys, stream)

    def is_enough(size: RunConfig, timing: Timing) -> bool:
        overhead = _overhead(size, stream, timing, _affordable(timing, seconds))
        left = seconds * TIME_BUDGET_FRACTION - overhead
        trained = left / timing.seconds_per_step * size.tokens_per_step
        return trained >= TOKENS_PER_PARAMETER * _parameters(size.model)

    def estimated(size: RunConfig, rate: float) -> Timing:
        step = step_flops(size) / rate
        return Timing(step, VALIDATION_COST * step / size.tokens_per_step)

    at = 0
    if flops_per_second:
        at = max((i for i, size in enumerate(sizes) if is_enough(size, estimated(size, flops_per_second))), default=0)
    while at and not is_enough(sizes[at], measure(sizes[at])):
        at -= 1
    for larger in sizes[at + 1 :]:
        rate = step_flops(sizes[at]) / measure(sizes[at]).seconds_per_step
        hopeless = flops_per_second and not is_enough(larger, estimated(larger, MAX_BETTER_USE * rate))
        if hopeless or not is_enough(larger, measure(larger)):
            reason = f"a larger one would see too little text in {config.train.time}"
            break
        at += 1
    model, train = sizes[at].model, sizes[at].train
    why = (
        f"chose {model.n_layer} layers, {model.n_embd} wide, context {model.block_size}: {_parameters(model):,} "
        f"parameters ({reason})"
    )
    fields = (*MODERN, "n_layer", "n_head", "n_embd", "block_size")
    return {
        "model": {name: getattr(model, name) for name in fields if name not in user_set_keys},
        "train": {"batch_size": train.batch_size},
    }, why


def _candidates(config: RunConfig, user_set_keys: set[str], stream: TokenStream) -> tuple[list[RunConfig], str]:
    """The sizes that fit the user's settings and the text, smallest first; and why there is no larger one.

    Raises:
        ConfigError: if there is none.
    """
    text_tokens, sizes = stream.info.tokens["train"], list[RunConfig]()
    kept = {name: getattr(config.model, name) for name in user_set_keys if name in ModelConfig.__dataclass_fields__}
    kept |= {"dropout": config.model.dropout}
    for n_layer, n_head, n_embd, block_size, batch_size in SIZES:
        shape = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": min(block_size, text_tokens - 1)}
        batch_size = config.train.batch_size if "batch_size" in user_set_keys else batch_size
        try:
            model = ModelConfig(**{**MODERN, **shape, "vocab_size": stream.info.vocab_size, **kept})
        except ConfigError:  # the user's settings do not fit this size
            continue
        if sizes and _parameters(model) > PARAMETERS_PER_TEXT_TOKEN * text_tokens:
            return sizes, f"a larger model would overfit a text of {text_tokens:,} tokens"
        size = replace(config, model=model, train=replace(config.train, batch_size=batch_size))
        if size not in sizes:
            sizes.append(size)
    if not sizes:
        raise ConfigError("no size fits your model settings; name a preset, and set n_layer, n_head and n_embd")
    return sizes, "the largest size there is"


def _parameters(config: ModelConfig) -> int:
    return sum(count_parameters(config).values())


def _affordable(timing: Timing, seconds: float) -> int:
    """Steps that a time allows if nothing else takes any."""
    return int(seconds * TIME_BUDGET_FRACTION / timing.seconds_per_step)


def run_seconds(config: RunConfig, stream: TokenStream, timing: Timing) -> float:
    """Seconds that a run of ``config.train.steps`` takes, with all that is not steps."""
    steps = config.train.steps
    return steps * timing.seconds_per_step + _overhead(config, stream, timing, steps)


def _overhead(config: RunConfig, stream: TokenStream, timing: Timing, steps: int) -> float:
    """Seconds that a run of so many steps spends on validations, samples and files."""
    sampled = VALIDATIONS / 2 * config.train.sample_tokens * 0.0004 * config.model.n_layer
    return validation_seconds(config, stream, timing, steps) + sampled + 3.0


def validation_seconds(config: RunConfig, stream: TokenStream, timing: Timing, steps: int) -> float:
    """Seconds that validating takes in a run of so many steps, the whole split at its end included."""
    validated = len(subset(stream.val, config.model.block_size, eval_tokens(config, steps))) * config.model.block_size
    return (_validations(config, steps) * validated + stream.info.tokens["val"]) * timing.seconds_per_val_token


def chat_validation_seconds(config: RunConfig, chats: ChatData, timing: Timing, steps: int) -> float:
    """As :func:`validation_seconds`, for fine-tuning on conversations; the last validation has the same tokens."""
    validated = min(eval_tokens(config, steps), sum(len(row.ids) for row in chats.val))
    return (_validations(config, steps) + 1) * validated * timing.seconds_per_val_token

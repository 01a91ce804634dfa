"""The one way from a request to a plan, used by ``train``, ``train --dry-run``, ``plan`` and ``bench``.

Choices that are left to the machine (size, steps, dtype, compiling, micro-batch) are measured here, once, or taken from
what was measured within a day, and become part of the run's configuration.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from glassgpt import data
from glassgpt.config import ConfigOverrides, DataConfig, RunConfig, TuneConfig, build, parse_duration, presets
from glassgpt.config.run import MAX_VAL_FRACTION
from glassgpt.data import TextSource, TokenStream
from glassgpt.data.conversations.dataset import ChatData
from glassgpt.data.sources.documents import listed_counts
from glassgpt.errors import ConfigError, DataError, is_out_of_memory
from glassgpt.estimate import count_parameters, format_bytes
from glassgpt.planning.attention_choice import measured_attention
from glassgpt.planning.budget import (
    choose_size,
    eval_interval,
    eval_tokens,
    fit_chat_steps,
    fit_steps,
    run_seconds,
)
from glassgpt.planning.compute_dtype import measured_dtype
from glassgpt.planning.initial_model import (
    AUTO,
    InitialModel,
    check_tokenizer_matches,
    starting_point,
    with_run_paths,
)
from glassgpt.planning.measured import Measurements
from glassgpt.planning.memory import choose_micro_batch_size, require_memory
from glassgpt.planning.timing import TIME_BUDGET_FRACTION, Timing, matrix_speed, measure_eager, measure_speed
from glassgpt.processes import Processes
from glassgpt.runtime import Runtime, resolve
from glassgpt.tokenizer import specs
from glassgpt.training.metrics import Reporter
from glassgpt.training.trackers import require_trackers
from glassgpt.weights.mapping import family_of

#: A timed run is fitted anew if its first steps are so much faster or slower than predicted, as a share.
REFIT_DIFFERENCE = 1 / 3
#: Settings that depend on the number of steps if the user does not set them.
DERIVED_FROM_STEPS = ("eval_interval", "save_interval", "sample_interval", "log_interval")
#: Steps between samples at least, if the user does not say: in a short run they would cost as much as the steps.
MIN_SAMPLE_INTERVAL = 50
#: Share of a time budget after which training stops, if it is slower than planned.
DEADLINE_FRACTION = 0.97
#: What to measure: everything; everything, even if it was measured within a day; only the dtype and the micro-batch; or
#: nothing.
Measure = Literal["speed", "anew", "choices", "nothing"]
#: Steps reach about this share of the speed of products of matrices in float32, on a CPU.
SHARE_OF_MATRIX_SPEED = 0.5
#: Share of a step from which Muon's update is worth a word.
MUCH_UPDATE = 0.35
#: The settings without which preset=auto needs a text to choose a size for.
SIZE_KEYS = {"n_layer", "n_head", "n_embd"}


@dataclass(frozen=True)
class RunPlan:
    """A run before anything is written. Its numbers are resolved as far as :data:`Measure` says.

    Attributes:
        config: resolved.
        name: of the run, by default.
        runtime: where and how to compute; None if nothing was measured.
        stream: the prepared text; None if it was planned without one.
        timing: the predicted speed; None if nothing was timed.
        timed: whether the number of steps came from ``time``.
        derived: the settings that were derived from the number of steps: DERIVED_FROM_STEPS, ``warmup_steps``.
        final_seconds: predicted for validating on the full split at the end.
        notes: why the choices were made.
        chats: the conversations, if the run fine-tunes on some instead of a text.
    """

    config: RunConfig
    name: str
    runtime: Runtime | None = None
    stream: TokenStream | None = None
    timing: Timing | None = None
    timed: bool = False
    derived: frozenset[str] = frozenset()
    final_seconds: float = 0.0
    notes: tuple[str, ...] = ()
    chats: ChatData | None = None

    @property
    def tokens_per_step(self) -> int:
        """Tokens in a global batch, without padding; of conversations on average, as the run measures its speed."""
        train = self.config.train
        if self.chats:
            return self.chats.batches(train.batch_size, train.seed, self.config.tune.packing).tokens_per_batch
        return self.config.tokens_per_step

    @property
    def tokens_per_second(self) -> float | None:
        """The predicted speed of the steps; None if nothing was timed."""
        return self.tokens_per_step / self.timing.seconds_per_step if self.timing else None

    def deadline(self, began: float) -> float | None:
        """When to stop a run that began at a ``time.monotonic``; None if its number of steps was given.

        The time after the last step (the full validation split, a sample) is part of the budget, too.
        """
        seconds = DEADLINE_FRACTION * parse_duration(self.config.train.time) - self.final_seconds
        return began + seconds if self.timed else None

    def refit(self, step: int, tokens_per_second: float, seconds_left: float) -> RunConfig | None:
        """Fit the number of steps of a timed run, and what was derived from it, to the speed of its first steps.

        Args:
            step: steps that are done.
            tokens_per_second: as measured in these.
            seconds_left: for the rest of the run.

        Returns:
            The new configuration; None if the speed is about as predicted, or not even a few more steps fit.
        """
        predicted = self.tokens_per_second
        assert self.timing and predicted
        if abs(tokens_per_second / predicted - 1) <= REFIT_DIFFERENCE:
            return None
        slower = predicted / tokens_per_second
        timing = Timing(self.timing.seconds_per_step * slower, self.timing.seconds_per_val_token * slower)
        try:
            if self.chats:
                values, _ = fit_chat_steps(self.config, self.chats, timing, seconds_left, done=step)
            else:
                assert self.stream
                values, _, _ = fit_steps(self.config, self.stream, timing, seconds_left)
        except ConfigError:
            return None
        derived = dict.fromkeys(self.derived & {*DERIVED_FROM_STEPS}, 0)
        config = self.config.replace("train", steps=step + values["steps"], **derived)
        if "warmup_steps" in self.derived:
            config = config.replace("optim", warmup_steps=0)
        return fill_derived_settings(config)


def plan_run(
    preset: str,
    overrides: Sequence[ConfigOverrides],
    *,
    runs: Path = Path("runs"),
    with_text: bool = True,
    measure: Measure = "speed",
    reporter: Reporter | None = None,
    processes: Processes | None = None,
) -> RunPlan:
    """Resolve everything that a new run needs: text, tokenizer, size, dtype, micro-batch, number of steps.

    Args:
        preset: a name, or "auto" to choose the size for the text, the machine and the time.
        overrides: the user's settings; later ones win.
        runs: the folder in which ``init_from`` looks for a run by name.
        with_text: False plans without a text: for the preset's vocabulary, and random tokens.
        measure: "speed" measures everything that was not measured within a day; "anew" that, too; "choices" the dtype
            and the micro-batch; "nothing" only does arithmetic.
        reporter: gets notes and progress.
        processes: that will train together.

    Raises:
        ConfigError: with every problem of the configuration.
        DataError: if the text cannot be used.
    """
    began, processes = time.monotonic(), processes or Processes()
    reporter = reporter or Reporter()
    measurements = new_measurements(measure, reporter)
    measure = "speed" if measure == "anew" else measure
    draft = _Draft.of(preset, with_run_paths(overrides, runs), reporter, with_text and measure == "speed")
    config = draft.config()
    if config.tune != TuneConfig():
        raise ConfigError("tune: these settings are for `glassgpt tune sft` and `glassgpt tune lora`; leave them out")
    if config.train.format == "hf" and measure != "choices":
        family_of(config.model)
    processes.share(config.train.batch_size)
    if measure == "speed":
        require_trackers(config.train)
    runtime = None if measure == "nothing" else resolve(config.runtime, processes.local_rank)
    source = stream = None
    if with_text:
        source = data.find_source(config.data, draft.reporter.on_progress)
        stream = data.prepare(source, config.data, draft.reporter.on_progress)
        draft.note(_what_was_not_read(source, stream))
        draft.fit_text(stream, bool(source.prepared))
    name = source.name if source else draft.preset
    if runtime is None:
        draft.fit_context(stream)
        return RunPlan(draft.config(), name, stream=stream, notes=draft.notes)
    config, runtime = _choose(draft, stream if measure == "speed" else None, runtime, processes, measurements)
    if measure == "choices":
        return RunPlan(config.replace("runtime", **runtime.resolved()), name, runtime, notes=draft.notes)
    if source and stream:
        config = config.replace("data", **_data_as_prepared(source, stream, config.data, draft.user_set_keys("data")))
    if draft.initial:  # under a name that finds it again from anywhere
        config = config.replace("train", init_from=draft.initial.name)
    plan = RunPlan(config, name, replace(runtime, compile=False), stream, timed=config.train.steps == 0)
    return _measure_and_set_steps(plan, began + parse_duration(config.train.time), draft, processes, measurements)


def new_measurements(measure: Measure, reporter: Reporter) -> Measurements:
    """What one plan measures, and what it may use that was measured before; the first measurement is reported."""
    return Measurements(
        anew=measure != "speed", before_first=lambda: reporter.note("measuring the speed of this machine")
    )


def _choose(
    draft: "_Draft", stream: TokenStream | None, runtime: Runtime, processes: Processes, measurements: Measurements
) -> tuple[RunConfig, Runtime]:
    """Choose the size of the model, its context, the dtype, the attention and the micro-batch, if the user did not."""

    def place_for(config: RunConfig) -> tuple[Runtime, list[str]]:
        place, why = measured_dtype(config, runtime, measurements) if config.runtime.dtype == "auto" else (runtime, "")
        place, also = measured_attention(config, place, measurements)
        return place, [why, also]

    def measure(config: RunConfig) -> Timing:
        place = replace(place_for(config)[0], compile=False)
        return measure_eager(config, place, measurements, world_size=processes.world_size)[0]

    if stream and draft.preset == AUTO:
        rate = 0.0  # of a GPU it says nothing: small models wait for launches there
        if runtime.device.type == "cpu":
            rate = SHARE_OF_MATRIX_SPEED * matrix_speed(replace(runtime, dtype=torch.float32), measurements)
        draft.fit_size(stream, measure, rate)
    draft.fit_context(stream)
    config = draft.config()
    require_memory(config.model)
    runtime, reasons = place_for(config)
    for why in reasons:
        draft.note(why)
    config = config.replace("runtime", attention=runtime.attention)
    config, why = choose_micro_batch_size(config, runtime, processes)
    draft.note(why)
    return config, runtime


@dataclass
class _Draft:
    """The settings while they are being resolved: ``base`` below the user's ``overrides``."""

    preset: str
    base: ConfigOverrides
    overrides: Sequence[ConfigOverrides]
    initial: InitialModel | None
    reporter: Reporter
    _notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, preset: str, overrides: Sequence[ConfigOverrides], reporter: Reporter, choose_size: bool) -> "_Draft":
        """The draft of a request. Without choosing a size, preset=auto needs one.

        Raises:
            ConfigError: if it has none.
        """
        preset, base, initial = starting_point(preset, overrides)
        draft = cls(preset, base, overrides, initial, reporter)
        if preset == AUTO and not choose_size:
            if size_is_open(preset, overrides):
                raise ConfigError(
                    "cannot choose a size without a text and measuring: name a preset, such as preset=small, or set "
                    "n_layer, n_head and n_embd"
                )
            draft.base = {"model": presets.MODERN}
        return draft

    def config(self) -> RunConfig:
        """The configuration so far, checked."""
        return build(self.preset, [self.base, *self.overrides])

    def user_set_keys(self, *sections: str) -> set[str]:
        """The keys of these sections that the user set."""
        return {key for layer in self.overrides for section in sections for key in layer.get(section, {})}

    def set(self, section: str, **values: Any) -> None:
        """Set values below the user's."""
        self.base = {**self.base, section: {**self.base.get(section, {}), **values}}

    def note(self, note: str) -> None:
        """Report and keep a note, unless it is empty."""
        if note:
            self.reporter.note(note)
            self._notes.append(note)

    @property
    def notes(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(self._notes)

    def fit_text(self, stream: TokenStream, prepared: bool) -> None:
        """Check that the text is long enough and the tokenizer fits, and set the vocabulary.

        Raises:
            DataError: if the text is too short, or all its tokens are the same.
            ConfigError: if the user's vocabulary is too small, or the tokenizer is not the initial model's.
        """
        tokens, vocab_size, config = stream.info.tokens, stream.info.vocab_size, self.config()
        if tokens["train"] < 2 or tokens["val"] < 2:
            raise DataError(
                f"the text is too short: {tokens['train']} training tokens and {tokens['val']} validation tokens; "
                f"each needs at least 2. Use a longer text (5 KB already work){_other_split(stream, prepared)}"
            )
        if vocab_size < 2:
            raise DataError(
                f"every token of the text is the same ({stream.tokenizer.decode([0])!r}), so there is nothing to "
                "learn; use a text with at least two different tokens"
            )
        if self.initial:
            self.note(check_tokenizer_matches(self.initial, stream.tokenizer))
        keys = self.user_set_keys("model")
        if "block_size" in keys:
            data.Batches(
                stream.train, config.model.block_size, config.train.batch_size, config.train.seed, config.data.order
            )  # or a DataError
        if "vocab_size" in keys or self.initial:
            if config.model.vocab_size < vocab_size:
                raise ConfigError(
                    f"model.vocab_size: {config.model.vocab_size} is less than the {vocab_size} of the tokenizer"
                )
        else:
            self.set("model", vocab_size=vocab_size)

    def fit_size(self, stream: TokenStream, measure: Callable[[RunConfig], Timing], flops_per_second: float) -> None:
        """Choose the size for the text, the machine and the time; see :func:`~glassgpt.planning.budget.choose_size`."""
        config = self.config()
        chosen, why = choose_size(
            config, self.user_set_keys("model", "train"), stream, parse_duration(config.train.time),
            measure=measure, flops_per_second=flops_per_second,
        )  # fmt: skip
        self.set("model", **chosen["model"])
        self.set("train", **chosen["train"])
        self.note(why)

    def fit_context(self, stream: TokenStream | None) -> None:
        """Shorten a context that the user did not set to the length of the text, if there is one."""
        if stream is None or "block_size" in self.user_set_keys("model"):
            return
        block_size, longest = self.config().model.block_size, stream.info.tokens["train"] - 1
        if block_size > longest:
            self.set("model", block_size=longest)
            self.note(
                f"the text has only {longest + 1} training tokens: the context is {longest} instead of {block_size}"
            )


def _other_split(stream: TokenStream, prepared: bool) -> str:
    """Advise a setting that gives both splits of a short text two tokens, if there is one."""
    settings, tokens, size = stream.manifest.settings, stream.info.tokens, stream.info.bytes["val"]
    advice = ""
    if sum(tokens.values()) < 4:
        return ""
    if tokens["train"] < 2:
        advice = "a smaller data.val_fraction"
    elif size >= settings["max_val_tokens"]:
        advice = "a larger data.max_val_tokens"
    elif settings["val_fraction"] < MAX_VAL_FRACTION:
        advice = f"a larger data.val_fraction (at most {MAX_VAL_FRACTION})"
    return f", or {'prepare it with ' if prepared else ''}{advice}" if advice else ""


def _what_was_not_read(source: TextSource, stream: TokenStream) -> str:
    """Say which files of a folder were passed over, and which rows have no text; empty if there are none."""
    notes = {"files passed over": source.passed_over, "left out, because they have no text": stream.manifest.left_out}
    return "; ".join(f"{what}: {listed_counts(counts)}" for what, counts in notes.items() if counts)


def size_is_open(preset: str, overrides: Sequence[ConfigOverrides]) -> bool:
    """Whether the size of the model is left to the machine."""
    fine_tuning = any(layer.get("train", {}).get("init_from") for layer in overrides)
    keys = {key for layer in overrides for key in layer.get("model", {})}
    return preset == AUTO and not fine_tuning and not keys >= SIZE_KEYS


def names_a_text(overrides: Sequence[ConfigOverrides]) -> bool:
    """Whether the user said what to train on."""
    return any("source" in layer.get("data", {}) for layer in overrides)


def _measure_and_set_steps(
    plan: RunPlan, ends: float, draft: _Draft, processes: Processes, measurements: Measurements
) -> RunPlan:
    """Measure the speed, choose whether to compile, and set the number of steps and the intervals."""
    config, runtime = plan.config, plan.runtime
    assert runtime is not None
    seconds = min(0.5, 0.05 * parse_duration(config.train.time)) if plan.timed else 0.5
    try:
        measured = measure_speed(
            config, runtime, seconds, time_left=ends - time.monotonic(), reporter=draft.reporter,
            world_size=processes.world_size, measurements=measurements,
        )  # fmt: skip
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            f"train.micro_batch_size: {config.train.micro_batch_size} sequences at a time do not fit into memory; "
            "use a smaller micro_batch_size (the batch stays the same), or activation_checkpointing=true"
        ) from None
    for note in measured.notes:
        draft.note(note)
    per_step, final_seconds = measured.timing.seconds_per_step, 0.0
    if plan.timed and plan.stream:
        left = ends - time.monotonic() - measured.timing.compile_seconds
        values, final_seconds, why = fit_steps(config, plan.stream, measured.timing, left)
        config = config.replace("train", **values)
    elif plan.timed:
        steps = int(parse_duration(config.train.time) * TIME_BUDGET_FRACTION / per_step)
        config, why = config.replace("train", steps=steps), f"{steps:,} steps fit into {config.train.time}"
    else:
        why = f"{config.train.steps:,} steps of {per_step:.3g} s: about {config.train.steps * per_step:,.0f} s"
    derived = {key for key in DERIVED_FROM_STEPS if not getattr(config.train, key)}
    if not config.optim.warmup_steps:
        derived.add("warmup_steps")
    plan = replace(
        plan, runtime=measured.runtime, timing=measured.timing, derived=frozenset(derived), final_seconds=final_seconds
    )
    draft.note(f"{why}; predicted: {plan.tokens_per_second:,.0f} tokens/s{measurements.age}")
    draft.note(_cost_of_muon(config, measured.timing))
    draft.note(_cost_of_kept(config))
    config = fill_derived_settings(config).replace("runtime", **measured.runtime.resolved())
    if plan.stream:
        draft.note(_time_of_recipe(config, plan.stream, measured.timing))
    return replace(plan, config=config, notes=draft.notes)


def _time_of_recipe(config: RunConfig, stream: TokenStream, timing: Timing) -> str:
    """Say how long the runs of a recipe took, and how long this one takes; empty for a run that follows none."""
    curve = presets.expected_curve(config, stream.info.text_sha256)
    if curve is None:
        return ""
    then, here = median(curve.seconds), run_seconds(config, stream, timing)
    return (
        f"the recipe took {then:,.0f} s in {curve.dtype} on {curve.machine}; here, in {config.runtime.dtype}, it takes "
        f"some {here:,.0f} s, {here / then:.1f} times as long"
    )


def _cost_of_muon(config: RunConfig, timing: Timing) -> str:
    """Advise where Muon's update, which does not depend on the batch, takes much of a step; else empty."""
    if config.optim.optimizer != "muon" or timing.update_share < MUCH_UPDATE:
        return ""
    return (
        f"Muon's update takes {timing.update_share:.0%} of a step, whatever the batch is: a larger batch_size or "
        "optimizer=adamw trains on more tokens per second"
    )


def _cost_of_kept(config: RunConfig) -> str:
    """Say how many checkpoints ``keep_every`` keeps, and their size on disk; empty if it keeps none."""
    if not (every := config.train.keep_every):
        return ""
    count = len({*range(0, config.train.steps, every), config.train.steps})
    size = count * 4 * sum(count_parameters(config.model).values())
    return f"keep_every={every} keeps {count:,} checkpoints: {format_bytes(size)} on disk"


def fill_derived_settings(config: RunConfig) -> RunConfig:
    """Replace every derived interval and number (0) by its value."""
    train, interval = config.train, eval_interval(config, config.train.steps)
    config = config.replace(
        "train",
        eval_interval=interval,
        eval_tokens=eval_tokens(config, train.steps),
        save_interval=train.save_interval or interval,
        sample_interval=train.sample_interval or max(2 * interval, MIN_SAMPLE_INTERVAL),
        log_interval=train.log_interval or max(1, train.steps // 200),
    )
    warmup = config.optim.warmup_steps or min(200, max(1, train.steps // 20))
    return config.replace("optim", warmup_steps=warmup)


def _data_as_prepared(
    source: TextSource, stream: TokenStream, config: DataConfig, user_set_keys: set[str]
) -> dict[str, Any]:
    """The section ``data`` as the run keeps it: absolute paths, and the settings that the corpus was prepared with.

    Raises:
        ConfigError: if the user set others.
    """
    if not source.prepared:
        return {"source": source.source, "tokenizer": specs.absolute(config.tokenizer)}
    manifest = stream.manifest
    refused = [
        f"data.{key}: {value!r} in the prepared corpus, {getattr(config, key)!r} asked for"
        for key, value in manifest.settings.items()
        if key in user_set_keys and getattr(config, key) != value
    ]
    if "tokenizer" in user_set_keys and not specs.is_identity(manifest.tokenizer, specs.parse(config.tokenizer)):
        refused.append(f"data.tokenizer: {manifest.tokenizer} in the prepared corpus, {config.tokenizer} asked for")
    if refused:
        raise ConfigError(refused)
    return {**manifest.settings, "source": source.source, "tokenizer": str(stream.folder)}

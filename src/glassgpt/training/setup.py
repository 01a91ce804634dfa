"""From a request to a :class:`Trainer`: text, tokenizer, model, run folder, or all of that from an earlier run.

What is left to the machine (size, steps, compute type, compiling, micro-batch) is measured here, once, and becomes part
of the run's configuration.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from glassgpt import data
from glassgpt.config import ConfigOverrides, DataConfig, RunConfig, build, differences, parse_duration, presets
from glassgpt.data import TextSource, TokenStream
from glassgpt.errors import CheckpointError, ConfigError, DataError
from glassgpt.estimate import SHARE_OF_FREE, largest_micro_batch
from glassgpt.model import GPT
from glassgpt.processes import Processes
from glassgpt.runtime import Runtime, resolve, versions
from glassgpt.seeds import derive_seed
from glassgpt.tokenizer import load as load_tokenizer
from glassgpt.tokenizer import specs
from glassgpt.training import budget, checkpoint, guard, initial
from glassgpt.training.calibration import calibrate
from glassgpt.training.checkpoint import Run, TrainState
from glassgpt.training.loop import Trainer
from glassgpt.training.metrics import MetricsLog, Reporter, require_tensorboard
from glassgpt.training.objective import LossFn, next_token_loss
from glassgpt.training.optim import Optimizers
from glassgpt.training.precision import MasterWeights, choose_dtype
from glassgpt.training.profiling import Profile
from glassgpt.weights.folder import load_weights
from glassgpt.weights.mapping import family_of

#: Preset that leaves the size of the model to the text, the machine and the time.
AUTO = initial.AUTO


@dataclass(frozen=True)
class Plan:
    """What a run is going to be, before anything is written: all numbers resolved."""

    config: RunConfig
    name: str
    stream: TokenStream
    runtime: Runtime
    speed: budget.Speed  # predicted
    timed: bool  # whether the number of steps came from `time`
    final_seconds: float  # what validating the whole split at the end is expected to take
    notes: tuple[str, ...]

    @property
    def tokens_per_second(self) -> float:
        """What is predicted for the steps."""
        return self.config.train.batch_size * self.config.model.block_size / self.speed.step


def plan(
    preset: str, layers: Sequence[ConfigOverrides], reporter: Reporter | None = None, processes: Processes | None = None
) -> Plan:
    """Resolve everything a new run needs: prepare the text, choose the size, the number of steps, how to compute.

    Raises:
        ConfigError: with every problem of the configuration.
        DataError: if the text cannot be used.
    """
    reporter, began, processes = reporter or Reporter(), time.monotonic(), processes or Processes()
    preset, base, continued = initial.begin(preset, layers)
    config = build(preset, [base, *layers])
    if config.train.format == "hf":
        family_of(config.model)
    processes.share(config.train.batch_size)
    if config.train.tensorboard:
        require_tensorboard()
    runtime = replace(resolve(config.runtime, processes.local_rank), compile=False)  # chosen when the rest is known
    source = data.find_source(config.data, reporter.preparing)
    stream = data.prepare(source, config.data, reporter.preparing)
    _require_enough(stream)
    notes = _Notes(reporter)
    notes.add(initial.agree(continued, stream.tokenizer))
    asked = {key for layer in layers for section in ("model", "train") for key in layer.get(section, {})}
    asked |= {"vocab_size"} if continued else set()
    if "block_size" in asked:
        data.Batches(
            stream.train, config.model.block_size, config.train.batch_size, config.train.seed, config.data.order
        )  # or a DataError
    vocab_size = stream.info.vocab_size
    if "vocab_size" in asked and config.model.vocab_size < vocab_size:
        raise ConfigError(f"model.vocab_size: {config.model.vocab_size} is less than the {vocab_size} of the tokenizer")
    if "vocab_size" not in asked:
        base = _merged(base, "model", vocab_size=vocab_size)
    seconds = parse_duration(config.train.time)
    if preset != AUTO:
        budget.require_memory(config.model)
    if config.runtime.dtype == "auto":
        runtime, why = measured_dtype(build(preset, [base, *layers]), runtime)
        notes.add(why)
    if preset == AUTO:
        chosen, why = budget.choose_size(
            build(preset, [base, *layers]), asked, stream, runtime, seconds, processes.world_size
        )
        base = _merged(_merged(base, "model", **chosen["model"]), "train", **chosen["train"])
        notes.add(why)
    base, why = _fit_context(base, asked, layers, stream)
    notes.add(why)
    config = build(preset, [base, *layers])
    budget.require_memory(config.model)
    config, why = fit_memory(config, runtime, processes)
    notes.add(why)
    config = config.replace("data", **_data_as_prepared(source, stream, config.data, layers))
    config = initial.named(config, continued)
    draft = Plan(config, source.name, stream, runtime, budget.Speed(0.0, 0.0), config.train.steps == 0, 0.0, ())
    return _timed(draft, began + seconds, notes, processes)


class _Notes:
    """Says what was decided and why as it is decided, and keeps it."""

    def __init__(self, reporter: Reporter):
        self.reporter = reporter
        self.kept: list[str] = []

    def add(self, note: str) -> None:
        """Say and keep a note, unless it is empty."""
        if note:
            self.reporter.note(note)
            self.kept.append(note)


def _timed(draft: Plan, ends: float, notes: _Notes, processes: Processes) -> Plan:
    """Measure the steps, choose whether to compile them, and how many there will be."""
    config = draft.config
    notes.reporter.note("measuring the speed of this machine")
    budgeted = min(1.5, 0.05 * parse_duration(config.train.time)) if draft.timed else 0.5
    try:
        found = calibrate(
            config, draft.runtime, budgeted, left=ends - time.monotonic(), reporter=notes.reporter,
            processes=processes.world_size,
        )  # fmt: skip
    except RuntimeError as error:
        if not guard.is_out_of_memory(error):
            raise
        raise ConfigError(
            f"train.micro_batch_size: {config.train.micro_batch_size} sequences at a time do not fit into memory; "
            "use a smaller micro_batch_size (the batch stays the same), or activation_checkpointing=true"
        ) from None
    runtime, speed, final_seconds = found.runtime, found.speed, 0.0
    for note in found.notes:
        notes.add(note)
    if draft.timed:
        values, final_seconds, why = budget.fit_steps(config, draft.stream, speed, ends - time.monotonic())
        config = config.replace("train", **values)
    else:
        why = f"{config.train.steps:,} steps of {speed.step:.3g} s: about {config.train.steps * speed.step:,.0f} s"
    plan = replace(draft, config=config, runtime=runtime, speed=found.speed, final_seconds=final_seconds)
    notes.add(f"{why}; predicted: {plan.tokens_per_second:,.0f} tokens/s")
    config = _with_intervals(config).replace("runtime", **runtime.resolved())
    return replace(plan, config=config, notes=tuple(notes.kept))


def measured_dtype(config: RunConfig, runtime: Runtime) -> tuple[Runtime, str]:
    """The compute type that this device's self-check chooses, on at most 2,048 tokens."""
    rows = max(1, min(config.train.batch_size, 2048 // config.model.block_size))
    dtype, why = choose_dtype(config.model, rows, runtime.device)
    if runtime.device.type == "cuda":
        torch.cuda.empty_cache()  # so that what is free can be told
    return replace(runtime, dtype=dtype, reason=why), why


def fit_memory(config: RunConfig, runtime: Runtime, processes: Processes | None = None) -> tuple[RunConfig, str]:
    """Choose the micro-batch where that is left to the machine, and say so; the batch stays what it is."""
    train, count = config.train, processes.world_size if processes else 1
    if train.micro_batch_size:
        return config, ""
    share = math.ceil(train.batch_size / count)
    free = budget.free_memory(runtime.device) // (count if runtime.device.type == "cpu" else 1)
    rows = largest_micro_batch(
        config.model, share, int(SHARE_OF_FREE * free), bytes_per_weight=runtime.dtype.itemsize,
        optimizer=config.optim.optimizer, recompute=train.activation_checkpointing, device=runtime.device.type,
    )  # fmt: skip
    note = f"{rows} sequences at a time fit into the {free / 2**30:.1f} GiB of free memory; a step is still {share}"
    return config.replace("train", micro_batch_size=rows), note if rows < share else ""


def start(
    plan: Plan, name: str, parent: Path, *, reporter: Reporter | None = None, objective: LossFn = next_token_loss,
    deadline: float | None = None, processes: Processes | None = None, profile: bool = False,
) -> Trainer:  # fmt: skip
    """Create the run's folder and a trainer at step 0. An existing run is never overwritten."""
    provenance = {
        "created": datetime.now().astimezone().isoformat(),
        "text_sha256": plan.stream.info.text_sha256,
        "data_sha256": plan.stream.info.data_sha256,
        "tokenizer": plan.stream.info.tokenizer,
        "train_tokens": plan.stream.info.tokens["train"],
        "val_tokens": plan.stream.info.tokens["val"],
        "notes": list(plan.notes),
        **initial.provenance(plan.config),
        **versions(),
    }
    run = checkpoint.create_run(parent, name, plan.config, provenance)
    return _trainer(
        run, plan.config, plan.stream, plan.runtime, reporter=reporter, objective=objective, deadline=deadline,
        processes=processes, predicted=plan.tokens_per_second, profile=_profile(run, plan.runtime, profile),
    )  # fmt: skip


@dataclass(frozen=True)
class Begun:
    """What the first process tells the others."""

    path: Path
    micro_batch_size: int


def follow(begun: Begun, processes: Processes, objective: LossFn = next_token_loss) -> Trainer:
    """The trainer of a run that the first process has just begun, or gone on with, in any other process."""
    run = Run(begun.path)
    config = run.config()
    trainer = _trainer(
        run,
        config,
        _stream_of(run, config),
        resolve(config.runtime, processes.local_rank),
        processes=processes,
        objective=objective,
    )
    trainer.state.micro_batch_size = begun.micro_batch_size
    return trainer


def resume(
    path: Path,
    changes: ConfigOverrides | None = None,
    *,
    reporter: Reporter | None = None,
    objective: LossFn = next_token_loss,
    processes: Processes | None = None,
    profile: bool = False,
) -> Trainer:
    """A trainer that goes on from a run's newest checkpoint (or from step 0, if it was killed before the first).

    Raises:
        CheckpointError: if the run cannot be read, or was asked to become another model or read other data; the
            message shows the difference.
    """
    run = Run(path)
    saved = run.config()
    config = build(saved.preset, [saved.to_dict(), _without_auto(changes or {})])
    refused = differences(saved.model, config.model) + differences(saved.data, config.data)
    fixed = {name: getattr(saved.train, name) for name in ("init_from", "seed", "batch_size", "format", "eval_tokens")}
    refused += differences(replace(config.train, **fixed), config.train)
    refused += differences(replace(config.optim, optimizer=saved.optim.optimizer), config.optim)
    if refused:
        lines = "\n  ".join(refused)
        raise CheckpointError(f"{path} cannot go on as something else:\n  {lines}\nStart a new run for that.")
    done = max((row["step"] for row in run.metrics), default=0)
    ended = any("final/val_loss" in row for row in run.metrics)
    if (ended and done >= config.train.steps) or done > config.train.steps:
        raise CheckpointError(f"{path} has finished its {done} steps; to train it longer, add steps={2 * done}")
    stream = _stream_of(run, config)
    config = _with_intervals(config)
    asked = (changes or {}).get("train", {})
    deadline = time.monotonic() + parse_duration(config.train.time) if "time" in asked else None
    processes = processes or Processes()
    runtime = resolve(config.runtime, processes.local_rank)
    trainer = _trainer(
        run, config, stream, runtime, reporter=reporter, objective=objective, deadline=deadline, processes=processes,
        profile=_profile(run, runtime, profile),
    )  # fmt: skip
    checkpoint.write_run_toml(run.path, config, run.provenance())  # only now is it known to go on
    if config.runtime.compile == "true" and not runtime.compile:
        trainer.reporter.warn(
            "the run was compiled, and no compiler is found here: it goes on without, and to rounding"
        )
    if "micro_batch_size" in asked:
        trainer.state.micro_batch_size = config.train.micro_batch_size or config.train.batch_size
    return trainer


def _without_auto(changes: ConfigOverrides) -> ConfigOverrides:
    """Changes without those to "auto": what that means was measured when the run began, and is the run's."""
    derived = {"runtime": "auto", "train": 0}
    return {
        section: {
            name: value
            for name, value in values.items()
            if not (name in ("dtype", "compile", "device", "micro_batch_size") and value == derived.get(section))
        }
        for section, values in changes.items()
    }


def _trainer(
    run: Run, config: RunConfig, stream: TokenStream, runtime: Runtime, *, processes: Processes | None = None,
    **settings: Any,
) -> Trainer:  # fmt: skip
    """Weights (fresh, another model's, or the newest checkpoint's), then the type computed in, then the optimisers.

    A run that goes on from another model begins with a checkpoint, so that it never needs that model again.
    """
    processes = processes or Processes()
    folder = run.latest_checkpoint() if processes.is_main else run.newest_whole()
    model = GPT(config.model)
    if not folder and not config.train.init_from:
        model.init_weights(derive_seed(config.train.seed, "weights"))
    model = model.to(runtime.device)
    if folder:
        load_weights(folder, model)
    elif config.train.init_from:
        initial.load(config, model)
    optimizers = Optimizers(model, config.optim, MasterWeights(model, runtime.dtype))
    state = checkpoint.load_trainer(folder, optimizers) if folder else TrainState()
    if processes.is_main:
        MetricsLog(run.path / "metrics.jsonl").cut_after(state.step or -1)
    if config.train.init_from and not folder:
        checkpoint.save_checkpoint(run.last, optimizers, stream.tokenizer, state, config.train.format == "native")
    expected = presets.expected_curve(config, stream.info.text_sha256)
    return Trainer(
        run, config, model, optimizers, stream, runtime, state, processes=processes, expected=expected, **settings
    )


def _profile(run: Run, runtime: Runtime, wanted: bool) -> Profile | None:
    return Profile(run.path / "profile" / "trace.json", runtime.device) if wanted else None


def _stream_of(run: Run, config: RunConfig) -> TokenStream:
    """The very tokens that the run began with."""
    provenance = run.provenance()
    expected, tokenizer = provenance.get("text_sha256", ""), provenance.get("tokenizer", "char")
    cached = data.find_prepared(expected, tokenizer, config.data)
    if cached is not None and provenance.get("data_sha256", cached.info.data_sha256) == cached.info.data_sha256:
        return cached
    source, folder = data.find_source(config.data), run.newest_whole()
    if folder:  # the run carries its tokenizer: the file that it came from may be gone
        stream = data.prepare_again(source, config.data, tokenizer, load_tokenizer(folder))
    else:
        stream = data.prepare(source, config.data)
    if stream.info.text_sha256 != expected:
        raise CheckpointError(
            f"the text {config.data.source} has changed since {run.path} began (SHA-256 {expected[:12]}... then, "
            f"{stream.info.text_sha256[:12]}... now); put the old text back, or start a new run"
        )
    if stream.info.tokenizer != tokenizer and not source.prepared:
        raise CheckpointError(
            f"the tokenizer {config.data.tokenizer} has changed since {run.path} began, and there is no checkpoint yet "
            "that carries the old one; put the old file back, or start a new run"
        )
    if provenance.get("data_sha256", stream.info.data_sha256) != stream.info.data_sha256:
        raise CheckpointError(
            f"the prepared corpus {stream.folder} has changed since {run.path} began; prepare it as it was, or start a "
            "new run"
        )
    return stream


def _data_as_prepared(
    source: TextSource, stream: TokenStream, config: DataConfig, layers: Sequence[ConfigOverrides]
) -> dict[str, Any]:
    """What the run keeps of the section `data`: paths from the root, and the settings the corpus was prepared with.

    Raises:
        ConfigError: if it was prepared with others than those asked for.
    """
    if not source.prepared:
        return {"source": source.source, "tokenizer": specs.absolute(config.tokenizer)}
    asked = {key for layer in layers for key in layer.get("data", {})}
    manifest = stream.manifest
    refused = [
        f"data.{key}: {value!r} in the prepared corpus, {getattr(config, key)!r} asked for"
        for key, value in manifest.settings.items()
        if key in asked and getattr(config, key) != value
    ]
    if "tokenizer" in asked and specs.identity(specs.parse(config.tokenizer)) != manifest.tokenizer:
        refused.append(f"data.tokenizer: {manifest.tokenizer} in the prepared corpus, {config.tokenizer} asked for")
    if refused:
        raise ConfigError(refused)
    return {**manifest.settings, "source": source.source, "tokenizer": str(stream.folder)}


def _require_enough(stream: TokenStream) -> None:
    tokens = stream.info.tokens
    if tokens["train"] < 2 or tokens["val"] < 2:
        raise DataError(
            f"the text is too short: {tokens['train']} tokens to train on and {tokens['val']} to validate with; "
            "each needs at least 2. Use a longer text (5 KB already work), or a larger data.val_fraction"
        )


def _fit_context(
    base: ConfigOverrides, asked: set[str], layers: Sequence[ConfigOverrides], stream: TokenStream
) -> tuple[ConfigOverrides, str]:
    """Shorten a context that was not asked for by the user to what the text can fill."""
    block_size = build("", [base, *layers]).model.block_size
    longest = stream.info.tokens["train"] - 1
    if "block_size" in asked or block_size <= longest:
        return base, ""
    note = f"the text has only {longest + 1} training tokens: the context is {longest} instead of {block_size}"
    return _merged(base, "model", block_size=longest), note


def _with_intervals(config: RunConfig) -> RunConfig:
    """Replace every derived interval (0) by its number."""
    train = config.train
    eval_interval = train.eval_interval or max(1, train.steps // (budget.VALIDATIONS - 1))
    config = config.replace(
        "train",
        eval_interval=eval_interval,
        eval_tokens=train.eval_tokens or budget.MOST_VALIDATION_TOKENS,
        save_interval=train.save_interval or eval_interval,
        sample_interval=train.sample_interval or 2 * eval_interval,
        log_interval=train.log_interval or max(1, train.steps // 200),
    )
    warmup = config.optim.warmup_steps or min(200, max(1, train.steps // 20))
    return config.replace("optim", warmup_steps=warmup)


def _merged(layer: ConfigOverrides, section: str, **values: Any) -> dict[str, Mapping[str, Any]]:
    return {**layer, section: {**layer.get(section, {}), **values}}

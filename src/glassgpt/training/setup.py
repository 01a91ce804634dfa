"""From a request to a :class:`Trainer`: text, tokenizer, model, run folder, or all of that from an earlier run."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from glassgpt import data, presets
from glassgpt.config import Layer, RunConfig, build, differences, parse_duration
from glassgpt.data import TokenStream
from glassgpt.errors import CheckpointError, ConfigError, DataError
from glassgpt.model import GPT
from glassgpt.runtime import Runtime, derive_seed, resolve, versions
from glassgpt.training import budget, checkpoint
from glassgpt.training.checkpoint import Run, TrainState
from glassgpt.training.loop import Trainer
from glassgpt.training.metrics import MetricsLog, Reporter
from glassgpt.training.objective import Objective, next_token_loss
from glassgpt.training.optim import Optimizers
from glassgpt.weights.mapping import family_of

#: Preset that leaves the size of the model to the text, the machine and the time.
AUTO = "auto"


@dataclass(frozen=True)
class Plan:
    """What a run is going to be, before anything is written: all numbers resolved."""

    config: RunConfig
    name: str
    stream: TokenStream
    runtime: Runtime
    timed: bool  # whether the number of steps came from `time`
    final_seconds: float  # what validating the whole split at the end is expected to take
    notes: tuple[str, ...]


def plan(preset: str, layers: Sequence[Layer], reporter: Reporter | None = None) -> Plan:
    """Resolve everything a new run needs: prepare the text, choose the size and the number of steps.

    Raises:
        ConfigError: with every problem of the configuration.
        DataError: if the text cannot be used.
    """
    reporter, began = reporter or Reporter(), time.monotonic()
    base: Layer = budget.smallest_size(layers) if preset == AUTO else presets.get(preset).layer
    config = build(preset, [base, *layers])
    if config.train.format == "hf":
        family_of(config.model)
    runtime = resolve(config.runtime)
    text = data.read(config.data.source)
    stream = data.prepare(text, *_split(config))
    _require_enough(stream)
    asked = {key for layer in layers for section in ("model", "train") for key in layer.get(section, {})}
    if "block_size" in asked:
        data.Batches(
            stream.train, config.model.block_size, config.train.batch_size, config.train.seed
        )  # or a DataError
    vocab_size = stream.info.vocab_size
    if "vocab_size" in asked and config.model.vocab_size < vocab_size:
        raise ConfigError(f"model.vocab_size: {config.model.vocab_size} is less than the {vocab_size} of the tokenizer")
    if "vocab_size" not in asked:
        base = _merged(base, "model", vocab_size=vocab_size)
    notes: list[str] = []
    seconds = parse_duration(config.train.time)
    if preset == AUTO:
        chosen, why = budget.choose_size(build(preset, [base, *layers]), asked, stream, runtime, seconds)
        base = _merged(_merged(base, "model", **chosen["model"]), "train", **chosen["train"])
        notes.append(why)
    base, note = _fit_context(base, asked, layers, stream)
    notes += note
    config = build(preset, [base, *layers])
    budget.require_memory(config.model)
    timed, final_seconds = config.train.steps == 0, 0.0
    if timed:
        reporter.note("measuring the speed of this machine")
        left = seconds - (time.monotonic() - began)
        values, final_seconds, why = budget.fit_steps(config, stream, runtime, left)
        config = config.replace("train", **values)
        notes.append(why)
    config = _with_intervals(config).replace("runtime", **runtime.resolved()).replace("data", source=text.source)
    return Plan(config, text.name, stream, runtime, timed, final_seconds, tuple(notes))


def start(
    plan: Plan, name: str, parent: Path, *, reporter: Reporter | None = None, objective: Objective = next_token_loss,
    deadline: float | None = None,
) -> Trainer:  # fmt: skip
    """Create the run's folder and a trainer at step 0. An existing run is never overwritten."""
    provenance = {
        "created": datetime.now().astimezone().isoformat(),
        "text_sha256": plan.stream.info.text_sha256,
        "train_tokens": plan.stream.info.tokens["train"],
        "val_tokens": plan.stream.info.tokens["val"],
        "notes": list(plan.notes),
        **versions(),
    }
    run = checkpoint.create_run(parent, name, plan.config, provenance)
    return _trainer(run, plan.config, plan.stream, plan.runtime, reporter, objective, deadline)


def resume(
    path: Path,
    changes: Layer | None = None,
    *,
    reporter: Reporter | None = None,
    objective: Objective = next_token_loss,
) -> Trainer:
    """A trainer that goes on from a run's newest checkpoint (or from step 0, if it was killed before the first).

    Raises:
        CheckpointError: if the run cannot be read, or was asked to become another model or read other data; the
            message shows the difference.
    """
    run = Run(path)
    saved = run.config()
    config = build(saved.preset, [saved.to_dict(), changes or {}])
    refused = differences(saved.model, config.model) + differences(saved.data, config.data)
    fixed = {name: getattr(saved.train, name) for name in ("seed", "batch_size", "format", "eval_tokens")}
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
    checkpoint.write_run_toml(run.path, config, run.provenance())
    asked = (changes or {}).get("train", {})
    deadline = time.monotonic() + parse_duration(config.train.time) if "time" in asked else None
    trainer = _trainer(run, config, stream, resolve(config.runtime), reporter, objective, deadline)
    if "micro_batch_size" in asked:
        trainer.state.micro_batch_size = config.train.micro_batch_size or config.train.batch_size
    return trainer


def _trainer(
    run: Run, config: RunConfig, stream: TokenStream, runtime: Runtime, reporter: Reporter | None, objective: Objective,
    deadline: float | None,
) -> Trainer:  # fmt: skip
    model = GPT(config.model)
    model.init_weights(derive_seed(config.train.seed, "weights"))
    model = model.to(runtime.device)
    optimizers = Optimizers(model, config.optim)
    folder = run.latest_checkpoint()
    state = checkpoint.load_checkpoint(folder, model, optimizers) if folder else TrainState()
    MetricsLog(run.path / "metrics.jsonl").cut_after(state.step if folder else -1)
    return Trainer(
        run, config, model, optimizers, stream, runtime, state,
        reporter=reporter, objective=objective, deadline=deadline,
    )  # fmt: skip


def _stream_of(run: Run, config: RunConfig) -> TokenStream:
    """The very tokens that the run began with."""
    expected = run.provenance().get("text_sha256", "")
    cached = data.find_prepared(expected, *_split(config))
    if cached is not None:
        return cached
    stream = data.prepare(data.read(config.data.source), *_split(config))
    if stream.info.text_sha256 != expected:
        raise CheckpointError(
            f"the text {config.data.source} has changed since {run.path} began (SHA-256 {expected[:12]}... then, "
            f"{stream.info.text_sha256[:12]}... now); put the old text back, or start a new run"
        )
    return stream


def _split(config: RunConfig) -> tuple[float, int]:
    return config.data.val_fraction, config.data.max_val_tokens


def _require_enough(stream: TokenStream) -> None:
    tokens = stream.info.tokens
    if tokens["train"] < 2 or tokens["val"] < 2:
        raise DataError(
            f"the text is too short: {tokens['train']} tokens to train on and {tokens['val']} to validate with; "
            "each needs at least 2. Use a longer text (5 KB already work), or a larger data.val_fraction"
        )


def _fit_context(base: Layer, asked: set[str], layers: Sequence[Layer], stream: TokenStream) -> tuple[Layer, list[str]]:
    """Shorten a context that was not asked for by the user to what the text can fill."""
    block_size = build("", [base, *layers]).model.block_size
    longest = stream.info.tokens["train"] - 1
    if "block_size" in asked or block_size <= longest:
        return base, []
    note = f"the text has only {longest + 1} training tokens: the context is {longest} instead of {block_size}"
    return _merged(base, "model", block_size=longest), [note]


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


def _merged(layer: Layer, section: str, **values: Any) -> dict[str, Mapping[str, Any]]:
    return {**layer, section: {**layer.get(section, {}), **values}}

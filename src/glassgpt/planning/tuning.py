"""Fine-tuning on conversations, ``glassgpt tune``: its plan, and the model and the data of its run."""

import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from glassgpt.config import ConfigOverrides, ModelConfig, RunConfig, build, parse_duration
from glassgpt.config.tuning import tuning_defaults
from glassgpt.data.conversations.dataset import ChatData, load_chats
from glassgpt.data.conversations.rows import TUTOR
from glassgpt.errors import CheckpointError, ConfigError
from glassgpt.model import GPT
from glassgpt.planning import timing as timings
from glassgpt.planning.attention_choice import measured_attention
from glassgpt.planning.budget import CHAT_TIME_FRACTION, fit_chat_steps
from glassgpt.planning.compute_dtype import measured_dtype
from glassgpt.planning.initial_model import (
    INIT,
    InitialModel,
    find_initial_model,
    require_shape,
    require_trainable,
    with_run_paths,
)
from glassgpt.planning.measured import Measurements
from glassgpt.planning.memory import choose_micro_batch_size, require_memory
from glassgpt.planning.run_plan import DERIVED_FROM_STEPS, Measure, RunPlan, fill_derived_settings, new_measurements
from glassgpt.processes import Processes
from glassgpt.runtime import Runtime, resolve
from glassgpt.seeds import derive_seed
from glassgpt.tokenizer import Tokenizer
from glassgpt.tokenizer import load as load_tokenizer
from glassgpt.training.checkpoint import Run
from glassgpt.training.metrics import Reporter
from glassgpt.transforms.lora import add_lora
from glassgpt.weights import mapping
from glassgpt.weights.adapter import load_adapter
from glassgpt.weights.chat_tokens import with_chat_template
from glassgpt.weights.folder import load_weights
from glassgpt.weights.loading import describe, load_into
from glassgpt.weights.resolve import open_folder
from glassgpt.weights.sources import WeightSource, file_checksums
from glassgpt.weights.transfer import to_folder

#: A step is timed on so many tokens of it, about.
TIMED_TOKENS = 512
#: Passes over the conversations at most, if the user does not say.
EPOCHS = 10


def is_tuning(overrides: Sequence[ConfigOverrides]) -> bool:
    """Whether these settings are of a run of ``glassgpt tune``."""
    methods = [layer["tune"]["method"] for layer in overrides if "method" in layer.get("tune", {})]
    return bool(methods) and methods[-1] != "none"


def plan_tuning(
    overrides: Sequence[ConfigOverrides], *, runs: Path, measure: Measure, reporter: Reporter, processes: Processes
) -> RunPlan:
    """As :func:`glassgpt.planning.run_plan.plan_run`, for fine-tuning on conversations.

    Raises:
        ConfigError: with every problem of the configuration.
        CheckpointError: if there is no such model.
        DataError: if there are no conversations to train on.
    """
    began, notes, measurements = time.monotonic(), list[str](), new_measurements(measure, reporter)

    def note(text: str) -> None:
        if text:
            reporter.note(text)
            notes.append(text)

    overrides = with_run_paths(overrides, runs)
    base, initial = _starting_point(overrides)
    config = build(INIT, [base, *overrides])
    if config.train.format == "hf":
        mapping.family_of(config.model)
    processes.share(config.train.batch_size)
    chats = _load(config, initial.source.tokenizer())
    note(f"{'LoRA on' if config.tune.method == 'lora' else 'fine-tuning all weights of'} {initial.name}")
    for text in (*initial.source.notes, *chats.notes()):
        note(text)
    config = _as_prepared(config, chats, initial)
    plan = RunPlan(config, TUTOR if config.data.source == TUTOR else chats.path.stem, chats=chats)
    if measure == "nothing":
        return replace(plan, notes=tuple(notes))
    if config.tune.method == "sft":
        require_memory(config.model)
    runtime = resolve(config.runtime, processes.local_rank)
    short = _as_timed(config)
    if config.runtime.dtype == "auto":
        runtime, why = measured_dtype(short.replace("train", batch_size=1), runtime, measurements)
        note(why)
    runtime, why = measured_attention(short, runtime, measurements)
    note(why)
    config, short = (c.replace("runtime", attention=runtime.attention) for c in (config, short))
    chosen, why = choose_micro_batch_size(short, runtime, processes)
    note(why)
    config = config.replace("train", micro_batch_size=chosen.train.micro_batch_size)
    if measure == "choices":
        return replace(
            plan, config=config.replace("runtime", **runtime.resolved()), runtime=runtime, notes=tuple(notes)
        )
    timing, timed = _measure(config, chats, runtime, processes, measurements), config.train.steps == 0
    if timed:
        seconds = parse_duration(config.train.time) - (time.monotonic() - began)
        values, why = fit_chat_steps(config, chats, timing, seconds)
        config = config.replace("train", **values)
        note(why + measurements.age)
    derived = {key for key in DERIVED_FROM_STEPS if not getattr(config.train, key)}
    derived |= set() if config.optim.warmup_steps else {"warmup_steps"}
    config = fill_derived_settings(config).replace("runtime", **runtime.resolved())
    return replace(
        plan, config=config, runtime=runtime, timing=timing, timed=timed, derived=frozenset(derived),
        final_seconds=(1 - CHAT_TIME_FRACTION) / 2 * parse_duration(config.train.time), notes=tuple(notes),
    )  # fmt: skip


def _as_prepared(config: RunConfig, chats: ChatData, initial: InitialModel) -> RunConfig:
    """The configuration as the run keeps it: names that find the model and the data from anywhere, derived lengths."""
    source = TUTOR if config.data.source == TUTOR else str(chats.path.absolute())
    config = config.replace("data", source=source).replace("train", init_from=initial.name)
    return config.replace("tune", max_length=chats.max_length, epochs=config.tune.epochs or EPOCHS)


def _measure(
    config: RunConfig, chats: ChatData, runtime: Runtime, processes: Processes, measurements: Measurements
) -> timings.Timing:
    """Time steps on some rows of the first batch."""
    train = config.train
    rows = max(1, min(train.micro_batch_size, TIMED_TOKENS // chats.max_length))
    batch = chats.batches(train.batch_size, train.seed, config.tune.packing).get(0, slice(0, rows))
    return timings.timing_of(_as_timed(config), runtime, measurements, world_size=processes.world_size, batch=batch)


def _starting_point(overrides: Sequence[ConfigOverrides]) -> tuple[ConfigOverrides, InitialModel]:
    """The settings below the user's, and the initial model, with a chat template.

    Raises:
        ConfigError: if no model is named, or the user's settings describe another model.
        CheckpointError: if there is no such model.
    """
    given = [layer["train"]["init_from"] for layer in overrides if layer.get("train", {}).get("init_from")]
    if not given or not isinstance(given[-1], str):
        raise ConfigError("train.init_from: which model should be tuned? Name a run, a folder, an asset or a hub name")
    found = find_initial_model(given[-1])
    source = with_chat_template(found.source)
    model, family = describe(source)
    initial = InitialModel(found.name, source, model)
    require_shape(initial, overrides)
    if any("block_size" in layer.get("model", {}) for layer in overrides):
        raise ConfigError("model.block_size: tuning keeps the model's context; max_length sets the length of rows")
    if unused := sorted({key for layer in overrides for key in layer.get("data", {})} - {"source", "val_fraction"}):
        raise ConfigError(
            f"data.{unused[0]}: tuning does not use it. It reads conversations with the model's own tokenizer; of the "
            "settings of data, source and val_fraction count"
        )
    method = next(layer["tune"]["method"] for layer in reversed(overrides) if "method" in layer.get("tune", {}))
    if method == "sft":
        require_trainable(found)
    named = [layer["data"]["source"] for layer in overrides if "source" in layer.get("data", {})]
    defaults = tuning_defaults(str(method), str(named[-1]) if named else "")
    base: ConfigOverrides = {
        **defaults,
        "model": {field.name: getattr(model, field.name) for field in fields(ModelConfig)},
        "data": {"tokenizer": str(found.source.path.absolute())},
        "train": {**defaults["train"], "format": "native" if family is mapping.NATIVE_FAMILY else "hf"},
    }
    return base, initial


def _load(config: RunConfig, tokenizer: Tokenizer) -> ChatData:
    return load_chats(
        config.data.source, tokenizer, context=config.model.block_size, max_length=config.tune.max_length,
        val_fraction=config.data.val_fraction, seed=config.train.seed,
    )  # fmt: skip


def _as_timed(config: RunConfig) -> RunConfig:
    """The configuration with rows of the conversations' length, for what measures and estimates."""
    return config.replace("model", block_size=config.tune.max_length)


def data_provenance(chats: ChatData) -> dict[str, Any]:
    """The entries of run.toml about the conversations."""
    return {
        "data_sha256": chats.sha256,
        "data_format": chats.format,
        "train_conversations": len(chats.train),
        "val_conversations": len(chats.val),
    }


def write_base(run: Run, config: RunConfig) -> None:
    """Write the model that a run begins with into it, if that was given a chat template.

    It may be there: a killed process may have written it. With the first checkpoint, it is.
    """
    if run.own_base.exists() or run.last.exists():
        return
    found = find_initial_model(config.train.init_from).source
    source = with_chat_template(found)
    if source is not found:
        to_folder(source, run.own_base, dtype=torch.float32, native=config.train.format == "native")


def base_source(run: Run, config: RunConfig) -> WeightSource:
    """The model that a run of ``tune`` began with.

    Raises:
        CheckpointError: if it is gone, or has changed.
    """
    if run.own_base.exists():
        return open_folder(run.own_base)
    source = find_initial_model(config.train.init_from).source
    if file_checksums(source) != run.base(run.last).sha256:
        raise CheckpointError(
            f"the model {config.train.init_from} has changed since {run.path} began with it (the SHA-256 of its "
            "weights differs); put the old one back, or start a new run"
        )
    return source


def load_data(run: Run, config: RunConfig) -> ChatData:
    """The conversations of a run that exists. Their tokenizer is that of its checkpoint, if there is one.

    Raises:
        CheckpointError: if the file has changed since the run began.
    """
    folder = run.latest_valid()
    chats = _load(config, load_tokenizer(folder) if folder else base_source(run, config).tokenizer())
    expected = run.provenance().get("data_sha256")
    if chats.sha256 != expected:
        raise CheckpointError(
            f"the conversations {config.data.source} have changed since {run.path} began (SHA-256 "
            f"{str(expected)[:12]}... then, {chats.sha256[:12]}... now); put the old file back, or start a new run"
        )
    return chats


def load_model(run: Run, config: RunConfig, folder: Path | None, device: torch.device) -> GPT:
    """The model of a run of ``tune``: with the weights of a checkpoint, or those it begins with."""
    model = GPT(config.model).to(device)
    if config.tune.method == "sft" and folder:
        load_weights(folder, model)
        return model
    load_into(model, base_source(run, config))
    if config.tune.method == "lora":
        add_lora(model, config.tune, derive_seed(config.train.seed, "lora"))
        if folder:
            load_adapter(folder, model)
    return model

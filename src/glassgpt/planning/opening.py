"""Make the :class:`~glassgpt.training.loop.Trainer` of a run: new, joined by another process, or resumed."""

import shutil
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from glassgpt import data as corpora
from glassgpt.config import ConfigOverrides, RunConfig, build, differences, parse_duration, presets
from glassgpt.data import TokenStream
from glassgpt.data.conversations.dataset import ChatData
from glassgpt.errors import CheckpointError, GlassError
from glassgpt.model import GPT
from glassgpt.planning import initial_model, tuning
from glassgpt.planning.run_plan import RunPlan, fill_derived_settings
from glassgpt.processes import Processes
from glassgpt.runtime import Runtime, resolve, versions
from glassgpt.seeds import derive_seed
from glassgpt.tokenizer import load as load_tokenizer
from glassgpt.tokenizer import specs
from glassgpt.tokenizer.base import attach
from glassgpt.training.checkpoint import (
    CheckpointWriter,
    Run,
    TrainState,
    create_run,
    load_training_state,
    write_run_toml,
)
from glassgpt.training.loop import Trainer
from glassgpt.training.metrics import MetricsLog, Reporter
from glassgpt.training.optim import Optimizers
from glassgpt.training.precision import MasterWeights
from glassgpt.training.pretraining import Pretraining
from glassgpt.training.profiling import Profile
from glassgpt.training.task import Task
from glassgpt.training.tuning import ChatTuning
from glassgpt.weights.folder import load_weights

#: Settings that a resumed run may not change.
FIXED_SETTINGS = ("init_from", "seed", "batch_size", "format", "eval_tokens")


def start_run(
    plan: RunPlan, name: str, parent: Path, *, reporter: Reporter | None = None, deadline: float | None = None,
    processes: Processes | None = None, profile: bool = False, held: ExitStack | None = None,
) -> Trainer:  # fmt: skip
    """Create the run's folder and a trainer at step 0. An existing run is never overwritten.

    ``held`` keeps the run's lock until it is closed.

    Raises:
        ConfigError: if the folder cannot be made, or have that name.
    """
    data = plan.chats or plan.stream
    assert data and plan.runtime, "a run needs data, and choices that were measured"
    provenance = {
        "created": datetime.now().astimezone().isoformat(),
        **(tuning.data_provenance(data) if isinstance(data, ChatData) else _data_provenance(data)),
        "notes": list(plan.notes),
        **initial_model.provenance(plan.config),
        **versions(),
    }
    run = create_run(parent, name, plan.config, provenance)
    if held:
        held.enter_context(run.lock())

    def refit(step: int, tokens_per_second: float) -> RunConfig | None:
        assert deadline is not None
        left = deadline - time.monotonic() + plan.final_seconds
        config = plan.refit(step, tokens_per_second, left)
        if config is not None:
            write_run_toml(run.path, config, provenance | {"refit": _replaced_settings(step, plan.config, config)})
            (reporter or Reporter()).note(
                f"the steps run at {tokens_per_second:,.0f} tokens/s instead of {plan.tokens_per_second:,.0f}: "
                f"{config.train.steps:,} steps instead of {plan.config.train.steps:,} fit into {config.train.time}"
            )
        return config

    try:
        if plan.chats:
            tuning.write_base(run, plan.config)
        return _trainer(
            run, plan.config, data, plan.runtime, reporter=reporter, deadline=deadline, processes=processes,
            predicted=plan.tokens_per_second, profile=_profile(run, plan.runtime, profile),
            refit=None if deadline is None else refit,
        )  # fmt: skip
    except GlassError:  # the initial model cannot be loaded: leave no run that can never resume
        shutil.rmtree(run.path, ignore_errors=True)  # Windows does not delete the lock file
        raise


def _data_provenance(stream: TokenStream) -> dict[str, Any]:
    """The entries of run.toml about a text."""
    info = stream.info
    return {
        "text_sha256": info.text_sha256,
        "data_sha256": info.data_sha256,
        "tokenizer": info.tokenizer,
        "train_tokens": info.tokens["train"],
        "val_tokens": info.tokens["val"],
        "all_offsets": True,  # of the windows; runs without this entry were begun with fewer, and go on with them
    }


def _replaced_settings(step: int, old: RunConfig, new: RunConfig) -> dict[str, Any]:
    """The entry of run.toml about a refit: its step, and the settings until then, so that a resume repeats it."""
    sections = {"train": (old.train, new.train), "optim": (old.optim, new.optim)}
    return {"step": step} | {
        name: {key: value for key, value in asdict(before).items() if value != getattr(after, key)}
        for name, (before, after) in sections.items()
    }


@dataclass(frozen=True)
class RunInfo:
    """The message of rank 0 to the other ranks."""

    path: Path
    micro_batch_size: int


def join_run(info: RunInfo, processes: Processes) -> Trainer:
    """The trainer, in any other process, of a run that rank 0 has just started or resumed."""
    run = Run(info.path)
    config = run.config()
    runtime = resolve(config.runtime, processes.local_rank)
    trainer = _trainer(run, config, _load_data(run, config, check_text=False), runtime, processes=processes)
    trainer.state.micro_batch_size = info.micro_batch_size
    return trainer


def resume_run(
    path: Path, changes: ConfigOverrides | None = None, *, reporter: Reporter | None = None,
    processes: Processes | None = None, profile: bool = False, held: ExitStack | None = None,
) -> Trainer:  # fmt: skip
    """A trainer that resumes a run from its newest checkpoint (or from step 0, if it was killed before the first).

    A finished run validates again. ``held`` keeps the run's lock until it is closed.

    Raises:
        CheckpointError: if the run cannot be read, another process trains it, or the changes describe another model or
            other data; the message shows the difference.
    """
    run = Run(path)
    if held:
        held.enter_context(run.lock())
    saved = run.config()
    config = build(saved.preset, [saved.to_dict(), _without_auto(changes or {})])
    _require_resumable(run, saved, config)
    if config.tune.method != "none":
        tuning.write_base(run, config)
    data = _load_data(run, config)
    config = fill_derived_settings(config)
    user_settings = (changes or {}).get("train", {})
    deadline = time.monotonic() + parse_duration(config.train.time) if "time" in user_settings else None
    processes = processes or Processes()
    runtime = resolve(config.runtime, processes.local_rank)
    trainer = _trainer(
        run, config, data, runtime, reporter=reporter, deadline=deadline, processes=processes,
        profile=_profile(run, runtime, profile),
    )  # fmt: skip
    write_run_toml(run.path, config, run.provenance())  # only now is it certain that it resumes
    if (done := trainer.state.step) >= config.train.steps:
        trainer.reporter.note(f"{run.path} has finished its {done} steps; to train it longer, add steps={2 * done}")
    if config.runtime.compile == "true" and not runtime.compile:
        trainer.reporter.warn(
            "the run was compiled, and no compiler is found here: resuming without torch.compile; results match only "
            "up to rounding"
        )
    if "micro_batch_size" in user_settings:
        trainer.state.micro_batch_size = config.train.micro_batch_size or config.train.batch_size
    return trainer


def _require_resumable(run: Run, saved: RunConfig, config: RunConfig) -> None:
    """Refuse changed settings that would make another run of it, and fewer steps than it has done.

    Raises:
        CheckpointError: if so.
    """
    refused = differences(saved.model, config.model) + differences(saved.data, config.data)
    fixed = {name: getattr(saved.train, name) for name in FIXED_SETTINGS}
    refused += differences(replace(config.train, **fixed), config.train)
    refused += differences(replace(config.optim, optimizer=saved.optim.optimizer), config.optim)
    refused += differences(saved.tune, config.tune)
    if refused:
        lines = "\n  ".join(refused)
        raise CheckpointError(f"{run.path} cannot resume with changed settings:\n  {lines}\nStart a new run for that.")
    done = max((row["step"] for row in run.metrics), default=0)
    if done > config.train.steps:
        raise CheckpointError(f"{run.path} has finished its {done} steps; to train it longer, add steps={2 * done}")


def _without_auto(changes: ConfigOverrides) -> ConfigOverrides:
    """The changes without those to "auto": its value was measured when the run started, and is kept."""
    auto, measured = {"runtime": "auto", "train": 0}, ("dtype", "compile", "attention", "device", "micro_batch_size")
    return {
        section: {
            name: value for name, value in values.items() if not (name in measured and value == auto.get(section))
        }
        for section, values in changes.items()
    }


def _trainer(
    run: Run, config: RunConfig, data: TokenStream | ChatData, runtime: Runtime, *, processes: Processes | None = None,
    **settings: Any,
) -> Trainer:  # fmt: skip
    """Load or initialise the weights, then cast to the compute type, then make the optimisers.

    A fine-tuning run starts with a checkpoint, so that it never needs the initial model again.
    """
    processes = processes or Processes()
    folder = run.recover_and_find_latest() if processes.is_main else run.latest_valid()
    if isinstance(data, ChatData):
        model = tuning.load_model(run, config, folder, runtime.device)
    else:
        model = _load_model(config, data, folder, runtime)
    optimizers = Optimizers(model, config.optim, MasterWeights(model, runtime.dtype))
    state = load_training_state(folder, optimizers) if folder else TrainState()
    if processes.is_main:
        MetricsLog(run.path / "metrics.jsonl").truncate_after(state.step or -1)
        if config.train.init_from and not folder:
            CheckpointWriter(run, model, optimizers, data.tokenizer, config.train, tune=config.tune).save_last(state)
    provenance, expected = run.provenance(), None
    task: Task
    if isinstance(data, ChatData):
        task = ChatTuning(config, data, runtime.device, processes)
    else:
        task = Pretraining(config, data, runtime.device, processes, provenance.get("all_offsets", False))
        expected = presets.expected_curve(config, data.info.text_sha256)
    next_config, refit = None, provenance.get("refit")
    try:
        if refit and state.step < refit["step"] < config.train.steps:  # killed before a checkpoint after its refit
            next_config = refit["step"], config
            config = config.replace("train", **refit["train"]).replace("optim", **refit["optim"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{run.path / 'run.toml'} is damaged: provenance.refit cannot be read: {error}") from None
    trainer = Trainer(
        run, config, model, optimizers, task, runtime, state, processes=processes, expected=expected,
        next_config=next_config, **settings,
    )  # fmt: skip
    if folder and folder != run.last:
        trainer.reporter.warn(f"{run.last} is missing or damaged: resuming from {folder}")
    return trainer


def _load_model(config: RunConfig, stream: TokenStream, folder: Path | None, runtime: Runtime) -> GPT:
    """The model of a pre-training run: with the weights of a checkpoint, of the initial model, or initialised."""
    model = GPT(config.model)
    if not folder and not config.train.init_from:
        model.init_weights(derive_seed(config.train.seed, "weights"))
    model = model.to(runtime.device)
    own = None  # the tokenizer of these weights: a prepared corpus knows the tokens, but not how this model is used
    if folder:
        load_weights(folder, model)
        own = load_tokenizer(folder)
    elif config.train.init_from:
        own = initial_model.load_initial_weights(config, model).tokenizer()
    if own:
        attach(stream.tokenizer, own.published)
    return model


def _profile(run: Run, runtime: Runtime, wanted: bool) -> Profile | None:
    return Profile(run.path / "profile" / "trace.json", runtime.device) if wanted else None


def _load_data(run: Run, config: RunConfig, check_text: bool = True) -> TokenStream | ChatData:
    """Load what the run trains on; fail if it has changed."""
    return tuning.load_data(run, config) if config.tune.method != "none" else _load_stream(run, config, check_text)


def _load_stream(run: Run, config: RunConfig, check_text: bool = True) -> TokenStream:
    """Load the run's tokens; fail if the data changed. A text that was removed is not missed if its tokens are cached.

    Args:
        run: the run.
        config: of the run.
        check_text: whether to compare the text with that of the run if its tokens are cached.

    Raises:
        CheckpointError: if the text, its tokenizer or the prepared corpus is not what the run started with.
    """
    provenance = run.provenance()
    expected, tokenizer = str(provenance.get("text_sha256", "")), str(provenance.get("tokenizer", "char"))
    cached = corpora.find_prepared(expected, tokenizer, config.data)
    if cached is not None and provenance.get("data_sha256", cached.info.data_sha256) != cached.info.data_sha256:
        cached = None
    if cached is not None and not (check_text and corpora.is_here(config.data.source)):
        return cached
    source = corpora.find_source(config.data)
    if not source.prepared:
        _require_same_text(run, config, expected, corpora.sha256_of_text(source))
        if cached is not None:
            return cached
    folder = run.latest_valid()
    if folder:  # the run carries its tokenizer: the file that it came from may be gone
        stream = corpora.prepare_again(source, config.data, tokenizer, load_tokenizer(folder))
    else:
        stream = corpora.prepare(source, config.data)
    _require_same_text(run, config, expected, stream.info.text_sha256)
    if not folder and not source.prepared and not specs.is_identity(tokenizer, specs.parse(config.data.tokenizer)):
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


def _require_same_text(run: Run, config: RunConfig, expected: str, found: str) -> None:
    if found != expected:
        raise CheckpointError(
            f"the text {config.data.source} has changed since {run.path} began (SHA-256 {expected[:12]}... then, "
            f"{found[:12]}... now); put the old text back, or start a new run"
        )

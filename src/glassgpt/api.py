"""The public functions: load, generate, plan, train, tune, save. Re-exported by ``import glassgpt``.

The command line calls the same functions, so the same settings give the same results.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from glassgpt.config import ConfigOverrides, RuntimeConfig, locate
from glassgpt.errors import CheckpointError, ConfigError, TrainingStopped, type_problems
from glassgpt.files import Progress, path_exists
from glassgpt.inference.decode import complete, request_problems
from glassgpt.inference.decoders import choose_decoder, decode_problems
from glassgpt.inference.kernel_decoder import numba_found
from glassgpt.inference.speculative import add_speculation, speculate_problems
from glassgpt.model import GPT
from glassgpt.planning import opening, tuning
from glassgpt.planning.compute_dtype import inference_dtype
from glassgpt.planning.initial_model import AUTO
from glassgpt.planning.run_plan import Measure, RunPlan, names_a_text, plan_run
from glassgpt.processes import Processes, join_processes
from glassgpt.runtime import resolve
from glassgpt.sampling import SamplingConfig
from glassgpt.tokenizer import Tokenizer, specs
from glassgpt.training.checkpoint import Run, require_run_folder
from glassgpt.training.loop import Result, Trainer
from glassgpt.training.metrics import Reporter
from glassgpt.transforms.gptq import own_text
from glassgpt.transforms.quantize import is_quantized
from glassgpt.transforms.quantize import quantize as quantize_model
from glassgpt.weights import resolve as sources
from glassgpt.weights.folder import DTYPES, dtype_name, save_model, write_folder
from glassgpt.weights.loading import load_source
from glassgpt.weights.sources import WeightSource
from glassgpt.weights.transfer import stored_dtype

if TYPE_CHECKING:
    from glassgpt.doctor.watching import Watcher

#: The default folder of runs.
RUNS = Path("runs")
#: Configuration values by bare or dotted key; or by section, of which later ones win.
Overrides = Mapping[str, Any] | Sequence[ConfigOverrides]
_TEXT, _PATH = (str, "a text"), ((str, Path), "a name or path")
#: The types of arguments of the public functions, and how a message calls them.
_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "model": (torch.nn.Module, "a model, as glassgpt.load returns"),
    "tokenizer": (Tokenizer, "a tokenizer, as glassgpt.load returns"),
    "overrides": ((Mapping, list, tuple), "settings by key"),
    "dtype": (str, "the name of a dtype, such as 'bfloat16'"),
    "source": _PATH, "folder": _PATH, "data": _PATH, "runs": _PATH,
    "prompt": _TEXT, "preset": _TEXT, "name": _TEXT, "device": _TEXT, "revision": _TEXT, "token": _TEXT,
}  # fmt: skip
_MAY_BE_NONE = {"data", "overrides", "name", "revision", "token"}


def load(
    source: str | Path,
    *,
    device: str = "auto",
    dtype: str = "float32",
    revision: str | None = None,
    token: str | None = None,
    runs: str | Path = RUNS,
    keep_quantized: bool | None = None,
) -> tuple[GPT, Tokenizer]:
    """Load a model and its tokenizer, ready to generate.

    Args:
        source: a run (by name or folder; its best checkpoint is taken), a model folder, a .gguf file, an asset by its
            name, or a model on the Hugging Face hub: ``gpt2``, ``ORG/NAME``, ``ORG/NAME@REVISION``.
        device: as in RuntimeConfig.
        dtype: to hold the weights in: float32, bfloat16 or float16.
        revision: of a model on the hub.
        token: for the hub.
        runs: where to look for runs by name.
        keep_quantized: whether quantised weights (of :func:`quantize`; Q8_0 and Q4_0 of .gguf files) stay integers,
            which have no gradients, or are dequantised; by default they stay where decoding is faster with them.

    Raises:
        CheckpointError: if it is not found (the message says where it was looked for), or damaged.
        ConfigError: for an unknown type or device.
    """
    _require_types(source=source, device=device, dtype=dtype, revision=revision, token=token, runs=runs)
    weights_dtype(dtype)  # before anything is fetched
    found = open_source(source, revision=revision, token=token, runs=runs)
    keep = runs_quantized(device) if keep_quantized is None else keep_quantized
    return load_from_source(found, device=device, dtype=dtype, keep_quantized=keep)


def _type_problems(**arguments: object) -> list[str]:
    """What is wrong with the types of these arguments."""
    given = {k: v for k, v in arguments.items() if v is not None or k not in _MAY_BE_NONE}
    return [problem for name, value in given.items() for problem in type_problems(name, value, *_TYPES[name])]


def _require_types(**arguments: object) -> None:
    if problems := _type_problems(**arguments):
        raise ConfigError(problems)


def load_from_source(
    source: WeightSource,
    *,
    device: str = "auto",
    dtype: str = "float32",
    keep_quantized: bool = False,
    progress: Progress | None = None,
) -> tuple[GPT, Tokenizer]:
    """Load what :func:`open_source` found; otherwise as :func:`load`. ``progress`` is a callback.

    Raises:
        CheckpointError: if a weight is missing, damaged, or too large for the dtype.
        ConfigError: for an unknown type or device.
    """
    where = resolve(RuntimeConfig(device=device)).device
    return load_source(
        source, dtype=weights_dtype(dtype), device=where, keep_quantized=keep_quantized, progress=progress
    )


def runs_quantized(device: str = "auto", decode: str = "auto") -> bool:
    """Whether decoding reads quantised weights as they are: the kernels do, on a CPU with numba.

    Otherwise every step would dequantise all weights again, which is slower than to do it once.
    """
    on_cpu = resolve(RuntimeConfig(device=device)).device.type == "cpu"
    return on_cpu and decode in ("auto", "kernels") and numba_found()


def resolve_dtype(
    source: WeightSource, *, device: str = "auto", dtype: str = "auto", keep_quantized: bool = False
) -> tuple[str, str]:
    """Resolve the dtype "auto" for generating with what :func:`open_source` found; return it, and a line that says why.

    It is bfloat16 if the weights are stored so, or are kept as integers, and matrix products are faster in it; else
    float32. The line is empty for float32, and for a dtype that was named.

    Raises:
        ConfigError: for an unknown device.
    """
    if dtype != "auto":
        return dtype, ""
    quantized = keep_quantized and bool(getattr(source, "quantized", None))
    chosen, why = inference_dtype(stored_dtype(source), quantized, resolve(RuntimeConfig(device=device)).device)
    return dtype_name(chosen), why


def open_source(
    source: str | Path, *, revision: str | None = None, token: str | None = None, runs: str | Path = RUNS
) -> WeightSource:
    """Where :func:`load` would read a model from; its names and shapes are known, no weight is read.

    Raises:
        CheckpointError: as :func:`load`.
    """
    run = _run_of(source, runs)
    if run is not None:
        return sources.open_folder(run.best_or_last())
    return sources.open_weights(
        source, revision=revision, token=token, tried=[f"a run: those in {runs}/ are {_names(runs)}"]
    )


def weights_dtype(name: str) -> torch.dtype:
    """The dtype of that name, in which weights can be held and saved.

    Raises:
        ConfigError: if it is not one of them.
    """
    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[name]


def load_tokenizer(source: str | Path, *, pattern: str | None = None, runs: str | Path = RUNS) -> Tokenizer:
    """Load a tokenizer by itself: ``gpt2``, a run, a model folder, or a file.

    Args:
        source: "gpt2"; a run (by name or folder); a folder with a tokenizer.json; a tokenizer.json, .tiktoken, .gguf
            tokenizer.model or vocab.json file; an asset of weights by its name.
        pattern: split pattern of a .tiktoken file, a name or a regular expression; by default as its name or the file
            beside it says.
        runs: where to look for runs by name.

    Raises:
        TokenizerError: if it is not found, or damaged.
    """
    return specs.open_tokenizer(str(source), pattern, Path(runs))


def find_run(source: str | Path, runs: str | Path = RUNS) -> Run:
    """The run of that name or folder.

    Raises:
        CheckpointError: if it is not found; the message names the runs.
    """
    run = _run_of(source, runs)
    if run is not None:
        return run
    raise CheckpointError(f"there is no run {str(source)!r}; runs in {runs}/: {_names(runs)}")


def _run_of(source: str | Path, runs: str | Path) -> Run | None:
    for path in (Path(source), Path(runs, source)):
        if path_exists(path / "run.toml"):
            return Run(path)
    return None


def _names(runs: str | Path) -> str:
    return ", ".join(run.name for run in list_runs(runs)) or "none yet; `glassgpt quickstart` makes one"


def list_runs(runs: str | Path = RUNS) -> list[Run]:
    """Every run, oldest first."""
    found = [Run(path.parent) for path in Path(runs).glob("*/run.toml")]
    return sorted(found, key=lambda run: (run.created(), run.name))


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str = "",
    *,
    max_new_tokens: int = 300,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] = (),
    end_token_ids: Sequence[int] = (),
    min_new_tokens: int = 0,
    seed: int = 0,
    decode: str = "auto",
    speculate: str | tuple[GPT, Tokenizer] = "auto",
) -> str:
    """Continue a prompt; return the continuation alone, which ends before the first end token or stop string.

    Args:
        model: from :func:`load`.
        tokenizer: its tokenizer.
        prompt: the text to continue.
        max_new_tokens: tokens to generate at most.
        temperature: below 1 less random, above 1 more; 0 is greedy.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens that make up this probability.
        min_p: drop tokens less likely than this times the most likely one.
        repetition_penalty: above 1, tokens that occurred before are less likely.
        stop: strings that end the text.
        end_token_ids: tokens that end the text, besides those of the model.
        min_new_tokens: before as many tokens, no end token is generated. A stop string still ends the text.
        seed: of the random numbers.
        decode: how the steps are computed: eager, kernels (numba, on a CPU), compiled (torch.compile), or auto: the
            faster of the first two, by a measurement if many tokens are to come. Results are equal but for rounding.
        speculate: draft tokens, which the model checks several at a time: "lookup" (what followed the same tokens
            before), a smaller model and its tokenizer as :func:`load` returns them, "off", or "auto": lookup where it
            cannot change the text, as long as it is faster. The text is the same, but for rounding.

    Raises:
        ConfigError: with every argument of a wrong type or out of range, if ``decode`` cannot run this model here, or
            if the smaller model has other tokens.
        TokenizerError: if the prompt has characters that the tokenizer does not know.
        GenerationError: if the model's logits are not numbers.
    """
    problems = _type_problems(model=model, tokenizer=tokenizer, prompt=prompt) + request_problems(
        max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens, seed=seed, stop=stop, end_token_ids=end_token_ids
    )
    problems += decode_problems(decode) + speculate_problems(speculate)
    try:
        sampling = SamplingConfig(temperature, top_k, top_p, min_p, repetition_penalty)
    except ConfigError as error:
        raise ConfigError(problems + error.problems) from None
    if problems:
        raise ConfigError(problems)
    model.eval()
    decoder, _ = choose_decoder(model, decode, new_tokens=max_new_tokens)
    decoder = add_speculation(decoder, speculate, model, tokenizer)
    return complete(
        model, tokenizer, [prompt], max_new_tokens, sampling,
        seed=seed, stop=stop, min_new_tokens=min_new_tokens, end_token_ids=end_token_ids, decoder=decoder,
    )[0]  # fmt: skip


def save(model: GPT, tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write a model folder that `transformers` opens. An existing folder is replaced only if it holds a model.

    Raises:
        ConfigError: if no published family can express the model.
        CheckpointError: if the folder exists and holds something else.
    """
    _require_types(model=model, tokenizer=tokenizer, folder=folder)
    target = Path(folder).absolute()
    if target.exists() and not ((target / "config.json").exists() or (target.is_dir() and not any(target.iterdir()))):
        raise CheckpointError(f"{target} exists and is no model folder; choose another name")
    with write_folder(target) as temporary:
        save_model(temporary, model, tokenizer)


def quantize(model: GPT, bits: int = 8, group_size: int | None = None) -> None:
    """Quantise a model in place: 8-bit or 4-bit integers with scales; :func:`save` writes them as they are.

    Args:
        model: from :func:`load`, plain.
        bits: 8, a scale for each row; 4, a scale for each ``group_size`` inputs of the MLPs (attention, embedding and
            head: 8 bits), fitted to a text that the model writes, which takes about a minute for 100 M parameters.
        group_size: inputs that share a scale; by default the whole row (8 bits), or 64 where it divides them (4 bits).

    Raises:
        ConfigError: if the model is quantised already, or for other bits or sizes.
        GenerationError: if it is to write the text, and its logits are not numbers.
    """
    _require_types(model=model)
    problems = [] if bits in (4, 8) else [f"bits: {bits!r} is neither 4 nor 8"]
    if group_size is not None and (type(group_size) is not int or group_size < 1):
        problems.append(f"group_size: {group_size!r} is not a whole number above 0")
    if is_quantized(model):
        problems.append("this model is quantised already; load it with keep_quantized=False first")
    if problems:
        raise ConfigError(problems)
    model.eval()
    quantize_model(model, bits, group_size, calibration=own_text(model) if bits == 4 else None)


def plan(
    preset: str = AUTO,
    *,
    data: str | Path | None = None,
    overrides: Overrides | None = None,
    runs: str | Path = RUNS,
    with_text: bool | None = None,
    measure: Measure = "speed",
    reporter: Reporter | None = None,
    processes: Processes | None = None,
) -> RunPlan:
    """Resolve the configuration of a run without starting it: ``.config .notes .tokens_per_second``.

    Args:
        preset: as for :func:`train`.
        data: a text file, or a corpus by name.
        overrides: as for :func:`train`; or a list of overrides by section, of which later ones win.
        runs: where to look for the run that ``init_from`` names.
        with_text: False plans for the preset's vocabulary and random tokens; by default if no data is given.
        measure: "speed" times this machine, or takes what was measured on it within a day; "anew" times it in any
            case; "choices" measures the dtype and the micro-batch only; "nothing" only does arithmetic.
        reporter: receives notes; silent by default.
        processes: that will train together.

    Raises:
        GlassError: for any mistake that the caller can correct.
    """
    _require_types(preset=preset, data=data, overrides=overrides, runs=runs)
    layers = _layers_of(data, overrides)
    if tuning.is_tuning(layers):
        return tuning.plan_tuning(
            layers, runs=Path(runs), measure=measure, reporter=reporter or Reporter(),
            processes=processes or Processes(),
        )  # fmt: skip
    if with_text is None:
        with_text = names_a_text(layers)
    return plan_run(
        preset, layers, runs=Path(runs), with_text=with_text, measure=measure, reporter=reporter, processes=processes
    )


def train(
    preset: str = AUTO,
    *,
    data: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    name: str | None = None,
    runs: str | Path = RUNS,
    reporter: Reporter | None = None,
) -> Run:
    """Train a model and return its run: ``.path .metrics .best .last``.

    Args:
        preset: a name from :mod:`glassgpt.presets`, or "auto" to fit the text, the machine and the time.
        data: a text file, or a corpus by name.
        overrides: configuration values by bare or dotted key, for example ``{"train.steps": 500}``;
            ``{"init_from": "runs/x"}``, or a model folder, fine-tunes that model.
        name: of the run; by default the text's.
        runs: folder to put it in.
        reporter: receives progress; silent by default.

    Raises:
        GlassError: for any mistake that the caller can correct.
    """
    _require_types(preset=preset, data=data, overrides=overrides, name=name, runs=runs)
    result = start_run(preset, _layers_of(data, overrides), name=name, runs=runs, reporter=reporter)
    if result.interrupted_by is not None:
        raise KeyboardInterrupt  # everything is saved; the caller should stop, too
    return result.run


def tune(
    model: str | Path,
    data: str | Path,
    *,
    method: str = "lora",
    overrides: Mapping[str, Any] | None = None,
    name: str | None = None,
    runs: str | Path = RUNS,
    reporter: Reporter | None = None,
) -> Run:
    """Fine-tune a model on conversations and return the run, as :func:`train` does.

    Args:
        model: what :func:`load` takes.
        data: a file of conversations, or "tutor".
        method: "lora" or "sft" (all weights).
        overrides: configuration values by bare or dotted key, for example ``{"lora_rank": 8, "time": "10m"}``.
        name: of the run; by default the file's.
        runs: folder to put it in, and to look for ``model`` in.
        reporter: receives progress; silent by default.

    Raises:
        GlassError: for any mistake that the caller can correct.
    """
    _require_types(source=model, data=data, overrides=overrides, name=name, runs=runs)
    given = {**(overrides or {}), "train.init_from": str(model), "tune.method": method}
    return train(data=data, overrides=given, name=name, runs=runs, reporter=reporter)


def _layers_of(data: str | Path | None, overrides: Overrides | None) -> list[ConfigOverrides]:
    """The overrides by section, and the data.

    Raises:
        ConfigError: with every unknown key.
    """
    layers = [] if overrides is None or isinstance(overrides, Mapping) else list(overrides)
    if problems := [p for layer in layers for p in type_problems("overrides", layer, Mapping, "settings by section")]:
        raise ConfigError(problems)
    if isinstance(overrides, Mapping):
        layer: dict[str, dict[str, Any]] = {}
        problems = []
        for key, value in overrides.items():
            try:
                section, field = locate(str(key))
                layer.setdefault(section, {})[field] = str(value) if isinstance(value, Path) else value
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ConfigError(problems)
        layers.append(layer)
    return layers if data is None else [*layers, {"data": {"source": str(data)}}]


def start_run(
    preset: str,
    overrides: list[ConfigOverrides],
    *,
    name: str | None = None,
    runs: str | Path = RUNS,
    reporter: Reporter | None = None,
    watcher: "Watcher | None" = None,
    profile: bool = False,
    measure: Measure = "speed",
) -> Result:
    """Resolve the configuration and train a new run, on all ranks that torchrun started.

    A run whose length was given as a time stops when that time is over. A watcher, which takes the reporter's place,
    examines it before the first step; a run that it refuses leaves no folder. ``measure`` is as for :func:`plan`.

    Raises:
        TrainingStopped: if the watcher refuses the run, or training cannot continue.
        GlassError: for any mistake that the caller can correct.
    """
    began = time.monotonic()
    reporter = watcher or reporter

    def on_rank0(processes: Processes, held: ExitStack) -> Trainer:
        require_run_folder(Path(runs), name)
        run_plan = plan(
            preset, overrides=overrides, runs=runs, with_text=True, measure=measure, reporter=reporter,
            processes=processes,
        )  # fmt: skip
        trainer = opening.start_run(
            run_plan, name or run_plan.name, Path(runs), reporter=reporter, deadline=run_plan.deadline(began),
            processes=processes, profile=profile, held=held,
        )  # fmt: skip
        try:
            if watcher:
                watcher.examine(trainer)
        except TrainingStopped:
            trainer.task.close()
            shutil.rmtree(trainer.run.path, ignore_errors=True)  # Windows does not delete the lock file
            raise
        return trainer

    return _train_all_ranks(on_rank0)


def resume(
    source: str | Path,
    changes: ConfigOverrides | None = None,
    *,
    runs: str | Path = RUNS,
    reporter: Reporter | None = None,
    watcher: "Watcher | None" = None,
    profile: bool = False,
) -> Result:
    """Resume a run that was interrupted; with ``{"train": {"steps": N}}``, train it for longer.

    The number of processes may be another one than before: the batches stay the same. A finished run validates again.

    Raises:
        CheckpointError: if there is no such run, it cannot be read, or the changes describe another model or
            other data.
        TrainingStopped: if training cannot continue.
    """
    reporter = watcher or reporter

    def on_rank0(processes: Processes, held: ExitStack) -> Trainer:
        trainer = opening.resume_run(
            find_run(source, runs).path, changes, reporter=reporter, processes=processes, profile=profile, held=held
        )
        if watcher:
            watcher.examine(trainer)
        return trainer

    return _train_all_ranks(on_rank0)


def _train_all_ranks(on_rank0: Callable[[Processes, ExitStack], Trainer]) -> Result:
    """Rank 0 starts or resumes the run, and holds its lock; the others join it. Then all train."""
    with ExitStack() as held, join_processes() as processes:
        trainer: Trainer = processes.rank0_then_others(
            on_rank0=lambda: on_rank0(processes, held),
            to_send=lambda trainer: opening.RunInfo(trainer.run.path.absolute(), trainer.state.micro_batch_size),
            on_other_ranks=lambda info: opening.join_run(info, processes),
        )
        return trainer.train()

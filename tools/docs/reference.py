"""Write the reference from the program: ``python tools/docs/reference.py``; with ``--check``, only compare.

The pages are in ``docs/reference/``: the commands, the settings, and the public functions and classes. They depend on
the source code alone: not on the machine, the width of the terminal, or the libraries that are installed.
"""

import argparse
import ast
import dataclasses
import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import typer
from docstrings import Module, about, describe, escape, load_module, markdown, title

import glassgpt
from glassgpt.cli.main import VERBS, app
from glassgpt.config import ALIASES, SECTIONS, describe_options, presets
from glassgpt.config.layers import RENAMED, SECTION_OF
from glassgpt.config.section import Section
from glassgpt.config.tuning import tuning_defaults
from glassgpt.estimate import count_parameters

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "reference"
COMMAND = "python tools/docs/reference.py"
GENERATED = f"This page is made from the program by `{COMMAND}`. Do not edit it by hand."

#: The pages about Python: the title, what for, and the modules, in the order of the rooms in docs/architecture.md.
#: Every public function and class of a module is described, or those after a colon.
PYTHON_PAGES: dict[str, tuple[str, str, list[str]]] = {
    "python.md": (
        "Python",
        "The functions of `glassgpt` itself, and the errors.",
        [
            "glassgpt", "glassgpt.api:load,load_tokenizer,find_run,list_runs,generate,save,quantize,plan,train,tune,"
            "start_run,resume,open_source,load_from_source,resolve_dtype",
            "glassgpt.errors:GlassError,ConfigError,DataError,TokenizerError,CheckpointError,AssetError,"
            "MissingExtraError,GenerationError,SubjectError,TrainingStopped",
        ],
    ),
    "python-doctor.md": (
        "Python: lessons and doctor",
        "Work through a lesson; find bugs in models, training loops, texts and runs.",
        [
            "glassgpt.learn", "glassgpt.learn.helpers", "glassgpt.learn.lesson", "glassgpt.learn.exercises",
            "glassgpt.doctor.loading", "glassgpt.doctor.examining:Examination",
            "glassgpt.doctor.report:Check,Result,NotRun,Outcome,passed,warned,failed,run_checks",
            "glassgpt.doctor.subject:Subject,Output,read_output", "glassgpt.doctor.loops.loop:Loop,Program,load_loop",
            "glassgpt.doctor.texts.corpus_subject:Corpus,load_corpus",
            "glassgpt.doctor.texts.tokenizer_loading:load_tokenizer_subject",
            "glassgpt.doctor.texts.tokenizer_subject:TokenizerSubject",
            "glassgpt.doctor.texts.conversation_subject:Conversations,load_conversations",
            "glassgpt.doctor.watching:Watcher", "glassgpt.doctor.trace:Trace,Op,trace",
        ],
    ),
    "python-inspect.md": (
        "Python: look inside and evaluate",
        "Look inside a model, record how tokens were chosen, examine texts and tokens, score answers.",
        [
            "glassgpt.glass.inside", "glassgpt.glass.inside.trace", "glassgpt.glass.inside.heads",
            "glassgpt.glass.inside.lens", "glassgpt.glass.inside.attribution", "glassgpt.glass.inside.ablation",
            "glassgpt.glass.inside.reach", "glassgpt.glass.inside.score", "glassgpt.glass.inside.film",
            "glassgpt.glass.inside.prompt", "glassgpt.glass.choices", "glassgpt.glass.choices.ledger",
            "glassgpt.glass.choices.replay", "glassgpt.glass.choices.comparison", "glassgpt.glass.page.writing",
            "glassgpt.glass.corpus", "glassgpt.glass.tokens", "glassgpt.glass.runs", "glassgpt.glass.curves",
            "glassgpt.evaluation.questions", "glassgpt.evaluation.answers", "glassgpt.evaluation.report",
            "glassgpt.evaluation.quantization:QuantizedReport,quantize_and_measure",
        ],
    ),
    "python-training.md": (
        "Python: plan and train",
        "Resolve the settings of a run, train, read its checkpoints and metrics.",
        [
            "glassgpt.planning.run_plan", "glassgpt.planning.opening:start_run,resume_run",
            "glassgpt.planning.timing:Timing,StepTimes,MeasuredSpeed,TimedTraining,measure_steps,measure_speed",
            "glassgpt.planning.compute_dtype:SelfCheck,DtypeChoice,check,choose_dtype,inference_dtype",
            "glassgpt.planning.measured:Measurements",
            "glassgpt.training.loop", "glassgpt.training.step",
            "glassgpt.training.task", "glassgpt.training.pretraining", "glassgpt.training.tuning",
            "glassgpt.training.objective", "glassgpt.training.optim", "glassgpt.training.adamw",
            "glassgpt.training.average", "glassgpt.training.precision",
            "glassgpt.training.checkpoint", "glassgpt.training.metrics",
        ],
    ),
    "python-generation.md": (
        "Python: generate and chat",
        "Generate text from a batch of requests with the key/value cache, and chat.",
        [
            "glassgpt.inference.decode", "glassgpt.inference.decoders", "glassgpt.inference.stream",
            "glassgpt.inference.conversation", "glassgpt.inference.speculative",
            "glassgpt.inference.kernel_decoder:KernelDecoder,unsupported", "glassgpt.inference.compiled",
        ],
    ),
    "python-weights.md": (
        "Python: losses, estimates, transforms, weights",
        "Evaluate a model, compute its size and cost, add LoRA, quantise it, read and write published models.",
        [
            "glassgpt.loss", "glassgpt.shapes", "glassgpt.recording", "glassgpt.estimate",
            "glassgpt.transforms.blocks", "glassgpt.transforms.lora", "glassgpt.transforms.quantize",
            "glassgpt.transforms.gptq", "glassgpt.transforms.parallel", "glassgpt.weights.resolve",
            "glassgpt.weights.loading", "glassgpt.weights.folder", "glassgpt.weights.sources",
            "glassgpt.weights.mapping", "glassgpt.weights.transfer", "glassgpt.weights.adapter",
            "glassgpt.weights.quantized", "glassgpt.weights.hub", "glassgpt.weights.gguf.export",
            "glassgpt.weights.gguf.reading",
        ],
    ),
    "python-data.md": (
        "Python: data",
        "Read texts and conversations, prepare token shards, make batches, find duplicates and leaks.",
        [
            "glassgpt.data", "glassgpt.data.sources.source", "glassgpt.data.sources.documents",
            "glassgpt.data.corpus.preparing", "glassgpt.data.corpus.manifest", "glassgpt.data.corpus.shards",
            "glassgpt.data.batches.windows", "glassgpt.data.batches.loader", "glassgpt.data.batches.sliding",
            "glassgpt.data.batch", "glassgpt.data.conversations.rows", "glassgpt.data.conversations.dataset",
            "glassgpt.data.conversations.encoding", "glassgpt.data.conversations.packing",
            "glassgpt.data.conversations.batches", "glassgpt.data.audit.duplicates", "glassgpt.data.audit.leaks",
        ],
    ),
    "python-tokenizer.md": (
        "Python: sampling and tokenizers",
        "Choose the next token from logits; encode and decode text, train a tokenizer, apply chat templates.",
        [
            "glassgpt.sampling", "glassgpt.tokenizer", "glassgpt.tokenizer.base", "glassgpt.tokenizer.specs",
            "glassgpt.tokenizer.char", "glassgpt.tokenizer.word", "glassgpt.tokenizer.bpe.tokenizer",
            "glassgpt.tokenizer.bpe.training", "glassgpt.tokenizer.pretokenize", "glassgpt.tokenizer.pretrained",
            "glassgpt.tokenizer.library", "glassgpt.tokenizer.chat", "glassgpt.tokenizer.chatml",
            "glassgpt.tokenizer.tiktoken_file",
        ],
    ),
    "python-model.md": (
        "Python: model and settings",
        "The Transformer, named files, the processes and the device of a run, and its settings.",
        [
            "glassgpt.model", "glassgpt.model.gpt", "glassgpt.model.attention", "glassgpt.model.rope",
            "glassgpt.model.cache", "glassgpt.model.meta", "glassgpt.model.quantized", "glassgpt.assets",
            "glassgpt.assets.asset:Asset,AssetFile,Corpus", "glassgpt.assets.cache:cache_dir",
            "glassgpt.assets.table:names", "glassgpt.processes", "glassgpt.runtime:Runtime,resolve,Stopwatch",
            "glassgpt.config", "glassgpt.config.model", "glassgpt.config.run", "glassgpt.config.layers",
            "glassgpt.config.presets", "glassgpt.seeds",
        ],
    ),
}  # fmt: skip


def pages() -> dict[str, str]:
    """Make every page: its file name, and its text."""
    found = {"commands.md": _commands(), "settings.md": _settings()}
    for name in PYTHON_PAGES:
        found[name] = _python(name)
    return {name: "\n".join(lines).rstrip() + "\n" for name, lines in found.items()}


def differing() -> list[str]:
    """Return the pages that are not as the program would write them."""
    texts = pages()
    known = {path.name for path in FOLDER.glob("python-*.md")} - set(texts)
    return [name for name, text in texts.items() if not _is_written(FOLDER / name, text)] + sorted(known)


def _is_written(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


# ---------------------------------------------------------------------------------------------------------- commands


@dataclasses.dataclass(frozen=True)
class Verb:
    """A verb, or a verb of a group.

    Attributes:
        name: as typed after ``glassgpt``.
        function: that runs it.
    """

    name: str
    function: Any

    def parameters(self) -> Iterator[tuple[str, Any, Any]]:
        """Give the arguments and options: the name, the type, and what Typer was told."""
        hints = typing.get_type_hints(self.function)
        for name, parameter in inspect.signature(self.function).parameters.items():
            if hasattr(parameter.default, "param_decls"):
                yield name, hints[name], parameter.default


def _is_argument(info: Any) -> bool:
    return isinstance(info, typer.models.ArgumentInfo)


def verbs_of(entry: Any) -> list[Verb]:
    """Return the verb of a function, or those of a group."""
    if not isinstance(entry, typer.Typer):
        return [Verb(entry.__name__, entry)]
    name, commands = entry.info.name, entry.registered_commands
    return [Verb(f"{name} {c.name or str(c.callback.__name__).replace('_', '-')}", c.callback) for c in commands]


def _commands() -> list[str]:
    verbs = [verb for entries in VERBS.values() for entry in entries for verb in verbs_of(entry)]
    silent = [verb for verb in verbs if "json" not in {name for name, _, _ in verb.parameters()}]
    lines = ["# Commands", "", GENERATED, "", *_about_commands(silent), "## Contents", ""]
    for heading, entries in VERBS.items():
        lines += [f"{heading}:", ""]
        for verb in (verb for entry in entries for verb in verbs_of(entry)):
            summary = _paragraphs(verb)[0].partition(". ")[0].rstrip(".")
            lines.append(f"- [`glassgpt {verb.name}`](#{_slug('glassgpt ' + verb.name)}): {summary}")
        lines.append("")
    for heading, entries in VERBS.items():
        lines += [f"## {heading}", ""]
        for entry in entries:
            for verb in verbs_of(entry):
                lines += _verb(verb)
    return lines


def _about_commands(silent: list[Verb]) -> list[str]:
    exceptions = ", ".join(f"`{verb.name}`" for verb in silent)
    return [
        "The arguments and options of every verb. [Settings](settings.md) are written as `key=value`.",
        "",
        "Every verb and every group of verbs has `--help` (`-h`). `glassgpt --version` prints the version.",
        "",
        f"**`--json`** prints the result as JSON, for other programs. Every verb has it{' but ' * bool(silent)}"
        f"{exceptions}. Notes and progress go to standard error.",
        "",
        "**Exit codes.** 0: done. 1: a run failed, the system reported an error (a full disk), or a verb that checks "
        "found something: `doctor`, `trace`, `why`, `reach`, `learn --check`, `sample --replay`. 2: a mistake that you "
        "can correct; the message says how. 130 and 143: Ctrl-C and SIGTERM ended it; a training run has saved its "
        "state, and the message has the command that resumes it.",
        "",
        "**How to read the lists.** INT is a whole number, FLOAT a number, PATH a file or a folder; `a|b` is a choice. "
        "An option without a default is off, or empty. Where an argument is a model, it is a run, a model folder, a "
        "`.gguf` file, an asset by its name, or a model on the hub.",
        "",
    ]


def _paragraphs(verb: Verb) -> list[str]:
    text = inspect.cleandoc(verb.function.__doc__).replace("\b", "")
    return [_text(" ".join(paragraph.split())) for paragraph in text.split("\n\n")]


def _verb(verb: Verb) -> list[str]:
    parameters = [(name, kind, info) for name, kind, info in verb.parameters() if not info.hidden]
    arguments = [item for item in parameters if _is_argument(item[2])]
    options = [item for item in parameters if not _is_argument(item[2])]
    usage = " ".join(["glassgpt", verb.name, "[OPTIONS]", *(_in_usage(*item) for item in arguments)])
    lines = [f"### glassgpt {verb.name}", ""]
    for paragraph in _paragraphs(verb):
        lines += [paragraph, ""]
    lines += ["```text", usage, "```", ""]
    for heading, items in (("Arguments", arguments), ("Options", options)):
        if items:
            lines += [f"{heading}:", "", *(_parameter(*item) for item in items), ""]
    return lines + _settings_of(verb, arguments)


def _in_usage(name: str, kind: Any, info: Any) -> str:
    shown = info.metavar or name.upper()
    shown = shown if info.default is ... or shown.startswith("[") else f"[{shown}]"
    return f"{shown}..." if _is_list(kind) and "..." not in shown else shown


def _parameter(name: str, kind: Any, info: Any) -> str:
    value = "" if _inner(kind) is bool else str(info.metavar or _kind(kind)).strip("[]")
    if _is_argument(info):
        head = f"`{info.metavar or name.upper()}`".replace("[N]", "N")
    else:
        names = sorted(info.param_decls, key=len)
        head = f"`{', '.join(names)}{' ' * bool(value)}{value}`"
    help_text = _text(str(info.help or "")).strip()
    facts = [*_bounds(info), *_default(kind, info)]
    return f"- {head}: {help_text}" + (f" ({'; '.join(facts)})" if facts else "")


def _bounds(info: Any) -> list[str]:
    if info.min is not None and info.max is not None:
        return [f"from {info.min:,} to {info.max:,}"]
    return [f"at least {info.min:,}"] if info.min is not None else []


def _default(kind: Any, info: Any) -> list[str]:
    if info.default is ...:
        return ["required"]
    if info.default is None or info.default == "" or info.default is False or info.default == []:
        return []
    default = info.default.as_posix() if isinstance(info.default, PurePath) else str(info.default)
    return [f"default `{default}`"]


def _inner(kind: Any) -> Any:
    """Return the type without ``| None`` and ``list[...]``."""
    parts = [part for part in typing.get_args(kind) if part is not type(None)]
    is_wrapped = typing.get_origin(kind) in (list, types.UnionType, typing.Union)
    return _inner(parts[0]) if is_wrapped and parts else kind


def _is_list(kind: Any) -> bool:
    return typing.get_origin(kind) is list


def _kind(kind: Any) -> str:
    inner = _inner(kind)
    if typing.get_origin(inner) is typing.Literal:
        return "|".join(map(str, typing.get_args(inner)))
    return {int: "INT", float: "FLOAT", str: "TEXT"}.get(inner, "PATH")


def _settings_of(verb: Verb, arguments: list[tuple[str, Any, Any]]) -> list[str]:
    """Say which settings a verb takes as ``key=value``: those at the end of its help, else as ``train``."""
    if not any("key=value" in str(info.metavar) for _, _, info in arguments):
        return []
    if verb.name == "bench attention":  # its help lists its own
        return []
    listed: dict[str, list[str]] = {}
    for section, key in re.findall(r"^  (\w+)\.(\w+) ", _epilog(verb), re.MULTILINE):
        listed.setdefault(section, []).append(key)
    if not listed:
        return ["Settings: as [`glassgpt train`](#glassgpt-train).", ""]
    parts = [_part_of_section(section, keys) for section, keys in listed.items()]
    tune = " Some [defaults](settings.md#defaults-of-tune) differ." if "tune" in listed else ""
    return [f"Settings: {'; '.join(parts)}.{tune}", ""]


def _epilog(verb: Verb) -> str:
    commands = list(app.registered_commands)
    for group in app.registered_groups:
        commands += group.typer_instance.registered_commands if group.typer_instance else []
    return next(str(command.epilog or "") for command in commands if command.callback is verb.function)


def _section_link(name: str) -> str:
    return f"[`{name}`](settings.md#{name})"


def _part_of_section(section: str, keys: list[str]) -> str:
    missing = [field.name for field in dataclasses.fields(SECTIONS[section]) if field.name not in keys]
    if not missing:
        return _section_link(section)
    few = keys if len(keys) < len(missing) else missing
    names = ", ".join(f"`{name}`" for name in few)
    return f"{_section_link(section)}, {'only' if few is keys else 'but not'} {names}"


def _text(text: str) -> str:
    """Escape a help text; what is in backticks stays as it is."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(part if index % 2 else escape(part) for index, part in enumerate(parts))


def _slug(heading: str) -> str:
    """Return the anchor of a heading, as code hosts and the site make it."""
    return re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-")


# ---------------------------------------------------------------------------------------------------------- settings


def _settings() -> list[str]:
    lines = [
        "# Settings", "", GENERATED, "",
        "`train`, `plan`, `quickstart`, `data show`, `data prepare`, `bench train`, `tune sft` and `tune lora` "
        "take these settings as `key=value`, and from TOML files, where each section is a table. A name is unique: "
        "`n_layer=8` and `model.n_layer=8` are the same. Later settings override earlier ones, settings of the command "
        "line those of files, and all of them the preset. `glassgpt train TEXT --dry-run` prints the settings of a run "
        "as a TOML file.",
        "", "A value out of range raises an error that names the range. Every problem is reported at once.", "",
        "## Contents", "",
    ]  # fmt: skip
    lines += [
        f"- {_section_link(name).replace('settings.md', '')}: {_summary(part)}" for name, part in SECTIONS.items()
    ]
    for heading in ("Presets", "Defaults of tune", "Defaults of fine-tuning", "Names used elsewhere"):
        lines.append(f"- [{heading}](#{_slug(heading)})")
    lines.append("")
    for name, part in SECTIONS.items():
        lines += [f"## {name}", "", markdown(" ".join(_docs(part)), Index({}).link), ""]
        lines += [_setting(part, option) for option in describe_options([name])] + [""]
    return lines + _presets() + _other_defaults() + _other_names()


def _docs(part: type[Section]) -> list[str]:
    text = inspect.cleandoc(part.__doc__ or "").partition("\n\nRaises:")[0]
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]


def _summary(part: type[Section]) -> str:
    return _text(_docs(part)[0].partition(". ")[0].rstrip("."))


def _setting(part: type[Section], option: Any) -> str:
    key = option.key.partition(".")[2]
    field = part.__dataclass_fields__[key]
    kind = option.type if "|" not in option.type else " \\| ".join(f"`{c.strip()}`" for c in option.type.split("|"))
    default = f"default `{option.default}`" if option.default else "empty by default"
    facts = [kind.replace(" \\| ", ", ").replace("str", "text"), default, *_range(field.metadata)]
    return f"- `{key}` ({'; '.join(facts)}): {_text(option.help)}."


def _range(metadata: Any) -> list[str]:
    low, high = metadata["min_value"], metadata["max_value"]
    if low is not None and high is not None:
        return [f"from {_number(low)} to {_number(high)}"]
    return [f"at least {_number(low)}"] if low is not None else []


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _presets() -> list[str]:
    keys = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
    lines = [
        "## Presets", "",
        "`preset=NAME` starts from these settings. Without a preset, `auto` chooses a size for the text, the machine "
        "and the time. `glassgpt presets` prints this table. In training, the vocabulary is the tokenizer's; the "
        "parameters below are counted with the `vocab_size` of the table.", "",
        "| name | parameters | " + " | ".join(f"`{key}`" for key in keys) + " |", "|---|" + "--:|" * 6,
    ]  # fmt: skip
    found = [presets.get(name) for name in presets.names()]
    for preset in found:
        sizes = [f"{sum(count_parameters(preset.model).values()):,}", *(f"{getattr(preset.model, k):,}" for k in keys)]
        lines.append(f"| `{preset.name}` | {' | '.join(sizes)} |")
    lines.append("")
    lines += [
        f"- `{preset.name}`: {_text(preset.description)}. {_curve(preset.name)}It sets {_beside_sizes(preset, keys)}."
        for preset in found
    ]
    blocks = _assignments({"model": presets.MODERN})
    return [*lines, "", f"The modern blocks are Qwen-3's: {blocks}.", ""]


def _beside_sizes(preset: Any, sizes: tuple[str, ...]) -> str:
    """List what a preset sets, but for the sizes of the table."""
    model = {key: value for key, value in preset.layer.get("model", {}).items() if key not in sizes}
    modern = presets.MODERN.items() <= model.items()
    own = {key: value for key, value in model.items() if not (modern and key in presets.MODERN)}
    others = _assignments(preset.layer | {"model": own})
    return ", ".join(filter(None, ["the modern blocks" * modern, others])) or "nothing but the sizes above"


def _curve(name: str) -> str:
    curve = presets.measured_curve(name)
    if curve is None:
        return ""
    losses = ", ".join(f"{loss:.4f}" for loss in curve.final)
    where = "[RESULTS.md](../../benchmarks/RESULTS.md)"
    return f"Measured validation loss at the end, one per seed: {losses} nats per token ({where}). "


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _other_defaults() -> list[str]:
    lines = ["## Defaults of tune", "", "The verbs `tune sft` and `tune lora` have other defaults:", ""]
    lines += [f"- `tune {method}`: {_assignments(tuning_defaults(method))}" for method in ("sft", "lora")]
    given = tuning_defaults("lora", "tutor")
    changed = {s: {k: v for k, v in values.items() if tuning_defaults("lora")[s].get(k) != v}
               for s, values in given.items()}  # fmt: skip
    lines += [f"- both, on the conversations `tutor`, also: {_assignments(changed)}", ""]
    constant = load_module("glassgpt.planning.initial_model").constant
    optim = {"optim": _literal(constant("FINE_TUNING_DEFAULTS"))}
    return [
        *lines, "## Defaults of fine-tuning", "",
        f"`glassgpt train ... init_from=MODEL` starts with {_assignments(optim)}. `train.batch_size` becomes "
        f"{_literal(constant('BATCH_TOKENS')):,} tokens, divided by the context.", "",
    ]  # fmt: skip


def _literal(node: Any) -> Any:
    return ast.literal_eval(node)


def _assignments(sections: Any) -> str:
    return ", ".join(f"`{s}.{key}={_plain(value)}`" for s, values in sections.items() for key, value in values.items())


def _other_names() -> list[str]:
    lines = [
        "## Names used elsewhere", "",
        "Other projects have other names for some settings. They raise an error here, which names the setting.",
        "",
        "| name elsewhere | setting |", "|---|---|",
    ]  # fmt: skip
    for other, names in ALIASES.items():
        lines.append(f"| `{other}` | {', '.join(f'`{SECTION_OF[name]}.{name}`' for name in names)} |")
    lines += ["", "Earlier versions had these names. They are still read in TOML files and in old runs:", "",
              "| old | new |", "|---|---|"]  # fmt: skip
    return [*lines, *(f"| `{old}` | `{old.partition('.')[0]}.{new}` |" for old, new in RENAMED.items()), ""]


# ------------------------------------------------------------------------------------------------------------ Python


@dataclasses.dataclass(frozen=True)
class Index:
    """Where each public name is described.

    Attributes:
        places: from a name, bare or dotted, to the links of all that have it.
    """

    places: dict[str, list[str]]

    def link(self, name: str) -> str:
        """Write a name as code, with a link if it is described on one page."""
        places = self.places.get(name) or self.places.get(name.rpartition(".")[2]) or []
        return f"[`{name.rpartition('.')[2]}`]({places[0]})" if len(places) == 1 else f"`{name}`"


def _index(here: str) -> Index:
    places: dict[str, list[str]] = {}
    for page, (_, _, names) in PYTHON_PAGES.items():
        file = "" if page == here else page
        for module in map(load_module, names):
            places.setdefault(module.name, []).append(f"{file}#{_slug(module.name)}")
            for node in module.definitions():
                link = f"{file}#{_slug(_heading(page, module, node))}"
                places.setdefault(f"{module.name}.{node.name}", []).append(link)
                places.setdefault(node.name, []).append(link)
    return Index(places)


def _heading(page: str, module: Module, node: Any) -> str:
    """Return the heading of a function or class: its name, after the module's if another one has the same heading."""
    prefix = f"{module.name.rpartition('.')[2]}." if _titles(page).count(title(node)) > 1 else ""
    return prefix + title(node)


@functools.cache
def _titles(page: str) -> list[str]:
    return [title(node) for name in PYTHON_PAGES[page][2] for node in load_module(name).definitions()]


def _python(page: str) -> list[str]:
    heading, summary, names = PYTHON_PAGES[page]
    index = _index(page)
    lines = [f"# {heading}", "", GENERATED, "", summary, ""]
    if page == "python.md":
        lines += [
            "Shapes: B sequences, T tokens, C the width `n_embd`, V the vocabulary, H query heads, KV key/value heads, "
            "D the width of a head, L blocks. Losses are in nats per token. Functions that check what they are given "
            "raise a [`GlassError`](#class-glasserror); its text is the whole message for the user.", "",
            "## Pages", "",
            *(f"- [{title_}]({name}): {text}" for name, (title_, text, _) in PYTHON_PAGES.items() if name != page), "",
        ]  # fmt: skip
    lines += ["## Contents", ""]
    modules = [load_module(name) for name in names]
    for module in modules:
        links = [f"[`{node.name}`](#{_slug(_heading(page, module, node))})" for node in module.definitions()]
        listed = f": {', '.join(links)}" if links else ""
        lines.append(f"- [`{module.name}`](#{_slug(module.name)}){listed}")
    lines.append("")
    for module in modules:
        lines += _module(page, module, index)
    return lines


def _module(page: str, module: Module, index: Index) -> list[str]:
    lines = [f"## {module.name}", ""]
    lines += [*about(module, index.link), f"Source: [{module.path}](../../{module.path})", ""]
    exported = _exported(module)
    if exported:
        lines += [f"Names to import from `{module.name}`:", ""]
        lines += [f"- {_exported_name(name, origin, index)}" for name, origin in exported.items()] + [""]
    for node in module.definitions():
        lines += [f"### {_heading(page, module, node)}", "", *describe(module, node, index.link)]
    return lines


def _exported(module: Module) -> dict[str, str]:
    if module.name == "glassgpt":
        origins = module.exported()
        modules = {"presets": "glassgpt.config.presets", "inside": "glassgpt.glass.inside"}
        modules |= {"choices": "glassgpt.glass.choices"}
        return {name: modules.get(name) or origins.get(name, "") for name in glassgpt.__all__}
    return module.exported() if module.path.endswith("__init__.py") else {}


def _exported_name(name: str, origin: str, index: Index) -> str:
    if origin.rpartition(".")[2] == name:
        return f"`{name}`: the module {index.link(origin).replace('`' + name + '`', '`' + origin + '`')}"
    places = index.places.get(f"{origin}.{name}")
    if places:
        return f"[`{name}`]({places[0]})"
    return f"`{name}`" + (f", of `{origin}`" if origin else ": the version, a string")


def main() -> None:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare; write nothing")
    if parser.parse_args().check:
        if wrong := differing():
            sys.exit(f"not as the program is: {', '.join(wrong)}; run `{COMMAND}`")
        return
    for name in set(differing()) - set(texts := pages()):
        (FOLDER / name).unlink()
    for name, text in texts.items():
        (FOLDER / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()

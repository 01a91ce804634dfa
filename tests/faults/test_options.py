"""Every option of every verb, and every setting of train and plan, with values that nobody should give."""

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from harness import ALL, SMALL, Cases, Check, Outcome, Record, nothing_changed, some

from glassgpt.cli.main import app
from glassgpt.config import SECTIONS

NUMBERS = ["0", "-1", "1000000000", "1000000000000000000", "1" + "0" * 400, "nan", "inf", "1e308", "0.5", "abc", ""]
TEXTS = ["", "\0", "x" * 5000, "nan", "-1", "true", "1,,2", ".", "docs", "text.txt", "\udcff"]
#: A command line of each verb that succeeds and is quick; an option is added to it.
VERBS = {
    "lens": "a -p the",
    "why": "a -p the",
    "ablate": "a text.txt --tokens 8",
    "reach": "a --length 3",
    "doctor": "a --only reach",
    "sample": "a -n 3",
    "chat": "talker -n 3",
    "trace": "a",
    "attention": "a",
    "score": "a text.txt --tokens 5",
    "pull": "a -o out",
    "export": "a --to hf -o out",
    "quantize": "a --to int8 -o out",
    "plot": "a",
    "glass": "a -p a -o out.html",
    "film": "a -p e -n 2 --steps 4",
    "train": "text.txt --dry-run steps=1 model.dropout=2",  # measuring takes a second: it ends at the first problem
    "quickstart": "dropout=2",
    "learn": "1",
    "tune lora": "bases/d chats.jsonl --dry-run steps=1 model.dropout=2",
    "tune sft": "bases/d chats.jsonl --dry-run steps=1 model.dropout=2",
    "tune show": "chats.jsonl bases/d",
    "plan": "text.txt --no-measure n_layer=1 n_head=1 n_embd=8",
    "runs list": "",
    "runs show": "a",
    "runs compare": "a b",
    "data fetch": "war",
    "data prepare": "text.txt -o out --processes 1",
    "data show": "text.txt",
    "tokenizer train": "text.txt bpe:260 -o tokenizer.json --processes 1",
    "tokenizer show": "a hello",
    "tokenizer compare": "text.txt char",
    "bench train": f"{SMALL} --steps 1",
    "bench generate": "a --context 4 --dtype float32 --decode eager --steps 1 --rounds 1",
    "bench attention": "device=cpu dtype=float32 --contexts 4 --heads 1 --head-dim 4",
    "bench tokenizer": "text.txt --vocab-size 260 --processes 1 --repeat 1",
}
#: Measuring takes seconds by intent: of `bench`, only values that are refused at once.
REFUSED = ["-1", "nan", "inf", "1e308", "0.5", "abc", ""]
#: Its options with a list of numbers, and with a list of names, which may be empty.
LISTS, NAMES = ("--contexts", "--context", "--batch"), ("--dtype", "--decode", "--against")


def options(group: typer.Typer = app, prefix: str = "") -> Iterator[tuple[str, str, bool]]:
    """(verb, option, whether it is a number) of every option with a value."""
    for command in group.registered_commands:
        verb = f"{prefix}{command.name or command.callback.__name__}"
        for parameter in inspect.signature(command.callback).parameters.values():
            if getattr(parameter.default, "param_decls", None) and parameter.annotation is not bool:
                yield verb, parameter.default.param_decls[0], parameter.annotation in (int, float)
    for sub in group.registered_groups:
        yield from options(sub.typer_instance, f"{prefix}{sub.typer_instance.info.name} ")


def may_write(name: str) -> Check:
    """Nothing changes but the file that an option names."""

    def check(outcome: Outcome, before: dict[str, bytes], now: dict[str, bytes]) -> str:
        return nothing_changed(outcome, {k: v for k, v in before.items() if k != name}, now)

    return check


def values(verb: str, option: str, number: bool) -> list[str]:
    if verb.startswith("bench"):
        return REFUSED if number or option in LISTS else REFUSED[:-1] if option in NAMES else []
    return NUMBERS if number else TEXTS


CASES = [(verb, option, value) for verb, option, number in options() for value in values(verb, option, number)]


@pytest.mark.parametrize("count", [300, ALL])
def test_options(files: Path, record_property: Record, count: int) -> None:
    assert {verb for verb, _, _ in options()} == set(VERBS)
    cases = Cases(files)
    for verb, option, value in some(CASES, count):
        cases.run(f"{verb} {VERBS[verb]}", f"{option}={value}", check=may_write(value))
    cases.report(record_property)


SETTINGS = [
    f"{section}.{field.name}={value}"
    for section, part in SECTIONS.items()
    for field in dataclasses.fields(part)
    for value in [*NUMBERS, "\0", "1e-308", "true", "text.txt"]
]
#: Settings of a training that takes long, or starts other programs, by intent.
LONG = (
    "train.steps=1000", "train.steps=1e", "train.batch_size=1000", "model.n_layer=1000", "runtime.compile=true",
    "train.wandb=true",
)  # fmt: skip


@pytest.mark.parametrize("count", [150, ALL])
def test_settings_of_plan(files: Path, record_property: Record, count: int) -> None:
    cases = Cases(files)
    for setting in some(SETTINGS, count):
        cases.run("plan text.txt --no-measure n_layer=1 n_head=1 n_embd=8", setting)
    cases.report(record_property)


@pytest.mark.parametrize("count", [15, ALL])
def test_settings_of_tune(files: Path, record_property: Record, count: int) -> None:
    cases = Cases(files)
    settings = [s for s in SETTINGS if not s.startswith((*LONG, "tune.max_length=1000"))]
    for setting in some(settings, count):
        cases.run("tune lora bases/d chats.jsonl steps=1 sample_tokens=0 device=cpu dtype=float32 threads=1", setting)
    cases.report(record_property)


@pytest.mark.parametrize("count", [15, ALL])
def test_settings_of_train(files: Path, record_property: Record, count: int) -> None:
    cases = Cases(files)
    for setting in some([setting for setting in SETTINGS if not setting.startswith(LONG)], count):
        cases.run(f"train text.txt {SMALL} steps=1", setting)
    cases.report(record_property)

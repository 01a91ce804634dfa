"""``glassgpt doctor``."""

import contextlib
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glassgpt.cli import doctor_lessons as lessons
from glassgpt.cli.arguments import JSON_OPTION, RUNS_OPTION, check_out
from glassgpt.cli.printing.findings import as_json, print_checks, print_end, print_outcome
from glassgpt.cli.printing.output import pluralize, print_json, print_text, say
from glassgpt.errors import CheckpointError, ConfigError
from glassgpt.files import path_exists, write_text

if TYPE_CHECKING:
    from glassgpt.doctor.examining import Examination
    from glassgpt.doctor.report import Outcome
    from glassgpt.doctor.subject import Subject

_FACTORY = "module.py:factory"


def doctor(
    target: str = typer.Argument(
        "", metavar="TARGET", help=f"A run, a model folder, a .gguf file, or code: {_FACTORY}, package.module:factory."
    ),
    loop: str = typer.Option("", "--loop", metavar=_FACTORY, help="A training loop; see docs/doctor.md."),
    data: str = typer.Option("", "--data", metavar="TEXT", help="A text or a corpus, also a prepared one."),
    tokenizer: str = typer.Option("", "--tokenizer", metavar="FILE", help=f"A tokenizer file, or {_FACTORY}."),
    conversations: str = typer.Option(
        "", "--conversations", metavar="FILE", help=f"Conversations for TARGET as the base model, or {_FACTORY}."
    ),
    vocab: int = typer.Option(None, "--vocab", min=1, max=10**8, help="Token ids of the model, if not found."),
    context: int = typer.Option(None, "--context", min=1, max=10**8, help="Longest input, if not found."),
    window: int = typer.Option(
        None, "--window", min=1, max=10**8, help="Tokens that a position has to see, its own included; by default all."
    ),
    only: str = typer.Option("", "--only", metavar="NAMES", help="Only these checks or findings: leak,reach."),
    fast: bool = typer.Option(False, "--fast", help="Only the quick checks."),
    html: Path = typer.Option(None, "--html", metavar="FILE", help="Also write a page with pictures."),
    list_checks: bool = typer.Option(
        False, "--list", help="List every check: what it does, cost, threshold, findings."
    ),
    break_: str = typer.Option(
        "", "--break", metavar="BUG", help="Train a model or a loop with this bug beside the right one."
    ),
    seconds: float = typer.Option(60.0, "--seconds", min=0.0, max=86400.0, help="How long --break trains."),
    quiz: bool = typer.Option(False, "--quiz", help="Write doctor-quiz/quiz.py: a model or a loop with a bug to find."),
    guess: str = typer.Option("", "--guess", metavar="FINDING", help="Check a guess at the quiz."),
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Find silent bugs in a model, a training loop, data or a run.

    Each check prints PASS, WARN, FAIL or NOT RUN with its numbers. The exit code is 1 if one of them is FAIL. What is
    examined is never changed. Without arguments, the machine and the newest run are examined.
    """
    check_out(html, "--html", suffix=(".html", ".htm"))
    request = _Request(target, loop, data, tokenizer, conversations, vocab, context, window, runs)
    failed = False
    try:
        if list_checks:
            _list(json)
        elif break_:
            lessons.train_broken(break_, seconds, json)
        elif guess:
            lessons.check_guess(guess, json)
        elif quiz:
            lessons.hand_out_quiz(json)
        else:
            failed = _examine(request, only, fast, json, html)
    except KeyboardInterrupt:
        say("interrupted")
        raise typer.Exit(130) from None
    if failed:
        raise typer.Exit(1)


def _list(json: bool) -> None:
    from glassgpt.doctor.examining import CHECKS

    if json:
        fields = ("name", "does", "cost", "threshold", "findings", "fast")
        listed = [{"kind": k} | {field: getattr(c, field) for field in fields} for k, cs in CHECKS.items() for c in cs]
        print_json({"checks": listed})
    else:
        print_checks(CHECKS)
        lessons.print_bugs()


@dataclass(frozen=True)
class _Request:
    """What the user gave; each method loads one subject."""

    target: str
    loop: str
    data: str
    tokenizer: str
    conversations: str
    vocab: int | None
    context: int | None
    window: int | None
    runs: Path

    def names(self) -> dict[str, str]:
        """Return what to examine, by kind of subject: what was given; with a run its history.

        If nothing was given: this machine, and the newest run.
        """
        from glassgpt import api
        from glassgpt.doctor.examining import CHECKS

        given = {
            "model": self.target, "loop": self.loop, "data": self.data, "tokenizer": self.tokenizer,
            "conversations": self.conversations,
        }  # fmt: skip
        names = {kind: name for kind, name in given.items() if name}
        run = None
        if not names:
            names = {"machine": platform.machine()}
            run = next(reversed(api.list_runs(self.runs)), None)
            say(f"nothing was given: examining this machine{f' and the newest run, {run.path}' if run else ''}")
        elif self.target:
            with contextlib.suppress(CheckpointError):
                run = api.find_run(self.target, self.runs)
        if run:
            names |= {"model": str(run.path), "history": str(run.path)}
        return {kind: names[kind] for kind in CHECKS if kind in names}

    def model(self, name: str) -> "Subject":
        """Load a model: code, or what ``glassgpt.load`` takes."""
        from glassgpt import api
        from glassgpt.doctor.loading import load_subject, names_a_factory, subject_of

        if names_a_factory(name) and not path_exists(name):
            return load_subject(name, self.vocab, self.context, self.window)
        if (file := name.rstrip(":")).endswith(".py"):
            raise ConfigError(f"{name} is a program; add the function or class that makes the model: {file}:make")
        if self.vocab or self.context:
            raise ConfigError(f"--vocab and --context are for code ({_FACTORY}); {name} has them in its configuration")
        model, _ = api.load(name, device="cpu", runs=self.runs, keep_quantized=False)
        return subject_of(model, name, self.window)


def _load(request: _Request, names: Mapping[str, str]) -> "list[Examination]":
    """Load every subject, before the first check runs."""
    import torch

    from glassgpt.doctor.examining import Examination
    from glassgpt.doctor.history_rows import load_history
    from glassgpt.doctor.loading import names_a_factory
    from glassgpt.doctor.loops.loop import load_loop
    from glassgpt.doctor.machine import load_machine
    from glassgpt.doctor.texts.checks import load_conversations, load_corpus, load_tokenizer_subject

    rows = request.conversations
    if rows and not request.target and not names_a_factory(rows):
        raise ConfigError(f"--conversations {rows}: which model is tuned on them? Give it as TARGET, the base model")
    torch.manual_seed(0)  # code that draws its weights gives the same results again
    model = request.model(names["model"]) if "model" in names else None
    subjects: dict[str, Any] = {"model": model}
    if "machine" in names:
        subjects["machine"] = load_machine()
    if name := names.get("loop"):
        subjects["loop"] = load_loop(name)
    if name := names.get("history"):
        subjects["history"] = load_history(name)
    if name := names.get("data"):
        with_file = request.tokenizer and not names_a_factory(request.tokenizer)
        subjects["data"] = load_corpus(name, request.tokenizer if with_file else "char")
    if name := names.get("tokenizer"):
        subjects["tokenizer"] = load_tokenizer_subject(name, model.vocab if model else request.vocab)
    if name := names.get("conversations"):
        subjects["conversations"] = load_conversations(name, request.names().get("model"))
    return [Examination(kind, name, subjects[kind]) for kind, name in names.items()]


def _examine(request: _Request, only: str, fast: bool, json: bool, html: Path | None) -> bool:
    """Run the checks, print what they find, write the page; return whether one failed."""
    from glassgpt.doctor.examining import CHECKS, read_only, selected

    names = request.names()
    wanted = read_only(only, names)
    checks = {kind: selected(kind, wanted, fast) for kind in names}
    left_out = sum(len(CHECKS[kind]) - len(checks[kind]) for kind in names)
    with _foreign_code():
        examinations = _load(request, {kind: name for kind, name in names.items() if checks[kind]})
    began = time.perf_counter()
    subjects: dict[str, list[Outcome]] = {}
    advised: set[str] = set()
    for examination in examinations:
        found = subjects.setdefault(f"{examination.kind} {examination.name}", [])
        if not json:
            print_text(f"{examination.kind} {examination.name}{_described(examination.subject)}")
        for outcome in _outcomes(examination, wanted, fast):
            found.append(outcome)
            if not json:
                print_outcome(outcome, advised)
                sys.stdout.flush()
    seconds = time.perf_counter() - began
    outcomes = [outcome for found in subjects.values() for outcome in found]
    if html:
        from glassgpt.doctor.page import report_page

        write_text(html, report_page(", ".join(dict.fromkeys(e.name for e in examinations)), subjects, seconds))
    if json:
        print_json({"checks": as_json(outcomes), "seconds": round(seconds, 2)})
    else:
        print_end(outcomes, left_out, seconds)
        if html:
            print_text(f"{html}  open it in a browser")
    return any(outcome.result.status == "FAIL" for outcome in outcomes)


def _described(subject: Any) -> str:
    """Say what was found out about a model; nothing about other subjects."""
    from glassgpt.doctor.subject import Subject

    if not isinstance(subject, Subject):
        return ""
    parameters = sum(parameter.numel() for parameter in subject.module.parameters())
    context = f"context {subject.context:,}" if subject.context_known else "context unknown"
    return f": {pluralize(parameters, 'parameter')}, vocabulary {subject.vocab:,}, {context}"


def _outcomes(examination: "Examination", only: Sequence[str], fast: bool) -> "Iterator[Outcome]":
    outcomes = examination.run(only, fast)
    while True:
        with _foreign_code():
            outcome = next(outcomes, None)
        if outcome is None:
            return
        yield outcome


@contextlib.contextmanager
def _foreign_code() -> Iterator[None]:
    """Let code of others run: what it and its children print goes to stderr, and it sees none of our arguments."""
    arguments, sys.argv = sys.argv, sys.argv[:1]
    sys.stdout.flush()
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, sys, "argv", arguments)
        with contextlib.suppress(OSError):  # one of them is closed
            stdout = os.dup(1)
            stack.callback(os.close, stdout)
            stack.callback(os.dup2, stdout, 1)
            os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield

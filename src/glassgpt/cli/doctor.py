"""``glassgpt doctor``."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glassgpt.cli.arguments import JSON_OPTION, RUNS_OPTION, SOURCE_HELP, check_out
from glassgpt.cli.printing.findings import print_checks, print_end, print_outcome
from glassgpt.cli.printing.output import pluralize, print_json, print_text, say
from glassgpt.errors import ConfigError
from glassgpt.files import path_exists, write_text

if TYPE_CHECKING:
    from glassgpt.doctor.examining import Examination
    from glassgpt.doctor.report import Outcome

_FACTORY = "module.py:factory"


def doctor(
    target: str = typer.Argument(
        "",
        metavar="TARGET",
        help=f"{SOURCE_HELP} Or code: {_FACTORY}, package.module:factory. By default this machine.",
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
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Find silent bugs in a model, a training loop, data or a run.

    Each check prints PASS, WARN, FAIL or NOT RUN with its numbers. The exit code is 1 if one of them is FAIL. What is
    examined is never changed.
    """
    check_out(html, "--html", suffix=(".html", ".htm"))
    try:
        if list_checks:
            _list(json)
            return
        with _foreign_code():
            examinations = _model(target, vocab, context, window, runs) if target else []
        failed = _examine(examinations, only, fast, json, html)
    except KeyboardInterrupt:
        say("interrupted")
        raise typer.Exit(130) from None
    if failed:
        raise typer.Exit(1)


def _list(json: bool) -> None:
    from glassgpt.doctor.examining import CHECKS

    if not json:
        print_checks(CHECKS)
        return
    fields = ("name", "does", "cost", "threshold", "findings", "fast")
    listed = [
        {"kind": kind} | {field: getattr(check, field) for field in fields}
        for kind, checks in CHECKS.items()
        for check in checks
    ]
    print_json({"checks": listed})


def _model(target: str, vocab: int | None, context: int | None, window: int | None, runs: Path) -> "list[Examination]":
    """Load the model, and the history if it is of a run."""
    from glassgpt import api
    from glassgpt.doctor.examining import Examination
    from glassgpt.doctor.loading import load_subject, names_a_factory, subject_of

    if names_a_factory(target) and not path_exists(target):
        return [Examination("model", target, load_subject(target, vocab, context, window))]
    if vocab or context:
        raise ConfigError(f"--vocab and --context are for code ({_FACTORY}); {target} says them itself")
    model, _ = api.load(target, device="cpu", runs=runs, keep_quantized=False)
    return [Examination("model", target, subject_of(model, target, window))]


def _examine(examinations: "Sequence[Examination]", only: str, fast: bool, json: bool, html: Path | None) -> bool:
    """Run the checks, print what they find, write the page; return whether one failed."""
    from glassgpt.doctor.examining import CHECKS, read_only

    names = read_only(only, {examination.kind for examination in examinations})
    began, left_out = time.perf_counter(), 0
    subjects: dict[str, list[Outcome]] = {}
    advised: set[str] = set()
    for examination in examinations:
        found = subjects.setdefault(f"{examination.kind} {examination.name}", [])
        left_out += len(CHECKS[examination.kind]) - len(examination.selected(names, fast))
        if not json:
            print_text(f"{examination.kind} {examination.name}{_described(examination.subject)}")
        for outcome in _outcomes(examination, names, fast):
            found.append(outcome)
            if not json:
                print_outcome(outcome, advised)
                sys.stdout.flush()
    seconds = time.perf_counter() - began
    outcomes = [outcome for found in subjects.values() for outcome in found]
    if html:
        from glassgpt.doctor.page import report_page

        write_text(html, report_page(", ".join(e.name for e in examinations), subjects, seconds))
    if json:
        print_json({"checks": [_plain(outcome.as_json()) for outcome in outcomes], "seconds": round(seconds, 2)})
    else:
        print_end(outcomes, left_out, seconds)
        if html:
            print_text(f"{html}  open it in a browser")
    return any(outcome.result.status == "FAIL" for outcome in outcomes)


def _described(subject: Any) -> str:
    """What was found out about a model; empty for other subjects."""
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
    """Let code of others run: what it prints goes to standard error, and it sees no arguments of ours."""
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.argv = arguments


def _plain(value: Any) -> Any:
    """Turn measured values into what JSON has: tensors and arrays into lists, other objects into texts."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return _plain(value.tolist()) if hasattr(value, "tolist") else str(value)

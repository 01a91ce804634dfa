"""What a check is, what it returns, and how the checks of one subject are run.

A check looks for causes and brings evidence. It never guesses: what it cannot examine is NOT RUN, with the reason.
"""

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import nn

from glassgpt.errors import first_line

#: Parameters from which on a model is computed by all threads. The passes of a smaller one are too short to share:
#: beside other programs, threads that wait for each other make them ten times slower.
MANY_PARAMETERS = 20_000_000

Status = Literal["PASS", "WARN", "FAIL", "NOT RUN"]

#: The classes of bugs. A result that is WARN or FAIL names one of them.
FINDINGS = (
    "leak", "reach", "batch mixing", "softmax axis", "norm", "residual", "position", "scale", "grouped queries",
    "init", "output not logits", "dead parameters", "unregistered parameters", "shared layers", "tying", "device",
    "mode", "state", "in-place", "non-finite", "overflow", "cache", "padding", "max length", "targets", "data leak",
    "accumulation", "gradients not cleared", "no update", "clipping", "schedule", "optimizer coverage",
    "weight decay", "precision", "memory", "tokenizer", "mask", "template",
)  # fmt: skip

Evidence = Mapping[str, Any]  # numbers and short texts, ready for JSON


@dataclass(frozen=True)
class Result:
    """What one check saw.

    Attributes:
        status: PASS, WARN (look at it; it may be meant), FAIL (a bug), or NOT RUN.
        message: one sentence with the numbers, or the reason why it was not run.
        finding: the class of bug, one of FINDINGS; only of WARN and FAIL.
        module: the dotted name of the module at fault, where it is known.
        evidence: the numbers measured, by name.
    """

    status: Status
    message: str
    finding: str | None = None
    module: str | None = None
    evidence: Evidence = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert (self.finding in FINDINGS) == (self.status in ("WARN", "FAIL")), (self.status, self.finding)


def passed(message: str, **evidence: Any) -> Result:
    """Nothing wrong was seen."""
    return Result("PASS", message, evidence=evidence)


def warned(finding: str, message: str, module: str | None = None, **evidence: Any) -> Result:
    """Something that is often a bug, and sometimes meant."""
    return Result("WARN", message, finding, module, evidence)


def failed(finding: str, message: str, module: str | None = None, **evidence: Any) -> Result:
    """A bug."""
    return Result("FAIL", message, finding, module, evidence)


class NotRun(Exception):
    """Raised inside a check that cannot examine its subject; the message is the reason."""


Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Check(Generic[Subject]):
    """One check.

    Attributes:
        name: lower case words, unique ("past and future").
        does: what it does, in one sentence.
        cost: in words, for a small model ("T forward passes").
        threshold: the threshold, and why that one.
        findings: the classes of bugs that it can name.
        run: receives the subject and returns one result, or several if it names several classes or modules.
        fast: whether `--fast` includes it.
    """

    name: str
    does: str
    cost: str
    threshold: str
    findings: tuple[str, ...]
    run: Callable[[Subject], Result | Iterable[Result]]
    fast: bool = True

    def __post_init__(self) -> None:
        assert set(self.findings) <= set(FINDINGS), self.findings


@dataclass(frozen=True)
class Outcome:
    """A result with the check that gave it and the seconds it took (of the whole check)."""

    check: Check[Any]
    result: Result
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The entry in the `checks` of `--json`."""
        r = self.result
        return {
            "name": self.check.name, "status": r.status, "finding": r.finding, "module": r.module,
            "message": r.message, "evidence": dict(r.evidence), "seconds": round(self.seconds, 3),
        }  # fmt: skip


def run_checks(
    checks: Sequence[Check[Subject]], subject: Subject, only: Collection[str] = (), fast: bool = False
) -> Iterator[Outcome]:
    """Run checks one after another and yield each outcome as soon as it is known.

    Args:
        checks: the checks for this kind of subject.
        subject: what they examine.
        only: names of checks, or of findings; empty for all.
        fast: leave out the checks that are not fast.
    """
    for check in checks:
        if only and check.name not in only and not set(check.findings) & set(only):
            continue
        if fast and not check.fast:
            continue
        start = time.perf_counter()
        with threads_for(getattr(subject, "module", None)):
            results = _results(check, subject)
        seconds = time.perf_counter() - start
        for result in results:
            yield Outcome(check, result, seconds)


@contextlib.contextmanager
def threads_for(module: nn.Module | None) -> Iterator[None]:
    """Compute with one thread inside if this is a small model."""
    small = module is not None and sum(p.numel() for p in module.parameters()) < MANY_PARAMETERS
    with one_thread() if small else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread inside; the number of threads is put back afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _results(check: Check[Subject], subject: Subject) -> list[Result]:
    try:
        results = check.run(subject)
        return [results] if isinstance(results, Result) else list(results)
    except NotRun as reason:
        return [Result("NOT RUN", str(reason))]
    except Exception as error:  # code of anybody runs here: one check that breaks must not end the others
        return [Result("NOT RUN", f"the check ended with {type(error).__name__}: {first_line(error)}")]

"""Run the doctor over the gallery: every bug must be found under its name, every correct model must pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from glassgpt.doctor.gallery.bug import Bug, Correct, import_program
from glassgpt.doctor.report import Check, Outcome, run_checks
from glassgpt.doctor.subject import Subject

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Case:
    """One model to examine: a program with a change, in one seed, size (1 or 2) and dtype."""

    program: str
    change: Bug | Correct
    seed: int = 0
    size: int = 1
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.change.name} in {self.program}, seed {self.seed}, size {self.size}, {self.dtype}"


def build(case: Case) -> Subject:
    """Build the model of a case, ready to be examined."""
    factory = partial(import_program(case.program, case.change).model, case.seed, case.size, case.dtype)
    window = case.change.window if isinstance(case.change, Correct) else None
    return Subject(factory(), case.change.name, window=window, factory=factory)


def found(case: Case, checks: Sequence[Check[Subject]], status: str = "FAIL") -> bool:
    """Tell whether a bug is reported: a FAIL (or WARN) under its finding. Only checks of this finding run, up to it."""
    assert isinstance(case.change, Bug)
    finding = case.change.finding
    outcomes = run_checks(checks, build(case), (finding,))
    return any(outcome.result.status == status and outcome.result.finding == finding for outcome in outcomes)


def alarms(case: Case, checks: Sequence[Check[Subject]]) -> list[Outcome]:
    """Examine a case and return the outcomes that are WARN or FAIL."""
    return [outcome for outcome in run_checks(checks, build(case)) if outcome.result.status in ("WARN", "FAIL")]

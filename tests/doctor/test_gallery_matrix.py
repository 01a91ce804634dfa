"""The doctor over the gallery: each bug is found under its name, and each correct model raises nothing."""

import itertools

import pytest
from gallery_matrix import DTYPES, Case, alarms, found

from glassgpt.doctor.checks import MODEL_CHECKS
from glassgpt.doctor.gallery.bug import Bug, Correct
from glassgpt.doctor.gallery.correct import CORRECT
from glassgpt.doctor.gallery.model_bugs import MODEL_BUGS
from glassgpt.errors import SubjectError

#: Every seed, size and dtype.
SETTINGS = tuple(itertools.product((0, 1, 2), (1, 2), DTYPES))

#: Not seen from outside, so far: attention that reaches the stream only through the MLP of a hand-written block.
UNSEEN = {("shortcut-of-the-wrong-stream", "book")}

#: Often meant, so a warning only: a scale by the width of the model, as lectures and muP have it.
WARNED = ("scaled-by-all-heads",)


def is_found(case: Case) -> bool:
    """Whether a bug is found; a bug that crashes at once (layers outside the module stay float32) is not silent."""
    assert isinstance(case.change, Bug)
    if (case.change.name, case.program) in UNSEEN:
        return True
    try:
        return found(case, MODEL_CHECKS, "WARN" if case.change.name in WARNED else "FAIL")
    except SubjectError:
        return case.dtype == "bfloat16" and case.change.finding in ("unregistered parameters", "device")


@pytest.mark.parametrize("bug", MODEL_BUGS, ids=lambda bug: bug.name)
def test_a_bug_is_found_under_its_name(bug: Bug) -> None:
    """In one program and setting; which ones, the bug's place in the gallery decides."""
    place, programs = MODEL_BUGS.index(bug), list(bug.changes)
    seed, size, dtype = SETTINGS[place % len(SETTINGS)]
    case = Case(programs[place % len(programs)], bug, seed, size, dtype)
    assert is_found(case), str(case)


@pytest.mark.parametrize("model", CORRECT, ids=lambda model: model.name)
def test_a_correct_model_raises_nothing(model: Correct) -> None:
    place = CORRECT.index(model)
    seed, size, dtype = SETTINGS[place % len(SETTINGS)]
    case = Case(model.program, model, seed, size, dtype)
    checks = MODEL_CHECKS[place % 8 :: 8]  # an eighth of them; all in the slow test
    assert [(o.check.name, o.result.message) for o in alarms(case, checks)] == [], str(case)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("bug", MODEL_BUGS, ids=lambda bug: bug.name)
def test_a_bug_is_found_in_every_program_seed_size_and_dtype(bug: Bug) -> None:
    cases = [Case(program, bug, *setting) for program in bug.changes for setting in SETTINGS]
    assert [str(case) for case in cases if not is_found(case)] == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("model", CORRECT, ids=lambda model: model.name)
def test_a_correct_model_raises_nothing_in_every_seed_size_and_dtype(model: Correct) -> None:
    cases = [Case(model.program, model, *setting) for setting in SETTINGS]
    outcomes = [(str(case), outcome) for case in cases for outcome in alarms(case, MODEL_CHECKS)]
    assert [(case, o.check.name, o.result.message) for case, o in outcomes] == []

"""``glassgpt doctor --break`` and ``--quiz``: learn what bugs do to the loss, and to find one by reading."""

import difflib
import random
from pathlib import Path
from typing import TYPE_CHECKING

from glassgpt.cli.printing.endings import print_next
from glassgpt.cli.printing.findings import as_json, print_outcome
from glassgpt.cli.printing.output import print_json, print_text
from glassgpt.errors import AssetError, SubjectError, shell_command

if TYPE_CHECKING:
    from glassgpt.doctor.gallery.bug import Bug
    from glassgpt.doctor.gallery.lessons import Quiz
    from glassgpt.doctor.report import Outcome

#: The folder that ``--quiz`` writes, in the current one.
QUIZ_FOLDER = Path("doctor-quiz")
#: Lines of losses that are printed, about.
_LINES = 15


def train_broken(name: str, seconds: float, json: bool) -> None:
    """Train a program with a bug beside the right one, print both losses, then what the doctor says of the broken one.

    Raises:
        SubjectError: if there is no such bug.
    """
    from glassgpt.doctor.gallery.lessons import BUGS, compare_training

    bugs = {bug.name: bug for bug in BUGS}
    if (bug := bugs.get(name)) is None:
        near = ", ".join(difflib.get_close_matches(name, bugs, n=3, cutoff=0.3)) or "no-causal-mask"
        raise SubjectError(f"--break {name[:80]!r} is not in the gallery; try {near}; --list shows all {len(bugs)}")
    program = next(iter(bug.changes))
    if not json:
        print_text(f"{bug.name}, in the program {program!r}: {bug.story}\n\n  step  right  broken")
    steps, shown = [], 0.0
    for step in compare_training(bug, program, seconds, _text()):
        steps.append(step)
        if not json and step.seconds >= shown:
            print_text(f"{step.step:6,}  {step.right:.3f}  {step.broken:.3f}")
            shown = step.seconds + seconds / _LINES
    outcomes = _examined(bug, program)
    if json:
        listed = [vars(step) for step in steps]
        print_json({"bug": name, "finding": bug.finding, "steps": listed, "checks": as_json(outcomes)})
        return
    print_text(f"\nthe doctor looks for {bug.finding!r}:")
    advised: set[str] = set()
    for outcome in outcomes:
        print_outcome(outcome, advised)


def _examined(bug: "Bug", program: str) -> "list[Outcome]":
    """Look for the class of a bug in a program that has it."""
    from glassgpt.doctor.checks import MODEL_CHECKS
    from glassgpt.doctor.gallery.bug import import_program
    from glassgpt.doctor.gallery.lessons import factory_name
    from glassgpt.doctor.loops.checks import LOOP_CHECKS
    from glassgpt.doctor.loops.loop import Loop
    from glassgpt.doctor.report import run_checks
    from glassgpt.doctor.subject import Subject

    kind = factory_name(bug)
    factory = getattr(import_program(program, bug), kind)
    if kind == "loop":
        return list(run_checks(LOOP_CHECKS, Loop(factory), [bug.finding]))
    return list(run_checks(MODEL_CHECKS, Subject(factory(), program), [bug.finding]))


def _text() -> str:
    """Shakespeare's plays, or where they cannot be fetched the source code of Python."""
    from glassgpt import assets

    try:
        path = assets.path("shakespeare")
    except AssetError:
        path = assets.path("python")
    return path.read_text(encoding="utf-8", errors="replace")[:1_000_000]


def hand_out_quiz(json: bool) -> None:
    """Write a program with an unnamed bug, and say how to guess it."""
    from glassgpt.doctor.gallery.lessons import make_quiz

    quiz = make_quiz(random.SystemRandom().randrange(10**6), QUIZ_FOLDER)
    if json:
        print_json({"file": str(quiz.path)})
        return
    print_text(f"{quiz.path} has one bug. Read it, and guess its class.\n")
    print_next(
        {
            shell_command("doctor", "--guess", "leak"): "check a guess",
            _doctor_command(quiz): "let the doctor look for it",
        }
    )


def _doctor_command(quiz: "Quiz") -> str:
    from glassgpt.doctor.gallery.lessons import factory_name

    kind = factory_name(quiz.bug)
    return shell_command("doctor", *(["--loop"] if kind == "loop" else []), f"{quiz.path}:{kind}")


def check_guess(guess: str, json: bool) -> None:
    """Compare a guess with the bug of the last quiz; show the changed lines if it is right.

    Raises:
        SubjectError: if there is no quiz, or no class and no bug of that name.
    """
    from glassgpt.doctor.gallery.lessons import load_quiz

    quiz = load_quiz(QUIZ_FOLDER)
    answer = quiz.check(guess)
    if not answer.known:
        near = f"; did you mean {' or '.join(map(repr, answer.similar))}?" if answer.similar else ""
        raise SubjectError(f"--guess {guess[:80]!r} is neither a class of bugs nor a bug{near}")
    if json:
        print_json({"guess": guess, "right": answer.right})
    elif answer.right:
        print_text(f"right: {quiz.bug.finding} ({quiz.bug.name}). {quiz.bug.story}\n\n{quiz.difference()}")
    else:
        print_text(f"no, it is not {guess!r}. Look again, or let the doctor look: {_doctor_command(quiz)}")


def print_bugs() -> None:
    """List the bugs that ``--break`` knows, by class."""
    from glassgpt.doctor.gallery.lessons import BUGS

    classes: dict[str, list[str]] = {}
    for bug in BUGS:
        classes.setdefault(bug.finding, []).append(bug.name)
    print_text("\nbugs for --break:")
    for finding, names in classes.items():
        print_text(f"  {finding}: {', '.join(names)}")

"""Every lesson runs; every exercise's check accepts a right answer and refuses three wrong ones."""

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import typer
from matplotlib import pyplot

from glassgpt.cli.main import app
from glassgpt.doctor.gallery.lessons import BUGS
from glassgpt.learn.exercises import exercise_names, exercises_of, problem
from glassgpt.learn.lesson import Lesson, lessons

LESSONS = lessons()


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.path.stem)
def test_runs_in_the_short_form(lesson: Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("GLASSGPT_LEARN_SHORT", "1")
    with torch.random.fork_rng():
        runpy.run_path(str(lesson.path))  # in this process: importing torch takes longer than most lessons
    pyplot.close("all")


@pytest.mark.slow
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.path.stem)
def test_runs_in_full(lesson: Lesson, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(lesson.path)], cwd=tmp_path, env={**os.environ, "MPLBACKEND": "Agg"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.path.stem)
def test_has_the_parts_of_a_lesson_and_names_only_what_exists(lesson: Lesson) -> None:
    cells = lesson.cells()
    prose = " ".join(" ".join(cell.text for cell in cells if cell.is_prose).split())
    assert all(
        part in prose for part in ("You will know at the end", "Time: ", "In real systems", "Exercises", "Next: ")
    )
    assert sum(cell.text.count("predict(") for cell in cells if not cell.is_prose) >= 2
    assert all(f"`{exercise.name}(" in prose for exercise in exercises_of(lesson))
    assert exercise_names(lesson) == [exercise.name for exercise in exercises_of(lesson)]
    commands = re.findall(r"`glassgpt ([a-z]+)(?: ([^`]*))?`", prose)
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {verb for verb, _ in commands} <= set(verbs)
    named = {int(number) for verb, rest in commands if verb == "learn" and (number := rest.split()[0]).isdigit()}
    assert lesson.number in named and named <= {other.number for other in LESSONS}
    assert set(re.findall(r"--break ([a-z0-9-]+)", prose)) <= {bug.name for bug in BUGS}


def reading_minutes(lesson: Lesson) -> float:
    """How long it takes to read: 200 words of prose a minute, and 20 lines of code."""
    cells = lesson.cells()
    words = sum(len(cell.text.split()) for cell in cells if cell.is_prose)
    lines = sum(bool(line.strip()) for cell in cells if not cell.is_prose for line in cell.text.splitlines())
    return words / 200 + lines / 20


def test_the_lessons_are_read_in_four_hours_and_say_how_long_each_takes() -> None:
    minutes = [reading_minutes(lesson) for lesson in LESSONS]
    assert sum(minutes) <= 240
    for lesson, expected in zip(LESSONS, minutes, strict=True):
        stated = re.search(r"Time: (\d+) minutes? to read", lesson.cells()[0].text)
        assert stated, lesson.path
        assert abs(int(stated[1]) - expected) < 1, f"{lesson.path}: {expected:.1f}"


def answers(lesson: Lesson) -> ModuleType:
    path = Path(__file__).parent / "answers" / f"answers_{lesson.number:02}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.path.stem)
def test_checks_accept_a_right_answer_and_refuse_three_wrong_ones(lesson: Lesson) -> None:
    given, exercises = answers(lesson), exercises_of(lesson)
    assert len(exercises) == 2
    for exercise in exercises:
        assert problem(exercise, given.RIGHT[exercise.name]) is None
        assert len(given.WRONG[exercise.name]) >= 3
        for place, wrong in enumerate(given.WRONG[exercise.name]):
            assert problem(exercise, wrong) is not None, f"{exercise.name}: wrong answer {place} was accepted"

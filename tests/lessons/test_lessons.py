"""Every lesson runs; every exercise's check accepts a right answer and refuses three wrong ones."""

import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from matplotlib import pyplot

from glassgpt.learn.exercises import exercises_of, problem
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

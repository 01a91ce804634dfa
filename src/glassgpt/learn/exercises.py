"""Check the answers to a lesson's exercises: what is right, what is not, and a hint that does not give the answer."""

import ast
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from glassgpt.errors import ConfigError, first_line
from glassgpt.learn.lesson import Lesson


class Wrong(Exception):
    """An answer that is not right; the message says what was expected and what came."""


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        name: of the function that the learner writes.
        task: what it has to do, in a sentence.
        check: receives that function; raises Wrong, or returns.
        hint: printed after a wrong answer; it does not contain the answer.
    """

    name: str
    task: str
    check: Callable[[Callable[..., Any]], None]
    hint: str


@dataclass(frozen=True)
class Verdict:
    """What became of one exercise: right, or the reason why not."""

    exercise: Exercise
    problem: str | None

    @property
    def right(self) -> bool:
        """Whether the answer is right."""
        return self.problem is None


@functools.cache  # a check file is run once, not at each question
def exercises_of(lesson: Lesson) -> tuple[Exercise, ...]:
    """The exercises of a lesson: EXERCISES of ``lessons/checks/check_NN.py``."""
    exercises: tuple[Exercise, ...] = _import(_check_file(lesson)).EXERCISES
    return exercises


def exercise_names(lesson: Lesson) -> list[str]:
    """The names of a lesson's exercises. Its check file is read, not run: running it imports torch."""
    calls = [node for node in ast.walk(ast.parse(_check_file(lesson).read_bytes())) if isinstance(node, ast.Call)]
    return [ast.literal_eval(call.args[0]) for call in calls if ast.unparse(call.func) == "Exercise"]


def _check_file(lesson: Lesson) -> Path:
    return lesson.path.parent / "checks" / f"check_{lesson.number:02}.py"


def check_answers(lesson: Lesson, answers: Path) -> list[Verdict]:
    """Check every function of the learner's file that answers an exercise.

    Raises:
        ConfigError: if the file is not there or cannot be imported, or has no answer.
    """
    if not answers.is_file():
        raise ConfigError(f"{answers} is not there; write your answers into a Python file, and give its name")
    try:
        module = _import(answers)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{answers} cannot be imported: {_described(error)}") from error
    exercises = exercises_of(lesson)
    given = [exercise for exercise in exercises if callable(getattr(module, exercise.name, None))]
    if not given:
        names = ", ".join(f"{exercise.name}()" for exercise in exercises)
        raise ConfigError(f"{answers} answers no exercise of lesson {lesson.number}; it should define {names}")
    return [Verdict(exercise, problem(exercise, getattr(module, exercise.name))) for exercise in given]


def problem(exercise: Exercise, answer: Callable[..., Any]) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    try:
        exercise.check(answer)
    except Wrong as wrong:
        return str(wrong)
    except (Exception, SystemExit) as error:  # the learner's code failed
        return f"it ended with {_described(error)}"
    return None


def _described(error: Exception | SystemExit) -> str:
    """The type and message of an error."""
    if isinstance(error, SystemExit):
        return "SystemExit: it calls exit()"
    return f"{type(error).__name__}: {first_line(error)}"


def _import(path: Path) -> ModuleType:
    """Run a Python file as a module; nothing is written beside it, and a changed file is read again."""
    module = ModuleType(f"glassgpt_learn_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look there
    exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    return module

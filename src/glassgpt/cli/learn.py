"""``glassgpt learn``: the lessons, one after another, in the terminal."""

import contextlib
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glassgpt.cli.arguments import JSON_OPTION, check_out
from glassgpt.cli.printing.output import error_message, pluralize, print_json, print_table, print_text, say
from glassgpt.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from rich.console import Console

    from glassgpt.learn.lesson import Cell, Lesson


def learn(
    number: int | None = typer.Argument(None, metavar="[N]", help="The lesson; without it, all are listed."),
    check: Path | None = typer.Option(None, "--check", metavar="FILE.py", help="Check your answers to its exercises."),
    notebook: Path | None = typer.Option(
        None, "--notebook", metavar="FILE.ipynb", help="Write it as a notebook instead."
    ),
    json: bool = JSON_OPTION,
) -> None:
    """List the lessons, or work through one, step by step.

    A lesson is prose and code. Press Enter to run the next piece of code; Ctrl-C leaves. Pictures are saved in
    lesson-pictures/. What was read and solved is kept on this machine.
    """
    from glassgpt.learn.lesson import find

    if check is not None and notebook is not None:
        raise ConfigError("--check and --notebook exclude each other")
    if number is None:
        if check is not None or notebook is not None:
            raise ConfigError(f"name the lesson: glassgpt learn N {'--notebook' if check is None else '--check'} FILE")
        _list(json)
        return
    lesson = find(number)
    if check is not None:
        _check(lesson, check, json)
    elif notebook is not None:
        _write_notebook(lesson, notebook, json)
    elif json:
        print_json({"number": number, "title": lesson.title, "cells": [vars(cell) for cell in lesson.cells()]})
    else:
        _run(lesson)


def _list(json: bool) -> None:
    from glassgpt.learn import progress
    from glassgpt.learn.exercises import exercise_names
    from glassgpt.learn.lesson import lessons

    done = progress.load()
    rows: list[dict[str, Any]] = []
    for lesson in lessons():
        names, solved = exercise_names(lesson), done["solved"].get(str(lesson.number), [])
        rows.append({
            "number": lesson.number, "title": lesson.title, "read": lesson.number in done["read"], "exercises": names,
            "solved": [name for name in names if name in solved], "file": str(lesson.path),
        })  # fmt: skip
    if json:
        print_json({"lessons": rows})
        return
    table = []
    for row in rows:
        solved = f"{len(row['solved'])} of {len(row['exercises'])}"
        table.append([str(row["number"]), row["title"].replace("`", ""), "yes" if row["read"] else "", solved])
    print_table(["lesson", "title", "read", "exercises solved"], table)
    read, solved = (sum(row["read"] for row in rows), sum(len(row["solved"]) for row in rows))
    unread = [row["number"] for row in rows if not row["read"]]
    print_text(
        f"\nread: {read} of {pluralize(len(rows), 'lesson')}; "
        f"solved: {solved} of {sum(len(row['exercises']) for row in rows)} exercises\n"
        + (f"next: glassgpt learn {unread[0]}" if unread else "every lesson is read")
        + "\ncheck your answers to its exercises: glassgpt learn N --check FILE.py"
    )


def _check(lesson: "Lesson", answers: Path, json: bool) -> None:
    from glassgpt.learn import progress
    from glassgpt.learn.exercises import check_answers, exercises_of

    with contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext():  # what the answers print
        verdicts = check_answers(lesson, answers)
    progress.mark_solved(lesson.number, [verdict.exercise.name for verdict in verdicts if verdict.right])
    all_right = all(verdict.right for verdict in verdicts)
    if json:
        print_json({"exercises": [{"name": v.exercise.name, "right": v.right, "problem": v.problem} for v in verdicts]})
    else:
        for verdict in verdicts:
            if verdict.right:
                print_text(f"{verdict.exercise.name}: right")
            else:
                print_text(f"{verdict.exercise.name}: not right: {verdict.problem}\n  hint: {verdict.exercise.hint}")
        given = [verdict.exercise.name for verdict in verdicts]
        for exercise in exercises_of(lesson):
            if exercise.name not in given:
                print_text(f"{exercise.name}: {answers} does not define it")
        if all_right and len(given) == len(exercises_of(lesson)) and (following := _following(lesson)):
            print_text(f"next: glassgpt learn {following}")
    if not all_right:
        raise typer.Exit(1)


def _write_notebook(lesson: "Lesson", path: Path, json: bool) -> None:
    check_out(path, "--notebook", suffix=".ipynb")
    if path.exists():
        raise ConfigError(f"{path} exists; choose another name")
    try:
        import jupytext
    except ImportError as error:
        raise MissingExtraError("jupytext", "docs", "Writing a notebook") from error
    jupytext.write(jupytext.read(lesson.path), path, fmt="ipynb")
    if json:
        print_json({"number": lesson.number, "title": lesson.title, "notebook": str(path)})
    else:
        say(f"wrote {path}")


def _run(lesson: "Lesson") -> None:
    """Print the prose, and run the code in one namespace, piece by piece."""
    from importlib.util import find_spec

    from rich.console import Console

    from glassgpt.learn import progress
    from glassgpt.learn.helpers import ASK

    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plot", "Drawing the pictures of a lesson")
    asks = sys.stdin.isatty() and sys.stdout.isatty()
    if asks:
        os.environ[ASK] = "1"
    else:
        os.environ.pop(ASK, None)
    console, names = Console(), {"__name__": f"lesson_{lesson.number}"}
    try:
        for place, cell in enumerate(lesson.cells()):
            print(end="\n" if place else "")
            _run_cell(lesson, cell, console, names, asks)
    except (KeyboardInterrupt, EOFError):
        say(f"\nleft lesson {lesson.number} before its end; `glassgpt learn {lesson.number}` begins it again")
        raise typer.Exit(0 if asks else 130) from None
    progress.mark_read(lesson.number)
    print_text(f"\n{_ending(lesson)}")


def _run_cell(lesson: "Lesson", cell: "Cell", console: "Console", names: dict[str, Any], asks: bool) -> None:
    """Print a cell, and run it if it is code.

    Raises:
        Exit: if it fails; its traceback is printed, without the frames of this program.
    """
    from rich.syntax import Syntax

    from glassgpt.cli.printing.prose import Prose

    if cell.is_prose:
        console.print(Prose(cell.text))
        return
    console.print(Syntax(cell.text, "python", theme="ansi_dark", word_wrap=True))
    if asks:
        console.input("[dim]Enter runs it [/dim]")
    code = compile("\n" * (cell.line - 1) + cell.text, str(lesson.path), "exec")  # the lines of its file
    try:
        exec(code, names)
    except (BrokenPipeError, EOFError):
        raise
    except Exception as error:
        own = error.__traceback__.tb_next if error.__traceback__ else None
        message = error_message(error) or "".join(traceback.format_exception(type(error), error, own)).rstrip()
        say(f"{message}\nlesson {lesson.number} ended here: the code above failed")
        raise typer.Exit(1) from None


def _ending(lesson: "Lesson") -> str:
    """The exercises, and what to type next."""
    from glassgpt.learn import progress
    from glassgpt.learn.exercises import exercise_names

    solved = progress.load()["solved"].get(str(lesson.number), [])
    names = [f"{name} (solved)" if name in solved else name for name in exercise_names(lesson)]
    text = f"lesson {lesson.number} read; exercises: {', '.join(names)}; "
    text += f"check with `glassgpt learn {lesson.number} --check FILE.py`"
    return text + (f"; next: `glassgpt learn {following}`" if (following := _following(lesson)) else "")


def _following(lesson: "Lesson") -> int | None:
    """The number of the next lesson; None after the last."""
    from glassgpt.learn.lesson import lessons

    return min((other.number for other in lessons() if other.number > lesson.number), default=None)

"""``glassgpt learn``: the lessons, one after another, in the terminal."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glassgpt.cli.arguments import JSON_OPTION, check_out
from glassgpt.cli.printing.output import print_json, print_table, print_text, say
from glassgpt.errors import MissingExtraError

if TYPE_CHECKING:
    from glassgpt.learn.lesson import Lesson


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

    if number is None:
        _list(json)
        return
    lesson = find(number)
    if check is not None:
        _check(lesson, check, json)
    elif notebook is not None:
        _write_notebook(lesson, notebook)
    elif json:
        print_json({"number": number, "title": lesson.title, "cells": [vars(cell) for cell in lesson.cells()]})
    else:
        _run(lesson)


def _list(json: bool) -> None:
    from glassgpt.learn import progress
    from glassgpt.learn.exercises import exercises_of
    from glassgpt.learn.lesson import lessons

    done = progress.load()
    rows: list[dict[str, Any]] = [
        {
            "number": lesson.number, "title": lesson.title, "read": lesson.number in done["read"],
            "exercises": [exercise.name for exercise in exercises_of(lesson)],
            "solved": done["solved"].get(str(lesson.number), []), "file": str(lesson.path),
        }
        for lesson in lessons()
    ]  # fmt: skip
    if json:
        print_json({"lessons": rows})
        return
    table = []
    for row in rows:
        solved = f"{len(row['solved'])} of {len(row['exercises'])}"
        table.append([str(row["number"]), row["title"], "yes" if row["read"] else "", solved])
    print_table(["lesson", "title", "read", "exercises solved"], table)
    print_text("\n`glassgpt learn N` runs a lesson; `--check FILE.py` checks your answers to its exercises.")


def _check(lesson: "Lesson", answers: Path, json: bool) -> None:
    from glassgpt.learn import progress
    from glassgpt.learn.exercises import check_answers

    verdicts = check_answers(lesson, answers)
    progress.mark_solved(lesson.number, [verdict.exercise.name for verdict in verdicts if verdict.right])
    if json:
        print_json({"exercises": [{"name": v.exercise.name, "right": v.right, "problem": v.problem} for v in verdicts]})
    else:
        for verdict in verdicts:
            if verdict.right:
                print_text(f"{verdict.exercise.name}: right")
            else:
                print_text(f"{verdict.exercise.name}: not right: {verdict.problem}\n  hint: {verdict.exercise.hint}")
    if not all(verdict.right for verdict in verdicts):
        raise typer.Exit(1)


def _write_notebook(lesson: "Lesson", path: Path) -> None:
    check_out(path)
    try:
        import jupytext
    except ImportError as error:
        raise MissingExtraError("jupytext", "docs", "Writing a notebook") from error
    jupytext.write(jupytext.read(lesson.path), path, fmt="ipynb")
    say(f"wrote {path}")


def _run(lesson: "Lesson") -> None:
    """Print the prose, and run the code in one namespace, piece by piece."""
    from importlib.util import find_spec

    from rich.console import Console
    from rich.markdown import Markdown
    from rich.syntax import Syntax

    from glassgpt.learn import progress
    from glassgpt.learn.helpers import ASK

    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plot", "Drawing the pictures of a lesson")
    console, asks = Console(), sys.stdin.isatty() and sys.stdout.isatty()
    if asks:
        os.environ[ASK] = "1"
    names: dict[str, Any] = {"__name__": f"lesson_{lesson.number}"}
    for cell in lesson.cells():
        if cell.is_prose:
            console.print(Markdown(cell.text))
            continue
        console.print(Syntax(cell.text, "python", theme="ansi_dark", word_wrap=True))
        if asks:
            console.input("[dim]Enter runs it [/dim]")
        exec(compile(cell.text, str(lesson.path), "exec"), names)
    progress.mark_read(lesson.number)

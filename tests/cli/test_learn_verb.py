"""`glassgpt learn`: the list, a lesson step by step, the checks of answers, a notebook, and mistakes."""

import io
import json
import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from glassgpt.learn import lesson as lesson_module

FIRST = """# %% [markdown]
# # Lesson 1: adding
#
# *Adding* is easy.
#
# | what | where |
# |-|-|
# | adding two numbers, one after another, as everybody does it | `a/file/in/a/folder/with/a/very/long/name.py` |

# %%
a = 1
print("a is", a)

# %% [markdown]
# ## More

# %%
long_name = [a, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28]
print("the sum is", a + 1)
"""
SECOND = """# %% [markdown]
# # Lesson 2: it fails

# %%


def divide(x):
    return 1 / x


divide(0)
"""
CHECKS = """from glassgpt.learn.exercises import Exercise, Wrong


def check(answer):
    if answer(2) != 3:
        raise Wrong(f"2 should give 3, and gives {answer(2)}")


EXERCISES = (Exercise("plus_one", "Add 1.", check, "Count."), Exercise("one_plus", "Add 1.", check, "Count on."))
"""


@pytest.fixture(autouse=True)
def two_lessons(tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "lessons"
    (folder / "checks").mkdir(parents=True)
    for name, text in {
        "01_add": FIRST,
        "02_fail": SECOND,
        "checks/check_01": CHECKS,
        "checks/check_02": CHECKS,
    }.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(lesson_module, "folder", lambda: folder)
    return folder


class Keyboard(io.StringIO):
    """Somebody at a terminal, who presses Ctrl-D when the lines are over."""

    def isatty(self) -> bool:
        return True


def test_a_lesson_without_a_terminal_runs_to_its_end_and_is_marked_as_read(cli: Any) -> None:
    code, out, err = cli("learn", 1)
    assert (code, err) == (0, "")
    assert out.index("Adding is easy") < out.index('print("a is", a)') < out.index("\na is 1") < out.index("More")
    assert "\nthe sum is 2\n" in out and "…" not in out
    assert max(map(len, out[: out.index("lesson 1 read")].splitlines())) <= 80  # also the long line of code
    assert " ".join(out.split()).endswith(
        "lesson 1 read; exercises: plus_one, one_plus; check with `glassgpt learn 1 --check FILE.py`; "
        "next: `glassgpt learn 2`"
    )
    assert [row["read"] for row in json.loads(cli("learn", "--json")[1])["lessons"]] == [True, False]


def test_enter_steps_and_ctrl_d_leaves(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Keyboard("\n"))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    code, out, err = cli("learn", 1)
    assert code == 0 and "a is 1" in out and "\nthe sum" not in out
    assert err == "\nleft lesson 1 before its end; `glassgpt learn 1` begins it again\n"
    assert not json.loads(cli("learn", "--json")[1])["lessons"][0]["read"]


def test_code_that_fails_shows_the_lines_of_the_lesson_only(cli: Any, two_lessons: Path) -> None:
    code, _, err = cli("learn", 2)
    assert code == 1
    places = [line.strip() for line in err.splitlines() if line.startswith("  File")]
    path = two_lessons / "02_fail.py"
    assert places == [f'File "{path}", line 11, in <module>', f'File "{path}", line 8, in divide']
    assert err.endswith("ZeroDivisionError: division by zero\nlesson 2 ended here: the code above failed\n")
    assert not json.loads(cli("learn", "--json")[1])["lessons"][1]["read"]


def test_the_list_counts_what_was_read_and_solved(cli: Any, tmp_path: Path) -> None:
    out = cli("learn")[1]
    assert "read: 0 of 2 lessons; solved: 0 of 4 exercises\nnext: glassgpt learn 1\n" in out
    (tmp_path / "mine.py").write_text("def plus_one(x): return x + 1", encoding="utf-8")
    code, out, _ = cli("learn", 1, "--check", "mine.py")
    assert (code, out) == (0, "plus_one: right\none_plus: mine.py does not define it\n")
    (tmp_path / "mine.py").write_text("def plus_one(x): return x + 1\none_plus = plus_one", encoding="utf-8")
    assert cli("learn", 2, "--check", "mine.py")[1] == "plus_one: right\none_plus: right\n"
    assert cli("learn", 1, "--check", "mine.py")[1].endswith("one_plus: right\nnext: glassgpt learn 2\n")
    cli("learn", 1)
    assert "read: 1 of 2 lessons; solved: 4 of 4 exercises\nnext: glassgpt learn 2\n" in cli("learn")[1]


@pytest.mark.parametrize("text", ["", "{", '{"read": 1, "solved": {}}', '{"read": [], "solved": {"1": 5}}', "[]"])
def test_a_damaged_record_of_progress_is_an_empty_one(cli: Any, empty_cache: Path, text: str) -> None:
    empty_cache.mkdir(exist_ok=True)
    (empty_cache / "lessons.json").write_text(text, encoding="utf-8")
    assert cli("learn", 1)[0] == 0
    assert "read: 1 of 2 lessons; solved: 0 of 4" in cli("learn")[1]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ("def plus_one(x): return x", "plus_one: not right: 2 should give 3, and gives 2\n  hint: Count.\n"),
        ("def plus_one(x): return plus_one(x)", "not right: it ended with RecursionError: maximum recursion"),
        ("def plus_one(x): exit()", "not right: it ended with SystemExit: it calls exit()"),
        ("plus_one = lambda: 1", "not right: it ended with TypeError"),
    ],
)
def test_a_wrong_answer_gives_the_reason_and_the_hint(cli: Any, tmp_path: Path, answers: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(answers + "\nprint('loaded')", encoding="utf-8")
    code, out, err = cli("learn", 1, "--check", "mine.py")
    assert code == 1 and said in out and not err
    code, out, err = cli("learn", 1, "--check", "mine.py", "--json")
    assert code == 1 and "loaded" in err
    (verdict,) = json.loads(out)["exercises"]
    assert verdict["name"] == "plus_one" and not verdict["right"] and verdict["problem"] in said + verdict["problem"]
    assert not (tmp_path / "__pycache__").exists()


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (None, "mine.py is not there"),
        ("def f(:", "mine.py cannot be imported: SyntaxError: invalid syntax (mine.py, line 1)"),
        ("raise ValueError('no')", "mine.py cannot be imported: ValueError: no"),
        ("exit()", "mine.py cannot be imported: SystemExit"),
        ("x = 1", "mine.py answers no exercise of lesson 1; it should define plus_one(), one_plus()"),
    ],
)
def test_a_file_of_answers_that_cannot_be_used(cli: Any, tmp_path: Path, answers: str | None, said: str) -> None:
    if answers is not None:
        (tmp_path / "mine.py").write_text(answers, encoding="utf-8")
    for options in ([], ["--json"]):
        code, out, err = cli("learn", 1, "--check", "mine.py", *options)
        assert (code, out) == (2, "") and said in err and err.count("error:") == 1


def test_a_notebook_has_the_cells_and_replaces_no_file(cli: Any, tmp_path: Path) -> None:
    pytest.importorskip("jupytext")
    code, out, err = cli("learn", 1, "--notebook", "a.ipynb")
    assert (code, out, err) == (0, "", "wrote a.ipynb\n")
    cells = json.loads((tmp_path / "a.ipynb").read_text(encoding="utf-8"))["cells"]
    assert [cell["cell_type"] for cell in cells] == ["markdown", "code"] * 2
    assert "".join(cells[1]["source"]) == 'a = 1\nprint("a is", a)'
    (tmp_path / "a.ipynb").write_text("mine", encoding="utf-8")
    code, _, err = cli("learn", 1, "--notebook", "a.ipynb")
    assert (code, err) == (2, "error: a.ipynb exists; choose another name\n")
    assert (tmp_path / "a.ipynb").read_text(encoding="utf-8") == "mine"
    assert json.loads(cli("learn", 1, "--notebook", "b.ipynb", "--json")[1])["notebook"] == "b.ipynb"


def test_without_jupytext_a_notebook_is_refused(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jupytext", None)
    code, _, err = cli("learn", 1, "--notebook", "a.ipynb")
    assert code == 2 and "[docs]'" in err and not (tmp_path / "a.ipynb").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([99], "there is no lesson 99; `glassgpt learn` lists those from 1 to 2"),
        ([0], "there is no lesson 0"),
        ([1, "--notebook", "a.txt"], "should end in .ipynb"),
        ([1, "--notebook", "new/a.ipynb"], "there is no folder new"),
        ([1, "--notebook", "a.ipynb", "--check", "b.py"], "exclude each other"),
        (["--check", "b.py"], "name the lesson: glassgpt learn N --check FILE"),
        (["--notebook", "a.ipynb"], "name the lesson: glassgpt learn N --notebook FILE"),
    ],
)
def test_mistakes_are_one_message(cli: Any, arguments: list[object], said: str) -> None:
    code, out, err = cli("learn", *arguments)
    assert (code, out) == (2, "") and said in err and err.count("error:") == 1


def test_the_json_of_a_lesson_has_its_cells_and_runs_nothing(cli: Any) -> None:
    lesson = json.loads(cli("learn", 2, "--json")[1])
    assert (lesson["number"], lesson["title"]) == (2, "it fails")
    assert lesson["cells"][0] == {"is_prose": True, "text": "# Lesson 2: it fails", "line": 2}
    assert lesson["cells"][1]["line"] == 7


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_ctrl_c_leaves_a_lesson_in_a_narrow_terminal(two_lessons: Path, tmp_path: Path) -> None:
    import fcntl
    import pty
    import termios

    program = (
        "import pathlib, sys; from glassgpt.learn import lesson; from glassgpt.cli.main import main\n"
        f"lesson.folder = lambda: pathlib.Path({str(two_lessons)!r}); sys.argv = ['glassgpt', 'learn', '1']; main()"
    )
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=terminal, stdout=terminal, stderr=terminal, cwd=tmp_path,
        env={**os.environ, "COLUMNS": "60"}, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # its own terminal, which sends Ctrl-C
    )  # fmt: skip
    os.close(terminal)
    output, prompts, ends = b"", 0, time.monotonic() + 60
    while time.monotonic() < ends:
        if not select.select([master], [], [], 5)[0]:  # Ctrl-C came just before input() began to wait, which ignores it
            os.write(master, b"\x03" if prompts == 2 else b"")
            continue
        try:
            output += os.read(master, 4096)
        except OSError:  # it has ended
            break
        if output.count(b"Enter runs it") > prompts:
            os.write(master, (b"\n", b"\x03")[prompts])
            prompts += 1
    os.close(master)
    assert process.wait(timeout=60) == 0, output
    shown = output.decode().replace("\r", "")
    assert "\na is 1" in shown and "\nthe sum is" not in shown
    assert "left lesson 1 before its end" in shown and "Traceback" not in shown and "Aborted" not in shown
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown[: shown.index("left lesson")])
    assert max(map(len, plain.splitlines())) <= 60 and "…" not in plain  # no cell of the table is cut off

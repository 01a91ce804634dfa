"""`glassgpt doctor`: what it prints and writes, its exit codes, and the page that explains it."""

import itertools
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from glassgpt.doctor.advice import ADVICE
from glassgpt.doctor.checks import MODEL_CHECKS
from glassgpt.doctor.examining import CHECKS
from glassgpt.doctor.page import report_page
from glassgpt.doctor.report import FINDINGS, Outcome, failed, passed
from glassgpt.learn.lesson import lessons
from glassgpt.model import GPT

DOCS = Path(__file__).parents[2] / "docs" / "doctor.md"
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)

SMALL = "n_layer=1 n_head=2 n_embd=16 block_size=16 batch_size=4 device=cpu dtype=float32 compile=false threads=1"


@pytest.fixture
def code(tmp_path: Path) -> Iterator[Path]:
    """The folder with the programs of the page, and one with a bug. They print when imported and when run."""
    for language, block in BLOCKS:
        if language == "python":
            name = block.splitlines()[0].removeprefix("# ")
            (tmp_path / name).write_text(block, encoding="utf-8")
    right = (tmp_path / "my_model.py").read_text(encoding="utf-8")
    leaky = right.replace("is_causal=True", "is_causal=False").replace(
        "B, T, C = x.shape", "print('x'); B, T, C = x.shape"
    )
    (tmp_path / "leaky.py").write_text("print('imported')\n" + leaky, encoding="utf-8")
    known, path = set(sys.modules), list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - known:
        if name in ("my_model", "my_loop", "leaky"):
            del sys.modules[name]


def test_a_failure_comes_with_the_numbers_the_causes_the_fix_and_the_lesson(cli: Any, code: Path) -> None:
    exit_code, out, err = cli("doctor", "leaky.py:make", "--only", "leak")
    assert exit_code == 1
    assert "imported" in err  # what foreign code prints stays out of the report
    assert "imported" not in out
    (start,) = [i for i, line in enumerate(out.splitlines()) if line.startswith("FAIL     past and future: leak: ")]
    below = itertools.takewhile(lambda line: line.startswith(" "), out.splitlines()[start + 1 :])
    entries = [line.split()[0] for line in below if re.match(r" {9}\w", line)]
    assert entries == ["module", "evidence", "meaning", "causes", "fix", "lesson"]
    assert "found: leak" in out
    assert "left out: " in out


def test_json_is_the_only_thing_on_standard_output(cli: Any, code: Path, tmp_path: Path) -> None:
    exit_code, out, _ = cli("doctor", "leaky.py:make", "--only", "past and future,reach", "--json", "--html", "a.html")
    assert exit_code == 1
    checks = json.loads(out)["checks"]
    assert {"name", "status", "finding", "module", "evidence", "message", "seconds"} == set(checks[0])
    assert [check["finding"] for check in checks if check["status"] == "FAIL"] == ["leak"]
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert 'class="triangle"' in page
    assert ADVICE["leak"].causes[0] in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("missing.py:make", "missing.py is not there"),
        ("my_model.py:mak", "it has: Block, GPT, make"),
        ("my_model.py:Block", "failed: TypeError"),
        ("my_model.py", "my_model.py:make"),
        ("nothing", "nothing"),
        ("my_model.py:make --only leek", "did you mean 'leak'?"),
        ("my_model.py:make --only accumulation", "give --loop"),
        ("my_model.py:make --html page.txt", "should end in .html"),
        ("--conversations chats.jsonl", "which model"),
        ("--loop my_loop", "names no factory"),
        ("exits.py:make", "it ends with sys.exit(3)"),
        ("--break no-mask", "; try no-"),
    ],
)
def test_a_mistake_is_one_message(cli: Any, code: Path, arguments: str, message: str) -> None:
    (code / "exits.py").write_text("raise SystemExit(3)", encoding="utf-8")
    exit_code, out, err = cli("doctor", *arguments.split())
    assert (exit_code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert "Traceback" not in err


def test_a_module_may_stand_in_the_place_of_its_factory(cli: Any, code: Path) -> None:
    (code / "made.py").write_text("from my_model import GPT\nmodel = GPT()\n", encoding="utf-8")
    assert cli("doctor", "made.py:model", "--only", "init,")[0] == 0


def test_an_interrupt_is_one_line(cli: Any, code: Path) -> None:
    (code / "slow.py").write_text("raise KeyboardInterrupt\n", encoding="utf-8")
    assert cli("doctor", "slow.py:make") == (130, "", "interrupted\n")


def test_every_check_is_listed_with_its_threshold(cli: Any) -> None:
    listed = json.loads(cli("doctor", "--list", "--json")[1])["checks"]
    assert [check["name"] for check in listed] == [check.name for checks in CHECKS.values() for check in checks]
    assert all(check[key] for check in listed for key in ("kind", "does", "cost", "threshold"))
    text = cli("doctor", "--list")[1]
    assert all(check["name"] in text for check in listed)


def test_names_of_checks_are_unique_and_every_class_of_bug_has_one() -> None:
    names = [check.name for checks in CHECKS.values() for check in checks]
    assert len(names) == len(set(names))
    assert {finding for checks in CHECKS.values() for check in checks for finding in check.findings} == set(FINDINGS)


def test_the_quiz_checks_guesses(cli: Any) -> None:
    assert cli("doctor", "--guess", "leak")[0] == 2
    assert "doctor-quiz/quiz.py has one bug" in cli("doctor", "--quiz")[1]
    answers = [json.loads(cli("doctor", "--guess", finding, "--json")[1])["right"] for finding in FINDINGS]
    assert sum(answers) == 1
    out = cli("doctor", "--guess", FINDINGS[answers.index(True)])[1]
    assert out.startswith("right: ")
    assert "--- right" in out
    exit_code, _, err = cli("doctor", "--guess", "leek")
    assert exit_code == 2
    assert "did you mean 'leak'?" in err


def test_every_class_of_bug_has_advice() -> None:
    assert tuple(ADVICE) == FINDINGS
    assert all(2 <= len(advice.causes) <= 3 and advice.fix for advice in ADVICE.values())
    assert {advice.lesson for advice in ADVICE.values()} <= {lesson.number for lesson in lessons()}


def test_the_page_of_results_escapes_what_it_shows() -> None:
    result = failed("leak", "<script>alert(1)</script>", "<b>", triangle=[[1.0, 0.5], [0.2, float("nan")]])
    rates = passed("fine", rates={"<i>": -0.5, "1": float("inf"), "2": None}, alignment={0: 0.0, 1: 0.0})
    check = MODEL_CHECKS[0]
    page = report_page("<x>", {"model <x>": [Outcome(check, result, 0.1), Outcome(check, rates, 0.1)]}, 0.2)
    assert not re.search("<script|<b>|<i>|<x>|https?:", page)


RIGHT = "glassgpt doctor my_model.py:make"


def shortened(line: str) -> list[str]:
    """The command with a smaller model, or with the quick checks; of models but the first, with two of them."""
    command = shlex.split(line)[1:]
    if command[0] == "train":
        return [*command, *SMALL.split(), "steps=4"]
    repeated = not command[1].startswith("-") and "--only" not in command and line != RIGHT
    return [*command, "--fast", "--seconds", "0", *(["--only", "reach"] if repeated else [])]


@pytest.mark.slow
@pytest.mark.usefixtures("quick_measuring")
def test_every_command_and_program_of_the_page_runs(cli: Any, code: Path, text_file: Path) -> None:
    (code / "my.txt").write_bytes(text_file.read_bytes())
    printed = {}
    for line in "".join(block for language, block in BLOCKS if language == "sh").splitlines():
        exit_code, printed[line], err = cli(*shortened(line))
        assert exit_code == 0, f"{line}: {printed[line]} {err}"
        assert "warning: doctor" not in err
    assert "model my_model.py:make: 30,656 parameters, vocabulary 65, context 32" in printed[RIGHT]
    assert "PASS     past and future: " in printed[RIGHT]
    assert not re.search("FAIL|WARN", printed[RIGHT])
    (broken,) = [text for line, text in printed.items() if "--break" in line]
    assert "the doctor looks for 'leak':\nFAIL " in broken


def test_the_page_has_every_class_of_bug_in_the_words_of_the_advice() -> None:
    rows = re.findall(r"^\| ([a-z -]+) \| (.*) \|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert [row for row in rows if row[0] in FINDINGS] == [(name, advice.meaning) for name, advice in ADVICE.items()]


@pytest.mark.usefixtures("quick_measuring")
def test_train_refuses_a_model_with_a_bug(
    cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = GPT.forward

    def sees_the_future(self: GPT, idx: torch.Tensor, **arguments: Any) -> torch.Tensor:
        output = forward(self, idx, **arguments)
        return output + 0.1 * output.mean(dim=1, keepdim=True)

    monkeypatch.setattr(GPT, "forward", sees_the_future)
    monkeypatch.setattr("glassgpt.doctor.before_training.MODEL_CHECKS", MODEL_CHECKS[:1])
    exit_code, _, err = cli("train", text_file, *SMALL.split(), "steps=2", "--name", "bad", "--doctor")
    assert exit_code == 1
    assert "the doctor found a bug before the first step" in err
    assert "leak (past and future)" in err
    assert not (tmp_path / "runs" / "bad" / "run.toml").exists()

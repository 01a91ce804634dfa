"""Tables and the progress line."""

import re
import sys

import pytest

from glassgpt.cli.printing import output


def test_wide_characters_keep_columns_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["a", "b"], [["你好", "x"], ["🦜", "x"], ["\x1b[1mab\x1b[0m", "x"], ["abcd", "x"]], right=(0,))
    assert capsys.readouterr().out == "   a  b\n你好  x\n  🦜  x\n  \x1b[1mab\x1b[0m  x\nabcd  x\n"


def test_progress_has_the_amount_the_rate_and_the_time_left_in_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    with output.ProgressLine() as progress:
        progress("loading", 5, 100)
        assert capsys.readouterr().err == "", "not a terminal"
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        progress("reading", 5, 100)
        assert capsys.readouterr().err == "", "too short to be shown"
        clock[0] += 1
        progress("merging", 10, 100)
        for clock[0], done in ((102.0, 20), (102.05, 25), (103.0, 30)):
            progress("merging", done, 100)
        shown = capsys.readouterr().err
        assert "10 of 100 merges" in shown and "25 of" not in shown, "ten times a second"
        assert re.search(r"merging \S+ +30 of 100 merges, 10 merges/s 0:00:07", shown), "what was there is no speed"
        progress("[b]text.txt", 4_000_000, 10_000_000)
        assert re.search(r"\[b\]text.txt \S+ +4.0 MB of 10.0 MB ", capsys.readouterr().err)
        print("a warning", file=sys.stderr)
        assert "a warning\n" in capsys.readouterr().err

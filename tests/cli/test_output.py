"""Tables and the progress line."""

import sys

import pytest

from glassgpt.cli.printing import output


def test_wide_characters_keep_columns_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["a", "b"], [["你好", "x"], ["🦜", "x"], ["\x1b[1mab\x1b[0m", "x"], ["abcd", "x"]], right=(0,))
    assert capsys.readouterr().out == "   a  b\n你好  x\n  🦜  x\n  \x1b[1mab\x1b[0m  x\nabcd  x\n"


def test_progress_has_the_rate_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr("glassgpt.cli.printing.output.time.monotonic", lambda: clock[0])
    with output.ProgressLine() as progress:
        progress("merging", 5, 100)
        assert capsys.readouterr().err == "", "not a terminal"
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        for clock[0], done in ((101.0, 10), (101.05, 15), (102.0, 40)):
            progress("merging", done, 100)
        progress("reading", 7, 0)
    start = "\r\x1b[K"
    assert capsys.readouterr().err == (
        f"{start}merging: 10 of 100 merges, 10%, 5 merges/s, 18 s left"
        f"{start}merging: 40 of 100 merges, 40%, 18 merges/s, 3 s left"
        f"{start}reading: 7 bytes{start}"
    )


def test_progress_in_bytes_counts_the_rate_without_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    clock = iter([0.0, 1.0, 2.0])
    monkeypatch.setattr(output, "show_line", shown.append)
    monkeypatch.setattr("glassgpt.cli.printing.output.time.monotonic", lambda: next(clock))
    progress = output.ProgressLine()
    for done in (4_000_000, 5_000_000, 6_000_000):  # 4 MB were there before
        progress("text.txt", done, 10_000_000)
    assert shown == [
        "text.txt: 4.0 MB of 10.0 MB, 40%",
        "text.txt: 5.0 MB of 10.0 MB, 50%, 1.0 MB/s, 5 s left",
        "text.txt: 6.0 MB of 10.0 MB, 60%, 1.0 MB/s, 4 s left",
    ]

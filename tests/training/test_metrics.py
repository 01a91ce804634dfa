"""metrics.jsonl: one row at a time, cut back to a step to the byte, and readable after a kill."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from glassgpt.training.metrics import MetricsLog, read_metrics


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


@pytest.fixture
def log(path: Path) -> MetricsLog:
    return MetricsLog(path)


def test_rows_come_back_as_they_went(log: MetricsLog, path: Path) -> None:
    rows = [
        (0, {"baseline/uniform": math.log(65)}),
        (10, {"train/loss": 1e-300, "note": "ä\n🦊\u2028"}),
        (10, {"n": 2**60}),
    ]
    for count, (step, values) in enumerate(rows, 1):
        log.append(step, values)
        assert len(path.read_bytes().splitlines()) == count  # on disk at once
    assert read_metrics(path) == [{"step": step, **values} for step, values in rows]
    content = path.read_bytes()
    assert b"\r" not in content and content.endswith(b"}\n") and content.isascii()
    assert all(next(iter(json.loads(line))) == "step" for line in content.splitlines())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_what_json_has_not_becomes_null(value: float, log: MetricsLog, path: Path) -> None:
    values = {"train/loss": value, "opt/adamw_lr": 0.5}
    log.append(3, values)
    assert path.read_text(encoding="utf-8") == '{"step": 3, "train/loss": null, "opt/adamw_lr": 0.5}\n'
    assert values["train/loss"] is value  # the caller's dict is left alone
    json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))


def test_cutting_keeps_earlier_rows_to_the_byte(log: MetricsLog, path: Path) -> None:
    for step in range(0, 60, 10):
        log.append(step, {"train/loss": 1 / (step + 3), "opt/grad_norm": math.nan if step == 20 else 0.1 + 0.2})
    lines = path.read_bytes().splitlines(keepends=True)
    for step, kept in ((999, 6), (50, 6), (49, 5), (20, 3), (0, 1), (-1, 0)):
        log.truncate_after(step)
        assert path.read_bytes() == b"".join(lines[:kept])
    assert [file.name for file in path.parent.iterdir()] == ["metrics.jsonl"]


def test_cut_and_written_again_equals_never_cut(log: MetricsLog, path: Path, tmp_path: Path) -> None:
    straight = MetricsLog(tmp_path / "straight.jsonl")
    for step in range(10):
        straight.append(step, {"train/loss": math.sin(step)})
    for step in range(8):
        log.append(step, {"train/loss": math.sin(step)})
    log.truncate_after(4)
    for step in range(5, 10):
        log.append(step, {"train/loss": math.sin(step)})
    assert path.read_bytes() == (tmp_path / "straight.jsonl").read_bytes()


def test_a_final_evaluation_goes_when_the_run_goes_on(log: MetricsLog, path: Path) -> None:
    log.append(10, {"val/loss": 2.0})
    log.append(10, {"final/val_loss": 1.9})
    log.truncate_after(10)
    assert read_metrics(path) == [{"step": 10, "val/loss": 2.0}]


@pytest.mark.parametrize("torn", ['{"step": 20, "train/lo', "{", '{"step": 2', '{"step": 20, "a": "\\ud8'])
def test_a_torn_last_line_is_passed_over_and_cut_away(torn: str, log: MetricsLog, path: Path) -> None:
    log.append(0, {"a": 1})
    log.append(10, {"a": 2})
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(torn.encode("ascii"))
    assert [row["step"] for row in read_metrics(path)] == [0, 10]
    log.truncate_after(10)
    assert path.read_bytes() == whole
    log.append(20, {"a": 3})
    assert [row["step"] for row in read_metrics(path)] == [0, 10, 20]


def test_a_line_torn_anywhere_is_passed_over(log: MetricsLog, path: Path) -> None:
    log.append(1, {"a": 1})
    first = path.read_bytes()
    log.append(20, {"train/loss": 1.25, "note": "ä"})
    whole = path.read_bytes()
    for end in range(len(first), len(whole) - 2):
        path.write_bytes(whole[:end])
        assert read_metrics(path) == [{"step": 1, "a": 1}]


def test_no_file_yet(log: MetricsLog, path: Path) -> None:
    assert read_metrics(path) == []
    log.truncate_after(5)
    assert read_metrics(path) == []


def test_a_log_without_a_file_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What all processes but the first have."""
    monkeypatch.chdir(tmp_path)
    silent = MetricsLog(None)
    silent.append(1, {"train/loss": 1.0})
    silent.truncate_after(0)
    silent.close()
    assert list(tmp_path.iterdir()) == []


def test_closing_leaves_the_rows_and_may_be_done_twice(log: MetricsLog, path: Path) -> None:
    log.append(1, {"a": 1})
    log.close()
    log.close()
    assert read_metrics(path) == [{"step": 1, "a": 1}]

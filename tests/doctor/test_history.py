"""The checks of a run's history: normal curves are silent, and each fault is named by its class."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glassgpt.doctor.history import HISTORY_CHECKS, History, load_history
from glassgpt.doctor.report import run_checks
from glassgpt.errors import CheckpointError

STEPS = 400
Rows = list[dict[str, Any]]


def normal(seed: int = 0, noise: float = 0.05, dropout_gap: float = 0.0, val_gap: float = 0.08) -> Rows:
    """The rows of a run on characters: warmup, decay, noise, ten validations."""
    rng = random.Random(seed)
    rows: Rows = [{"step": 0, "baseline/uniform": 4.2, "baseline/unigram": 3.3, "baseline/bigram": 2.5}]
    rows.append({"step": 0, "val/loss": 4.22})
    for step in range(2, STEPS + 1, 2):
        loss = 1.4 + 2.8 * math.exp(-step / 60) + dropout_gap
        rate = 1e-3 * min(1, step / 20) * (1 - 0.9 * step / STEPS)
        row = {
            "step": step, "train/loss": loss + rng.gauss(0, noise), "opt/grad_norm": 0.8 + rng.gauss(0, 0.05),
            "opt/adamw_lr": rate, "perf/tok_per_s": 10_000 + rng.gauss(0, 500), "perf/data_time_frac": 0.003,
        }  # fmt: skip
        rows.append(row)
        if step % 40 == 0:
            rows.append({"step": step, "val/loss": loss - dropout_gap + val_gap})
    return rows


def findings(rows: Rows, **facts: Any) -> dict[str, str]:
    """The findings of warnings and failures, with their status."""
    history = History("a run", rows, **{"clip": 1.0, "trained_before": False, **facts})
    results = [(outcome.check.name, outcome.result) for outcome in run_checks(HISTORY_CHECKS, history)]
    assert not [r for _, r in results if "the check ended with" in r.message]
    return {str(r.finding): r.status for _, r in results if r.status in ("WARN", "FAIL")}


@pytest.mark.parametrize("seed", range(5))
def test_normal_runs_are_silent(seed: int) -> None:
    assert not findings(normal(seed))
    assert not findings(normal(seed, noise=0.2)), "small batches"
    assert not findings(normal(seed, dropout_gap=0.15, val_gap=0.02)), "dropout: validation is better than training"
    assert not findings([row for row in normal(seed) if "baseline/uniform" not in row]), "no baselines"


def with_losses(change: Callable[[int, float], float | None], key: str = "train/loss") -> Rows:
    """A normal run whose losses are changed."""
    rows = normal()
    for row in rows:
        if key in row:
            row[key] = change(row["step"], row[key])
    return rows


def test_a_spike_is_warned_of_and_one_that_stays_fails() -> None:
    assert findings(with_losses(lambda step, loss: loss + 3.0 * (200 <= step <= 204))) == {"schedule": "WARN"}
    assert findings(with_losses(lambda step, loss: loss + 3.0 * (step >= 200)))["schedule"] == "FAIL"


def test_a_loss_that_rises_slowly_is_a_rate_too_high() -> None:
    rows = with_losses(lambda step, loss: loss + max(0, step - 100) * 0.004)
    rows = [
        {**row, "val/loss": row["val/loss"] + max(0, row["step"] - 100) * 0.004} if "val/loss" in row else row
        for row in rows
    ]
    assert findings(rows) == {"schedule": "FAIL"}


def test_a_loss_that_swings_only_where_the_rate_is_high_is_warned_of() -> None:
    rng = random.Random(1)
    assert findings(with_losses(lambda step, loss: loss + rng.gauss(0, 0.9) * (step < 300))) == {"schedule": "WARN"}


def test_losses_that_are_not_numbers_fail_and_skipped_steps_are_warned_of() -> None:
    assert findings(with_losses(lambda step, loss: None if step > 380 else loss)) == {"non-finite": "FAIL"}
    rows = [
        *normal(),
        {"step": 7, "event": "step 7: the gradient is not finite (first bad tensor: head); step skipped"},
    ]
    assert findings(rows) == {"non-finite": "WARN"}


def test_a_loss_that_stays_at_a_uniform_guess_has_no_update() -> None:
    rng = random.Random(2)
    assert findings(with_losses(lambda step, loss: 4.2 + rng.gauss(0, 0.02)))["no update"] == "FAIL"
    assert findings(with_losses(lambda step, rate: 0.0, "opt/adamw_lr"))["no update"] == "FAIL"


def test_overfitting_is_warned_of_and_a_small_rise_is_not() -> None:
    rises = {"schedule": "WARN"}
    assert findings(with_losses(lambda step, loss: loss + max(0, step - 200) * 0.003, "val/loss")) == rises
    assert not findings(with_losses(lambda step, loss: loss + max(0, step - 200) * 0.0003, "val/loss"))


def test_a_validation_loss_far_below_training_or_near_zero_is_a_data_leak() -> None:
    assert findings(with_losses(lambda step, loss: loss * 0.5 if step else loss, "val/loss")) == {"data leak": "FAIL"}
    rows = with_losses(lambda step, loss: 4.2 * math.exp(-step / 30) + 0.01)
    for row in rows:
        if "val/loss" in row:
            row["val/loss"] = 4.2 * math.exp(-row["step"] / 30) + 0.01
    assert findings(rows)["data leak"] == "FAIL"


def test_a_first_loss_far_from_a_uniform_guess() -> None:
    assert findings(with_losses(lambda step, loss: loss if step else 9.0, "val/loss"))["init"] == "FAIL"
    assert findings(with_losses(lambda step, loss: loss if step else 2.0, "val/loss"))["leak"] == "FAIL"
    rows = with_losses(lambda step, loss: loss if step else 2.0, "val/loss")
    assert not findings(rows, trained_before=True), "fine-tuning begins with a trained model"


def test_input_that_is_waited_for_and_gradients_that_are_cut_to_nothing() -> None:
    assert findings(with_losses(lambda step, share: 0.7, "perf/data_time_frac")) == {"device": "WARN"}
    assert findings(with_losses(lambda step, norm: 50.0, "opt/grad_norm")) == {"clipping": "WARN"}
    assert not findings(with_losses(lambda step, norm: 1.5, "opt/grad_norm")), "every gradient is clipped a little"


def test_histories_of_other_programs_and_files_without_any(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    names = {"train/loss": "loss", "val/loss": "val_loss", "opt/adamw_lr": "lr"}
    rows = [{names.get(key, key): value for key, value in row.items()} for row in normal()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    statuses = [outcome.result.status for outcome in run_checks(HISTORY_CHECKS, load_history(file))]
    assert set(statuses) == {"PASS"}
    with pytest.raises(CheckpointError, match="no rows of metrics"):
        load_history(tmp_path / "other.jsonl")

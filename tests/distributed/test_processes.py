"""Several processes, started by torchrun as a user would, against one process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glassgpt.errors import ConfigError
from glassgpt.processes import Processes
from glassgpt.training.checkpoint import Run

SETTINGS = (
    "preset=tiny-modern n_layer=2 n_head=2 n_embd=32 block_size=16 batch_size=7 micro_batch_size=2 sample_tokens=0"
)
SETTINGS += " steps=6 eval_interval=2 save_interval=3 log_interval=1 eval_tokens=400 keep_checkpoints=0"
SETTINGS += " dtype=float32 compile=false"


def torchrun(
    count: int, folder: Path, *arguments: str, program: tuple[str, ...] = ("-m", "glassgpt")
) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    plain = [sys.executable]
    command = [*(launcher if count > 1 else plain), *program, "train", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False, env=environment, timeout=240
    )


def rows(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith(("perf/", "time/"))} for row in run.metrics]


def assert_same_curve(found: Run, expected: Run) -> None:
    assert len(rows(found)) == len(rows(expected))
    for mine, theirs in zip(rows(found), rows(expected), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Path:
    """A folder with a text and a run by a single process."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "prose.txt").write_text(prose, encoding="utf-8")
    done = torchrun(1, folder, "prose.txt", *SETTINGS.split(), "--name", "one")
    assert done.returncode == 0, done.stderr
    return folder


def test_two_processes_train_as_one(one: Path) -> None:
    """Seven rows on two processes, two at a time: 3 and 4 rows, so passes are ragged too."""
    done = torchrun(2, one, "prose.txt", *SETTINGS.split(), "--name", "two")
    assert done.returncode == 0, done.stderr
    runs = one / "runs"
    assert sorted(path.name for path in runs.iterdir()) == ["one", "two"], "one process writes"
    assert_same_curve(Run(runs / "two"), Run(runs / "one"))
    assert done.stdout.count("validation loss ") == 1, "one process speaks"
    assert "processes 2" in done.stdout


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_two_processes_in_fewer_bits(one: Path, dtype: str) -> None:
    """Gradients are exchanged in that type, so the curves agree to its rounding."""
    settings = [*SETTINGS.split(), f"dtype={dtype}", "batch_size=8"]
    for count, name in ((1, f"one-{dtype}"), (2, f"two-{dtype}")):
        done = torchrun(count, one, "prose.txt", *settings, "--name", name)
        assert done.returncode == 0, done.stderr
    single, double = (Run(one / "runs" / f"{name}-{dtype}") for name in ("one", "two"))
    expected = [row["val/loss"] for row in rows(single) if "val/loss" in row]
    assert [row["val/loss"] for row in rows(double) if "val/loss" in row] == pytest.approx(expected, rel=0.005)


def test_a_run_goes_on_with_another_number_of_processes(one: Path) -> None:
    """Two processes begin, one goes on, two finish; the sequence is that of the run by one."""
    settings = [*SETTINGS.split(), "steps=9", "warmup_steps=1", "ema=0.9"]
    whole = torchrun(1, one, "prose.txt", *settings, "--name", "whole")
    assert whole.returncode == 0, whole.stderr
    begun = torchrun(2, one, "prose.txt", *settings, "keep_checkpoints=9", "--name", "mixed")
    assert begun.returncode == 0, begun.stderr
    run = Run(one / "runs" / "mixed")
    cut_back(run, 3)
    done = torchrun(1, one, "--resume", "mixed")
    assert done.returncode == 0, done.stderr
    assert_same_curve(run, Run(one / "runs" / "whole"))
    cut_back(run, 6)
    done = torchrun(2, one, "--resume", "mixed")
    assert done.returncode == 0, done.stderr
    assert_same_curve(run, Run(one / "runs" / "whole"))


def cut_back(run: Run, step: int) -> None:
    """Make it a run that was killed after a step: as if the numbered checkpoint were the last."""
    shutil.rmtree(run.last)
    shutil.copytree(run.path / f"step-{step:06d}", run.last)
    for later in run.numbered():
        if int(later.name.removeprefix("step-")) > step:
            shutil.rmtree(later)
    metrics = run.path / "metrics.jsonl"
    kept = [line for line in metrics.read_text(encoding="utf-8").splitlines() if json.loads(line)["step"] <= step]
    metrics.write_text("\n".join(kept) + "\n", encoding="utf-8")


def test_a_mistake_stops_every_process_with_one_message(one: Path) -> None:
    done = torchrun(2, one, "prose.txt", "preset=tiny", "batch_size=1", "steps=2")
    assert done.returncode != 0
    assert done.stderr.count("error: train.batch_size: 1 sequences cannot be shared by 2 processes") == 1
    assert "glassgpt/api.py" not in done.stderr, "no traceback of ours; torchrun prints its own"


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("batch", [7, 8, 64])
def test_shares_are_even_and_cover_the_batch(count: int, batch: int) -> None:
    shares = [list(range(batch))[Processes(rank, count).share(batch)] for rank in range(count)]
    assert [row for share in shares for row in share] == list(range(batch))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_processes_than_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 sequences cannot be shared by 4 processes"):
        Processes(0, 4).share(3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_runs_of_two_processes_all_end_well(one: Path) -> None:
    """A process that leaves while another works, or with a thread of gloo that still runs, can abort at its exit."""
    small = "preset=tiny-modern n_layer=1 n_head=1 n_embd=16 block_size=16 batch_size=2 micro_batch_size=1 steps=2"
    small += " sample_tokens=0 eval_interval=2 eval_tokens=32 keep_checkpoints=0 dtype=float32 compile=false"
    for number in range(50):
        done = torchrun(2, one, "prose.txt", *small.split(), "--name", "many")
        assert (done.returncode, done.stderr.count("terminate called")) == (0, 0), f"run {number}: {done.stderr}"


ON_A_MACHINE_TWICE_AS_FAST = """
from glassgpt.cli.main import main
from glassgpt.planning import run_plan, timing
from glassgpt.training.metrics import SpeedCheck

timing.measure_steps = lambda *_, **__: timing.Timing(1.0, 1e-9)
SpeedCheck.median = lambda self: 2 * self.predicted
refit = run_plan.RunPlan.refit
run_plan.RunPlan.refit = lambda plan, step, speed, _: refit(plan, step, speed, 20.0)
main()
"""


@pytest.mark.slow
def test_a_refit_is_the_same_in_all_processes(one: Path) -> None:
    """Rank 0 knows the prediction and decides; both processes then stop at the same step, and resume with it."""
    (one / "faster.py").write_text(ON_A_MACHINE_TWICE_AS_FAST, encoding="utf-8")
    settings = SETTINGS.replace("steps=6 eval_interval=2", "time=30s")
    for count, name in ((1, "fitted"), (2, "fitted-by-two")):
        arguments = ("prose.txt", *settings.split(), "--name", name)
        done = torchrun(count, one, *arguments, program=("faster.py",))
        assert done.returncode == 0, done.stderr
        assert "steps instead of" in done.stdout + done.stderr
    alone, by_two = Run(one / "runs" / "fitted"), Run(one / "runs" / "fitted-by-two")
    assert by_two.config() == alone.config() and alone.metrics[-1]["step"] == alone.config().train.steps
    assert by_two.provenance()["refit"] == alone.provenance()["refit"]
    assert_same_curve(by_two, alone)

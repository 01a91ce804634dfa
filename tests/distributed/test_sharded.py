"""Nothing deadlocks and nothing differs when the weights are sharded: FSDP2 on two processes against one process."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from glassgpt.config import parse_overrides
from glassgpt.planning import opening, run_plan
from glassgpt.training.checkpoint import Run
from glassgpt.weights.folder import read_tensors

pytestmark = pytest.mark.usefixtures("quick_measuring")
SETTINGS = "n_layer=2 n_head=2 n_embd=32 block_size=16 batch_size=8 micro_batch_size=2 steps=4 eval_interval=2"
SETTINGS += " save_interval=2 log_interval=1 sample_tokens=5 sample_interval=2 optimizer=adamw dtype=float32"
SETTINGS += " compile=false eval_tokens=1000 keep_every=3"


def test_sharded_weights_train_validate_sample_and_save_as_one_process(tmp_path: Path, text_file: Path) -> None:
    script, ended, runs = Path(__file__).with_name("sharded.py"), [], []
    plan = run_plan.plan_run("tiny-modern", [parse_overrides([*SETTINGS.split(), f"source={text_file}"])])
    for count in (1, 2):
        runs.append(opening.start_run(plan, str(count), tmp_path).run)
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
        done = subprocess.run(
            [sys.executable, *launcher, str(script), str(runs[-1].path)], capture_output=True, text=True, check=False,
            timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        ended.append([float(loss) for loss in re.findall(r"ended with ([\d.]+)", done.stdout)])
    assert len(ended[1]) == 2
    assert ended[1][0] == ended[1][1] == pytest.approx(ended[0][0], rel=1e-6), "every rank has the same result"
    one, two = (losses(run) for run in runs)
    assert len(one) == 8
    assert two == pytest.approx(one, rel=1e-5)
    for name in ("best", "last", "step-000002", "kept/step-000000", "kept/step-000003", "kept/step-000004"):
        mine, theirs = (read_tensors(run.path / name / "model.safetensors") for run in runs)
        for key, tensor in mine.items():
            torch.testing.assert_close(theirs[key], tensor, rtol=1e-4, atol=1e-5)
    states = [read_tensors(run.last / "trainer" / "optimizer.safetensors") for run in runs]
    assert {name: t.shape for name, t in states[0].items()} == {name: t.shape for name, t in states[1].items()}


def losses(run: Run) -> list[float]:
    return [row[key] for row in run.metrics for key in ("train/loss", "val/loss", "final/val_loss") if key in row]

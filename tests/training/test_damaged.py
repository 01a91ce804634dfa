"""One damaged file: the run is reported as broken, other runs are not affected, and a resume finds what is whole."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from glassgpt import api
from glassgpt.config import parse_overrides
from glassgpt.errors import CheckpointError, TrainingStopped
from glassgpt.planning import opening, run_plan
from glassgpt.training.checkpoint import Run
from glassgpt.training.loop import Trainer
from glassgpt.training.metrics import Reporter
from glassgpt.weights.folder import CHECKSUMS, _write_checksums, read_tensors, write_json

pytestmark = pytest.mark.usefixtures("quick_measuring")
SETTINGS = (
    "n_layer=1 n_head=2 n_embd=32 block_size=16 batch_size=4 steps=6 sample_tokens=0 eval_tokens=64 eval_interval=2"
)
SETTINGS += " save_interval=2 keep_checkpoints=2 dtype=float32 compile=false"


def start(folder: Path, text: Path, *extra: str, reporter: Reporter | None = None) -> Trainer:
    settings = [*SETTINGS.split(), f"source={text}", *extra]
    plan = run_plan.plan_run("tiny", [parse_overrides(settings)])
    return opening.start_run(plan, "whole", folder, reporter=reporter)


def write(path: Path, content: str | bytes) -> None:
    """Replace a file that may share its content with another checkpoint."""
    path.unlink()
    path.write_bytes(content.encode() if isinstance(content, str) else content)


BROKEN = {
    "metrics.jsonl": [
        "[1, 2]\n",
        '"x"\n{}\n',
        '{"step": 1.5}\n',
        '{"step": 1, "val/loss": "low"}\n',
        b"\xff\x80\n\x00\n",
    ],
    "run.toml": ["", "preset = 3\n", b"\xff\xfe", "[model]\nn_layer = 1\n", "provenance = 3\n"],
}


def test_a_damaged_run_is_listed_as_broken_and_the_others_as_ever(tmp_path: Path, text_file: Path, cli: Any) -> None:
    whole = start(tmp_path / "runs", text_file).train().run
    for file, contents in BROKEN.items():
        for number, content in enumerate(contents):
            copy = shutil.copytree(whole.path, tmp_path / "runs" / f"{file}-{number}")
            write(copy / file, content)
    code, out, err = cli("runs", "list", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0 and len(rows) == 11
    assert rows.pop("whole")["best validation"] == whole.best_loss()
    for name, row in rows.items():
        assert name.split("-")[0] in row["broken"], row
    for name in ("metrics.jsonl-0", "run.toml-0"):
        for verb in (["runs", "show"], ["train", "--resume"], ["runs", "compare", "whole"]):
            code, _, err = cli(*verb, name)
            assert (code, err.count("\n")) == (2, 1), (verb, err)
    assert cli("plot", "metrics.jsonl-0")[0] == 2
    assert "(broken)" in cli("runs", "list")[1]
    assert cli("sample", "-n", "3")[0] == 0, "the newest run that can be read"


class Warnings(Reporter):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def lose_sums(folder: Path) -> None:
    (folder / CHECKSUMS).unlink()


def lose_state(folder: Path) -> None:
    shutil.rmtree(folder / "trainer")
    _write_checksums(folder)


def other_state(folder: Path) -> None:
    write(folder / "trainer" / "state.json", '{"schema_version": 1, "step": "six"}')
    _write_checksums(folder)


def random_sums(folder: Path) -> None:
    write(folder / CHECKSUMS, b"\xff\x00")


def test_a_resume_starts_from_the_newest_checkpoint_that_is_whole(tmp_path: Path, text_file: Path) -> None:
    whole = start(tmp_path, text_file).train().run
    damages: list[Callable[[Path], None]] = [lose_sums, lose_state, other_state, random_sums]
    for damage in damages:
        run = Run(shutil.copytree(whole.path, tmp_path / damage.__name__))
        damage(run.last)
        damage(run.path / "step-000006")
        reporter = Warnings()
        assert opening.resume_run(run.path, reporter=reporter).state.step == 4, damage
        assert [run.last.name in warning for warning in reporter.warnings] == [True]
        damage(run.path / "step-000004")
        with pytest.raises(CheckpointError, match=r"no checkpoint of .* is valid"):
            opening.resume_run(run.path)
        lose_sums(run.best)
        with pytest.raises(CheckpointError, match=r"SHA256SUMS is missing"):
            api.load(run.path)


@pytest.mark.parametrize("damage", ["no loss", "no folder"])
def test_a_lost_best_is_replaced_on_resume(tmp_path: Path, text_file: Path, damage: str) -> None:
    run = start(tmp_path, text_file).train().run
    if damage == "no folder":
        shutil.rmtree(run.best)
    else:
        write(run.best / "validation.json", "{}")
        _write_checksums(run.best)
    result = api.resume(run.path, parse_overrides(["steps=8"]))
    assert result.step == 8 and result.final is not None
    assert run.best_loss() is not None


class Poison(Reporter):
    """Makes a weight NaN after step 3."""

    trainer: Trainer

    def on_step(self, event: Any) -> None:
        if event.step == 3:
            with torch.no_grad():
                self.trainer.model.final_norm.weight.fill_(torch.nan)


@pytest.mark.parametrize("settings", ["eval_interval=4 save_interval=2", "eval_interval=6 save_interval=2"])
def test_a_weight_that_is_not_finite_stops_the_run_and_is_never_saved(
    tmp_path: Path, text_file: Path, settings: str
) -> None:
    reporter = Poison()
    reporter.trainer = start(tmp_path, text_file, *settings.split(), reporter=reporter)
    with pytest.raises(TrainingStopped, match=r"step 4: .*final_norm.weight.*last is from before.*--resume"):
        reporter.trainer.train()
    run = Run(tmp_path / "whole")
    for folder in (run.best, run.last, run.path / "step-000002"):
        assert all(tensor.isfinite().all() for tensor in read_tensors(folder / "model.safetensors").values())
    assert opening.resume_run(run.path).state.step == 2
    assert "NaN" not in (run.path / "metrics.jsonl").read_text(encoding="utf-8")


def test_json_files_hold_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})

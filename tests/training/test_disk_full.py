"""A file that cannot be written: one message, the last checkpoint stays whole, temporary files go.

The largest size of a file is limited, so that writes fail as on a full disk.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glassgpt import api
from glassgpt.config import parse_overrides
from glassgpt.errors import ConfigError, TrainingStopped
from glassgpt.planning import opening, run_plan
from glassgpt.training.checkpoint import Run, create_run
from glassgpt.training.metrics import Reporter
from glassgpt.weights.folder import verify

pytestmark = [
    pytest.mark.usefixtures("quick_measuring"),
    pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE"),
]
SETTINGS = (
    "n_layer=1 n_head=2 n_embd=32 block_size=16 batch_size=4 steps=6 sample_tokens=0 eval_tokens=64 eval_interval=2"
)
SETTINGS += " save_interval=2 dtype=float32 compile=false"


@contextlib.contextmanager
def full_disk(size: int = 4000) -> Iterator[None]:
    """No file can grow beyond that many bytes."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def plan_of(text: Path, *extra: str) -> run_plan.RunPlan:
    return run_plan.plan_run("tiny", [parse_overrides([*SETTINGS.split(), f"source={text}", *extra])])


def temporary_files(folder: Path) -> list[Path]:
    return [*folder.rglob(".*"), *folder.rglob("*.tmp")]


class FullAfter(Reporter):
    """The disk is full after step 4."""

    def __init__(self, limits: contextlib.ExitStack, size: int):
        self.limits, self.size = limits, size

    def on_step(self, event: Any) -> None:
        if event.step == 5:
            self.limits.enter_context(full_disk(self.size))


@pytest.mark.parametrize(("size", "file"), [(4000, "best|last"), (100, "metrics.jsonl")])
def test_training_stops_with_one_message_and_a_whole_checkpoint(
    tmp_path: Path, text_file: Path, size: int, file: str
) -> None:
    extra = ["log_interval=1" if size == 100 else "log_interval=100"]
    with contextlib.ExitStack() as limits:
        trainer = opening.start_run(plan_of(text_file, *extra), "run", tmp_path, reporter=FullAfter(limits, size))
        with pytest.raises(TrainingStopped, match=rf"({file}): File too large; .*last is from before: resume with"):
            trainer.train()
    run = Run(tmp_path / "run")
    verify(run.last, required=True)
    verify(run.best, required=True)
    assert temporary_files(run.path) == []
    assert api.resume(run.path).step == 6


def test_every_writer_says_so_in_one_line_and_leaves_nothing(tmp_path: Path, text_file: Path, cli: Any) -> None:
    run = opening.start_run(plan_of(text_file), "run", tmp_path / "runs").train().run
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text(encoding="utf-8")[::-1], encoding="utf-8")
    verbs = [
        ["export", run.path, "--to", "hf", "-o", tmp_path / "hf"],
        ["pull", run.path, "-o", tmp_path / "pulled"],
        ["data", "prepare", other, "-o", tmp_path / "corpus"],
        ["data", "show", other],
        ["plot", run.path, "-o", tmp_path / "curve.png"],
        ["tokenizer", "train", other, "bpe:400", "-o", tmp_path / "tokenizer"],
    ]
    for verb in verbs:
        before = set(tmp_path.rglob("*"))
        with full_disk():
            code, out, err = cli(*verb)
        assert code in (1, 2) and err.count("\n") == 1 and "File too large" in err, (verb, out, err)
        left = {path.name for path in set(tmp_path.rglob("*")) - before if path.is_file()}
        assert left <= {"plan.json", "tokenizer.json", "tokenizer_config.json"}, verb  # of the corpus


def test_a_run_that_cannot_be_begun_leaves_no_folder(tmp_path: Path, text_file: Path) -> None:
    plan = plan_of(text_file)
    with full_disk(100), pytest.raises(ConfigError, match=r"cannot create a run in .*File too large"):
        create_run(tmp_path / "runs", "run", plan.config, {})
    assert list((tmp_path / "runs").iterdir()) == []

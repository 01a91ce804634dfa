"""One process at a time writes a run or a corpus; another is refused by name; readers need no lock."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from glassgpt import api, data
from glassgpt.config import DataConfig, parse_overrides
from glassgpt.errors import CheckpointError, DataError
from glassgpt.files import exclusive_lock
from glassgpt.planning import opening, run_plan

HOLDER = """
import sys, time
from pathlib import Path
from glassgpt.files import exclusive_lock

with exclusive_lock(Path(sys.argv[1]), RuntimeError):
    print("locked", flush=True)
    time.sleep(100)
"""


def hold(lock: Path) -> subprocess.Popen[str]:
    """Start a process that holds a lock until it is killed."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
    return holder


@pytest.mark.usefixtures("quick_measuring")
def test_a_run_has_one_writer_and_any_reader(tmp_path: Path, text_file: Path) -> None:
    settings = "n_layer=1 n_head=2 n_embd=32 block_size=16 batch_size=4 steps=2 sample_tokens=0 eval_tokens=64"
    settings += f" dtype=float32 compile=false source={text_file}"
    plan = run_plan.plan_run("tiny", [parse_overrides(settings.split())])
    run = opening.start_run(plan, "run", tmp_path).train().run
    before = (run.path / "metrics.jsonl").read_bytes()
    with hold(run.path / ".lock") as holder:
        named = rf"another process is training .*run \(process {holder.pid} on .*, since 20"
        with pytest.raises(CheckpointError, match=named):
            api.resume(run.path, parse_overrides(["steps=4"]))
        assert (run.path / "metrics.jsonl").read_bytes() == before
        assert [found.name for found in api.list_runs(tmp_path)] == ["run"]
        api.load(run.path)
        holder.kill()
    assert api.resume(run.path, parse_overrides(["steps=4"])).step == 4, "the lock of a dead process is free"
    assert not list(run.path.glob(".*"))
    with pytest.raises(CheckpointError, match="cannot resume with changed settings"):
        api.resume(run.path, parse_overrides(["n_layer=2"]))
    with run.lock():  # a failure has released it
        pass


def test_a_file_system_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with exclusive_lock(tmp_path / "lock", DataError):
        pass


def test_a_corpus_has_one_writer(tmp_path: Path, text_file: Path, empty_cache: Path) -> None:
    config, folder = DataConfig(source=str(text_file)), tmp_path / "corpus"
    source = data.find_source(config)
    folder.mkdir()
    with hold(folder / ".lock") as holder:
        with pytest.raises(DataError, match=rf"another process is preparing .*corpus \(process {holder.pid} on "):
            data.prepare(source, config, folder=folder)
        assert {path.name for path in folder.iterdir()} == {".lock", ".lock.holder"}
        os.kill(holder.pid, 9)
    assert data.prepare(source, config, folder=folder).info.tokens["train"] > 0
    data.open_stream(folder)

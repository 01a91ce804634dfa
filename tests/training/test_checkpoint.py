"""Checkpoints survive a death at any moment, and carry the same names however a run was trained."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from glassgpt.config import parse_overrides
from glassgpt.training import setup
from glassgpt.training.checkpoint import Run, create_run

# A process that forks children which save in a loop, kills each at a random moment, and then loads.
KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)  # children of a process with threads of its own could hang
from glassgpt.config import ModelConfig, OptimConfig
from glassgpt.model import GPT
from glassgpt.tokenizer import CharTokenizer
from glassgpt.training.checkpoint import Run, TrainState, keep_numbered, load_checkpoint, save_checkpoint
from glassgpt.training.optim import Optimizers

run, kills = Run(Path(sys.argv[1])), int(sys.argv[2])
model = GPT(ModelConfig(vocab_size=3, block_size=8, n_layer=1, n_head=1, n_embd=16))
model.init_weights(0)
optimizers, tokenizer = Optimizers(model, OptimConfig()), CharTokenizer(list("abc"))
model(torch.zeros(1, 8, dtype=torch.long)).sum().backward()
optimizers.step(1.0)
chance = random.Random(1)
step = 0
for kill in range(kills):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        while True:
            step += 1
            with torch.no_grad():
                model.final_norm.bias.fill_(step)
            save_checkpoint(run.last, model, tokenizer, optimizers, TrainState(step=step), native=False)
            keep_numbered(run, step, keep=2)
            os.write(writer, step.to_bytes(4, "little"))
    if kill == 0:
        os.read(reader, 4)  # let there be one checkpoint
    time.sleep(chance.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(writer)
    told = b"".join(iter(lambda: os.read(reader, 4096), b""))
    os.close(reader)
    acknowledged = max([step] + [int.from_bytes(told[i:i + 4], "little") for i in range(0, len(told), 4)])
    newest = run.latest_checkpoint()
    assert newest is not None, "no checkpoint is whole"
    state = load_checkpoint(newest, model, optimizers)
    assert state.step >= acknowledged, f"step {state.step} loaded, {acknowledged} had been saved"
    assert model.final_norm.bias[0] == state.step, "weights and state are of one step"
    assert not list(run.path.glob(".*")), "leftovers are cleaned up"
    step = state.step
print("kills", kills, "steps", step)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_hundred_kills_during_saving(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path), "100"], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 10, "the children did get to save"


TINY = "n_layer=1 n_head=2 n_embd=32 block_size=16 batch_size=4 steps=2 sample_tokens=0 eval_tokens=64"


def keys_of(run: Run) -> dict[str, set[str]]:
    files = {
        "weights": run.last / "model.safetensors",
        "best": run.best / "model.safetensors",
        "optimizer": run.last / "trainer" / "optimizer.safetensors",
    }
    found = {}
    for name, path in files.items():
        with safe_open(path, framework="pt") as file:
            found[name] = set(file.keys())
    return found


def train(folder: Path, text: Path, *settings: str, **environment: str) -> tuple[Run, str]:
    """Train in a process of its own; the run, and what it said on standard error."""
    command = [
        sys.executable,
        "-m",
        "glassgpt",
        "train",
        str(text),
        *TINY.split(),
        *settings,
        "--runs-dir",
        str(folder),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", env=os.environ | environment, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Run(folder / text.stem), done.stderr


def test_plain_accumulated_and_compiled_runs_write_the_same_names(tmp_path: Path, text_file: Path) -> None:
    plain = keys_of(train(tmp_path / "plain", text_file, "preset=tiny")[0])
    assert not [key for keys in plain.values() for key in keys if "_orig_mod" in key or "module." in key]
    assert keys_of(train(tmp_path / "accumulated", text_file, "preset=tiny", "micro_batch_size=1")[0]) == plain
    compiled, said = train(tmp_path / "compiled", text_file, "preset=tiny", "compile=true")
    assert "torch.compile" not in said
    assert keys_of(compiled) == plain


def test_a_compiler_that_fails_is_gone_without(tmp_path: Path, text_file: Path) -> None:
    broken = {"CXX": "/bin/false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}
    run, said = train(tmp_path, text_file, "preset=tiny", "compile=true", **broken)
    assert said.count("torch.compile does not work here") == 1
    assert len(said.splitlines()) == 1
    plain, _ = train(tmp_path / "plain", text_file, "preset=tiny")
    assert (run.last / "model.safetensors").read_bytes() == (plain.last / "model.safetensors").read_bytes()


def test_a_run_is_never_overwritten(tmp_path: Path, text_file: Path) -> None:
    config = setup.plan("tiny", [parse_overrides([*TINY.split(), f"source={text_file}"])]).config
    names = [create_run(tmp_path, "same", config, {}).name for _ in range(3)]
    assert names == ["same", "same-2", "same-3"]

"""Checkpoints survive a death at any moment, and carry the same names however a run was trained."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

from glassgpt import api
from glassgpt.config import ModelConfig, OptimConfig, TrainConfig, parse_overrides
from glassgpt.errors import CheckpointError
from glassgpt.model import GPT
from glassgpt.planning import opening, run_plan
from glassgpt.tokenizer import CharTokenizer
from glassgpt.training.checkpoint import CheckpointWriter, Run, TrainState, create_run, load_training_state
from glassgpt.training.metrics import Reporter
from glassgpt.training.optim import Optimizers
from glassgpt.weights.folder import read_tensors

pytestmark = pytest.mark.usefixtures("quick_measuring")

# A process that forks children which save in a loop, kills each at a random moment, and then loads.
KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)  # children of a process with threads of its own could hang
from glassgpt.config import ModelConfig, OptimConfig, TrainConfig
from glassgpt.model import GPT
from glassgpt.tokenizer import CharTokenizer
from glassgpt.training.checkpoint import CheckpointWriter, Run, TrainState, load_training_state
from glassgpt.training.optim import Optimizers
from glassgpt.weights.folder import load_weights

run, kills = Run(Path(sys.argv[1])), int(sys.argv[2])
model = GPT(ModelConfig(vocab_size=3, block_size=8, n_layer=1, n_head=1, n_embd=16))
model.init_weights(0)
optimizers, tokenizer = Optimizers(model, OptimConfig()), CharTokenizer(list("abc"))
model(torch.zeros(1, 8, dtype=torch.long)).sum().backward()
optimizers.step(1.0)
chance = random.Random(1)


def writer_of(model, optimizers):
    config = TrainConfig(steps=10**9, save_interval=1, keep_checkpoints=2)
    return CheckpointWriter(run, model, optimizers, tokenizer, config)


step = 0
for kill in range(kills):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        while True:
            step += 1
            with torch.no_grad():
                model.final_norm.bias.fill_(step)
            writer_of(model, optimizers).save_kept(TrainState(step=step % 3))  # often the same folder
            writer_of(model, optimizers).save_last(TrainState(step=step))
            os.write(writer, step.to_bytes(4, "little"))
    if kill == 0:
        began = time.monotonic()
        os.read(reader, 4)  # let there be one checkpoint
        took = time.monotonic() - began  # by how fast the disk is
    time.sleep(chance.uniform(0, max(0.1, min(0.3, 2 * took))))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(writer)
    told = b"".join(iter(lambda: os.read(reader, 4096), b""))
    os.close(reader)
    acknowledged = max([step] + [int.from_bytes(told[i:i + 4], "little") for i in range(0, len(told), 4)])
    newest = run.recover_and_find_latest()
    assert newest is not None, "no checkpoint is whole"
    load_weights(newest, model)
    state = load_training_state(newest, optimizers)
    assert state.step >= acknowledged, f"step {state.step} loaded, {acknowledged} had been saved"
    assert model.final_norm.bias[0] == state.step, "weights and state are of one step"
    assert not list(run.path.rglob(".*")), "leftovers are cleaned up"
    for kept in run.kept().values():
        load_weights(kept, GPT(model.config))
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
TINY += " dtype=float32 compile=false"


def names_in(run: Run) -> dict[str, dict[str, tuple[str, list[int]]]]:
    """The tensors of each file by name: their types and shapes."""
    files = {
        "weights": run.last / "model.safetensors",
        "best": run.best / "model.safetensors",
        "optimizer": run.last / "trainer" / "optimizer.safetensors",
    }
    found = {}
    for name, path in files.items():
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  (it is no dict)
            found[name] = {key: (slice.get_dtype(), slice.get_shape()) for key, slice in slices.items()}
    return found


def trained(folder: Path, text: Path, *settings: str) -> Run:
    """A finished run of six steps."""
    given = [*TINY.split(), f"source={text}", "steps=6", "eval_interval=2", *settings]
    return opening.start_run(run_plan.plan_run("tiny", [parse_overrides(given)]), "run", folder).train().run


def test_models_by_step_names_each_complete_folder_once(tmp_path: Path, text_file: Path) -> None:
    run = trained(tmp_path, text_file, "save_interval=2", "keep_every=3")
    assert [path.relative_to(run.path).as_posix() for path in run.models_by_step().values()] == [
        "kept/step-000000", "kept/step-000003", "step-000004", "kept/step-000006",
    ]  # fmt: skip
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 5; those there are: 0, 3, 4, 6\. keep_every=N"):
        run.at_step(5)
    kept, last = (read_tensors(path / "model.safetensors") for path in (run.at_step(6), run.last))
    assert all(torch.equal(kept[name], last[name]) for name in last)
    (run.at_step(6) / "SHA256SUMS").unlink()
    assert run.at_step(6) == run.path / "step-000006"


def test_nothing_is_kept_unless_asked(tmp_path: Path, text_file: Path) -> None:
    run = trained(tmp_path, text_file, "save_interval=4")
    assert not (run.path / "kept").exists()
    best = json.loads((run.best / "validation.json").read_text(encoding="utf-8"))["step"]
    assert {path.name for path in run.models_by_step().values()} == {"step-000004", "step-000006"} | (
        {"best"} if best < 4 else set()
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kept_weights_open_in_transformers_with_equal_logits(dtype: str, tmp_path: Path, text_file: Path) -> None:
    run = trained(tmp_path, text_file, "keep_every=3", f"dtype={dtype}")
    for folder in run.kept().values():
        weights = read_tensors(folder / "model.safetensors").values()
        assert {tensor.dtype for tensor in weights} == {torch.float32}
        assert dtype == "float32" or any((tensor != tensor.bfloat16()).any() for tensor in weights)
        model, tokenizer = api.load(folder, device="cpu")
        idx = torch.arange(16)[None] % tokenizer.vocab_size
        with torch.no_grad():
            theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)(idx).logits
            torch.testing.assert_close(model(idx), theirs, rtol=1e-5, atol=1e-5)


def test_a_resume_deletes_what_was_kept_after_the_step_that_it_begins_at(tmp_path: Path, text_file: Path) -> None:
    run = trained(tmp_path, text_file, "save_interval=4", "keep_every=2")
    shutil.rmtree(run.last)
    shutil.rmtree(run.path / "step-000006")
    result = opening.resume_run(run.path, parse_overrides(["steps=9", "keep_every=7"])).train()
    assert (result.step, list(run.kept())) == (9, [0, 2, 4, 7, 9])


class Warned(Reporter):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def train(folder: Path, text: Path, *settings: str) -> Run:
    """Train without a warning."""
    reporter = Warned()
    plan = run_plan.plan_run("tiny", [parse_overrides([*TINY.split(), f"source={text}", *settings])])
    run = opening.start_run(plan, "prose", folder, reporter=reporter).train().run
    assert reporter.warnings == []
    return run


def train_without_a_compiler(folder: Path, *arguments: str) -> tuple[str, str]:
    """Train in a process of its own that has a compiler which fails: what it said on standard output and error."""
    broken = {"CXX": "/bin/false", "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")}
    command = [sys.executable, "-m", "glassgpt", "train", *arguments, "--runs-dir", str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", env=os.environ | broken, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def weights(run: Run) -> bytes:
    return (run.last / "model.safetensors").read_bytes()


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_however_a_run_was_trained_its_files_have_the_same_names_types_and_shapes(
    tmp_path: Path, text_file: Path, optimizer: str
) -> None:
    plain = names_in(train(tmp_path / "plain", text_file, f"optimizer={optimizer}"))
    assert not [key for names in plain.values() for key in names if "_orig_mod" in key or "module." in key]
    assert {kind for names in plain.values() for kind, _ in names.values()} == {"F32"}
    for setting in ("micro_batch_size=1", "activation_checkpointing=true", "dtype=bfloat16", "dtype=float16"):
        assert names_in(train(tmp_path / setting, text_file, f"optimizer={optimizer}", setting)) == plain, setting


def test_a_compiled_run_has_the_same_names_and_close_weights(tmp_path: Path, text_file: Path) -> None:
    plain = train(tmp_path / "plain", text_file)
    compiled = train(tmp_path / "compiled", text_file, "compile=true")
    assert any("compiled, the steps run" in note for note in compiled.provenance()["notes"])
    assert compiled.config().runtime.compile == "true"
    assert names_in(compiled) == names_in(plain)
    one, other = (load_file(run.last / "model.safetensors") for run in (plain, compiled))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_a_compiler_that_fails_is_found_out_before_training(tmp_path: Path, text_file: Path) -> None:
    settings = ["preset=tiny", *TINY.split(), "compile=true"]
    out, err = train_without_a_compiler(tmp_path, str(text_file), *settings)
    assert (out.count("not compiled: torch.compile does not work here ("), err) == (1, "")
    run = Run(tmp_path / "prose")
    assert run.config().runtime.compile == "false", "going on with it does not try again"
    assert weights(run) == weights(train(tmp_path / "plain", text_file))


def test_a_compiler_that_has_gone_is_gone_without(tmp_path: Path, text_file: Path) -> None:
    """A run that was compiled goes on where that does not work: one warning, and the same numbers."""
    settings = ["warmup_steps=1", "eval_interval=2"]
    run = train(tmp_path, text_file, *settings)
    out, err = train_without_a_compiler(tmp_path, "--resume", "prose", "steps=4", "compile=true")
    assert (err.count("torch.compile does not work here ("), len(err.splitlines())) == (1, 1)
    assert "finished 4 steps" in out
    other = train(tmp_path / "plain", text_file, *settings)
    opening.resume_run(other.path, parse_overrides(["steps=4"])).train()
    assert weights(run) == weights(other)


def test_a_run_is_never_overwritten(tmp_path: Path, text_file: Path) -> None:
    config = run_plan.plan_run("tiny", [parse_overrides([*TINY.split(), f"source={text_file}"])]).config
    names = [create_run(tmp_path, "same", config, {}).name for _ in range(3)]
    assert names == ["same", "same-2", "same-3"]


def test_a_checkpoint_from_before_the_renaming_is_read(tmp_path: Path) -> None:
    model = GPT(ModelConfig(vocab_size=3, block_size=8, n_layer=1, n_head=1, n_embd=16))
    optimizers, run = Optimizers(model, OptimConfig()), Run(tmp_path)
    config = TrainConfig(steps=9, save_interval=9)
    writer = CheckpointWriter(run, model, optimizers, CharTokenizer(list("abc")), config)
    writer.save_last(TrainState(step=4, growth_tracker=7))
    file = run.last / "trainer" / "state.json"
    file.write_text(file.read_text(encoding="utf-8").replace("growth_tracker", "good_steps"), encoding="utf-8")
    assert load_training_state(run.last, optimizers) == TrainState(step=4, growth_tracker=7)

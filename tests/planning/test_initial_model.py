"""Training that goes on from a model: its weights, its shape, its tokenizer; and a resume that needs it no more."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import load_config, load_model
from glassgpt import api
from glassgpt.config import ModelConfig, parse_overrides, presets
from glassgpt.errors import CheckpointError, ConfigError, GlassError
from glassgpt.loss import evaluate, subset
from glassgpt.model import GPT
from glassgpt.planning import opening, run_plan
from glassgpt.runtime import Runtime
from glassgpt.tokenizer import BPETokenizer, CharTokenizer
from glassgpt.tokenizer.base import attach
from glassgpt.tokenizer.published import PublishedSettings
from glassgpt.training.checkpoint import Run
from glassgpt.weights import mapping
from glassgpt.weights.folder import save_model, write_folder

pytestmark = pytest.mark.usefixtures("quick_measuring")

CLASSIC = ModelConfig(vocab_size=80, block_size=32, n_layer=2, n_head=4, n_embd=32)
SHORT = ("steps=4", "batch_size=4", "eval_interval=2", "save_interval=2", "log_interval=1", "sample_tokens=0")
SHORT += ("eval_tokens=200", "dtype=float32", "compile=false")
CPU = Runtime(torch.device("cpu"), torch.float32, 1, compile=False, reason="test")
MODELS = {
    "gpt2": CLASSIC,
    "llama3": dataclasses.replace(
        CLASSIC, **presets.MODERN | {"qk_norm": False}, rope_scaling="llama3", rope_factor=4.0, rope_original_context=8
    ),
    "qwen2-window": dataclasses.replace(
        CLASSIC, **presets.MODERN | {"qk_norm": False, "qkv_bias": True}, sliding_window=5, first_window_layer=1
    ),
    "native": dataclasses.replace(CLASSIC, qk_norm=True),
}


def published(folder: Path, prose: str, config: ModelConfig = CLASSIC, **how: Any) -> Path:
    """A model of 80 tokens whose tokenizer has fewer, as published ones are padded."""
    model = GPT(config)
    model.init_weights(3)
    with write_folder(folder) as temporary:
        save_model(temporary, model, CharTokenizer.train(prose), **how)
    return folder


def trained(init: str | Path, text: Path, *settings: str, runs: Path | None = None, name: str = "run") -> Run:
    layer = parse_overrides([*SHORT, f"source={text}", f"init_from={init}", *settings])
    return api.start_run("auto", [layer], runs=runs or text.parent / "runs", name=name).run


def losses(run: Run, key: str) -> list[float]:
    return [row[key] for row in run.metrics if key in row]


@pytest.mark.parametrize("which", MODELS)
def test_the_first_loss_is_that_of_the_model_and_it_falls(
    which: str, tmp_path: Path, prose: str, text_file: Path
) -> None:
    native = which == "native"
    folder = published(tmp_path / "m", prose, MODELS[which], native=native)
    run = trained(folder, text_file, "steps=8", "adamw_learning_rate=0.01", "dropout=0.1")
    config, stream = run.config(), opening._load_stream(run, run.config())
    assert config.model == dataclasses.replace(MODELS[which], dropout=0.1)
    assert (config.train.init_from, config.train.format) == (str(folder), "native" if native else "hf")
    validated = losses(run, "val/loss")
    model, _ = load_model(folder)
    starts = subset(stream.val, 32, config.train.eval_tokens)
    assert validated[0] == pytest.approx(evaluate(model, stream.val, 32, model.device, starts=starts).loss, rel=1e-6)
    assert validated[-1] < validated[0] - 0.05
    origin = run.provenance()["init"]
    assert origin["source"] == str(folder)
    assert origin["model_type"] == ("glassgpt" if native else mapping.family_of(MODELS[which]).model_type)
    assert dataclasses.replace(load_config(run.best), dropout=0.0) == MODELS[which]
    assert load_model(run.best)[1].encode(prose[:50]) == CharTokenizer.train(prose).encode(prose[:50])


def test_at_step_zero_the_weights_are_the_models_bit_for_bit(tmp_path: Path, prose: str, text_file: Path) -> None:
    folder = published(tmp_path / "m", prose)
    run = trained(folder, text_file, "adamw_learning_rate=0", "steps=1")
    before, after = (load_file(path / "model.safetensors") for path in (folder, run.last))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_by_its_name_and_from_python(tmp_path: Path, prose: str, text_file: Path) -> None:
    runs = tmp_path / "elsewhere"
    first = trained(published(tmp_path / "m", prose), text_file, runs=runs, name="first")
    second = api.train(
        data=text_file,
        overrides={
            **parse_overrides(SHORT)["train"],
            "init_from": "first",
            "dtype": "float32",
            "adamw_learning_rate": 1e-3,
        },
        runs=runs,
        name="second",
    )
    assert second.config().train.init_from == str(first.best)
    third = api.train(data=text_file, overrides={"init_from": first.path, "steps": 1}, runs=runs, name="third")
    assert third.config().train.init_from == str(first.best)
    assert third.config().optim.optimizer == "adamw"
    shutil.rmtree(first.best)
    shutil.rmtree(first.last)
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        api.train(data=text_file, overrides={"init_from": first.path, "steps": 1}, runs=runs)


@pytest.mark.parametrize("which", ["gpt2", "llama3"])
def test_a_shorter_context_keeps_the_positions_it_has(which: str, tmp_path: Path, prose: str, text_file: Path) -> None:
    folder = published(tmp_path / "m", prose, MODELS[which])
    run = trained(folder, text_file, "block_size=12", "adamw_learning_rate=0")
    shorter, whole = load_model(run.best)[0], load_model(folder)[0]
    idx = torch.arange(12)[None]
    assert shorter.config == dataclasses.replace(MODELS[which], block_size=12)
    assert torch.equal(shorter(idx), whole(idx))


def test_a_text_too_short_for_the_context_shortens_it_and_says_so(tmp_path: Path, prose: str) -> None:
    folder, text = published(tmp_path / "m", prose), tmp_path / "short.txt"
    text.write_text(prose[:24], "utf-8")
    plan = run_plan.plan_run("auto", [parse_overrides([*SHORT, f"source={text}", f"init_from={folder}"])])
    assert plan.config.model.block_size == 21
    assert any("the context is 21 instead of 32" in note for note in plan.notes)
    assert plan.notes[0] == f"fine-tuning {folder}; by default with optimizer=adamw, adamw_learning_rate=0.0001"


def test_another_shape_is_refused_with_every_difference(tmp_path: Path, prose: str, text_file: Path) -> None:
    folder = published(tmp_path / "m", prose)
    with pytest.raises(ConfigError) as refused:
        trained(folder, text_file, "n_layer=3", "block_size=64", "tie_embeddings=false", "dropout=0.2", "n_head=4")
    message = str(refused.value)
    assert f"model.n_layer: 2 in {folder}, 3 asked for" in message
    assert f"model.block_size: 32 in {folder}, 64 asked for" in message
    assert f"model.tie_embeddings: True in {folder}, False asked for" in message
    assert "dropout: " not in message and "n_head" not in message
    assert not (tmp_path / "runs").exists()


def test_another_tokenizer_is_refused_and_the_same_is_not(tmp_path: Path, prose: str, text_file: Path) -> None:
    folder = published(tmp_path / "m", prose)
    for other in ("bpe:260", "word"):
        with pytest.raises(ConfigError, match=rf"data\.tokenizer: .*{folder}.*Leave data\.tokenizer out"):
            trained(folder, text_file, f"tokenizer={other}")
    swapped = CharTokenizer.train("".join({"e": "ė", "ė": "e"}.get(c, c) for c in prose))
    with write_folder(tmp_path / "swapped") as temporary:  # as many tokens, one of them another
        save_model(temporary, GPT(CLASSIC), swapped)
    with pytest.raises(ConfigError, match=r"data\.tokenizer"):
        trained(tmp_path / "swapped", text_file, "tokenizer=char")
    run = trained(folder, text_file, "tokenizer=char")
    assert run.config().model.vocab_size == 80


def test_what_cannot_go_on_is_one_message(tmp_path: Path, prose: str, text_file: Path) -> None:
    folder = published(tmp_path / "m", prose)
    with pytest.raises(ConfigError, match=r"preset=small describes a model of its own, and train\.init"):
        run_plan.plan_run("small", [parse_overrides([f"source={text_file}", f"init_from={folder}"])])
    with pytest.raises(GlassError, match="no/such/model"):
        trained("no/such/model", text_file)
    with pytest.raises(ConfigError, match=r"expected float|expected a number|norm_eps"):
        run_plan.plan_run("auto", [{"model": {"norm_eps": "x"}, "train": {"init_from": str(folder)}}])
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        trained(folder, text_file)


KILLED = """
import os, signal, sys
from pathlib import Path
from glassgpt.config import parse_overrides
from glassgpt.planning import opening, run_plan
from glassgpt.training.metrics import Reporter

class Killer(Reporter):
    def on_step(self, event):
        if event.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

plan = run_plan.plan_run("auto", [parse_overrides(sys.argv[2:])])
opening.start_run(plan, "run", Path(sys.argv[1]), reporter=Killer()).train()
"""


def test_killed_before_the_first_checkpoint_it_resumes_without_the_model(
    tmp_path: Path, prose: str, text_file: Path
) -> None:
    folder = published(tmp_path / "m", prose)
    settings = [
        *SHORT,
        "steps=6",
        "save_interval=5",
        "adamw_learning_rate=0.01",
        f"source={text_file}",
        f"init_from={folder}",
    ]
    whole = api.start_run("auto", [parse_overrides(settings)], runs=tmp_path / "whole", name="run").run
    command = [sys.executable, "-c", KILLED, str(tmp_path / "broken"), *settings]
    assert subprocess.run(command, check=False, stderr=subprocess.PIPE).returncode < 0
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match=r"train\.init_from: .* in the run, .*elsewhere asked for"):
        api.resume(tmp_path / "broken" / "run", parse_overrides(["init_from=elsewhere"]))
    broken = api.resume(tmp_path / "broken" / "run").run

    def timeless(run: Run) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if not k.startswith(("perf/", "time/"))} for row in run.metrics]

    assert timeless(broken) == timeless(whole)
    for name in ("best", "last"):
        one, two = (load_file(run.path / name / "model.safetensors") for run in (whole, broken))
        assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_two_processes_go_on_as_one(tmp_path: Path, prose: str, text_file: Path) -> None:
    folder = published(tmp_path / "m", prose)
    one = trained(folder, text_file, runs=tmp_path / "runs", name="one")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "glassgpt"]
    done = subprocess.run(
        [*launcher, "train", str(text_file), "init_from=m", *SHORT, "--name", "two"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    two = Run(tmp_path / "runs" / "two")
    assert losses(two, "val/loss") == pytest.approx(losses(one, "val/loss"), rel=1e-6)
    assert losses(two, "train/loss") == pytest.approx(losses(one, "train/loss"), rel=1e-6)


def test_a_bpe_model_goes_on_with_its_own_tokens(tmp_path: Path, prose: str, text_file: Path) -> None:
    tokenizer = BPETokenizer.train(prose, 300)
    settings = PublishedSettings(
        roles={"pad_token": "<|endoftext|>", "unk_token": "<none>"},
        tokenizer_config={"padding_side": "left"},
        chat_templates={"default": "{{ messages[0].content }}{{ pad_token }}"},
        generation_config={"eos_token_id": [299, 7], "temperature": 0.6},
    )
    attach(tokenizer, settings)
    model = GPT(dataclasses.replace(CLASSIC, vocab_size=300))
    model.init_weights(0)
    with write_folder(tmp_path / "m") as temporary:
        save_model(temporary, model, tokenizer, dtype=torch.bfloat16, max_shard_bytes=40_000)
    run = trained(tmp_path / "m", text_file)
    assert load_model(run.best)[1].encode(prose) == tokenizer.encode(prose)
    assert len(run.provenance()["init"]["sha256"]) > 1
    api.resume(run.path, {"train": {"steps": run.config().train.steps + 1}})
    for folder in (run.best, run.last):
        again = load_model(folder)[1]
        assert again.end_token_ids == (299, 7) and again.roles() == tokenizer.roles()
        assert again.published.chat_templates == settings.chat_templates
        assert again.published.tokenizer_config["padding_side"] == "left"
        assert again.published.generation_config["temperature"] == 0.6

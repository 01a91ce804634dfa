"""Fine-tuning on conversations: exact resuming, checkpoints, processes, one template everywhere, the verb's ending."""

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import train, written

import glassgpt
from glassgpt import api
from glassgpt.config import build, parse_overrides, presets
from glassgpt.data.conversations.batches import ChatBatches
from glassgpt.errors import CheckpointError, ConfigError, DataError
from glassgpt.model import GPT
from glassgpt.planning import tuning
from glassgpt.processes import Processes
from glassgpt.tokenizer import BPETokenizer, chat
from glassgpt.training.checkpoint import Run
from glassgpt.training.metrics import Reporter
from glassgpt.training.tuning import ChatTuning
from glassgpt.weights.adapter import count_lora_parameters
from glassgpt.weights.folder import read_tensors, save_model, write_folder

pytestmark = pytest.mark.usefixtures("quick_measuring")

SETTINGS = "steps=12 batch_size=3 eval_interval=4 save_interval=5 log_interval=1 sample_interval=6 sample_tokens=6"
SETTINGS += " dtype=float32 lora_rank=2 lora_dropout=0.1 keep_every=6 max_length=128"
METHODS = ("lora", "sft")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small base model without a chat template, and a file of conversations."""
    folder = tmp_path_factory.mktemp("tuning")
    generator = random.Random(0)
    words = ["red", "green", "blue", "apple", "stone", "river", "walks", "sings", "why", "how"]
    say = lambda n: " ".join(generator.choices(words, k=n))  # noqa: E731
    rows = []
    for number in range(40):
        turns = [{"role": role, "content": say(3)} for role in ("user", "assistant") * (1 + number % 2)]
        rows.append(json.dumps({"messages": turns}))
    (folder / "chats.jsonl").write_text("\n".join([*rows, "not JSON"]) + "\n", encoding="utf-8")
    tokenizer = BPETokenizer.train(" ".join(words) * 20, 280)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 128, "vocab_size": tokenizer.vocab_size}
    model = GPT(build("", [presets.get("tiny-modern").layer, {"model": shape}]).model)
    model.init_weights(0)
    api.save(model, tokenizer, folder / "model")
    return folder


def settings(folder: Path, method: str, *extra: str) -> list[str]:
    given = [f"init_from={folder / 'model'}", f"source={folder / 'chats.jsonl'}", f"tune.method={method}"]
    return [*SETTINGS.split(), *given, *extra]


def tune(folder: Path, method: str, runs: Path, name: str, *extra: str, reporter: Reporter | None = None) -> Run:
    layers = [parse_overrides(settings(folder, method, *extra))]
    return api.start_run("auto", layers, name=name, runs=runs, reporter=reporter).run


@pytest.fixture(scope="module")
def tuned(folder: Path) -> dict[str, Run]:
    """A finished run of each method."""
    return {method: tune(folder, method, folder / "runs", method) for method in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_killed_and_resumed_tuning_equals_the_uninterrupted_one(
    folder: Path, tuned: dict[str, Run], method: str, tmp_path: Path
) -> None:
    for mode, kill_at in (("start", 8), ("resume", -1)):
        code = train(tmp_path, mode, kill_at, *settings(folder, method), preset="auto")
        assert code == (0 if kill_at < 0 else -signal.SIGKILL)
    expected, found = written(tuned[method]), written(Run(tmp_path / "run"))
    assert found["metrics"] == expected["metrics"]
    assert found["files"].keys() == expected["files"].keys()
    assert [name for name in expected["files"] if found["files"][name] != expected["files"][name]] == []
    assert {row["step"] for row in expected["metrics"]} >= {*range(1, 13)}


def test_a_lora_run_keeps_the_adapter_alone_and_names_its_base(tuned: dict[str, Run], folder: Path) -> None:
    run = tuned["lora"]
    for checkpoint in (run.best, run.last, *run.numbered(), *run.kept().values()):
        assert not (checkpoint / "model.safetensors").exists()
        base = json.loads((checkpoint / "base.json").read_text(encoding="utf-8"))
        assert (checkpoint / base["source"]).resolve() == run.own_base.resolve()
        assert base["sha256"].keys() == {"model.safetensors"}
        names = read_tensors(checkpoint / "adapter_model.safetensors")
        assert all(".lora_" in name for name in names)
        api.load(checkpoint)
    optimizer = read_tensors(run.last / "trainer" / "optimizer.safetensors")
    trained = sum(tensor.numel() for name, tensor in optimizer.items() if name.endswith("/exp_avg"))
    config = run.config()
    assert trained == count_lora_parameters(config.model, config.tune), "the optimiser has no state for the base"
    before = read_tensors(run.own_base / "model.safetensors")
    source = read_tensors(folder / "model" / "model.safetensors")
    for name, tensor in source.items():
        assert torch.equal(before[name][: len(tensor)], tensor), "the base is unchanged"


@pytest.mark.parametrize("method", METHODS)
def test_tuning_lowers_the_loss_and_the_best_weights_are_those_validated(tuned: dict[str, Run], method: str) -> None:
    run = tuned[method]
    losses = [row["val/loss"] for row in run.metrics if "val/loss" in row]
    assert losses[-1] < losses[0]
    final = next(row["final/val_loss"] for row in run.metrics if "final/val_loss" in row)
    assert final == pytest.approx(min(losses), rel=1e-5), "with LoRA merged, as it is loaded"


@pytest.mark.parametrize("method", METHODS)
def test_one_conversation_has_the_same_ids_in_tuning_chat_and_export(
    tuned: dict[str, Run], method: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    run = tuned[method]
    chats = tuning.load_data(run, run.config())
    from glassgpt.weights.resolve import open_folder
    from glassgpt.weights.transfer import to_folder

    to_folder(open_folder(run.best), tmp_path / "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ours = api.load(run.path)[1]
    template = ours.published.chat_templates["default"]
    for row in chats.val:
        messages = list(chats.conversations[row.line].messages)
        ids = row.ids.tolist()
        assert chat.encode(ours, template, messages, prompt=False) == ids
        assert theirs.apply_chat_template(messages, return_dict=False) == ids
        prompt = chat.encode(ours, template, messages[:-1])
        assert prompt == ids[: len(prompt)], "what chat and sample --chat give the model"
        assert prompt == theirs.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)


def test_two_processes_tune_as_one(folder: Path, tuned: dict[str, Run], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "glassgpt"]
    command += ["tune", "lora", str(folder / "model"), str(folder / "chats.jsonl"), *SETTINGS.split()]
    command += ["lora_dropout=0", "--name", "two", "--runs-dir", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    one = tune(folder, "lora", tmp_path, "one", "lora_dropout=0")
    for mine, theirs in zip(Run(tmp_path / "two").metrics, one.metrics, strict=True):
        numbers = {k: v for k, v in theirs.items() if v is not None and not k.startswith(("perf/", "time/"))}
        assert {k: mine[k] for k in numbers} == pytest.approx(numbers, rel=1e-5)


def test_micro_batches_and_packing_change_nothing_but_rounding(
    folder: Path, tuned: dict[str, Run], tmp_path: Path
) -> None:
    """One step on every conversation once: packed, unpacked, and cut into passes of one row."""
    chats = tuning.load_data(tuned["sft"], tuned["sft"].config())
    losses = {}
    for name, packing, cut in (("packed", "true", 0), ("unpacked", "false", 0), ("cut", "true", 1)):
        rows = ChatBatches(chats.train, chats.max_length, 1, 1337, packing == "true").num_rows
        given = [f"packing={packing}", f"batch_size={rows}", f"micro_batch_size={cut}", "lora_dropout=0"]
        run = tune(folder, "sft", tmp_path, name, *given, "steps=1", "eval_interval=1", "save_interval=1")
        losses[name] = [row["val/loss"] for row in run.metrics if "val/loss" in row]
        losses[name] += [row["train/loss"] for row in run.metrics if "train/loss" in row]
    assert losses["packed"] == pytest.approx(losses["unpacked"], rel=1e-5)
    assert losses["packed"] == pytest.approx(losses["cut"], rel=1e-5)


def test_a_mistake_is_one_message_and_leaves_no_run(
    folder: Path, tuned: dict[str, Run], cli: Any, tmp_path: Path
) -> None:
    model, data = str(folder / "model"), str(folder / "chats.jsonl")
    for arguments, expected in {
        (): "which model should be tuned",
        (model,): "Give a .jsonl file",
        (model, "nothing.jsonl"): "nothing.jsonl",
        ("nothing", data): "there is no model 'nothing'",
        (model, data, "preset=small"): "leave out preset=",
        (model, data, "n_layer=3"): "a fine-tuned model keeps its shape",
        (model, data, "block_size=64"): "max_length sets the length of rows",
        (model, data, "lora_targets=wq"): "they have q_proj, k_proj, v_proj",
        (model, data, "lora_rnk=3"): "did you mean tune.lora_rank?",
        (model, data, data): "one text at a time",
        (model, data, "--resume", "x"): "--resume RUN keeps",
        (model, data, "time=0.01s"): "train.time: 0.01s is too short",
        (model, data, "max_length=129"): "longer than the model's context of 128",
        (model, data, "tokenizer=gpt2"): "data.tokenizer: tuning does not use it",
        ("--resume", str(folder / "runs" / "sft")): "glassgpt tune sft --resume",
    }.items():
        code, _, err = cli("tune", "lora", *arguments)
        assert code == 2, arguments
        assert expected in err, err
        assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()
    code, _, err = cli("train", data, "lora_rank=4")
    assert code == 2
    assert "glassgpt tune" in err


def test_changed_conversations_are_refused_on_resuming(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "own.jsonl"
    data.write_bytes((folder / "chats.jsonl").read_bytes())
    run = tune(folder, "lora", tmp_path, "run", f"source={data}", "steps=2", "eval_interval=1", "save_interval=1")
    with pytest.raises(CheckpointError, match=r"tune\.lora_rank: 2 in the run, 4 asked for"):
        api.resume(run.path, parse_overrides(["lora_rank=4", "steps=4"]))
    with pytest.raises(CheckpointError, match=r"tune\.epochs: 10 in the run, 20 asked for"):
        api.resume(run.path, parse_overrides(["epochs=20"]))
    data.write_bytes(data.read_bytes() + b'{"prompt": "why", "completion": "how"}\n')
    with pytest.raises(CheckpointError, match="have changed since"):
        api.resume(run.path, parse_overrides(["steps=4"]))
    data.unlink()
    with pytest.raises(DataError, match=r"own\.jsonl"):
        api.resume(run.path)


def test_the_verb_ends_with_answers_before_and_after(folder: Path, cli: Any, tmp_path: Path) -> None:
    model, data = str(folder / "model"), str(folder / "chats.jsonl")
    given = [*SETTINGS.split(), "keep_every=0", "val_fraction=0.3"]
    code, out, err = cli("tune", "lora", model, data, *given)
    assert code == 0, err
    run = tmp_path / "runs" / "chats"
    assert "line 41" in out, "the bad row is reported"
    assert out.count("\n  before  ") == out.count("\n  after   ") == 3
    for next_command in ("glassgpt chat", "glassgpt sample", "glassgpt tune show", "glassgpt export"):
        assert next_command in out
    report = (run / "report.md").read_text(encoding="utf-8")
    assert report.count("Question") == 3
    code, out, err = cli("tune", "lora", "--resume", run, "steps=14", "--json")
    assert code == 0, err
    ended = json.loads(out)
    assert ended["step"] == 14
    assert len(ended["before"]) == len(ended["after"]) == 3
    code, out, err = cli("tune", "sft", model, data, *given, "--dry-run")
    assert code == 0, err
    assert 'method = "sft"' in out
    with pytest.raises(ConfigError, match="glassgpt tune"):
        glassgpt.plan(overrides={"lora_rank": 3}, data=data)


def test_a_run_killed_before_its_base_is_written_can_resume(folder: Path, tmp_path: Path) -> None:
    run = tune(folder, "lora", tmp_path, "run", "steps=2", "eval_interval=1", "save_interval=1")
    expected = written(run)["metrics"]
    for path in [*run.path.iterdir()]:
        if path.name != "run.toml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    api.resume(run.path)
    assert written(run)["metrics"] == expected


def test_tuned_weights_need_no_initial_model_and_lora_only_the_one_it_began_with(folder: Path, tmp_path: Path) -> None:
    """Both begin with a model that has a chat template, which is not copied, and named by a relative path."""
    base = tmp_path / "base"
    first = tune(folder, "sft", tmp_path, "first", "steps=1")
    shutil.copytree(first.best, base)
    runs = {}
    with contextlib.chdir(tmp_path):
        shutil.copy(folder / "chats.jsonl", "tutor")
        for method in METHODS:
            given = ["init_from=base", "source=./tutor", "steps=1", "save_interval=1"]
            runs[method] = tune(folder, method, tmp_path, method, *given)
    for run in runs.values():
        config = run.config()
        assert config.train.init_from == str(base.resolve())
        assert config.data.source == str(tmp_path / "tutor")
        api.resume(run.path, parse_overrides(["steps=2"]))  # from another folder
    again = tune(folder, "lora", tmp_path, "again", f"init_from={runs['lora'].path}", "steps=1")
    assert torch.isfinite(api.load(again.best)[0](torch.tensor([[1, 2]]))).all(), "LoRA on a model with LoRA"
    shutil.rmtree(base)
    shutil.copytree(folder / "runs" / "sft" / "best", base)
    api.resume(runs["sft"].path, parse_overrides(["steps=3"]))
    with pytest.raises(CheckpointError, match="has changed since"):
        api.resume(runs["lora"].path, parse_overrides(["steps=3"]))


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_no_published_family_expresses_can_be_tuned(folder: Path, method: str, tmp_path: Path) -> None:
    model, tokenizer = api.load(folder / "model")
    native = GPT(dataclasses.replace(model.config, norm="layernorm"))
    native.init_weights(0)
    with write_folder(tmp_path / "native") as target:
        save_model(target, native, tokenizer, native=True)
    run = tune(folder, method, tmp_path, "run", f"init_from={tmp_path / 'native'}", "steps=1")
    assert api.load(run.path)[0].config.norm == "layernorm"


def test_the_predicted_speed_and_the_measured_one_count_the_same_tokens(folder: Path, tmp_path: Path) -> None:
    """Without packing most positions are padding; the planned number of steps must not shrink by that."""
    plan = api.plan(overrides=[parse_overrides(settings(folder, "lora", "packing=false"))])
    assert plan.chats
    task = ChatTuning(plan.config, plan.chats, torch.device("cpu"), Processes())
    assert plan.tokens_per_step == task.tokens_per_step < plan.config.tokens_per_step / 2


def test_a_large_validation_split_is_validated_in_part(folder: Path, tmp_path: Path) -> None:
    run = tune(folder, "sft", tmp_path, "run", "val_fraction=0.5", "eval_tokens=60", "steps=1")
    chats = tuning.load_data(run, run.config())
    task = ChatTuning(run.config(), chats, torch.device("cpu"), Processes())
    assert 0 < len(task.val) < len(chats.val)
    assert sum(len(row.ids) for row in task.val) <= 60


def test_tune_from_python_is_the_verb(folder: Path, tuned: dict[str, Run], tmp_path: Path) -> None:
    config = tuned["lora"].config()
    given = {"steps": 12, "batch_size": 3, "eval_interval": 4, "dtype": "float32", "lora_rank": 2, "max_length": 128}
    given |= {"lora_dropout": 0.1, "save_interval": 5, "sample_tokens": 6, "sample_interval": 6, "log_interval": 1}
    run = glassgpt.tune(folder / "model", folder / "chats.jsonl", overrides=given, runs=tmp_path)
    assert run.config().tune == config.tune
    losses = [[row["train/loss"] for row in one.metrics if "train/loss" in row] for one in (run, tuned["lora"])]
    assert losses[0] == losses[1]
    with pytest.raises(ConfigError, match="'dpo' is not one of"):
        glassgpt.tune(folder / "model", folder / "chats.jsonl", method="dpo", runs=tmp_path)

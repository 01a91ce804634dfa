"""Training from a folder that `data prepare` wrote: the run knows which data it had, and goes on with no other."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from glassgpt import data
from glassgpt.config import DataConfig, parse_overrides
from glassgpt.data import TokenStream
from glassgpt.errors import CheckpointError, ConfigError, DataError
from glassgpt.files import sha256_of
from glassgpt.planning import opening, run_plan
from glassgpt.tokenizer import BPETokenizer, save
from glassgpt.training.checkpoint import Run
from glassgpt.training.metrics import Reporter, StepEvent

pytestmark = pytest.mark.usefixtures("empty_cache", "quick_measuring")

SHAPE = ["n_layer=1", "n_head=2", "n_embd=16", "block_size=8", "batch_size=4"]
OFTEN = ["eval_interval=4", "save_interval=4", "log_interval=1", "sample_tokens=4", "eval_tokens=100"]
SETTINGS = [*SHAPE, *OFTEN, "dtype=float32", "compile=false", "device=cpu"]


@pytest.fixture
def rows(tmp_path: Path, prose: str) -> Path:
    lines = "".join(json.dumps({"text": f"{i} {line}"}) + "\n" for i, line in enumerate(prose.splitlines()))
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path / "a.jsonl"


def prepared(source: Path, folder: Path, tokenizer: str = "bpe:300", **settings: Any) -> TokenStream:
    config = DataConfig(source=str(source), tokenizer=tokenizer, val_fraction=0.2, **settings)
    return data.prepare(data.find_source(config), config, folder=folder)


class Interrupter(Reporter):
    """Presses Ctrl-C in a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step(self, event: StepEvent) -> None:
        if event.step == self.step:
            signal.raise_signal(signal.SIGINT)


def train(source: Path, runs: Path, *settings: str, stop_at: int = 0) -> Run:
    plan = run_plan.plan_run("tiny", [parse_overrides([*SETTINGS, "steps=8", f"source={source}", *settings])])
    return opening.start_run(plan, "run", runs, reporter=Interrupter(stop_at)).train().run


def timeless(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith(("perf/", "time/"))} for row in run.metrics]


def test_a_corpus_of_version_0_1_is_opened_again(rows: Path, tmp_path: Path, prose: str) -> None:
    """Its manifest has the SHA-256 of the tokenizer's file. One with other roles is another tokenizer."""
    file, ready = tmp_path / "mine", tmp_path / "ready"
    file.mkdir()
    save(BPETokenizer.train(prose, 280), file, block_size=8)
    identity = prepared(rows, ready, str(file)).manifest.tokenizer
    manifest = (ready / "manifest.json").read_text(encoding="utf-8")
    former = manifest.replace(identity, f"file {sha256_of(file / 'tokenizer.json')}")
    (ready / "manifest.json").write_text(former, encoding="utf-8")
    stream = prepared(rows, ready, str(file))
    assert (ready / "manifest.json").read_text(encoding="utf-8") == former != manifest
    settings = parse_overrides([*SETTINGS, f"source={ready}", f"tokenizer={file}", "steps=8"])
    assert run_plan.plan_run("tiny", [settings], measure="nothing").stream.info == stream.info
    (file / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="another text or with other settings"):
        prepared(rows, ready, str(file))


@pytest.mark.parametrize("settings", [[], ["order=sequential", "mask_documents=true"]], ids=["random", "sequential"])
def test_a_prepared_folder_trains_as_its_source_does(settings: list[str], rows: Path, tmp_path: Path) -> None:
    stream = prepared(rows, tmp_path / "ready")
    direct = train(rows, tmp_path / "direct", "tokenizer=bpe:300", "val_fraction=0.2", *settings)
    rows.unlink()
    run = train(tmp_path / "ready", tmp_path / "runs", *settings)
    assert timeless(run) == timeless(direct)
    assert (run.best / "model.safetensors").read_bytes() == (direct.best / "model.safetensors").read_bytes()
    provenance = run.provenance()
    assert provenance["data_sha256"] == stream.info.data_sha256 == direct.provenance()["data_sha256"]
    assert (provenance["text_sha256"], provenance["tokenizer"]) == (stream.info.text_sha256, "bpe:300")
    assert provenance["train_tokens"] == len(stream.train)
    kept = run.config().data
    assert (kept.source, kept.val_fraction) == (str(tmp_path / "ready"), 0.2)
    assert (run.best / "tokenizer.json").read_bytes() == (stream.folder / "tokenizer.json").read_bytes()


def test_a_run_goes_on_from_the_folder_alone(rows: Path, tmp_path: Path) -> None:
    prepared(rows, tmp_path / "ready")
    whole = train(tmp_path / "ready", tmp_path / "whole")
    run = train(tmp_path / "ready", tmp_path / "broken", stop_at=5)
    rows.unlink()
    assert not (tmp_path / "cache").exists()
    opening.resume_run(run.path).train()
    assert (run.last / "model.safetensors").read_bytes() == (whole.last / "model.safetensors").read_bytes()
    assert timeless(run) == timeless(whole)


@pytest.mark.parametrize("stop_at", [2, 5], ids=["before a checkpoint", "after one"])
@pytest.mark.parametrize("change", ["text", "tokenizer", "validation", "gone", "damaged"])
def test_a_run_does_not_go_on_with_a_changed_folder(change: str, stop_at: int, rows: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    stream = prepared(rows, ready)
    run = train(ready, tmp_path / "runs", stop_at=stop_at)
    shard = ready / stream.manifest.shards[0].file
    if change == "damaged":
        shard.write_bytes(shard.read_bytes()[:-2])
    else:
        shutil.rmtree(ready)
    if change == "text":
        rows.write_text(rows.read_text(encoding="utf-8") + '{"text": "more"}\n', encoding="utf-8")
        prepared(rows, ready)
    elif change == "tokenizer":
        prepared(rows, ready, "bpe:301")
    elif change == "validation":
        prepared(rows, ready, max_val_tokens=50)
    messages = {
        "text": (CheckpointError, "has changed since"),
        "tokenizer": (CheckpointError, "has changed since"),
        "validation": (CheckpointError, "has changed since"),
        "gone": (DataError, "there is no file"),
        "damaged": (DataError, "train-00000.safetensors"),
    }
    kind, message = messages[change]
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(kind, match=message) as refused:
        opening.resume_run(run.path)
    assert str(ready) in str(refused.value)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_other_settings_than_those_of_the_folder_are_refused(rows: Path, tmp_path: Path) -> None:
    prepared(rows, tmp_path / "ready")
    with pytest.raises(ConfigError) as refused:
        train(tmp_path / "ready", tmp_path / "runs", "val_fraction=0.1", "tokenizer=char")
    assert "data.val_fraction: 0.2 in the prepared corpus, 0.1 asked for" in str(refused.value)
    assert "data.tokenizer: bpe:300 in the prepared corpus, char asked for" in str(refused.value)
    assert not (tmp_path / "runs").exists()
    run = train(tmp_path / "ready", tmp_path / "runs", "val_fraction=0.2", "tokenizer=bpe:300", "steps=2")
    assert run.config().data.val_fraction == 0.2

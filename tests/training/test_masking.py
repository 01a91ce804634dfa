"""Training on documents: what a masked batch computes, and that a run goes on exactly, with worker processes too."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from glassgpt import api
from glassgpt.config import parse_overrides
from glassgpt.data.batch import Batch
from glassgpt.inference.stream import encode_prompt
from glassgpt.loss import evaluate
from glassgpt.planning import opening, run_plan
from glassgpt.tokenizer import load
from glassgpt.training.checkpoint import Run
from glassgpt.training.loop import Trainer

pytestmark = pytest.mark.usefixtures("quick_measuring")

TINY = "n_layer=2 n_head=2 n_embd=32 block_size=32 batch_size=8 sample_tokens=0 eval_tokens=400 log_interval=1"
TINY += " dtype=float32 compile=false tokenizer=bpe:300 mask_documents=true eval_interval=4"


@pytest.fixture
def rows(tmp_path: Path, prose: str) -> Path:
    """Some 270 documents, most shorter than a window."""
    path = tmp_path / "rows.jsonl"
    lines = [line for line in prose.splitlines() if line.strip()]
    documents = ["\n".join(lines[i : i + 1]) for i in range(0, len(lines), 2)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return path


def begin(folder: Path, source: Path, *settings: str, preset: str = "tiny-modern") -> Trainer:
    layer = parse_overrides([*TINY.split(), f"source={source}", *settings])
    return opening.start_run(run_plan.plan_run(preset, [layer]), "run", folder)


def losses(run: Run) -> list[tuple[int, float]]:
    return [(row["step"], row[key]) for row in run.metrics for key in ("train/loss", "val/loss") if key in row]


@pytest.mark.parametrize("preset", ["tiny", "tiny-modern"])
def test_a_masked_batch_is_its_documents_one_by_one(tmp_path: Path, rows: Path, preset: str) -> None:
    made = begin(tmp_path, rows, "steps=3", preset=preset)
    made.model.eval()
    eos = made.task.tokenizer.eos_token_id
    batch = made._batch(2)
    with torch.no_grad():
        loss = float(made.loss_module(batch))
    alone, documents = 0.0, 0
    for idx, targets in zip(batch.idx, batch.targets, strict=True):
        begins = [0, *(i for i in range(1, len(idx)) if idx[i] == eos), len(idx)]
        for start, stop in itertools.pairwise(begins):
            with torch.no_grad():
                logits = made.model(idx[None, start:stop])
            alone += float(functional.cross_entropy(logits[0].double(), targets[start:stop], reduction="sum"))
            documents += 1
    assert documents > 10, "windows hold several documents"
    assert loss == pytest.approx(alone, rel=1e-5)
    with torch.no_grad():
        unmasked = float(made.loss_module(Batch(batch.idx, batch.targets)))
    assert abs(unmasked - alone) > 1e-4 * alone, "and the mask makes a difference"


def test_validation_masks_as_training_does(tmp_path: Path, rows: Path) -> None:
    made = begin(tmp_path, rows, "steps=3")
    result = made.train()
    run = result.run
    model, tokenizer = api.load(run.best)
    ids = np.asarray(made.task.stream.val).astype(np.int64)
    total = 0.0
    for start in range(0, len(ids) - 1, 32):
        window = ids[start : start + 33]
        begins = [0, *(i for i in range(1, len(window) - 1) if window[i] == tokenizer.eos_token_id), len(window) - 1]
        for first, last in itertools.pairwise(begins):
            with torch.no_grad():
                logits = model(torch.from_numpy(window[None, first:last]))[0].double()
            total += float(
                functional.cross_entropy(logits, torch.from_numpy(window[first + 1 : last + 1]), reduction="sum")
            )
    assert result.final is not None and result.final.loss == pytest.approx(total / (len(ids) - 1), rel=1e-5)
    plain = evaluate(model, made.task.stream.val, 32, model.device)
    assert plain.loss != pytest.approx(result.final.loss, rel=1e-6)


def test_workers_and_resuming_change_nothing(tmp_path: Path, rows: Path) -> None:
    whole = begin(tmp_path / "whole", rows, "steps=12").train().run
    begin(tmp_path / "first", rows, "steps=12", "num_workers=2").train()
    assert losses(Run(tmp_path / "first" / "run")) == losses(whole)

    class Stop(Exception):
        pass

    broken = begin(tmp_path / "second", rows, "steps=12", "num_workers=2", "save_interval=5")
    step = broken._step

    def stop_after_seven() -> None:
        if broken.state.step == 7:
            raise Stop
        step()

    broken._step = stop_after_seven  # type: ignore[method-assign]
    with pytest.raises(Stop):
        broken.train()
    opening.resume_run(tmp_path / "second" / "run", {"runtime": {"num_workers": 1}}).train()
    assert losses(Run(tmp_path / "second" / "run")) == losses(whole)
    for name in ("model.safetensors", "trainer/optimizer.safetensors"):
        assert (tmp_path / "second/run/last" / name).read_bytes() == (whole.last / name).read_bytes()


def test_generation_from_nothing_starts_where_documents_do(tmp_path: Path, rows: Path, text_file: Path) -> None:
    run = begin(tmp_path, rows, "steps=2").train().run
    tokenizer = load(run.best)
    assert encode_prompt(tokenizer, "") == [tokenizer.eos_token_id]
    shares = [row["perf/data_time_frac"] for row in run.metrics if "perf/data_time_frac" in row]
    assert shares and all(0 < share < 1 for share in shares)
    single = begin(tmp_path / "single", text_file, "steps=2").train().run
    assert encode_prompt(load(single.best), "") != [tokenizer.eos_token_id], "a single text never shows that token"

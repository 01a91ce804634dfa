"""The attention of training: measured in 16 bits on a CPU, kept with the run, and the same numbers either way."""

import json
from pathlib import Path

import pytest
import torch

from glassgpt import api
from glassgpt.config import build, presets
from glassgpt.estimate import UNFUSED_QUERIES, activations
from glassgpt.model import GPT, FusedAttention, UnfusedAttention
from glassgpt.planning import attention_choice
from glassgpt.planning.attention_choice import measured_attention
from glassgpt.planning.measured import Measurements
from glassgpt.runtime import Runtime
from glassgpt.transforms.blocks import prepare_blocks

CONFIG = build("tiny", [presets.get("tiny").layer])
CPU = Runtime(torch.device("cpu"), torch.bfloat16, 1, False, "")
SETTINGS = {
    "train.steps": 6, "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 150, "batch_size": 4, "compile": "false",
    "sample_tokens": 0, "eval_interval": 3, "optimizer": "adamw",
}  # fmt: skip


def test_the_faster_one_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[float] = []
    monkeypatch.setattr(attention_choice, "repeated", lambda once, seconds: [once() and found.pop(0)] * 3)
    found += [2.0, 1.0]
    measurements = Measurements(anew=True)
    chosen = measured_attention(CONFIG, CPU, measurements)
    assert (chosen[0].attention, chosen[1]) == ("unfused", "unfused attention is 2.0x as fast as fused attention here")
    assert measured_attention(CONFIG, CPU, measurements) == chosen, "measured once"
    found += [1.05, 1.0]
    assert measured_attention(CONFIG, CPU, Measurements(anew=True)) == (CPU, "")
    assert not found
    exact = Runtime(CPU.device, torch.float32, 1, False, "")
    assert measured_attention(CONFIG, exact, measurements) == (exact, ""), "float32 has no choice"
    user = CONFIG.replace("runtime", attention="fused")
    assert measured_attention(user, CPU, measurements) == (CPU, ""), "the user has chosen"


def test_a_run_keeps_its_attention_and_trains_to_the_same_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat, and the dog sat on the log. " * 60, encoding="utf-8")
    losses = {}
    for kind in ("fused", "unfused"):
        run = api.train(
            data=text, overrides={**SETTINGS, "attention": kind, "dtype": "float32"}, name=kind, runs=tmp_path
        )
        losses[kind] = [row["val/loss"] for row in run.metrics if "val/loss" in row]
    assert losses["fused"] == pytest.approx(losses["unfused"], rel=1e-5)
    times = iter([2.0, 1.0])
    monkeypatch.setattr(attention_choice, "repeated", lambda once, seconds: [next(times)] * 3)
    run = api.train(data=text, overrides={**SETTINGS, "dtype": "bfloat16"}, name="auto", runs=tmp_path)
    assert run.config().runtime.attention == "unfused"
    assert "unfused attention is" in json.dumps(run.provenance()["notes"])
    resumed = api.resume(run.path, {"train": {"steps": 8}, "runtime": {"attention": "auto"}})
    assert resumed.run.config().runtime.attention == "unfused"


@pytest.mark.parametrize("T", [96, 300])
@pytest.mark.parametrize("preset", ["tiny", "tiny-modern"])
def test_the_weights_that_unfused_attention_keeps_are_planned(preset: str, T: int) -> None:
    config = build(preset, [presets.get(preset).layer, {"model": {"vocab_size": 31, "block_size": T}}]).model
    kept = {}
    for kind in ("fused", "unfused"):
        model = GPT(config)
        model.init_weights(0)
        prepare_blocks(model.train(), recompute=False, compile=False, attention=kind)
        assert type(model.blocks[0].attention.attend) is {"fused": FusedAttention, "unfused": UnfusedAttention}[kind]
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        held: dict[int, int] = {}

        def keep(tensor: torch.Tensor, held: dict[int, int] = held, own: set[int] = own) -> torch.Tensor:
            if (storage := tensor.untyped_storage()).data_ptr() not in own:
                held[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = model(torch.zeros(2, T, dtype=torch.int64))
        kept[kind] = sum(held.values())
        del logits
    planned = {kind: activations(config, 2, attention=kind).kept for kind in kept}
    assert kept["unfused"] - kept["fused"] == pytest.approx(planned["unfused"] - planned["fused"], rel=0.1)
    assert UnfusedAttention.queries == UNFUSED_QUERIES

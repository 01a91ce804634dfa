"""LoRA adapters in PEFT's format: `peft` computes with ours what we compute, and we with `peft`'s what it computes."""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from conftest import load_model
from glassgpt.config import ModelConfig, TuneConfig, presets
from glassgpt.errors import CheckpointError
from glassgpt.files import sha256_of
from glassgpt.model import GPT
from glassgpt.tokenizer import BPETokenizer, Tokenizer
from glassgpt.transforms.lora import adapters, add_lora, is_lora
from glassgpt.weights.adapter import Base, load_adapter, save_adapter
from glassgpt.weights.folder import save_model, verify, write_folder
from glassgpt.weights.loading import load_source
from glassgpt.weights.resolve import open_weights
from glassgpt.weights.transfer import to_folder, to_gguf
from published_models import FAMILIES, TOKENIZER, make

IDX = torch.arange(3, 43).view(2, 20)
LORA = TuneConfig(method="lora", lora_rank=4, lora_alpha=7.0)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        out = model(IDX)
    return out if isinstance(out, Tensor) else out.logits


def same(one: Any, other: Any) -> None:
    torch.testing.assert_close(logits(one), logits(other), rtol=1e-5, atol=3e-5)


def with_lora(model: GPT, lora: TuneConfig = LORA) -> GPT:
    """LoRA with a random B."""
    add_lora(model, lora, seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, matrix in adapters(model).items():
        if "lora_B" in name:
            matrix.copy_(0.3 * torch.randn(matrix.shape, generator=generator))
    return model


def saved(
    folder: Path, model: GPT, base: Path, lora: TuneConfig = LORA, tokenizer: Tokenizer = TOKENIZER, **how: Any
) -> Path:
    digests = {path.name: sha256_of(path) for path in (base.glob("*.safetensors") if base.is_dir() else [base])}
    with write_folder(folder) as temporary:
        save_adapter(temporary, model, tokenizer, lora, Base(os.path.relpath(base, temporary), digests), **how)
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> tuple[Path, GPT]:
    """An adapter of a small Llama, and the model that it was saved from."""
    model = with_lora(make("Llama", tmp_path / "base")[1])
    return saved(tmp_path / "adapter", model, tmp_path / "base"), model


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_computes_with_our_adapters_what_we_compute(family: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    targets, rslora = {"Qwen2": ("q_proj, v_proj", False), "Qwen3": ("all", True)}.get(family, ("all", False))
    blocks = 1 if family in ("GPT2", "Mistral") else 0
    lora = TuneConfig("lora", lora_rank=4, lora_alpha=7.5, rslora=rslora, lora_targets=targets, lora_layers=blocks)
    theirs, ours = make(family, tmp_path / "base")
    before = logits(ours)
    folder = saved(tmp_path / "adapter", with_lora(ours, lora), tmp_path / "base", lora)
    assert (logits(ours) - before).abs().max() > 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=FutureWarning)
        same(peft.PeftModel.from_pretrained(theirs, folder), ours)
    verify(folder, required=True)
    merged, tokenizer = load_model(folder)
    assert not is_lora(merged) and tokenizer.files() == TOKENIZER.files()
    same(merged, ours)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["some", "all"])
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match")  # a layer of Llama, in GPT-2
@pytest.mark.filterwarnings("ignore:Could not find a config file")  # the test gives the model itself to peft
def test_we_compute_with_adapters_of_peft_what_it_computes(family: str, kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    theirs, ours = make(family, tmp_path / "base")
    targets = {"some": ["c_attn"] if family == "GPT2" else ["v_proj", "down_proj"], "all": "all-linear"}[kind]
    more = (
        {"alpha_pattern": {"v_proj|c_attn": 3}, "rank_pattern": {"layers.1.mlp.down_proj": 5}} if kind == "some" else {}
    )
    how = {"fan_in_fan_out": family == "GPT2", "use_rslora": kind == "all", "init_lora_weights": False} | more
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, task_type="CAUSAL_LM", **how)
    torch.manual_seed(2)
    with_peft = peft.get_peft_model(theirs, config).eval()
    with_peft.peft_config["default"].base_model_name_or_path = "../base"
    with_peft.save_pretrained(tmp_path / "adapter")
    merged, tokenizer = load_model(tmp_path / "adapter")
    assert (logits(with_peft) - logits(ours)).abs().max() > 0.1
    assert tokenizer.files() == TOKENIZER.files()  # the base's: the adapter has none
    same(merged, with_peft)


def test_every_kind_of_base_gives_the_same_and_so_does_every_export(tmp_path: Path) -> None:
    """The native format fuses q, k and v, of which the adapter has a pair each. Parts of a tensor can be read."""
    tokenizer = BPETokenizer.train("an apple a day " * 9, 262)
    shape = {"vocab_size": tokenizer.vocab_size, "block_size": 32, "n_layer": 3, "n_head": 4, "n_embd": 32}
    model = GPT(ModelConfig(**shape, **presets.MODERN | {"qk_norm": False}, n_kv_head=2))
    model.init_weights(0)
    for name in ("hf", "native"):
        with write_folder(tmp_path / name) as temporary:
            save_model(temporary, model, tokenizer, native=name == "native")
    to_gguf(open_weights(tmp_path / "hf"), tmp_path / "base.gguf", dtype="f32")
    with_lora(model)
    for name in ("hf", "native", "base.gguf"):
        folder = saved(tmp_path / f"adapter of {name}", model, tmp_path / name, tokenizer=tokenizer)
        same(load_model(folder)[0], model)
        source = open_weights(folder)
        for tensor, shape in source.shapes.items():
            parts = [source.read(tensor, 0, 5), source.read(tensor, 5, 6), source.read(tensor, 6)]
            assert torch.cat(parts).shape == shape
            torch.testing.assert_close(torch.cat(parts), source.read(tensor), rtol=0, atol=1e-6)
        to_folder(source, tmp_path / f"merged {name}")
        to_gguf(source, tmp_path / f"merged {name}.gguf", dtype="f32")
        for merged in (f"merged {name}", f"merged {name}.gguf"):
            same(load_source(open_weights(tmp_path / merged))[0], model)


def _edit(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | entries), encoding="utf-8")


def test_a_saved_adapter_comes_back_bit_by_bit_and_masters_are_saved_in_float32(
    llama: tuple[Path, GPT], tmp_path: Path
) -> None:
    folder, model = llama
    again = load_model(tmp_path / "base")[0].bfloat16()
    add_lora(again, LORA, seed=5)
    load_adapter(folder, again)
    for name, matrix in adapters(again).items():
        assert torch.equal(matrix, adapters(model)[name].bfloat16())
    other = saved(tmp_path / "other", again, tmp_path / "base", state=model.state_dict())
    assert load_file(other / "adapter_model.safetensors").keys() == {f"base_model.model.{n}" for n in adapters(model)}
    for name, matrix in load_file(other / "adapter_model.safetensors").items():
        assert torch.equal(matrix, adapters(model)[name.removeprefix("base_model.model.")])


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def _change(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
        (folder / "SHA256SUMS").unlink()

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_change(lambda t: t.pop(FIRST)), r"q_proj has A \[0\] and B \[32, 4\], expected \[rank, 32\]"),
        (_change(lambda t: t.update({FIRST: torch.ones(4, 31)})), r"A \[4, 31\] and B"),
        (_change(lambda t: t.update({FIRST: torch.full((4, 32), torch.nan)})), "NaN"),
        (_change(lambda t: t.update({FIRST.replace("q_proj", "x_proj"): torch.ones(4, 32)})), "x_proj.*no matrix"),
        (_change(lambda t: t.update({"lm_head.lora_A.weight": torch.ones(4, 32)})), "lm_head.*no matrix"),
        (_change(lambda t: t.clear()), "it is empty"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"x" * 99), "SHA-256 differs"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json is damaged"),
        (lambda f: _edit(f / "adapter_config.json", use_dora=True), "use_dora=True: not implemented"),
        (lambda f: _edit(f / "adapter_config.json", bias="all"), "bias='all': not implemented"),
        (lambda f: _edit(f / "adapter_config.json", modules_to_save=["lm_head"]), r"modules_to_save=\['lm_head'\]"),
        (lambda f: _edit(f / "adapter_config.json", init_lora_weights="pissa"), "init_lora_weights='pissa'"),
        (lambda f: _edit(f / "adapter_config.json", peft_type="LOHA"), "peft_type='LOHA'"),
        (lambda f: _edit(f / "adapter_config.json", lora_alpha="x"), "lora_alpha or alpha_pattern"),
        (lambda f: _edit(f / "adapter_config.json", alpha_pattern={"(": 1}), "alpha_pattern"),
        (lambda f: shutil.rmtree(f.parent / "base"), "adapter of '../base', which cannot be opened"),
        (lambda f: _edit(f / "base.json", sha256={"model.safetensors": "0"}), "not those that it was trained on"),
        (lambda f: _edit(f / "base.json", source=None), "does not say which model"),
        (lambda f: _edit(f / "base.json", source=".", sha256={}), "names itself"),
        (lambda f: _edit(f / "base.json", sha256=None), "does not say which model"),
    ],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_is_refused_with_one_message(
    damage: Callable[[Path], object], message: str, llama: tuple[Path, GPT]
) -> None:
    folder, _ = llama
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_loading_into_a_model_is_strict(llama: tuple[Path, GPT], tmp_path: Path) -> None:
    folder, _ = llama
    other = load_model(tmp_path / "base")[0]
    add_lora(other, TuneConfig(method="lora", lora_rank=5, lora_targets="q_proj"), seed=5)
    before = {name: matrix.clone() for name, matrix in adapters(other).items()}
    with pytest.raises(CheckpointError, match=r"down_proj.lora_A.weight is unexpected, .* and 39 more"):
        load_adapter(folder, other)
    assert all(torch.equal(matrix, before[name]) for name, matrix in adapters(other).items())

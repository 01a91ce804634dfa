"""``glassgpt pull`` and ``export`` through the command line, and models of every kind as a source."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import glassgpt
from glassgpt import api
from glassgpt.config import ModelConfig
from glassgpt.model import GPT
from glassgpt.tokenizer import BPETokenizer, CharTokenizer, Tokenizer
from glassgpt.tokenizer.specs import identity_of

CHAT = "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|user|>{% endif %}"
Cli = Callable[..., tuple[int, str, str]]


def tokenizer() -> BPETokenizer:
    text = "the cat sat on the mat, and then the hat sat on the cat. " * 20
    return BPETokenizer.train(text, 300, special=("<|endoftext|>", "<|user|>"))


def model_folder(folder: Path, tokenizer: Tokenizer, **changes: Any) -> Path:
    """A small random model in a folder, with all files of a published model."""
    shape: dict[str, Any] = {"n_layer": 3, "n_head": 2, "n_embd": 32, "block_size": 64, "qkv_bias": False}
    shape |= {"norm": "rmsnorm", "norm_bias": False, "mlp": "swiglu", "position": "rope", "attention_out_bias": False}
    model = GPT(ModelConfig(**shape, vocab_size=tokenizer.vocab_size, mlp_bias=False, **changes)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    glassgpt.save(model, tokenizer, folder)
    (folder / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "eos_token_id": [274, 0]}', encoding="utf-8")
    (folder / "LICENSE.txt").write_text("Do as you like.", encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return model_folder(tmp_path / "m", tokenizer())


def weights(source: str | Path) -> dict[str, torch.Tensor]:
    return glassgpt.load(source, device="cpu")[0].state_dict()


def test_a_folder_is_pulled_with_all_its_files(cli: Cli, folder: Path, tmp_path: Path) -> None:
    code, out, err = cli("pull", folder, "-o", "half", "--dtype", "bfloat16", "--json")
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert (said["path"], said["dtype"], said["notes"]) == ("half", "bfloat16", [])
    before, after = weights(folder), weights("half")
    assert all(torch.equal(after[name], tensor.bfloat16().float()) for name, tensor in before.items())
    half = tmp_path / "half"
    for name in ("chat_template.jinja", "LICENSE.txt", "tokenizer.json"):
        assert (half / name).read_bytes() == (folder / name).read_bytes()
    generation = json.loads((half / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["temperature"] == 0.6 and generation["eos_token_id"] == [274, 0]
    assert json.loads((half / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"
    code, out, err = cli("pull", "half", "-o", "again")  # in the type that it is in
    assert code == 0 and "bfloat16" in out
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (half / "model.safetensors").read_bytes()


def test_explain_is_the_table_and_writes_nothing(cli: Cli, folder: Path, tmp_path: Path) -> None:
    there = sorted(tmp_path.rglob("*"))
    code, out, err = cli("pull", folder, "--explain")
    assert (code, err) == (0, "") and sorted(tmp_path.rglob("*")) == there
    assert "model.layers.0.self_attn.k_proj.weight" in out and "rows 32:64 of the fused q, k, v" in out
    assert "blocks.1 to blocks.2: as blocks.0" in out and "model.layers.1" not in out and "tied: left out" in out
    code, out, _ = cli("pull", folder, "--explain", "--json")
    rows = json.loads(out)["tensors"]
    assert len(rows) == 2 + 9 * 3 + 1
    assert rows[1] == {
        "published": "model.layers.0.input_layernorm.weight",
        "shape": [32],
        "stored": "F32",
        "ours": "blocks.0.norm_1.weight",
        "our shape": [32],
        "operation": "copy",
    }


def test_a_gguf_file_there_and_back(cli: Cli, folder: Path, tmp_path: Path) -> None:
    code, out, err = cli("export", folder, "--to", "gguf", "--dtype", "f32")
    assert (code, err) == (0, "") and out.startswith("m.gguf")
    before, after = weights(folder), weights("m.gguf")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    code, out, err = cli("pull", "m.gguf", "-o", "back")
    assert (code, err) == (0, "")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert (tmp_path / "back" / "chat_template.jinja").read_text(encoding="utf-8") == CHAT
    for more in ([], ["--chat"]):
        asked = ["--prompt", "the cat", "-n", "9", "--greedy", *more]
        texts = {cli("sample", source, *asked)[1] for source in (folder, "m.gguf", "back")}
        assert len(texts) == 1 and ("the cat" in texts.pop()) == (not more)
    assert glassgpt.load_tokenizer("m.gguf").encode("the cat") == tokenizer().encode("the cat")
    code, out, err = cli("export", folder, "--to", "gguf", "-o", "q.gguf", "--dtype", "q8_0")
    assert code == 0 and (tmp_path / "q.gguf").stat().st_size < (tmp_path / "m.gguf").stat().st_size / 1.5


def test_other_exports(cli: Cli, folder: Path, tmp_path: Path) -> None:
    code, out, err = cli("export", folder, "--to", "hf", "-o", "f16", "--dtype", "float16")
    assert (code, err) == (0, "") and "float16" in out
    assert glassgpt.load("f16", device="cpu", dtype="float16")[0].dtype == torch.float16
    code, out, err = cli("export", folder, "--to", "tiktoken")
    assert code == 0 and "split pattern: '(?:[sdmt]" in err and "special token: <|endoftext|> 274" in err
    tiktoken = pytest.importorskip("tiktoken")
    from tiktoken.load import load_tiktoken_bpe

    ranks = load_tiktoken_bpe(str(tmp_path / "m.tiktoken"))
    pattern = err.splitlines()[0].removeprefix("note: split pattern: ")
    theirs = tiktoken.Encoding("m", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 274})
    text = "the cat sat on Größe 123, 'tis\n\n  so"
    assert theirs.encode(text) == tokenizer().encode(text)
    assert identity_of(glassgpt.load_tokenizer("m.tiktoken")) == identity_of(tokenizer())


MISTAKES = {
    "nothing of that name": (
        ["pull", "nothing"],
        ["no model 'nothing'", "a run:", "a folder or", "an asset:", "the hub"],
    ),
    "a hub name, offline": (["pull", "org/name"], ["org/name is not in the cache", "unset GLASSGPT_OFFLINE"]),
    "a revision of nothing": (["pull", "org/name", "--revision", "v1"], ["org/name@v1 is not in the cache"]),
    "a file that is no model": (["pull", "m/config.json"], ["m/config.json is a file; give a model's folder"]),
    "a folder that is no model": (["pull", "empty"], ["empty/config.json is missing"]),
    "a damaged file": (["pull", "bad.gguf"], ["bad.gguf is not a readable GGUF file"]),
    "an existing target": (["pull", "m", "-o", "m"], ["m exists, and is not overwritten; name another with -o"]),
    "an existing file": (["export", "m", "--to", "gguf", "-o", "bad.gguf"], ["bad.gguf exists"]),
    "no such format": (["export", "m", "--to", "onnx"], ["--to 'onnx' is not one of hf, gguf, tiktoken"]),
    "no format": (["export", "m"], ["--to"]),
    "a type of the other format": (["export", "m", "--to", "gguf", "--dtype", "float16"], ["f32, f16, bf16, q8_0, q4"]),
    "a type that is none": (["pull", "m", "-o", "x", "--dtype", "f16"], ["'f16' is not one of float32, float16"]),
    "a type of a tokenizer": (["export", "m", "--to", "tiktoken", "--dtype", "f16"], ["the tokenizer alone"]),
    "characters as GGUF": (["export", "c", "--to", "gguf"], ["byte-level BPE", "'char'", "tokenizer=bpe:N"]),
    "characters as ranks": (["export", "c", "--to", "tiktoken"], ["byte-level BPE", "'char'"]),
    "a chat without a template": (["sample", "c", "--chat", "-p", "abc"], ["has no chat template"]),
}


@pytest.mark.parametrize("which", MISTAKES)
def test_a_mistake_is_one_message(which: str, cli: Cli, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.gguf").write_bytes(b"nonsense")
    (model_folder(tmp_path / "c", CharTokenizer.train("abc")) / "chat_template.jinja").unlink()
    there = sorted(tmp_path.rglob("*"))
    command, said = MISTAKES[which]
    code, out, err = cli(*command)
    assert code == 2 and out == "" and sorted(tmp_path.rglob("*")) == there
    assert all(part in err for part in said), err
    assert "Traceback" not in err


def test_the_order_in_which_names_are_looked_up(cli: Cli, folder: Path, tmp_path: Path) -> None:
    """A run before a folder, a folder before an asset and a name on the hub."""
    model_folder(tmp_path / "gpt2", tokenizer(), rope_theta=77.0)
    model_folder(tmp_path / "smollm2-135m-instruct", tokenizer(), rope_theta=88.0)
    assert glassgpt.load("gpt2", device="cpu")[0].config.rope_theta == 77.0
    assert glassgpt.load("smollm2-135m-instruct", device="cpu")[0].config.rope_theta == 88.0
    run = tmp_path / "runs" / "gpt2"
    run.mkdir(parents=True)
    (run / "run.toml").write_text("", encoding="utf-8")
    model_folder(run / "best", tokenizer(), rope_theta=99.0)
    assert api.open_source("gpt2").path == Path("runs/gpt2/best")


def test_a_model_on_the_hub_by_its_name(folder: Path, tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent / "weights"))
    try:
        from hub_server import Hub, serving
    finally:
        sys.path.pop(0)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with serving(Hub({"org/tiny": files})) as hub:
        switches = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        environment = os.environ | switches | {"GLASSGPT_OFFLINE": "0"}
        command = [sys.executable, "-m", "glassgpt", "pull", "org/tiny", "--revision", "v1"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "tiny" / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert (tmp_path / "tiny" / "chat_template.jinja").read_bytes() == files["chat_template.jinja"]
    assert any("/revision/v1" in path for _, path, _ in hub.requests)

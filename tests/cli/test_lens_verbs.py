"""`lens`, `why`, `ablate` and `reach` from the command line: what the library gives, pictures, and mistakes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import glassgpt
from glassgpt.config import ModelConfig
from glassgpt.model import GPT
from glassgpt.tokenizer import CharTokenizer
from glassgpt.weights.folder import save_model, write_folder

PROMPT = "To be, or not to be"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random model of GPT-2's shape, beside a text."""
    (tmp_path / "short.txt").write_text(PROMPT, encoding="utf-8")
    tokenizer = CharTokenizer.train(PROMPT + "'\n\u05d0\U0001f642$\\")
    model = GPT(ModelConfig(vocab_size=tokenizer.vocab_size, block_size=32, n_layer=2, n_head=2, n_embd=16))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    with write_folder(tmp_path / "m") as temporary:
        save_model(temporary, model, tokenizer)
    return tmp_path / "m"


def printed(cli: Any, *arguments: object) -> Any:
    code, out, err = cli(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_json_has_the_numbers_of_the_library(cli: Any, folder: Path, tmp_path: Path) -> None:
    model, tokenizer = glassgpt.load(folder)
    lens = glassgpt.inside.lens(model, tokenizer, PROMPT)
    shown = printed(cli, "lens", folder, "-p", PROMPT)
    assert shown["layers"] == ["embeddings", "block 0", "block 1"]
    assert shown["prompt"] == {"ids": lens.prompt.ids, "tokens": list(PROMPT)}
    assert (shown["predicted_ids"], shown["rank"]) == (lens.tokens.tolist(), lens.rank.tolist())
    assert (shown["predicted_tokens"], shown["probability"]) == (lens.texts, lens.probability.tolist())
    why = glassgpt.inside.why(model, tokenizer, PROMPT, "b", "e", 3)
    shown = printed(cli, "why", folder, "-p", PROMPT, "--token", "b", "--instead", "e", "--position", 3)
    assert shown["value"] == why.value == pytest.approx(sum(part["value"] for part in shown["parts"]), abs=1e-5)
    assert (shown["heads"], shown["totals"]) == (why.heads.tolist(), why.totals())
    (tmp_path / "text.txt").write_text(PROMPT * 5, encoding="utf-8")
    ablation = glassgpt.inside.ablate(model, tokenizer, PROMPT * 5, "mean", 64)
    shown = printed(cli, "ablate", folder, "text.txt", "--by", "mean", "--tokens", 64)
    assert (shown["loss"], shown["tokens"]) == (ablation.loss, ablation.tokens)
    assert (shown["heads"], shown["mlps"]) == (ablation.heads.tolist(), ablation.mlps.tolist())
    shown = printed(cli, "reach", folder, "--length", 5)
    assert shown["depends"] == [[s <= t for s in range(5)] for t in range(5)]
    assert (shown["correct"], shown["findings"]) == (True, [])


def test_tables(cli: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = cli("lens", folder, "-p", PROMPT)[1].splitlines()
    assert grid[0].startswith("the predicted next token at the last ")
    assert [line.split("  ")[0] for line in grid[3:]] == ["layer", "embeddings", "block 0", "block 1"]
    assert max(map(len, grid)) <= 100
    one = cli("lens", folder, "-p", PROMPT, "--position", -1)[1]
    assert "after 'e' (position 18)" in one and "█" in one
    few, everything = (cli("why", folder, "-p", PROMPT, *more)[1] for more in ([], ["--all"]))
    assert "token embedding" in everything and "layer 1 MLP bias" in everything and "remainder" in everything
    assert few == everything  # there are 13 parts
    Path("text.txt").write_text(PROMPT * 5, encoding="utf-8")
    out = cli("ablate", folder, "text.txt", "--tokens", 40)[1]
    assert "on 32 tokens in windows of 32; zero ablation" in out
    assert sum("layer 1 head" in line for line in out.splitlines()) == 2
    assert cli("reach", folder)[1] == "full lower triangle: yes (32 positions)\n"


@pytest.mark.parametrize("prompt", ["\u05d0\U0001f642$\\'\n" * 5, pytest.param("", marks=pytest.mark.slow)])
def test_pictures_of_any_text(cli: Any, folder: Path, prompt: str, recwarn: pytest.WarningsRecorder) -> None:
    for verb in (["lens"], ["why"], ["reach"], ["ablate", "short.txt"]):
        file = f"{verb[0]}.{'png' if prompt else 'svg'}"
        text = [] if verb[0] == "ablate" else ["-p", prompt]
        code, _, err = cli(verb[0], folder, *verb[1:], *text, "-o", file)
        assert (code, err) == (0, "")
        assert Path(file).read_bytes().startswith(b"\x89PNG" if prompt else b"<?xml")
    assert not recwarn.list


def broken(monkeypatch: pytest.MonkeyPatch, verb: str, change: Any) -> None:
    """Let a verb load a model with a hook on its first block."""
    from glassgpt.cli import prompt

    def load(source: Any, device: str) -> Any:
        model, tokenizer = prompt.load_model(source, device)
        model.blocks[0].register_forward_hook(lambda _, inputs, output: change(output))
        return model, tokenizer

    monkeypatch.setattr(f"glassgpt.cli.inside.{verb}.load_model", load)


def test_a_remainder_beyond_rounding_ends_with_1(cli: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, "why", lambda output: 1.01 * output)
    code, out, err = cli("why", folder, "-p", PROMPT)
    assert code == 1
    assert "remainder" in out
    assert err.startswith("error: the parts sum to ") and "more than rounding explains" in err


def test_a_leak_ends_with_1(cli: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, "reach", lambda output: output + output.roll(-1, dims=1))
    code, out, _ = cli("reach", folder, "-p", PROMPT)
    first, *pairs = out.splitlines()
    assert (code, first) == (1, "full lower triangle: NO (19 positions)")
    assert pairs[0] == "  the output at position 0 'T' sees its future: position 1 'o'"
    assert len(pairs) == 11 and "more" in pairs[-1]


MISTAKES = {
    "a position": (["lens", "m", "-p", "To", "--position", "2"], "--position 2: the prompt has the positions 0 to 1"),
    "too long": (["lens", "m", "-p", "o" * 33], "the prompt has 33 tokens; the model reads 32"),
    "unknown characters": (["why", "m", "-p", "To Z"], "'Z'"),
    "no model": (["lens", "."], "there is no model '.'"),
    "no picture": (["why", "m", "-o", "x.gif"], ".png or .svg"),
    "no folder": (["reach", "m", "-o", "none/x.png"], "there is no folder none"),
    "two tokens": (["why", "m", "-p", "To", "--token", "be"], "--token 'be' is 2 tokens ('b' id:"),
    "an id": (["why", "m", "-p", "To", "--instead", "id:99"], "--instead id:99: the model's tokens are id:0 to"),
    "a layer": (["ablate", "m", "short.txt", "--layer", "2"], "--layer 2: the model has the layers 0 to 1"),
    "a kind": (["ablate", "m", "short.txt", "--by", "max"], "'max' is not one of 'zero', 'mean'"),
    "no text": (["ablate", "m", "none.txt"], "there is no file 'none.txt'"),
    "not a text": (["ablate", "m", "m/model.safetensors"], "Text is expected, in UTF-8"),
    "a length": (["reach", "m", "--length", "33"], "--length 33: the model reads 1 to 32 tokens"),
    "both": (["reach", "m", "-p", "To", "--length", "3"], "give --prompt or --length, not both"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_message(cli: Any, folder: Path, name: str) -> None:
    arguments, message = MISTAKES[name]
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert message in err and err.lower().count("error: ") == 1

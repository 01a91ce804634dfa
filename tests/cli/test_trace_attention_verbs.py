"""``glassgpt trace`` and ``glassgpt attention``: tables, JSON, pictures, and the messages for mistakes."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from conftest import Cli
from glassgpt.config import ModelConfig
from glassgpt.model import GPT
from glassgpt.tokenizer import CharTokenizer
from glassgpt.weights.folder import save_model, write_folder

TOKENIZER = CharTokenizer.train(" ,abcdefghijklmnopqrstuvwxyz😀שلö")
TEXT = "to be, or not to be"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models in ``m`` and ``n`` with three layers of four heads."""
    for seed, name in enumerate("mn"):
        model = GPT(ModelConfig(vocab_size=TOKENIZER.vocab_size, block_size=40, n_layer=3, n_head=4, n_embd=32))
        model.init_weights(seed)
        with write_folder(tmp_path / name) as temporary:
            save_model(temporary, model, TOKENIZER)
    return tmp_path


def test_trace_shows_one_layer_in_full_and_json_all(cli: Cli, folder: Path) -> None:
    code, out, _ = cli("trace", "m", "--prompt", TEXT, "--layer", 1, "-o", "t.png")
    assert code == 0 and (folder / "t.png").read_bytes()[:4] == b"\x89PNG"
    layers = re.findall(r"^(?:layer \d: )?residual after mlp \[B 1, T 19, C 32\]", out, re.M)
    assert [name[:8] for name in layers] == ["layer 0:", "residual", "layer 2:"]
    assert out.count("\nqkv [") == 1 and "\nlayer 1\nnorm 1 [" in out and "Every number is finite" in out
    assert re.search(r"^q \[B 1, H 4, T 19, D 8\]( +-?\d\S*){4}\n    = qkv.*\(float32, view of qkv\)$", out, re.M)
    code, out, _ = cli("trace", "m", "--prompt", TEXT, "--json")
    tensors = json.loads(out)["tensors"]
    assert [row["layer"] for row in tensors if row["name"] == "qkv"] == [0, 1, 2]
    assert json.loads(out)["first_not_finite"] is None
    assert next(row for row in tensors if row["name"] == "k")["sizes"] == [1, 4, 19, 8]


def test_trace_names_the_first_number_that_is_not_finite_and_exits_with_1(cli: Cli, tmp_path: Path) -> None:
    model = GPT(ModelConfig(vocab_size=TOKENIZER.vocab_size, block_size=40, n_layer=3, n_head=4, n_embd=32))
    model.init_weights(0)
    model.get_parameter("blocks.1.mlp.up.weight").data.fill_(-3e38)[:, ::2] *= -1
    with write_folder(tmp_path / "m") as temporary:
        save_model(temporary, model, TOKENIZER)
    code, out, _ = cli("trace", "m", "--prompt", TEXT)
    assert code == 1
    assert re.search("Not finite, first in up of layer 1: [0-9,]+ of its 2,432 numbers are NaN or infinite", out)
    code, _, err = cli("attention", "m", "--prompt", TEXT)
    assert code == 2 and "the attention weights of layer 2 are not numbers" in err


def test_attention_tables_and_json_have_the_same_numbers(cli: Cli, folder: Path) -> None:
    code, out, _ = cli("attention", "m", "--prompt", TEXT, "--find", "induction", "--rows", 0)
    assert code == 0
    rows = [line.split() for line in out.splitlines() if line[:2].strip().isdigit() or line.strip()[:1].isdigit()]
    table = {row[0]: float(row[-1]) for row in rows if "." in row[0]}
    assert len(table) == 12 and list(table.values()) == sorted(table.values(), reverse=True)
    code, out, _ = cli("attention", "m", "--prompt", TEXT, "--json")
    heads = json.loads(out)["models"][0]["heads"]
    assert {head["head"]: head["induction"] for head in heads} == pytest.approx(table, abs=6e-4)
    code, out, _ = cli("attention", "m", "--prompt", TEXT, "--layer", 2, "--head", 3, "--against", "n", "--json")
    models = json.loads(out)["models"]
    assert [model["name"] for model in models] == ["m", "n"] and models[0]["heads"][0]["head"] == "2.3"
    weights = torch.tensor([model["weights"] for model in models])
    assert weights.shape == (2, 19, 19) and not torch.equal(*weights) and (weights.sum(-1) - 1).abs().max() < 1e-6


@pytest.mark.parametrize(
    "arguments",
    [
        ["--prompt", TEXT],
        ["--prompt", TEXT, "--layer", "1"],
        ["--prompt", TEXT, "--layer", "1", "--head", "2", "--against", "n"],
        ["--prompt", TEXT, "--against", "n", "--find", "entropy"],
        ["--prompt", "😀 שلöö", "--layer", "0", "--head", "0"],
        ["--prompt", "a"],
        ["--prompt", ""],
        ["--find", "induction"],
        ["--repeat", "--seed", "3", "--layer", "0", "--head", "1"],
    ],
    ids=" ".join,
)
def test_attention_draws_what_it_shows(cli: Cli, folder: Path, arguments: list[str]) -> None:
    name = f"a.{'svg' if '--repeat' in arguments else 'png'}"
    code, out, err = cli("attention", "m", *arguments, "-o", name)
    assert code == 0 and err == "" and "12 heads" in out
    assert (folder / name).stat().st_size > 2000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("trace m --prompt a --layer 3", "--layer 3: the model has the layers 0 to 2"),
        ("trace m --prompt a --layer -1", "--layer -1: the model has the layers 0 to 2"),
        ("trace m --prompt a -o x.jpg", "should end in .png or .svg"),
        ("attention m --prompt a --layer 1 --head 4", "--head 4: the model has the heads 0 to 3"),
        ("attention m --prompt a --head 1", "give --layer too"),
        ("attention m --prompt a --find best", "is not one of entropy, first, previous, duplicate, induction"),
        ("attention m --prompt abc --find induction", "no token of the prompt occurs twice"),
        ("attention m --prompt aa --find induction", "no token of the prompt occurs again after another one"),
        ("attention m --prompt a --find first", "the prompt is one token"),
        ("attention m --prompt a --repeat", "a prompt or --repeat, not both"),
        ("attention m --prompt a --step 5", "there is no run 'm'"),
        ("attention m --prompt aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "has 44 tokens; the model reads 40"),
    ],
)
def test_a_mistake_is_one_message(cli: Cli, folder: Path, arguments: str, message: str) -> None:
    code, out, err = cli(*arguments.split())
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_attention_compares_with_an_earlier_step_of_a_run(cli: Cli, folder: Path) -> None:
    (folder / "runs/r/kept").mkdir(parents=True)
    (folder / "runs/r/run.toml").touch()
    (folder / "m").rename(folder / "runs/r/best")
    shutil.copytree(folder / "n", folder / "runs/r/kept/step-000007")
    code, out, err = cli("attention", "r", "--prompt", TEXT, "--step", 7, "--layer", 0, "--head", 1, "--json")
    assert code == 0, err
    best, earlier = json.loads(out)["models"]
    assert (best["name"], earlier["name"]) == ("r", "r at step 7") and best["heads"] != earlier["heads"]
    _, out, _ = cli("attention", "n", "--prompt", TEXT, "--layer", 0, "--head", 1, "--json")
    assert json.loads(out)["models"][0]["weights"] == earlier["weights"]
    code, out, _ = cli("attention", "n", "--prompt", TEXT, "--against", "r", "--step", 7, "--rows", 0)
    assert code == 0 and "n -> r at step 7" in out and out.count("+0.000") == 12 * 5
    code, _, err = cli("attention", "r", "--prompt", "a", "--step", 1)
    assert code == 2 and "no checkpoint of step 1" in err and "7" in err

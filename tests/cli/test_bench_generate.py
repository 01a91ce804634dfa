"""``glassgpt bench generate``: tables and JSON of a small model, the peers' rows, one message for a mistake."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from glassgpt import api
from glassgpt.bench import comparison, generation, roofline
from glassgpt.config import ModelConfig
from glassgpt.model import GPT
from glassgpt.runtime import compiler_found
from glassgpt.tokenizer import BPETokenizer, CharTokenizer

QUICK = ["--device", "cpu", "--steps", 2, "--rounds", 1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = BPETokenizer.train("the cat sat on the mat, and then " * 9, 300)
    shape = {"vocab_size": tokenizer.vocab_size, "block_size": 24, "n_layer": 1, "n_head": 2, "n_embd": 32}
    gpt = GPT(ModelConfig(**shape))
    gpt.init_weights(0)
    folder = tmp_path_factory.mktemp("models") / "small"
    api.save(gpt, tokenizer, folder)
    chars = CharTokenizer.train("".join(map(chr, range(32, 127))))
    gpt = GPT(ModelConfig(**shape | {"vocab_size": chars.vocab_size}))
    gpt.init_weights(0)
    api.save(gpt, chars, folder.parent / "chars")
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(roofline.COPY_BYTES, "cpu", 2**16)
    monkeypatch.setattr(roofline, "fastest", lambda work, device, seconds: 0.5)
    monkeypatch.setattr(generation, "PAUSE", 0.0)
    monkeypatch.setattr(comparison, "PAUSE", 0.0)


def test_the_tables_have_every_type_and_a_context_that_is_too_long_is_said(cli: Any, model: Path) -> None:
    code, out, err = cli("bench", "generate", model, *QUICK, "--batch", "1,2", "--context", "8,99", "--decode", "eager")
    assert (code, err) == (0, "note: the model's context is 24 tokens; longer ones are measured with that\n")
    assert re.search(r"small: 22,272 parameters, context 24\ndevice cpu, \d threads?\nread bandwidth, .*/s\n", out)
    keys = [(dtype, batch, context) for batch in "12" for context in ("8", "24") for dtype in generation.DTYPES]
    prefill, decode = out.split("\ndecode:\n")
    found = re.findall(r"^(\w+) +(\d) +(\d+) +[\d.,]+ +[\d.]+$", prefill, re.MULTILINE)
    assert sorted(found) == sorted(keys)
    row = r"^(\w+) +eager +(\d) +(\d+) +[\d.,]+ +[\d.,]+ to [\d.,]+ +0\.\d +0\.\d +0\.\d +\d\.\d +[\d,]+%$"
    assert sorted(re.findall(row, decode, re.MULTILINE)) == sorted(keys)


def test_json_has_what_was_measured_and_why_something_was_not(
    cli: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from glassgpt.inference import decoders

    monkeypatch.setattr("glassgpt.inference.compiled.compiler_found", lambda device: False)
    assert "compiled" in decoders.DECODE
    options = ["--dtype", "int8,float32", "--decode", "compiled,eager", "--context", 4, "--threads", 1, "--json"]
    code, out, err = cli("bench", "generate", model, *QUICK, *options)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["model"], found["threads"], found["steps"], found["rounds"]) == (str(model), 1, 2, 1)
    assert found["read_bandwidth"] == 2**17
    assert [row["dtype"] for row in found["prefill"]] == ["int8", "float32"]
    rows = {(row["dtype"], row["decode"]): row for row in found["decode"]}
    assert len(rows) == 4
    assert rows["int8", "eager"]["weight_bytes"] < rows["float32", "eager"]["weight_bytes"] / 2
    assert "needs a C++ compiler" in rows["int8", "compiled"]["skipped"]
    assert rows["int8", "compiled"]["tokens_per_second"] is None
    assert found["compared"] == []


@pytest.mark.slow  # compiles each
@pytest.mark.parametrize("decode", generation.DECODERS)
def test_every_decoder_measures_every_type(cli: Any, model: Path, decode: str) -> None:
    if decode == "kernels":
        pytest.importorskip("numba")
    if decode == "compiled" and not compiler_found(torch.device("cpu")):
        pytest.skip("there is no C++ compiler")
    types = generation.DTYPES if decode != "compiled" else ("float32", "int4")
    options = ["--decode", decode, "--dtype", ",".join(types), "--batch", "1,2", "--context", 8, "--json"]
    code, out, _ = cli("bench", "generate", model, *QUICK, *options)
    assert code == 0
    rows = json.loads(out)["decode"]
    assert [(row["dtype"], row["batch"]) for row in rows] == [(d, b) for b in (1, 2) for d in types]
    assert [row["skipped"] for row in rows] == [""] * len(rows)
    assert all(row["tokens_per_second"] > 0 for row in rows)


def test_peers_are_compared_and_a_model_that_they_cannot_have_is_said(cli: Any, model: Path) -> None:
    pytest.importorskip("xllamacpp")
    options = [*QUICK, "--decode", "eager", "--dtype", "float32,int4", "--against", "xllamacpp", "--context", 12]
    code, out, err = cli("bench", "generate", model, *options)
    assert (code, err) == (0, "")
    table = out.split("side by side, from end to end:\n")[1]
    assert re.search(r"^float32 +glassgpt eager +1 +12 ( +[\d.,]+){3} +[\d.,]+ to [\d.,]+ +\d/3$", table, re.MULTILINE)
    for dtype, stored in (("float32", "f32"), ("int4", "q4_0")):
        ratio = r" +[\d.,]+ \([\d.,]+ to [\d.,]+\) +\d/3$"
        assert re.search(rf"^{dtype} +xllamacpp {stored} +1 +12 .*{ratio}", table, re.MULTILINE)
    code, out, err = cli("bench", "generate", model.parent / "chars", *options)
    assert (code, err) == (0, "")
    assert re.search(r"^- xllamacpp, float32: .* it is of the kind 'char'", out, re.MULTILINE)


MISTAKES = {
    "no such model": (["nowhere"], "there is no model 'nowhere'"),
    "no number": (["--batch", "one"], "--batch: 'one' is not a list of whole numbers such as 1,2,4"),
    "a batch of 0": (["--batch", "1,0"], "--batch: 0 is not between 1 and 65,536"),
    "a negative context": (["--context", "-3"], "--context: -3 is not between 1 and"),
    "no dtype": (
        ["--dtype", "float32,float8"],
        "--dtype: 'float8' is not one of float32, bfloat16, int8, int4, stored",
    ),
    "no decoder": (["--decode", "fast"], "--decode: 'fast' is not one of eager, kernels, compiled"),
    "no peer": (["--against", "vllm"], "--against: 'vllm' is not one of transformers, xllamacpp"),
    "no device": (["--device", "cuda:9"], "cuda:9 was asked for"),
    "no steps": (["--steps", "0"], "--steps"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_message(cli: Any, model: Path, name: str) -> None:
    arguments, expected = MISTAKES[name]
    code, out, err = cli("bench", "generate", *([model] if arguments[0].startswith("-") else []), *arguments)
    assert (code, out) == (2, "")
    assert expected in err
    assert "Traceback" not in err


def test_a_peer_that_is_not_installed_is_said_before_anything_is_measured(
    cli: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, out, err = cli("bench", "generate", model, "--against", "transformers,xllamacpp")
    assert (code, out) == (2, "")
    names = "transformers xllamacpp"
    assert err == f"error: --against: not installed: {names}. `pip install {names}`, or leave it out\n"

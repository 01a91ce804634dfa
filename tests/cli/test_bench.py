"""``glassgpt bench``: figures with units, JSON, a plot that is a picture, and one message for a mistake."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TINY = ["preset=tiny-modern", "n_layer=1", "n_embd=16", "n_head=2", "block_size=16", "batch_size=2", "device=cpu"]
TINY += ["dtype=float32"]
SHORT = ["--heads", "2", "--head-dim", "8", "--contexts", "16,32"]

MISTAKES = {
    "nothing to measure": (["bench"], "Usage"),
    "a wrong thing": (["bench", "trian"], "No such command 'trian'"),
    "a text": (["bench", "train", "my.txt"], "leave out 'my.txt'"),
    "a wrong key": (["bench", "train", "n_layr=2"], "did you mean model.n_layer?"),
    "a wrong preset": (["bench", "train", "preset=smal"], "did you mean 'small'"),
    "a size to choose": (["bench", "train", "preset=auto"], "cannot choose a size without a text"),
    "several problems": (["bench", "train", "n_head=3", "optimizer=sgd"], "2 problems"),
    "negative steps": (["bench", "train", "--steps", "-1"], "--steps"),
    "a missing TOML": (["bench", "train", "my.toml"], "my.toml: cannot be read"),
    "a model too large": (["bench", "train", "preset=gpt3"], "GiB"),
    "no GPU": (["bench", "train", "device=cuda:9"], "cuda:9 was asked for"),
    "a context of 0": (["bench", "attention", "--contexts", "0,64"], "0 is too small"),
    "no contexts": (["bench", "attention", "--contexts", "many"], "'many' is not a list of whole numbers"),
    "no heads": (["bench", "attention", "--heads", "0"], "--heads"),
    "a setting without use": (["bench", "attention", "n_layer=2"], "no use for model.n_layer"),
    "attention with a wrong key": (["bench", "attention", "dtpe=float32"], "did you mean runtime.dtype?"),
    "attention with a wrong type": (["bench", "attention", "dtype=float8"], "'float8' is not one of"),
    "a folder that is not there": (
        ["bench", "attention", "--plot", "nowhere/a.png"],
        "there is no folder nowhere",
    ),
    "a plot of another type": (["bench", "attention", "--plot", "a.pdf"], "the file name should end in .png or .svg"),
    "a folder as plot": (["bench", "attention", "--plot", "folder.png"], "it is a folder"),
    "no such text": (["bench", "tokenizer", "nothing.txt"], "no file 'nothing.txt'"),
    "a folder as text": (["bench", "tokenizer", "folder.png"], "holds no file that can be read"),
    "a tiny vocabulary": (["bench", "tokenizer", "--vocab-size", "256"], "--vocab-size"),
    "no rounds": (["bench", "tokenizer", "--repeat", "0"], "--repeat"),
    "nothing left": (["bench", "tokenizer", "--only-train", "--only-encode"], "exclude each other: give one of them"),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure as little as can be."""
    from glassgpt.bench import attention, roofline

    monkeypatch.setattr(attention, "EACH", 0.0)
    monkeypatch.setitem(roofline.MATRIX_SIZES, "cpu", (64,))
    monkeypatch.setitem(roofline.COPY_BYTES, "cpu", 2**20)
    fastest = roofline.fastest
    monkeypatch.setattr(roofline, "fastest", lambda work, device, seconds: fastest(work, device, 0.0))


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_message_and_exit_code_2(cli: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.png").mkdir()
    arguments, expected = MISTAKES[name]
    code, out, err = cli(*arguments)
    assert code == 2
    assert expected.lower() in (err + out).lower()
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"], "a mistake leaves nothing behind"


def test_train_prints_figures_with_units(cli: Any, tmp_path: Path) -> None:
    code, out, err = cli("bench", "train", *TINY, "--steps", 2)
    assert (code, err) == (0, "")
    for pattern in (
        r"tiny-modern: [\d,]+ parameters, 2 x 16 = 32 tokens per step, muon",
        r"device cpu with 1 thread, float32, not compiled",
        r"tokens per second +[\d,]+ +median of 2 steps",
        r"time per step +[\d.]+ m?s",
        r"  forward +[\d.]+ [mµ]?s +\d+%",
        r"fastest matrix product +[\d.]+ [TGM]FLOP/s",
        r"MFU +[\d.]+%",
        r"memory bandwidth +[\d.]+ [TGM]B/s",
        r"peak memory +([\d.]+ [MG]iB|-)",
    ):
        assert re.search(pattern, out), pattern
    assert list(tmp_path.iterdir()) == [], "a benchmark leaves nothing behind"


def test_train_as_json_takes_files_and_settings_as_train_does(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('preset = "tiny"\n[model]\nn_layer = 3\n[optim]\noptimizer = "adamw"\n')
    code, out, err = cli("bench", "train", "mine.toml", *TINY[1:], "micro_batch_size=1", "steps=2", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    model = found["config"]["model"]
    assert (found["config"]["preset"], model["n_layer"], model["vocab_size"]) == ("tiny", 1, 65)
    assert found["config"]["optim"]["optimizer"] == "adamw"
    assert (found["steps"], found["micro_batches"], found["tokens"]) == (2, 2, 32)
    assert (found["device"], found["dtype"]) == ("cpu", "float32")
    assert found["mfu"] == pytest.approx(found["flops_per_token"] * found["tokens_per_second"] / found["matrix_peak"])


def test_train_measures_the_configuration_of_a_run(cli: Any, tmp_path: Path) -> None:
    from glassgpt.config import build, write_toml

    model = {"n_layer": 1, "n_embd": 16, "n_head": 2, "block_size": 16, "vocab_size": 40}
    config = build("auto", [{"model": model, "train": {"steps": 10**9, "batch_size": 2}}])
    write_toml(tmp_path / "run.toml", config, {})
    code, out, err = cli("bench", "train", "run.toml", "device=cpu", "dtype=float32", "--steps", 1, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["config"]["model"] == config.to_dict()["model"]
    assert (found["steps"], found["tokens"]) == (1, 32)


def test_the_steps_of_a_file_are_not_measured(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from glassgpt.bench import throughput

    monkeypatch.setattr(throughput, "SECONDS", 0.0)
    (tmp_path / "long.toml").write_text("[train]\nsteps = 1000000000\n")
    assert json.loads(cli("bench", "train", "long.toml", *TINY, "--json")[1])["steps"] == throughput.MIN_STEPS


def test_attention_prints_a_table_and_draws_it(cli: Any, tmp_path: Path) -> None:
    code, out, err = cli("bench", "attention", *SHORT, "device=cpu", "dtype=float32", "--plot", "cost.png")
    assert (code, err) == (0, "")
    assert "2 heads of 8, batch 1, device cpu with 1 thread, float32" in out
    lines = out.splitlines()
    assert [line.split()[0] for line in lines if re.match(r" +(16|32) ", line)] == ["16", "32"] * 3
    assert "MiB" in out
    assert "ms" in out
    assert out.endswith("\ncost.png\n")
    picture = (tmp_path / "cost.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))
    assert width > 900
    assert height > 400


def test_attention_as_json(cli: Any) -> None:
    code, out, err = cli("bench", "attention", *SHORT, "--batch", 3, "device=cpu", "threads=1", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["heads"], found["head_dim"], found["batch"]) == (2, 8, 3)
    assert [(row["context"], row["kind"]) for row in found["rows"]] == [
        (16, "fused"), (16, "explicit"), (32, "fused"), (32, "explicit"),
    ]  # fmt: skip
    assert set(found["rows"][0]) == {
        "context", "kind", "forward_seconds", "training_seconds", "memory", "skipped",
    }  # fmt: skip
    assert all(row["memory"] > 0 for row in found["rows"])


def test_what_was_skipped_is_a_dash_with_its_reason(cli: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from glassgpt.bench import attention

    monkeypatch.setattr(attention, "free_memory", lambda device: 2**17)
    code, out, err = cli("bench", "attention", *SHORT, "device=cpu", "dtype=float32", "--plot", "cost.png")
    assert (code, err) == (0, "")
    assert re.search(r"^ +32 .* - .* -$", out, re.MULTILINE)
    assert "- explicit at 32 tokens: needs " in out
    assert (tmp_path / "cost.png").exists()


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replaces the measuring processes by fixed figures of 10 MiB. Returns their jobs."""
    from glassgpt.bench import tokenizer

    jobs: list[Any] = []

    def measure(job: Any) -> tokenizer.Figures:
        jobs.append(job)
        if job.name == "train":
            return tokenizer.Figures([0.5], 2, 10 << 20)
        return tokenizer.Figures([0.25] * len(tokenizer.PROCESSES[job.name][1]), 4, 10 << 20)

    monkeypatch.setattr(tokenizer, "measure", measure)
    return jobs


def test_tokenizer_prints_a_table(cli: Any, text_file: Path, jobs: list[Any]) -> None:
    text_file.write_bytes(b"x" * 1_000_000)
    code, out, err = cli("bench", "tokenizer", text_file, "--repeat", 2, "--vocab-size", 300)
    assert (code, err) == (0, "")
    for pattern in (
        r"^prose: 1\.0 MB of UTF-8, split pattern gpt2; vocabulary of 259, 2 merges; 4 tokens, 250000\.00 bytes each$",
        r"^\d+ CPUs, median of 2$",
        r"^ +seconds +MB/s +peak memory$",
        r"^training +BPETokenizer\.train +0\.50 +2\.00 +10\.0 MiB$",
        r"^encoding +encode in Python, empty cache +0\.25 +4\.00 +10\.0 MiB$",
        r"^encoding +encode_array by tiktoken's engine +0\.25 +4\.00 +10\.0 MiB$",
    ):
        assert re.search(pattern, out, re.MULTILINE), pattern
    assert {(job.vocab_size, job.pattern, job.processes) for job in jobs} == {(300, "gpt2", None)}


def test_tokenizer_as_json(cli: Any, text_file: Path, jobs: list[Any]) -> None:
    options = ["--processes", 3, "--pattern", "qwen2", "--only-encode", "--repeat", 1]
    code, out, err = cli("bench", "tokenizer", text_file, *options, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["text"], found["pattern"], found["processes"], found["repeat"]) == (
        str(text_file), "qwen2", 3, 1,
    )  # fmt: skip
    assert (found["bytes"], found["merges"], found["vocab_size"], found["tokens"]) == (
        text_file.stat().st_size, 2, 259, 4,
    )  # fmt: skip
    assert {row["work"] for row in found["rows"]} == {"encoding"}
    assert found["rows"][0] == {
        "work": "encoding", "method": "encode in Python, empty cache", "seconds": 0.25,
        "bytes_per_second": found["bytes"] / 0.25, "peak_memory": 10 << 20, "skipped": "",
    }  # fmt: skip
    assert {(job.vocab_size, job.pattern, job.processes) for job in jobs} == {(8192, "qwen2", 3)}


def test_tokenizer_gives_the_reason_for_a_skipped_row(
    cli: Any, text_file: Path, jobs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from glassgpt.bench import tokenizer

    monkeypatch.setattr(tokenizer, "_reason_to_skip_tiktoken", lambda text: "tiktoken is not installed")
    code, out, err = cli("bench", "tokenizer", text_file, "--processes", 1)
    assert (code, err) == (0, "")
    assert re.search(r"^encoding +encode_array .* - +- +-$", out, re.MULTILINE)
    assert out.endswith("\n-: tiktoken is not installed\n")
    assert {job.name for job in jobs} == {"train", "python"}


def test_tokenizer_refuses_a_pattern_that_there_is_not(cli: Any, text_file: Path) -> None:
    code, out, err = cli("bench", "tokenizer", text_file, "--pattern", "gpt5")
    assert (code, out) == (2, "")
    known = "gpt2, llama3, qwen2, o200k, or write a regular expression"
    assert err == f"error: there is no split pattern 'gpt5'; there are {known}\n"


def test_tokenizer_needs_no_torch(text_file: Path) -> None:
    code = (
        "import sys; sys.argv = ['glassgpt', 'bench', 'tokenizer', *sys.argv[1:]]\n"
        "from glassgpt.cli.main import main\n"
        "main()\n"
        "sys.exit('torch' in sys.modules)"
    )
    options = ["--vocab-size", "300", "--only-train", "--repeat", "1", "--processes", "1", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, str(text_file), *options], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["merges"] == 43
    assert [row["work"] for row in found["rows"]] == ["training"]


def test_a_missing_compiler_is_said(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from glassgpt import runtime

    monkeypatch.setattr(runtime, "compiler_found", lambda device: False)
    code, out, err = cli("bench", "train", *TINY, "compile=true", "--steps", 1)
    assert code == 0
    assert "no C++ compiler was found" in err
    assert "not compiled" in out


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['glassgpt', 'bench', 'train', '--help']\n"
        "from glassgpt.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    assert "Optimiser steps to measure" in done.stdout

"""Every verb through the command line: its result, and its errors (one message, exit code 2)."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from glassgpt.config import presets
from glassgpt.planning import timing
from glassgpt.training.checkpoint import Run

pytestmark = pytest.mark.usefixtures("quick_measuring")

SHORT = ["preset=tiny-modern", "n_layer=2", "n_embd=32", "n_head=2", "block_size=32", "batch_size=4"]
SHORT += ["steps=30", "eval_interval=10"]
PLAIN = ["dtype=float32", "compile=false"]  # no time is spent on choosing
SHORT += PLAIN


@pytest.fixture
def run(cli: Any, text_file: Path, tmp_path: Path) -> Path:
    """A trained run, in the working directory."""
    code, _, err = cli("train", text_file, *SHORT)
    assert code == 0, err
    return tmp_path / "runs" / "prose"


MISTAKES = {
    "no verb": ([], "Usage"),
    "wrong verb": (["trian"], "No such command 'trian'. Did you mean 'train'"),
    "train nothing": (["train"], "what should be trained on"),
    "train a missing file": (["train", "nofile.txt"], "no file 'nofile.txt'"),
    "train two texts": (["train", "{text}", "b.txt"], "one text at a time"),
    "train a folder of no texts": (["train", "no-texts"], "holds no file that can be read"),
    "a wrong key": (["train", "{text}", "n_layr=2"], "did you mean model.n_layer?"),
    "a wrong choice": (["train", "{text}", "compile=maybe"], "'maybe' is not one of auto, true, false"),
    "a number that nobody derives": (["train", "{text}", "batch_size=auto"], "expected a whole number, got 'auto'"),
    "another project's key": (["train", "{text}", "max_iters=2"], "did you mean train.steps?"),
    "a wrong preset": (["train", "{text}", "preset=smal"], "did you mean 'small'"),
    "several problems": (["train", "{text}", "preset=tiny", "n_head=3", "optimizer=sgd", "time=soon"], "3 problems"),
    "inexpressible": (["train", "{text}", "preset=tiny", "qk_norm=true"], "model.qk_norm=True (gpt2 has False)"),
    "a missing TOML": (["train", "{text}", "my.toml"], "my.toml: cannot be read"),
    "a context too long": (["train", "{text}", "block_size=999999", "steps=1"], "needs at least 1000000"),
    "no GPU": (["train", "{text}", "device=cuda:9"], "cuda:9 was asked for"),
    "a wrong name": (["train", "{text}", "preset=tiny", *SHORT, "--name", "a/b"], "'a/b' cannot be the name"),
    "too little time": (["train", "{text}", "preset=tiny", "batch_size=100000", "time=2s", *PLAIN], "is too short"),
    "resume nothing": (["train", "--resume", "nothing"], "no run 'nothing'; runs in runs/: none yet"),
    "resume with a text": (["train", "{text}", "--resume", "x"], "only key=value"),
    "resume and measure": (["train", "--measure", "--resume", "x"], "only key=value"),
    "an unknown option": (["train", "{text}", "--stesp", "3"], "--stesp"),
    "quickstart with a text": (["quickstart", "{text}"], "glassgpt train"),
    "quickstart with a wrong key": (["quickstart", "stepz=4"], "did you mean train.steps?"),
    "sample nothing": (["sample"], "no run in runs/"),
    "sample a wrong run": (["sample", "nothing"], "no model 'nothing'"),
    "sample wrongly": (["sample", "x", "--temperature", "-1", "--top-p", "2", "--top-k", "-3"], "3 problems"),
    "sample no tokens": (["sample", "x", "--max-new-tokens", "0"], "'--max-new-tokens'"),
    "two prompts": (["sample", "x", "--prompt", "a", "--prompt-file", "b"], "not both"),
    "a missing prompt": (["sample", "x", "--prompt-file", "b"], "b cannot be read"),
    "plot nothing": (["plot", "nothing"], "no run 'nothing'"),
    "show a wrong run": (["runs", "show", "nothing"], "no run 'nothing'"),
    "compare wrong runs": (["runs", "compare", "nothing", "x"], "no run 'nothing'"),
    "fetch nothing": (["data", "fetch", "shakspeare"], "there is no corpus 'shakspeare'"),
    "show a missing text": (["data", "show", "nofile.txt"], "no file 'nofile.txt'"),
    "show too long a context": (["data", "show", "{text}", "block_size=999999"], "needs at least 1000000"),
    "presets with a word": (["presets", "small"], "unexpected extra argument"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_message_and_exit_code_2(cli: Any, text_file: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "no-texts").mkdir()
    arguments, expected = MISTAKES[name]
    code, out, err = cli(*(argument.format(text=text_file) for argument in arguments))
    assert code == 2
    assert expected.lower() in (err + out).lower()
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists(), "a mistake leaves nothing behind"


def test_train_prints_shapes_baselines_and_speed(cli: Any, text_file: Path, tmp_path: Path) -> None:
    code, out, err = cli("train", text_file, *SHORT, "--name", "mine")
    assert (code, err) == (0, "")
    for line in (
        "idx                [B, T]         [4, 32]",
        "[B, H, T, T]   [4, 2, 32, 32]",
        "device cpu, dtype float32",
    ):
        assert line in out
    for words in (
        "ln V",
        "baseline losses (nats/token)",
        "tokens/s",
        "30 steps of",
        "predicted: ",
        "measured over 20 steps: ",
        "left",
        "best so far",
        "nats per token",
        "bits per byte",
    ):
        assert words in out
    assert "glassgpt sample runs/mine" in out
    assert "compile" not in out, "nothing is said of what was not wanted"
    checkpoints = {path.name for path in (tmp_path / "runs" / "mine").iterdir()}
    assert checkpoints == {"run.toml", "metrics.jsonl", "best", "last", "step-000020", "step-000030"}
    assert cli("train", text_file, *SHORT, "--name", "mine")[0] == 0
    assert (tmp_path / "runs" / "mine-2").exists(), "a run is never overwritten"


def test_a_five_kilobyte_file_needs_no_configuration(
    cli: Any, tmp_path: Path, prose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a step took a quarter of a second, so that the machine at hand decides nothing."""
    monkeypatch.setattr(timing, "measure_steps", lambda *_, **__: timing.Timing(0.25, 1e-6))
    (tmp_path / "small.txt").write_text(prose[:5000], encoding="utf-8")
    code, out, err = cli("train", "small.txt", "time=16s")
    assert code == 0, err
    assert "chose" in out
    assert "fit into 16s" in out
    assert "--- a sample of" in out


@pytest.mark.parametrize("characters", [1, 12, 40, 70])
def test_tiny_texts_end_in_a_note_or_an_error_never_a_crash(
    cli: Any, tmp_path: Path, prose: str, characters: int
) -> None:
    (tmp_path / "tiny.txt").write_text(prose[:characters], encoding="utf-8")
    code, out, err = cli("train", "tiny.txt", "preset=tiny", "steps=3", *PLAIN)
    if characters < 20:
        assert code == 2
        assert "too short" in err
        assert ("a larger data.val_fraction (at most 0.5)" in err) == (characters > 1)
        assert not (tmp_path / "runs").exists()
    else:
        assert code == 0, err
        assert "the context is" in out


@pytest.mark.parametrize("verb", ["train", "plan"])
def test_a_text_of_one_token_is_refused_before_there_is_a_run(cli: Any, tmp_path: Path, verb: str) -> None:
    (tmp_path / "same.txt").write_text("a" * 500, encoding="utf-8")
    code, _, err = cli(verb, "same.txt", "preset=tiny", "steps=2")
    assert code == 2 and "every token of the text is the same ('a')" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()
    assert cli("data", "show", "same.txt")[0] == 0
    assert cli("tokenizer", "train", "same.txt", "char", "-o", "same")[0] == 0
    assert cli("tokenizer", "show", "same", "aaa")[0] == 0
    code, _, err = cli(verb, "same.txt", "preset=tiny", "steps=2", "tokenizer=same")
    assert code == 2 and "every token of the text is the same" in err


def settings(toml: str) -> list[str]:
    """The lines of a configuration file without its notes, which hold speeds."""
    return [line for line in toml.splitlines() if not line.startswith("#")]


def test_dry_run_shows_the_configuration_and_trains_nothing(cli: Any, text_file: Path, tmp_path: Path) -> None:
    code, out, _ = cli("train", text_file, *SHORT, "dtype=auto", "compile=auto", "--dry-run")
    assert code == 0
    assert "n_layer = 2" in out
    assert not (tmp_path / "runs").exists()
    (tmp_path / "again.toml").write_text(out, encoding="utf-8")  # what it prints is a configuration file
    code, again, _ = cli("train", "again.toml", "--dry-run")
    assert (code, settings(again)) == (0, settings(out))
    resolved = tomllib.loads(out)
    assert resolved["runtime"]["dtype"] in ("float32", "bfloat16", "float16")
    assert resolved["runtime"]["compile"] == "false", "too short a run to compile"
    assert resolved["train"]["micro_batch_size"] == 4
    notes = [line for line in out.splitlines() if line.startswith("# ")]
    assert any("float32" in note for note in notes), "why it computes in this type"
    assert any("predicted: " in note for note in notes)


def test_sample_is_reproducible_and_needs_no_corpus(cli: Any, run: Path, text_file: Path, tmp_path: Path) -> None:
    text_file.unlink()
    code, first, err = cli("sample", run, "--prompt", "King", "-n", 40, "--seed", 3)
    assert code == 0, err
    assert first.startswith("King")
    assert cli("sample", "prose", "-p", "King", "-n", 40, "--seed", 3)[1] == first
    assert cli("sample", "-p", "King", "-n", 40, "--seed", 4)[1] != first
    (tmp_path / "prompt.txt").write_text("King\n", encoding="utf-8")
    assert cli("sample", run, "--prompt-file", "prompt.txt", "-n", 40, "--seed", 3)[1] == first
    piped = subprocess.run(
        [sys.executable, "-m", "glassgpt", "sample", str(run), "-n", "40", "--seed", "3"],
        input="King\n", capture_output=True, text=True, encoding="utf-8", check=True,
    )  # fmt: skip
    assert piped.stdout == first
    many = json.loads(cli("sample", run, "-p", "King", "-n", 40, "--seed", 3, "--num-samples", 3, "--json")[1])
    assert "King" + many[0]["text"] + "\n" == first
    assert len({made["text"] for made in many}) == 3
    code, _, err = cli("sample", run, "-p", "日本")
    assert code == 2
    assert "'日' (U+65E5, at position 0)" in err


def test_the_library_and_the_command_line_give_the_same_text(cli: Any, run: Path) -> None:
    import glassgpt

    _, out, _ = cli(
        "sample", run, "-p", "King", "-n", 50, "--seed", 5, "--temperature", 0.7, "--top-k", 9, "--top-p", 0.8
    )
    model, tokenizer = glassgpt.load(run)
    text = glassgpt.generate(
        model, tokenizer, "King", max_new_tokens=50, seed=5, temperature=0.7, top_k=9, top_p=0.8
    )  # fmt: skip
    assert out == f"King{text}\n"


def test_train_from_the_library(text_file: Path, tmp_path: Path) -> None:
    import glassgpt

    overrides = {"train.steps": 4, "n_layer": 1, "block_size": 16, "batch_size": 2}
    overrides |= {"dtype": "float32", "compile": False}  # a choice of words, but Python's own will do
    trained = glassgpt.train("tiny", data=text_file, overrides=overrides, runs=tmp_path / "runs")
    assert trained.best.is_dir()
    assert trained.metrics[-1]["step"] == 4
    model, tokenizer = glassgpt.load(trained.path)
    glassgpt.save(model, tokenizer, tmp_path / "copy")
    again, _ = glassgpt.load(tmp_path / "copy")
    assert all((a == b).all() for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_explain_shows_the_draw_that_was_made(cli: Any, run: Path) -> None:
    options = ["-p", "King", "-n", 5, "--temperature", 0.9, "--top-k", 6, "--top-p", 0.9, "--explain"]
    code, out, err = cli("sample", run, *options)
    assert code == 0, err
    assert out.count("draw") == 5
    assert out.count("  > ") == 5
    made = json.loads(cli("sample", run, *options, "--candidates", 99, "--json")[1])[0]
    for step, token in zip(made["steps"], made["tokens"], strict=True):
        assert step["chosen"] == token
        by_id = sorted(step["candidates"], key=lambda candidate: candidate["token"])
        mass = 0.0
        for candidate in by_id:  # the draw falls into the chosen token's share
            mass += candidate["after_top_p"]
            if mass > step["draw"]:
                assert candidate["token"] == token
                break
        assert sum(c["after_top_p"] for c in by_id) == pytest.approx(1)
        assert sum(c["after_top_k"] > 0 for c in by_id) == 6


def test_runs_and_plot(cli: Any, run: Path, text_file: Path, tmp_path: Path) -> None:
    assert cli("train", text_file, *SHORT, "n_layer=1", "--name", "other")[0] == 0
    listed = json.loads(cli("runs", "list", "--json")[1])
    assert [row["name"] for row in listed] == ["prose", "other"]
    assert listed[0]["parameters"] > listed[1]["parameters"] > 0
    shown = cli("runs", "show", "prose")[1]
    assert "block_size = 32" in shown
    assert "best, last" in shown
    differing = json.loads(cli("runs", "compare", "prose", "other", "--json")[1])["differ"]
    assert differing == {"model.n_layer": [2, 1]}
    assert "model.n_layer" in cli("runs", "compare", "prose", "other")[1]
    code, out, _ = cli("plot", "prose", "other", "--out", "both.png")
    assert (code, out) == (0, "both.png\n")
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_presets_and_data(cli: Any, text_file: Path) -> None:
    presets = {row["name"]: row for row in json.loads(cli("presets", "--json")[1])}
    assert presets["gpt2"]["parameters"] == 124_439_808
    assert "gpt2-xl" in cli("presets")[1]
    corpora = [row["name"] for row in json.loads(cli("data", "list", "--json")[1])]
    assert corpora[:3] == ["shakespeare", "tinyshakespeare", "wikitext-2"] and corpora[-1] == "python"
    code, out, err = cli("data", "show", text_file, "block_size=12", "--batch", 3)
    assert code == 0, err
    rows = json.loads(cli("data", "show", text_file, "block_size=12", "--batch", 3, "--json")[1])["rows"]
    assert rows[0]["inputs"][1:] == rows[0]["targets"][:-1]
    assert "inputs   " in out
    assert "targets  " in out


@pytest.mark.parametrize("received", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(text_file: Path, tmp_path: Path, received: signal.Signals) -> None:
    command = [sys.executable, "-m", "glassgpt", "train", str(text_file), *SHORT, "steps=100000"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )  # fmt: skip
    metrics = tmp_path / "runs" / "prose" / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and '"step": 10,' in metrics.read_text(encoding="utf-8"):
            break
        time.sleep(0.05)
    process.send_signal(received)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + received
    assert "Resume with:  glassgpt train --resume runs/prose" in err
    assert "Traceback" not in err
    state = json.loads((tmp_path / "runs/prose/last/trainer/state.json").read_text(encoding="utf-8"))
    more = ["--resume", "runs/prose", f"steps={state['step'] + 3}"]
    done = subprocess.run(
        [sys.executable, "-m", "glassgpt", "train", *more], cwd=tmp_path, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"resuming at step {state['step']:,}" in done.stdout


NO_NETWORK = """
import socket
def refuse(*arguments, **named):
    raise OSError("no network in this test")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
"""


def test_quickstart_in_short_with_the_network_denied(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONUTF8": "0", "LC_ALL": "C"}
    command = [sys.executable, "-m", "glassgpt", "quickstart", "steps=8", "max_val_tokens=20000", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    ending = json.loads(done.stdout)
    assert ending["reason"] == "finished"
    assert len(ending["sample"]) == 400
    optim = Run(tmp_path / ending["run"]).config().optim
    assert {key: getattr(optim, key) for key in presets.SHORT_RUN} == presets.SHORT_RUN
    assert Path(tmp_path / ending["run"] / "best" / "model.safetensors").exists()


def test_the_shell_completes_verbs_and_options(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_GLASSGPT_COMPLETE", "complete_bash")
    for position, words, expected in ((1, "glassgpt at", "attention"), (2, "glassgpt sample --expl", "--explain")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(position))
        assert cli() == (0, f"{expected}\n", "")


@pytest.mark.parametrize(
    "verb",
    [
        "",
        "quickstart",
        "train",
        "sample",
        "plot",
        "plan",
        "bench",
        "bench train",
        "presets",
        "runs",
        "runs list",
        "data show",
        "tokenizer show",
        "tokenizer compare",
        "pull",
        "export",
    ],
)
def test_help_needs_no_torch(verb: str) -> None:
    code = (
        "import sys; sys.argv = ['glassgpt', *sys.argv[1:], '--help']\n"
        "from glassgpt.cli.main import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'numpy'} & set(sys.modules), 'too much is imported'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *verb.split()], capture_output=True, text=True, encoding="utf-8", check=False
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "--help" in done.stdout
    if verb == "train":
        shown = " ".join(done.stdout.split())
        assert "model.n_layer Transformer blocks [int; default 6]" in shown
        assert "[auto | float32 | bfloat16 | float16; default auto]" in shown
        assert "--profile" in shown


def test_a_padded_vocabulary_is_never_drawn_from(cli: Any, text_file: Path, tmp_path: Path) -> None:
    code, _, err = cli("train", text_file, *SHORT, "vocab_size=500", "steps=2")
    assert code == 0, err
    assert cli("sample", "-n", 200, "--temperature", 50)[0] == 0


def test_all_problems_are_reported_at_once(cli: Any, text_file: Path) -> None:
    code, _, err = cli("train", text_file, "preset=tiny", "lerning_rate=1", "n_layer=-1", "time=soon", "seed=x")
    assert code == 2
    for problem in (
        "4 problems",
        "did you mean optim.adamw_learning_rate",
        "model.n_layer: -1",
        "train.time",
        "train.seed",
    ):
        assert problem in err


def test_a_model_that_cannot_fit_is_refused(cli: Any, text_file: Path) -> None:
    code, _, err = cli("train", text_file, "preset=gpt3", "block_size=64", "steps=1")
    assert code == 2
    assert "GiB" in err


def test_a_diverged_run_can_still_be_listed_and_drawn(cli: Any, run: Path) -> None:
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 31, "val/loss": null, "train/loss": null}\n')
    (run / "best" / "model.safetensors").write_bytes(b"short")
    assert cli("runs", "list")[0] == 0
    assert cli("plot", "prose")[0] == 0
    code, _, err = cli("sample", "prose")
    assert code == 2
    assert "is not what was saved" in err


def test_the_live_display_in_a_terminal(text_file: Path, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    process = subprocess.Popen(
        [sys.executable, "-m", "glassgpt", "train", str(text_file), *SHORT, "sample_interval=10"],
        cwd=tmp_path, stdout=theirs, stderr=theirs, env=environment | {"TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while piece := os.read(ours, 65536):
            shown += piece
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode("utf-8", errors="replace"))
    assert process.wait() == 0, text
    assert b"\x1b[?25l" in shown, "the panel was open"
    for words in ("sample at step 30", "step 30/30", "tokens/s", "validation", "finished 30 steps"):
        assert words in text
    assert "Traceback" not in text

"""``glassgpt plan``: what it says, that it never allocates what does not fit, and what it says to a mistake."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glassgpt.config import RunConfig, presets
from glassgpt.estimate import flops_per_token, format_bytes, memory
from glassgpt.model import GPT
from glassgpt.planning import measured, report, timing
from glassgpt.planning.timing import Timing

QUICK = ["preset=tiny", "n_layer=1", "batch_size=4", "dtype=float32", "compile=false", "device=cpu"]


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring, which needs a whole model, is a failure."""

    def fail(*arguments: object, **named: object) -> Timing:
        raise AssertionError("a model was made")

    monkeypatch.setattr(timing, "measure_steps", fail)
    monkeypatch.setattr(GPT, "init_weights", fail)


def test_arithmetic_alone(cli: Any, unmeasured: None) -> None:
    code, out, err = cli("plan", "preset=small-modern", "device=cpu", "--no-measure")
    assert (code, err) == (0, "")
    for words in (
        "small-modern: 6 layers, 4 heads, 128 wide, context 256, vocabulary 65",
        "mlp                884,736   68.2%",
        "total            1,296,640  100.0%",
        "FLOPs per token at context 256",
        "matrices 86.1%",
        "memory of training against context: 16 sequences at a time, float32, muon",
        "1,024  ",
        "fits: of 16 sequences",
    ):
        assert words in out
    assert "measured" not in out


def test_the_same_as_json(cli: Any, unmeasured: None) -> None:
    code, out, err = cli("plan", "preset=gpt2", "device=cpu", "--no-measure", "--json")
    assert (code, err) == (0, "")
    found, model = json.loads(out), presets.get("gpt2").model
    assert found["parameters"]["total"] == 124_439_808
    assert found["parameters"]["head"] == 0
    assert found["flops_per_token"]["training"] == flops_per_token(model).training
    assert [row["context"] for row in found["memory"]] == [256, 512, 1024, 2048, 4096]
    expected = memory(model, 4)
    assert found["memory"][2]["total"] == expected.total
    assert found["memory"][2]["activations"] == expected.activations
    assert found["measured"] is None


def test_a_device_that_is_not_here(cli: Any, unmeasured: None) -> None:
    code, out, err = cli("plan", "preset=gpt2", "device=cuda:9", "--no-measure", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["device"], found["bytes_per_weight"], found["free_bytes"]) == ("cuda", 2, None)
    assert found["memory"][2]["total"] == memory(presets.get("gpt2").model, 4, bytes_per_weight=2, device="cuda").total
    assert found["memory"][2]["largest_micro_batch"] is None
    assert "16 bits, with float32 masters" in cli("plan", "preset=gpt2", "device=cuda:9", "--no-measure")[1]


def test_gpt3_is_never_allocated(cli: Any, unmeasured: None, text_file: Path) -> None:
    code, out, _ = cli("plan", "preset=gpt3", "device=cpu")
    assert code == 0
    assert "174,604,259,328" in out
    assert "none" in out
    assert "Planned by arithmetic only" in out
    code, out, _ = cli("plan", text_file, "preset=gpt3", "device=cpu", "block_size=64", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["measured"] is None
    assert found["config"]["model"]["vocab_size"] < 50257, "the text's vocabulary"
    assert "needs 2.53 TiB to be trained" in found["notes"][0]


def test_a_size_needs_no_preset(cli: Any, unmeasured: None, tmp_path: Path) -> None:
    size = ["n_layer=2", "n_head=2", "n_embd=32", "device=cpu", "--no-measure", "--json"]
    found = json.loads(cli("plan", *size)[1])["config"]
    assert (found["model"]["n_layer"], found["model"]["norm"], found["preset"]) == (2, "rmsnorm", "auto")
    (tmp_path / "run.toml").write_text('preset = "auto"\n[model]\nn_layer = 2\nn_head = 2\nn_embd = 32\n')
    assert json.loads(cli("plan", "run.toml", *size[3:])[1])["config"] == found


def test_activations_that_do_not_fit(cli: Any, unmeasured: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "free_memory", lambda device: 2**20)
    code, out, _ = cli("plan", *QUICK, "micro_batch_size=2")
    assert code == 0
    assert "even one sequence at a time needs" in out


def test_a_measured_plan_on_a_text(cli: Any, text_file: Path, tmp_path: Path) -> None:
    code, out, err = cli("plan", text_file, *QUICK, "steps=20", "time=10s", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    measured = found["measured"]
    assert found["config"]["model"]["vocab_size"] == len(set(text_file.read_text(encoding="utf-8")))
    assert (measured["steps"], measured["timed"], measured["tokens_per_step"]) == (20, False, 4 * 64)
    assert measured["training_seconds"] == pytest.approx(20 * measured["seconds_per_step"])
    assert measured["tokens_per_second"] == pytest.approx(4 * 64 / measured["seconds_per_step"])
    assert measured["validation_seconds"] > 0
    assert not (tmp_path / "runs").exists()


def test_a_measured_plan_without_a_text(cli: Any) -> None:
    code, out, err = cli("plan", *QUICK, "time=10s")
    assert code == 0
    assert "measuring the speed" in err
    for words in ("vocabulary 65", "measured on this machine: cpu with", "tokens/s", " steps in time=10s: "):
        assert words in out


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """A machine on which a layer takes 2 s, and the rest of a step 10 s; returns what was measured on it."""
    measured: list[RunConfig] = []

    def fake(config: RunConfig, *arguments: object, **named: object) -> Timing:
        measured.append(config)
        return Timing(10 + 2 * config.model.n_layer, 1e-3 * config.model.n_layer)

    monkeypatch.setattr(timing, "measure_steps", fake)
    monkeypatch.setattr(GPT, "init_weights", lambda *arguments: pytest.fail("a model was made"))
    return measured


SLOW = ["preset=small", "dtype=float32", "device=cpu", "n_layer=20", "batch_size=64", "--json"]


def test_a_deep_model_is_extrapolated(cli: Any, linear: list[RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "matrix_flops_per_second", lambda dtype, device: 1e6)
    found = json.loads(cli("plan", *SLOW, "steps=7")[1])
    assert found["measured"]["seconds_per_step"] == pytest.approx(50)
    assert found["measured"]["training_seconds"] == pytest.approx(350)
    assert [config.model.n_layer for config in linear] == [3, 1]
    assert {config.train.micro_batch_size for config in linear} == {2048 // 256}
    assert {config.train.batch_size for config in linear} == {64}
    assert "extrapolated from 1 and 3 layers" in found["notes"][0]
    assert found["config"]["model"]["n_layer"] == 20
    found = json.loads(cli("plan", *SLOW, "time=100s")[1])
    assert (found["measured"]["steps"], found["measured"]["timed"]) == (1, True)
    assert "no step fits into time=30s" in cli("plan", *SLOW[:-1], "time=30s")[1]


def test_a_quick_model_is_measured_whole(cli: Any, linear: list[RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "matrix_flops_per_second", lambda dtype, device: 1e15)
    found = json.loads(cli("plan", *SLOW, "compile=false", "steps=7")[1])
    assert [config.model.n_layer for config in linear] == [20]
    assert found["measured"]["seconds_per_step"] == pytest.approx(50)
    assert not any("extrapolated" in note for note in found["notes"])


def test_a_text_alone_is_given_a_size(cli: Any, linear: list[RunConfig], text_file: Path) -> None:
    code, out, _ = cli("plan", text_file, "dtype=float32", "device=cpu", "compile=false", "steps=3")
    assert code == 0
    assert "note: chose 4 layers, 64 wide" in out
    assert "run    3 steps: " in out


MISTAKES = {
    "nothing": ([], "cannot choose a size without a text and measuring"),
    "a text whose size cannot be chosen": (
        ["{text}", "--no-measure"],
        "cannot choose a size without a text and measuring",
    ),
    "a wrong key": (["preset=tiny", "n_layr=2"], "did you mean model.n_layer?"),
    "a wrong preset": (["preset=smal"], "did you mean 'small'"),
    "two texts": (["{text}", "b.txt", "preset=tiny"], "one text at a time"),
    "two flags": (["preset=tiny", "--measure", "--no-measure"], "exclude each other"),
    "a missing file": (["nofile.txt", "preset=tiny"], "no file 'nofile.txt'"),
    "no GPU": (["preset=tiny", "device=cuda:9"], "cuda:9 was asked for"),
    "inexpressible": (["preset=tiny", "qk_norm=true"], "model.qk_norm=True"),
    "several problems": (["preset=tiny", "n_head=3", "optimizer=sgd"], "2 problems"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_message(cli: Any, text_file: Path, arguments: list[str], message: str) -> None:
    code, out, err = cli("plan", *(argument.replace("{text}", str(text_file)) for argument in arguments))
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_what_was_measured_is_used_for_a_day_or_measured_anew(
    cli: Any, linear: list[RunConfig], empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "KEPT_SECONDS", 3600.0)
    for count, flags, told in ((1, [], False), (1, [], True), (2, ["--measure"], False), (2, [], True)):
        out = cli("plan", *QUICK, "steps=7", *flags)[1]
        assert len(linear) == count
        assert ("ago; --measure: anew)" in out) == told


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['glassgpt', 'plan', '--help']\n"
        "from glassgpt.cli.main import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'numpy'} & set(sys.modules), 'too much is imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--no-measure" in done.stdout


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0 B"), (999, "999 B"), (1536, "1.50 KiB"), (10 * 2**20, "10.0 MiB"), (3 * 2**40, "3.00 TiB")],
)
def test_bytes_are_readable(value: int, shown: str) -> None:
    assert format_bytes(value) == shown


def test_a_run_by_its_name_is_found_as_training_finds_it(cli: Any, text_file: Path) -> None:
    settings = ["n_layer=1", "n_head=2", "n_embd=8", "block_size=8", "batch_size=2", "dtype=float32", "compile=false"]
    assert cli("train", text_file, "preset=tiny", *settings, "steps=1", "--name", "first")[0] == 0
    code, out, err = cli("plan", text_file, "init_from=first", "--no-measure", "--json")
    assert (code, err) == (0, "")
    config = json.loads(out)["config"]
    assert (config["preset"], config["model"]["n_embd"]) == ("init", 8)
    code, out, _ = cli("plan", text_file, "init_from=first", "dtype=float32", "steps=2", "--json")
    assert (code, json.loads(out)["measured"]["steps"]) == (0, 2)

"""The command line in shells, pipes and terminals: printed commands, outputs that cannot be written, narrow windows."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glassgpt.cli.printing import output
from glassgpt.cli.printing.display import PlainReporter
from glassgpt.errors import CheckpointError, shell_command
from glassgpt.files import why_not_writable
from glassgpt.training.checkpoint import Run

GLASSGPT = [sys.executable, "-m", "glassgpt"]
NASTY = "-a 'b' \"$HOME\" `id`;é"
TINY = ["preset=tiny", "n_layer=1", "n_embd=16", "n_head=2", "block_size=16", "batch_size=2", "steps=2"]
TINY += ["dtype=float32", "compile=false", "sample_tokens=0"]


def test_a_shell_reads_a_printed_command_as_it_was_meant() -> None:
    printed = shell_command("train", Path(NASTY), f"tokenizer={NASTY}", NASTY)
    in_bash = ["bash", "-c", f'glassgpt() {{ printf "%s\\0" "$@"; }}; {printed}']
    words = subprocess.run(in_bash, capture_output=True, check=True).stdout.decode().split("\0")[:-1]
    assert words == ["train", f"./{NASTY}", f"tokenizer={NASTY}", NASTY]
    with pytest.raises(CheckpointError) as caught:
        Run(Path(NASTY)).best_or_last()
    assert shlex.split(str(caught.value).partition("resume with: ")[2])[-1] == f"./{NASTY}"


OUTPUTS = {
    "pull": ["pull", "{run}"],
    "export a folder": ["export", "{run}", "--to", "hf"],
    "export a file": ["export", "{run}", "--to", "gguf"],
    "train a tokenizer": ["tokenizer", "train", "{text}", "bpe:300"],
    "prepare": ["data", "prepare", "{text}"],
    "plot": ["plot", "{run}"],
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.toml").write_text("", encoding="utf-8")
    return folder


@pytest.mark.parametrize("verb", OUTPUTS)
def test_an_output_that_cannot_be_written_is_one_message_and_makes_nothing(
    cli: Any, run: Path, text_file: Path, verb: str, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    mistakes = {".": "name a new file or folder", "": "name a new file or folder", "..": "name a new file or folder"}
    mistakes |= {"new/out.png": "no folder new", f"{text_file}/out.png": "is a file", "x" * 300 + ".png": "too long"}
    for out, said in mistakes.items():
        code, _, err = cli(*(word.format(run=run, text=text_file) for word in OUTPUTS[verb]), "-o", out)
        assert code == 2 and said in err and err.count("error:") == 1, (out, err)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--runs-dir", "{text}"], "is a file"), (["--name", "x" * 300], "too long"), (["--name", ".."], "--name")],
)
def test_a_run_that_cannot_be_made_is_refused_before_anything_is_measured(
    cli: Any, text_file: Path, options: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glassgpt.api.plan_run", lambda *_, **__: pytest.fail("planned"))
    code, _, err = cli("train", text_file, *(option.format(text=text_file) for option in options))
    assert code == 2 and said in err and err.count("error:") == 1, err


def test_missing_parents_are_made_only_where_wanted(tmp_path: Path) -> None:
    assert why_not_writable(tmp_path / "a" / "b") == f"there is no folder {tmp_path / 'a'}; create it first"
    assert why_not_writable(tmp_path / "a" / "b", parents=True) == ""
    assert "too long" in why_not_writable(tmp_path / "a" / ("b" * 300) / "c", parents=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("buffered", ["1", ""])
def test_output_whose_reader_has_ended_is_no_error(buffered: str) -> None:
    """As in ``glassgpt presets | head -0``."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = os.environ | {"PYTHONUNBUFFERED": buffered}
    for stderr in (subprocess.PIPE, writing):
        done = subprocess.run([*GLASSGPT, "presets"], stdout=writing, stderr=stderr, env=environment, check=False)
        assert (done.returncode, done.stderr or b"") == (0, b"")
    wrong = [*GLASSGPT, "data", "fetch", "nothing"]
    assert subprocess.run(wrong, stdout=writing, stderr=writing, env=environment, check=False).returncode == 2
    os.close(writing)


def test_a_run_whose_output_nobody_reads_is_trained_to_its_end(text_file: Path, tmp_path: Path) -> None:
    """With a file name beyond ASCII, in a locale that knows only ASCII."""
    name = text_file.rename(tmp_path / "日本é.txt").name
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*GLASSGPT, "train", name, *TINY, "--name", "naïve"],
        cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, check=False,
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
    trained = Run(tmp_path / "runs" / "naïve")
    assert trained.config().data.source == str(tmp_path / name)
    assert "final/val_loss" in trained.metrics[-1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_training_goes_on_if_the_disk_of_its_log_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115  # closing it raises
    monkeypatch.setattr(sys, "stdout", full)
    PlainReporter().note("a step")
    with pytest.raises(OSError, match="No space left"):
        full.close()


def test_a_locale_that_knows_only_ascii_and_no_utf8_mode_do_not_start_it_for_ever() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-m", "glassgpt", "--version"],
        env=os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}, check=False, timeout=60, capture_output=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")


def test_no_line_is_wider_than_the_terminal_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    header = ["name", "parameters", "description", "n_layer"]
    rows = [["gpt2", "124,439,808", "the published model of 2019", "12"], ["日本", "1", "x" * 60, "2"]]
    sentence = "note: one sentence that is longer than the terminal is wide, by a few words"

    def printed() -> str:
        output.print_table(header, rows, right=(1, 3))
        output.print_table(["a", "b", "c"], [["1", "a short text that does not fit", "2"]])
        output.print_text(sentence)
        return capsys.readouterr().out

    wide = printed()
    assert len(wide.splitlines()) == 6, "a pipe gets full lines"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for columns in (200, 40, 20):
        monkeypatch.setenv("COLUMNS", str(columns))
        narrow = printed()
        assert max(map(output._width, narrow.splitlines())) <= columns
        for cell in (*header, *rows[0], "x" * 60, sentence):
            assert "".join(cell.split()) in "".join(narrow.split()) or columns == 20
    monkeypatch.setenv("COLUMNS", "200")
    assert printed() == wide

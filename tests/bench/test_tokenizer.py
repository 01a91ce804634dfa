"""Training and encoding with byte-level BPE: real processes, and figures that are consistent."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glassgpt.bench import tokenizer as bench
from glassgpt.bench.memory import ProcessTree, run_and_measure
from glassgpt.bench.tokenizer import (
    ENCODING,
    PROCESSES,
    TRAINING,
    Figures,
    Job,
    Measurement,
    TokenizerBench,
    bench_tokenizer,
)
from glassgpt.errors import TokenizerError
from glassgpt.tokenizer import BPETokenizer

TEXT = "a text, and a text again; über <|endoftext|> 日本 \n\n\n    indented 123 😀\n" * 40
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not report it")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Iterator[TokenizerBench]:
    """All measurements in their real processes, in which torch cannot be imported."""
    folder = tmp_path_factory.mktemp("without torch")
    (folder / "torch.py").write_text("raise ImportError('torch is not needed here')", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield bench_tokenizer(prose + TEXT, 330, pattern="llama3", processes=2, repeat=3)


class FakeMeasure:
    """Replaces :func:`bench.measure`: returns given figures, and records the jobs."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.seconds: dict[str, list[float]] = {}
        self.memory: list[int | None] = [1000]

    def __call__(self, job: Job) -> Figures:
        number = sum(earlier.name == job.name for earlier in self.jobs)
        self.jobs.append(job)
        work, methods = PROCESSES[job.name]
        seconds = self.seconds.get(job.name, [1.0])
        times = [seconds[number % len(seconds)] * (1 + i) for i in range(len(methods))]
        return Figures(times, 2 if work == TRAINING else 7, self.memory[number % len(self.memory)])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeMeasure:
    measure = FakeMeasure()
    monkeypatch.setattr(bench, "measure", measure)
    return measure


def rows_of(result: TokenizerBench, work: str) -> list[Measurement]:
    return [row for row in result.rows if row.work == work]


def test_every_method_is_measured(measured: TokenizerBench, prose: str) -> None:
    expected = BPETokenizer.train(prose + TEXT, 330, pattern="llama3")
    methods = [(work, method) for work, methods in PROCESSES.values() for method in methods]
    assert [(row.work, row.method) for row in measured.rows] == methods
    assert (measured.vocab_size, measured.merges) == (330, len(expected.model.merges)) == (330, 73)
    assert measured.tokens == len(expected.encode(prose + TEXT))
    assert measured.bytes == len((prose + TEXT).encode())
    assert [row.skipped for row in measured.rows] == [""] * len(measured.rows)


def test_the_figures_are_consistent(measured: TokenizerBench) -> None:
    for row in measured.rows:
        assert row.seconds is not None
        assert row.seconds > 0
        assert row.bytes_per_second == measured.bytes / row.seconds
        assert row.peak_memory is None or row.peak_memory > 2**23


@on_linux
def test_memory_includes_the_processes_that_count() -> None:
    memory = []
    for processes in (1, 2):
        result = bench_tokenizer(TEXT * 30, 300, processes=processes, repeat=1, only=TRAINING)
        memory.append(rows_of(result, TRAINING)[0].peak_memory or 0)
    assert memory[1] - memory[0] > 2 * 2**23, "an interpreter takes more than 8 MiB"


@on_linux
def test_memory_of_a_process_tree_is_that_of_each_process() -> None:
    large = "x = b'1' * (64 << 20); print('ready', flush=True); input()"
    starts = f"import subprocess, sys; y = b'1' * (512 << 20); subprocess.run([sys.executable, '-c', {large!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", starts], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        tree = ProcessTree(process.pid)
        assert process.stdout.readline() == "ready\n"
        tree.update()
        process.stdin.write("\n")
        process.stdin.close()
    peaks = dict(tree.peaks)
    assert 512 * 2**20 < peaks.pop(str(process.pid)) < 600 * 2**20
    assert 64 * 2**20 < sum(peaks.values()) < 128 * 2**20
    tree.update()
    assert len(tree.peaks) == 1 + len(peaks), "processes that have ended keep their entry"
    ended = ProcessTree(process.pid)
    ended.update()
    assert ended.peaks == {}


def test_a_command_is_run_to_its_end() -> None:
    code = "import sys, time; time.sleep(0.2); print('out'); print('err', file=sys.stderr); sys.exit(3)"
    result = run_and_measure([sys.executable, "-c", code])
    assert (result.output, result.error, result.exit_code) == ("out\n", "err\n", 3)
    assert result.seconds > 0.2
    assert result.memory == (sum(result.peaks) or None)
    if sys.platform == "linux":
        assert result.memory
        assert result.memory > 2**22


def test_figures_are_medians_over_the_rounds(fake: FakeMeasure) -> None:
    fake.seconds = {"train": [4.0, 1.0, 2.0], "python": [2.0, 8.0, 4.0]}
    fake.memory = [100, 300, 200]
    result = bench_tokenizer("text" * 10, 300, repeat=3)
    [train] = rows_of(result, TRAINING)
    assert (train.seconds, train.bytes_per_second, train.peak_memory) == (2.0, 20.0, 200)
    empty, filled, _ = rows_of(result, ENCODING)
    assert (empty.seconds, filled.seconds) == (4.0, 8.0)
    assert (result.merges, result.vocab_size, result.tokens, result.bytes) == (2, 259, 7, 40)
    assert [job.name for job in fake.jobs] == [*PROCESSES] * 3, "in turn"
    assert {(job.vocab_size, job.pattern, job.processes) for job in fake.jobs} == {(300, "gpt2", None)}


def test_memory_that_the_system_does_not_report_is_none(fake: FakeMeasure) -> None:
    fake.memory = [None]
    assert {row.peak_memory for row in bench_tokenizer("text", 300, repeat=1).rows} == {None}


def test_only_training(fake: FakeMeasure) -> None:
    result = bench_tokenizer("text", 300, repeat=2, only=TRAINING)
    assert {row.work for row in result.rows} == {TRAINING}
    assert result.tokens is None
    assert [job.name for job in fake.jobs] == ["train"] * 2


def test_only_encoding_trains_once(fake: FakeMeasure) -> None:
    messages: list[str] = []
    result = bench_tokenizer("text", 300, repeat=2, only=ENCODING, progress=messages.append)
    assert {row.work for row in result.rows} == {ENCODING}
    assert [job.name for job in fake.jobs] == ["train", "python", "tiktoken", "python", "tiktoken"]
    assert result.merges == 2
    assert messages[0] == "training the tokenizer to encode with"
    assert messages[1] == "round 1 of 2: encode in Python, empty cache"
    assert len(messages) == len(fake.jobs)


def test_without_tiktoken_its_row_gives_the_reason(fake: FakeMeasure, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tiktoken" else find_spec(name))
    *others, row = bench_tokenizer("text", 300, repeat=1).rows
    assert {job.name for job in fake.jobs} == {"train", "python"}
    assert row.seconds is None and row.skipped.startswith("tiktoken is not installed: pip install ")
    assert not any(row.skipped for row in others)


@pytest.mark.parametrize("text", ["\u0558", "a" + " " * (1 << 19)])
def test_tiktoken_is_skipped_for_texts_that_it_does_not_encode(fake: FakeMeasure, text: str) -> None:
    result = bench_tokenizer(text, 300, repeat=1)
    assert "tiktoken" not in {job.name for job in fake.jobs}
    assert "tiktoken is not used" in rows_of(result, ENCODING)[2].skipped


def test_a_process_that_fails_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"measuring 'train' failed with exit code 1: FileNotFoundError: "):
        bench.measure(Job("train", str(tmp_path), 300, "gpt2", 1))


def test_a_tokenizer_that_cannot_be_trained_is_the_error_of_training() -> None:
    with pytest.raises(TokenizerError, match="no split pattern 'gpt5'"):
        bench_tokenizer("text", 300, pattern="gpt5")
    with pytest.raises(TokenizerError, match="at least 257 tokens"):
        bench_tokenizer("text", 256)


def test_a_text_without_any_merge() -> None:
    result = bench_tokenizer("ab", 300, repeat=1)
    assert (result.merges, result.vocab_size, result.tokens) == (0, 257, 2)

"""Training and encoding beside other libraries: the same results from all, and figures that fit each other."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from glassgpt.bench import tokenizer as bench
from glassgpt.bench.memory import Descendants
from glassgpt.bench.tokenizer import Figures, Measured, TokenizerBench, bench_tokenizer, difference
from glassgpt.bench.tokenizer_ways import ENCODING, TRAINING, WAYS, Job
from glassgpt.errors import TokenizerError
from glassgpt.tokenizer import BPETokenizer

TEXT = "a text, and a text again; über <|endoftext|> 日本 \n\n\n    indented 123 😀\n" * 40
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Iterator[TokenizerBench]:
    """All ways, each in its real process, in which torch cannot be imported."""
    folder = tmp_path_factory.mktemp("without torch")
    (folder / "torch.py").write_text("raise ImportError('torch is of no use here')", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield bench_tokenizer(prose + TEXT, 330, pattern="llama3", processes=2, repeat=1)


class Faked:
    """Stands in for :func:`bench.measure`: says what it is told to, and notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[Job] = []
        self.seconds: dict[str, list[float]] = {}
        self.memory: list[int | None] = []
        self.results: dict[str, np.ndarray] = {TRAINING: np.array(["a b", "c d"]), ENCODING: np.arange(7)}
        self.others: dict[str, np.ndarray | TokenizerError] = {}

    def __call__(self, job: Job) -> Figures:
        number = sum(earlier.way == job.way for earlier in self.asked)
        self.asked.append(job)
        way = WAYS[job.way]
        result = self.others.get(job.way, self.results[way.work])
        if isinstance(result, TokenizerError):
            raise result
        seconds = self.seconds.get(job.way, [1.0])
        memory = self.memory[number % len(self.memory)] if self.memory else 1000
        laps = [seconds[number % len(seconds)] * (1 + lap) for lap in range(len(way.how))]
        return Figures(laps, 0.25 if way.work == ENCODING else None, memory, [result] * len(laps))


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> Faked:
    measure = Faked()
    monkeypatch.setattr(bench, "measure", measure)
    return measure


def rows_of(found: TokenizerBench, work: str, library: str) -> list[Measured]:
    return [row for row in found.rows if (row.work, row.library) == (work, library)]


def test_every_way_is_measured_and_finds_the_same(measured: TokenizerBench, prose: str) -> None:
    expected = BPETokenizer.train(prose + TEXT, 330, pattern="llama3")
    assert [(row.work, row.library, row.how) for row in measured.rows] == [
        (way.work, way.library, how) for way in WAYS.values() for how in way.how
    ]
    assert (measured.vocab_size, measured.merges) == (330, len(expected.model.merges)) == (330, 73)
    assert measured.tokens == len(expected.encode(prose + TEXT))
    assert measured.bytes == len((prose + TEXT).encode())
    assert [row.skipped for row in measured.rows] == [""] * len(measured.rows)
    first = {(TRAINING, "BPETokenizer.train"), (ENCODING, "encode in Python, cache empty")}
    for row in measured.rows:
        assert row.difference == (None if (row.work, row.how) in first else "")


def test_the_figures_fit_each_other(measured: TokenizerBench) -> None:
    for row in measured.rows:
        assert row.seconds is not None
        assert row.seconds > 0
        assert row.bytes_per_second == measured.bytes / row.seconds
        assert (row.build_seconds is None) == (row.work == TRAINING)
        assert row.peak_memory is None or row.peak_memory > 2**23
    empty, filled, _ = rows_of(measured, ENCODING, "glassgpt")
    assert empty.seconds
    assert filled.seconds
    assert filled.seconds < empty.seconds, "the pieces are known the second time"


@on_linux
def test_the_processes_that_count_are_in_the_memory() -> None:
    memory = []
    for processes in (1, 2):
        found = bench_tokenizer(TEXT * 30, 300, processes=processes, repeat=1, only=TRAINING)
        memory.append(rows_of(found, TRAINING, "glassgpt")[0].peak_memory or 0)
    assert memory[1] - memory[0] > 2 * 2**23, "an interpreter takes more than 8 MiB"


@on_linux
def test_memory_of_descendants_is_theirs_alone() -> None:
    large = "x = b'1' * (64 << 20); print('ready', flush=True); input()"
    starts = f"import subprocess, sys; y = b'1' * (512 << 20); subprocess.run([sys.executable, '-c', {large!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", starts], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        others = Descendants(process.pid)
        assert process.stdout.readline() == "ready\n"
        others.look()
        process.stdin.write("\n")
        process.stdin.close()
    assert 64 * 2**20 < (others.total() or 0) < 128 * 2**20
    others.look()
    assert (others.total() or 0) > 64 * 2**20, "what has ended is not forgotten"
    assert Descendants(process.pid).total() == 0


def test_figures_are_medians_over_the_rounds(faked: Faked) -> None:
    faked.seconds = {"train": [4.0, 1.0, 2.0], "python": [2.0, 8.0, 4.0]}
    faked.memory = [100, 300, 200]
    found = bench_tokenizer("text" * 10, 300, repeat=3)
    [train] = rows_of(found, TRAINING, "glassgpt")
    assert (train.seconds, train.bytes_per_second, train.peak_memory, train.build_seconds) == (2.0, 20.0, 200, None)
    empty, filled, _ = rows_of(found, ENCODING, "glassgpt")
    assert (empty.seconds, filled.seconds, filled.build_seconds) == (4.0, 8.0, 0.25)
    assert (found.merges, found.vocab_size, found.tokens, found.bytes) == (2, 259, 7, 40)
    assert [job.way for job in faked.asked] == [*WAYS] * 3, "in turn"
    assert {(job.vocab_size, job.pattern, job.processes) for job in faked.asked} == {(300, "gpt2", None)}


def test_memory_that_is_not_told_is_left_out(faked: Faked) -> None:
    faked.memory = [None]
    assert {row.peak_memory for row in bench_tokenizer("text", 300, repeat=1).rows} == {None}


def test_only_training(faked: Faked) -> None:
    found = bench_tokenizer("text", 300, repeat=2, only=TRAINING)
    assert {row.work for row in found.rows} == {TRAINING}
    assert found.tokens is None
    assert [job.way for job in faked.asked] == ["train", "train tokenizers"] * 2


def test_only_encoding_trains_once(faked: Faked) -> None:
    told: list[str] = []
    found = bench_tokenizer("text", 300, repeat=2, only=ENCODING, progress=told.append)
    assert {row.work for row in found.rows} == {ENCODING}
    assert [job.way for job in faked.asked].count("train") == 1
    assert faked.asked[0].way == "train"
    assert found.merges == 2
    assert told[0] == "training, to have something to encode with"
    assert told[1] == "round 1 of 2: encoding, glassgpt encode in Python, cache empty"
    assert len(told) == len(faked.asked)


def test_what_is_not_installed_is_said_and_left_out(faked: Faked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "installed", lambda library: library != "tiktoken")
    found = bench_tokenizer("text", 300, repeat=1)
    assert {job.way for job in faked.asked} == {"train", "train tokenizers", "python", "tokenizers", "tokenizers batch"}
    for row in found.rows:
        without = row.library == "tiktoken" or "tiktoken" in row.how
        assert row.skipped == ("tiktoken is not installed" if without else "")
        assert (row.seconds is None) == without
    assert "tiktoken" not in bench.versions()


@pytest.mark.parametrize("text", ["\u0558", "a" + " " * (1 << 19)])
def test_the_engine_has_no_row_where_it_would_not_be_asked(faked: Faked, text: str) -> None:
    found = bench_tokenizer(text, 300, repeat=1)
    assert "engine" not in {job.way for job in faked.asked}
    assert "tiktoken is not asked" in rows_of(found, ENCODING, "glassgpt")[2].skipped


def test_differences_are_told(faked: Faked) -> None:
    faked.others = {"train tokenizers": np.array(["a b", "d c"]), "tiktoken": np.arange(8), "tokenizers": np.arange(6)}
    rows = bench_tokenizer("text", 300, repeat=2).rows
    assert {row.how: row.difference for row in rows if row.difference} == {
        "BpeTrainer": "merge 1 is 'd c', not 'c d'",
        "encode_ordinary": "8 tokens, not 7",
        "encode": "6 tokens, not 7",
    }


@pytest.mark.parametrize(
    ("expected", "found", "said"),
    [
        ([], [], ""),
        ([1, 2], [1, 2], ""),
        ([1, 2, 3], [1, 5, 4], "token 1 is 5, not 2"),
        ([1, 2, 3], [1, 5], "token 1 is 5, not 2"),
        ([1, 2], [], "0 tokens, not 2"),
        ([], [1], "1 tokens, not 0"),
    ],
)
def test_where_two_results_differ(expected: list[int], found: list[int], said: str) -> None:
    assert difference(np.array(expected), np.array(found), ENCODING) == said


def test_a_peer_that_fails_is_left_out_and_ours_is_an_error(faked: Faked) -> None:
    faked.others = {"tokenizers": TokenizerError("it broke")}
    found = bench_tokenizer("text", 300, repeat=2)
    assert [row.skipped for row in rows_of(found, ENCODING, "tokenizers")] == ["it broke", ""]
    assert [job.way for job in faked.asked].count("tokenizers") == 1
    faked.others = {"engine": TokenizerError("it broke")}
    with pytest.raises(TokenizerError, match="it broke"):
        bench_tokenizer("text", 300, repeat=2)


def test_a_process_that_ends_early_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"measuring 'walk' ended early with code 1: KeyError: 'walk'"):
        bench.measure(Job("walk", str(tmp_path), 300, "gpt2", 1))


def test_what_cannot_be_trained_is_the_error_of_training() -> None:
    with pytest.raises(TokenizerError, match="no split pattern 'gpt5'"):
        bench_tokenizer("text", 300, pattern="gpt5")
    with pytest.raises(TokenizerError, match="at least 257 tokens"):
        bench_tokenizer("text", 256)


def test_a_text_without_any_merge() -> None:
    found = bench_tokenizer("ab", 300, repeat=1)
    assert (found.merges, found.vocab_size, found.tokens) == (0, 257, 2)
    assert {row.difference for row in found.rows} == {None, ""}

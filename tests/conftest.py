"""Shared fixtures. Tests touch no network, no cache but their own, and no file outside their temporary folder."""

import contextlib
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every test, and every process it starts, uses one cache of this session and stays offline."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLASSGPT_CACHE", str(folder))
        patch.setenv("GLASSGPT_OFFLINE", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("NO_COLOR", "1")
        patch.setenv("OMP_NUM_THREADS", "1")  # models this small are slower with two threads than with one
        import setuptools  # noqa: F401  # torch's compiler does, and it has to come before anyone's import of distutils
        import torch

        torch.set_num_threads(1)
        yield folder


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how many cases the fuzz tests ran (each records its own as "cases"), and how to get a missing Chromium."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    counts = [value for report in reports for name, value in report.user_properties if name == "cases"]
    if counts:
        terminalreporter.write_line(f"fuzz tests: {sum(counts):,} cases in {len(counts)} tests")
    reasons = {str(report.longrepr[2]) for report in terminalreporter.getreports("skipped")}
    for reason in sorted(reason for reason in reasons if "apt-get" in reason):
        terminalreporter.write_line(reason)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the fuzz tests damage: texts, a prepared corpus and runs, made once."""
    from harness import make_files

    return make_files(tmp_path_factory.mktemp("faults"))


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test measures, or pretends to have measured, is not kept for another."""
    from glassgpt.planning import measured

    monkeypatch.setattr(measured, "KEPT_SECONDS", 0.0)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for one test."""
    monkeypatch.setenv("GLASSGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def prose() -> str:
    """Some 20 KB of word-like text with line ends, punctuation and a few letters beyond ASCII; always the same."""
    generator = random.Random(7)
    words = ["".join(generator.choices("etaoinshrdlcumwfgy", k=generator.randint(1, 8))) for _ in range(300)]
    words += ["é", "naïve", "—", "I", "O,", "King"]
    lines = [
        " ".join(generator.choices(words, k=generator.randint(3, 9))) + generator.choice(".,;:!?") for _ in range(550)
    ]
    return "\n".join(lines) + "\n"


@pytest.fixture
def text_file(tmp_path: Path, prose: str) -> Path:
    """That text in a file."""
    path = tmp_path / "prose.txt"
    path.write_text(prose, encoding="utf-8")
    return path


@contextlib.contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Run with that many CPU threads, then restore the number there was."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def quick_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan from three measured steps, which is enough where the speed does not matter."""
    from glassgpt.planning import timing

    measure_steps = timing.measure_steps

    def quick(config: Any, runtime: Any, seconds: float = 0.0, **settings: Any) -> Any:
        return measure_steps(config, runtime, 0.0, **settings)

    monkeypatch.setattr(timing, "measure_steps", quick)


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Run the command line in this process, in a folder of its own: ``cli("train", "x.txt") -> (code, out, err)``."""
    from glassgpt.cli.main import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["glassgpt", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def load_model(folder: Path, dtype: Any = None) -> Any:
    """The model and the tokenizer of a model folder."""
    from glassgpt.weights.loading import load_source
    from glassgpt.weights.resolve import open_folder

    return load_source(open_folder(folder), dtype=dtype)


def load_config(folder: Path) -> Any:
    """The configuration that a model folder's config.json describes."""
    from glassgpt.errors import CheckpointError, ConfigError
    from glassgpt.weights.mapping import from_hf_config
    from glassgpt.weights.sources import read_json

    try:
        return from_hf_config(read_json(folder / "config.json"))[0]
    except ConfigError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from None

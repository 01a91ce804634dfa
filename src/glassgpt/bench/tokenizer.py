"""Speed and memory of glassgpt's byte-level BPE: training, and encoding in Python and by tiktoken's engine.

Every measurement runs in a process of its own, because the peak memory of a process never falls. Importing and reading
the text count as memory, not as time.
"""

import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

from glassgpt.bench.memory import run_and_measure
from glassgpt.errors import GlassError, TokenizerError, install_extra
from glassgpt.tokenizer import pretrained
from glassgpt.tokenizer.bpe import bytelevel
from glassgpt.tokenizer.bpe.engine import engine_fails
from glassgpt.tokenizer.bpe.tokenizer import BPETokenizer
from glassgpt.tokenizer.pretokenize import as_unicode_16

TRAINING, ENCODING = "training", "encoding"
#: What each process measures: the work, and a name for each time that it takes.
PROCESSES = {
    "train": (TRAINING, ["BPETokenizer.train"]),
    "python": (ENCODING, ["encode in Python, empty cache", "encode in Python, filled cache"]),
    "tiktoken": (ENCODING, ["encode_array by tiktoken's engine"]),
}


@dataclass(frozen=True)
class Measurement:
    """Medians of one method; None if it was not measured."""

    work: str  # TRAINING or ENCODING
    method: str  # the method and how it is called
    seconds: float | None = None  # of the work alone
    bytes_per_second: float | None = None  # bytes of UTF-8 text / seconds
    #: Bytes of the process and its child processes, each at its peak, with the text and all imports.
    peak_memory: int | None = None  # None also if the system does not report it
    skipped: str = ""  # why it was not measured; else empty


@dataclass(frozen=True)
class TokenizerBench:
    """All measurements on one text, one row for each method."""

    bytes: int  # of the text in UTF-8
    vocab_size: int  # including the special token; smaller than requested if no pair was left to merge
    merges: int  # learned
    tokens: int | None  # of the text; None if it was not encoded
    rows: list[Measurement]


@dataclass(frozen=True)
class Job:
    """The arguments of a measuring process."""

    name: str  # a key of PROCESSES
    folder: str  # holds text.txt, and tokenizer.json after training
    vocab_size: int  # including one special token
    pattern: str  # a name in glassgpt.tokenizer.pretokenize.PATTERNS
    processes: int | None  # that count pairs at the same time; None: one per CPU for a long text


class Figures(NamedTuple):
    """The measurements of a process: times, the number of merges or tokens (``length``), and peak memory in bytes."""

    seconds: list[float]
    length: int
    memory: int | None


def bench_tokenizer(
    text: str,
    vocab_size: int,
    *,
    pattern: str = "gpt2",
    processes: int | None = None,
    repeat: int = 3,
    only: str = "",
    progress: Callable[[str], None] | None = None,
) -> TokenizerBench:
    """Train a byte-level BPE on a text, then encode the text with it.

    Args:
        text: at least two bytes.
        vocab_size: see :class:`Job`, as for ``pattern`` and ``processes``.
        repeat: rounds; the figures are medians over them.
        only: ``training`` or ``encoding``: measure only that. Encoding first trains once, without measuring it.
        progress: called with a description before each measurement.

    Raises:
        TokenizerError: if the tokenizer cannot be trained, or a measuring process fails.
    """
    notify = progress or (lambda message: None)
    skipped = {"tiktoken": _reason_to_skip_tiktoken(text)}
    names = [name for name, (work, _) in PROCESSES.items() if only in ("", work)]
    figures: dict[str, list[Figures]] = {name: [] for name in PROCESSES}
    with tempfile.TemporaryDirectory(prefix="glassgpt-bench-") as folder:
        (Path(folder) / "text.txt").write_bytes(text.encode("utf-8"))
        jobs = {name: Job(name, folder, vocab_size, pattern, processes) for name in PROCESSES}
        if only == ENCODING:
            notify("training the tokenizer to encode with")
            figures["train"].append(measure(jobs["train"]))
        for number in range(repeat):
            for name in names:
                if not skipped.get(name):
                    notify(f"round {number + 1} of {repeat}: {PROCESSES[name][1][0]}")
                    figures[name].append(measure(jobs[name]))
    size, merges = len(text.encode("utf-8")), figures["train"][0].length
    return TokenizerBench(
        bytes=size,
        vocab_size=len(bytelevel.BYTES) + merges + 1,
        merges=merges,
        tokens=figures["python"][0].length if figures["python"] else None,
        rows=[row for name in names for row in _rows(name, size, figures[name], skipped.get(name, ""))],
    )


def _reason_to_skip_tiktoken(text: str) -> str:
    if not importlib.util.find_spec("tiktoken"):
        return f"tiktoken is not installed: {install_extra('tiktoken')}"
    if as_unicode_16(text) is not text or engine_fails(text):
        return "tiktoken is not used for characters newer than Unicode 16 or very long runs of white space"
    return ""


def _rows(name: str, size: int, rounds: list[Figures], skipped: str) -> list[Measurement]:
    work, methods = PROCESSES[name]
    if skipped:
        return [Measurement(work, method, skipped=skipped) for method in methods]
    memory = [figures.memory for figures in rounds if figures.memory is not None]
    peak = int(median(memory)) if memory else None
    seconds = [median(times) for times in zip(*(figures.seconds for figures in rounds), strict=True)]
    return [Measurement(work, method, took, size / took, peak) for method, took in zip(methods, seconds, strict=True)]


def measure(job: Job) -> Figures:
    """Run a job in a new process.

    Raises:
        TokenizerError: if the job raises it, or the process fails.
    """
    command = [sys.executable, "-c", "from glassgpt.bench.tokenizer import main; main()", json.dumps(asdict(job))]
    result = run_and_measure(command, os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    if result.exit_code:
        last = (result.error.strip().splitlines() or ["no message"])[-1][:300]
        raise TokenizerError(f"measuring {job.name!r} failed with exit code {result.exit_code}: {last}")
    output = json.loads(result.output.splitlines()[-1])
    if "error" in output:
        raise TokenizerError(output["error"])
    return Figures(output["seconds"], output["length"], result.memory)


def main() -> None:
    """In the measuring process: do the job in the first argument, and print its times and its length as JSON."""
    try:
        seconds, length = _run(Job(**json.loads(sys.argv[1])))
    except GlassError as error:
        print(json.dumps({"error": str(error)}))
    else:
        print(json.dumps({"seconds": seconds, "length": length}))


def _run(job: Job) -> tuple[list[float], int]:
    folder = Path(job.folder)
    text, file = (folder / "text.txt").read_bytes().decode("utf-8"), folder / "tokenizer.json"
    if job.name == "train":
        start = time.perf_counter()
        tokenizer = BPETokenizer.train(text, job.vocab_size, pattern=job.pattern, processes=job.processes)
        seconds = time.perf_counter() - start
        file.write_text(json.dumps(tokenizer.to_json()), encoding="utf-8")
        return [seconds], len(tokenizer.model.merges)
    trained = pretrained.load(file)
    assert isinstance(trained, BPETokenizer)
    if job.name == "tiktoken":
        trained.encode("text", engine="tiktoken")  # builds the engine, which is not in the time
    times: list[float] = []
    ids: Sized = []
    for _ in PROCESSES[job.name][1]:
        start = time.perf_counter()
        if job.name == "tiktoken":
            ids = trained.encode_array(text, engine="tiktoken")
        else:
            ids = trained.encode(text, engine="python")
        times.append(time.perf_counter() - start)
    return times, len(ids)

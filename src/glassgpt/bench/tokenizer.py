"""Training and encoding of byte-level BPE, beside `tokenizers` and tiktoken on the same text.

Every measurement is a process of its own, so that its memory, its caches and its threads are its own. All of them run
in turn, round after round, and the figures are medians over the rounds. Imports and reading the text are not in the
seconds, and are in the memory.

Whether all make the same merges and the same ids is checked every time.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from statistics import median
from typing import NamedTuple

import numpy as np

from glassgpt.bench.memory import Descendants
from glassgpt.bench.tokenizer_ways import ENCODING, TRAINING, WAYS, Job, Way
from glassgpt.errors import TokenizerError
from glassgpt.tokenizer.bpe import bytelevel
from glassgpt.tokenizer.bpe.engine import engine_fails
from glassgpt.tokenizer.pretokenize import as_unicode_16

#: The libraries to be compared with.
LIBRARIES = ("tokenizers", "tiktoken")
#: Seconds between two looks at the memory of the processes that a measurement has started.
_LOOK = 0.02

#: Told what is being measured.
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """What one way to train or to encode takes; medians, and None where it was not measured.

    Attributes:
        work: ``training`` or ``encoding``.
        library: whose code does it.
        how: in which way.
        seconds: of the work alone.
        bytes_per_second: of UTF-8 text.
        build_seconds: for encoding, what it takes to make something that encodes: from the file of the vocabulary for
            glassgpt in Python and `tokenizers`, from the vocabulary in memory for tiktoken, which has no such file.
        peak_memory: bytes of the whole process, imports and text included, and of all processes it starts, each at its
            peak. None where the system does not tell.
        difference: from what the first way did: empty if it is the same. None for the first way itself.
        skipped: why it was not measured; empty if it was.
    """

    work: str
    library: str
    how: str
    seconds: float | None = None
    bytes_per_second: float | None = None
    build_seconds: float | None = None
    peak_memory: int | None = None
    difference: str | None = None
    skipped: str = ""


@dataclass(frozen=True)
class TokenizerBench:
    """All that was measured on one text.

    Attributes:
        bytes: of the text in UTF-8.
        vocab_size: reached, with the special token; less than asked for if no pair was left.
        merges: learned.
        tokens: of the text, None if it was not encoded.
        rows: one for each way.
    """

    bytes: int
    vocab_size: int
    merges: int
    tokens: int | None
    rows: list[Measured]


class Figures(NamedTuple):
    """What a process has found out: seconds of each lap and of building, bytes, the results and how they differ."""

    laps: list[float]
    build_seconds: float | None
    peak_memory: int | None
    results: list[np.ndarray]
    differences: Sequence[str] = ()


class Ended(NamedTuple):
    """A process that has ended: what it printed, its last words on standard error, its exit code, and the peak memory
    of the processes it had started, in bytes (None where the system does not tell)."""

    printed: str
    said: str
    code: int
    others: int | None


def run(command: Sequence[str], environment: Mapping[str, str]) -> Ended:
    """Run a process to its end, and look at the memory of those that it starts."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True, encoding="utf-8"
    ) as process:
        others = Descendants(process.pid)
        try:
            while True:
                try:
                    printed, said = process.communicate(timeout=_LOOK)
                    break
                except subprocess.TimeoutExpired:
                    others.look()
        finally:
            process.kill()
    last = (said.strip().splitlines() or ["it said nothing"])[-1][:300]
    return Ended(printed, last, process.returncode, others.total())


def measure(job: Job) -> Figures:
    """Let a process do a job.

    Raises:
        TokenizerError: if it cannot be done, or the process ends early.
    """
    command = [sys.executable, "-c", "from glassgpt.bench.tokenizer_ways import work; work()", json.dumps(asdict(job))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TOKENIZERS_PARALLELISM": "true"}
    if job.processes:
        environment["RAYON_NUM_THREADS"] = str(job.processes)  # of `tokenizers`
    ended = run(command, environment)
    if ended.code:
        raise TokenizerError(
            f"measuring {job.way!r} ended early with code {ended.code}: {ended.said}; is memory short?"
        )
    found = json.loads(ended.printed.splitlines()[-1])
    if "error" in found:
        raise TokenizerError(found["error"])
    known = found["peak"] is not None and ended.others is not None
    files = [job.file(f"result {number}.npy") for number in range(len(found["laps"]))]
    return Figures(
        found["laps"],
        found["build"],
        found["peak"] + ended.others if known else None,
        [np.load(file) for file in files],
    )


# --- all of them -----------------------------------------------------------------------------------------------------


def bench_tokenizer(
    text: str,
    vocab_size: int,
    *,
    pattern: str = "gpt2",
    processes: int | None = None,
    repeat: int = 3,
    only: str = "",
    progress: Progress | None = None,
) -> TokenizerBench:
    """Train on a text in every way, then encode the same text with what was learned in every way.

    Args:
        text: at least one pair of bytes.
        vocab_size: to train, with one special token.
        pattern: a name in :data:`PATTERNS`.
        processes: that glassgpt counts in, and threads of the other libraries; None: as many as each takes by itself.
        repeat: rounds.
        only: ``training`` or ``encoding``, to leave out the other. Something to encode with is trained in any case.
        progress: told of each measurement as it begins.

    Raises:
        TokenizerError: if it cannot be trained, or a process of glassgpt's own ends early.
    """
    names = [name for name, way in WAYS.items() if only in ("", way.work)]
    skipped = {name: _why_not(WAYS[name], text) for name in names}
    rounds: dict[str, list[Figures]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="glassgpt-bench-") as folder:
        job = Job("train", folder, vocab_size, pattern, processes)
        job.file("text.txt").write_bytes(text.encode("utf-8"))
        results = _Results()
        if only == ENCODING:
            _tell(progress, "training, to have something to encode with")
            results.compare(TRAINING, measure(job).results)
        for number in range(repeat):
            for name, way in ((name, WAYS[name]) for name in names if not skipped[name]):
                _tell(progress, f"round {number + 1} of {repeat}: {way.work}, {way.library} {way.how[0]}")
                try:
                    figures = measure(replace(job, way=name))
                except TokenizerError as error:
                    if way.library == "glassgpt":
                        raise
                    skipped[name] = str(error)
                    continue
                found = results.compare(way.work, figures.results)
                rounds[name].append(figures._replace(results=[], differences=found))
    size, merges = len(text.encode("utf-8")), results.count(TRAINING)
    rows = [row for name in names for row in _rows(WAYS[name], size, rounds[name], skipped[name])]
    tokens = results.count(ENCODING) if only != TRAINING else None
    return TokenizerBench(size, len(bytelevel.BYTES) + merges + 1, merges, tokens, rows)


class _Results:
    """Holds results against the first of their kind."""

    def __init__(self) -> None:
        self._first: dict[str, np.ndarray] = {}

    def compare(self, work: str, results: Sequence[np.ndarray]) -> list[str]:
        """How each differs; empty for one that does not."""
        first = self._first.setdefault(work, results[0])
        return [difference(first, result, work) for result in results]

    def count(self, work: str) -> int:
        """Merges, or tokens."""
        return len(self._first[work])


def _tell(progress: Progress | None, message: str) -> None:
    if progress:
        progress(message)


def installed(library: str) -> bool:
    """Whether a library can be imported."""
    return importlib.util.find_spec(library) is not None


def versions() -> dict[str, str]:
    """The version of each library that is installed."""
    return {library: metadata.version(library) for library in LIBRARIES if installed(library)}


def _why_not(way: Way, text: str) -> str:
    if way.needs and not installed(way.needs):
        return f"{way.needs} is not installed"
    if way.library == "glassgpt" and way.needs and (as_unicode_16(text) is not text or engine_fails(text)):
        return "the text has characters newer than Unicode 16 or endless white space: tiktoken is not asked"
    return ""


def difference(expected: np.ndarray, found: np.ndarray, work: str) -> str:
    """Where merges ``[merges]`` or ids ``[tokens]`` differ first from those expected; empty if they do not."""
    noun = "merge" if work == TRAINING else "token"
    common = min(len(expected), len(found))
    unlike = np.flatnonzero(expected[:common] != found[:common])
    if len(unlike):
        at = int(unlike[0])
        return f"{noun} {at} is {found[at].item()!r}, not {expected[at].item()!r}"
    return "" if len(expected) == len(found) else f"{len(found):,} {noun}s, not {len(expected):,}"


def _rows(way: Way, size: int, rounds: Sequence[Figures], skipped: str) -> Iterator[Measured]:
    for number, how in enumerate(way.how):
        if skipped:
            yield Measured(way.work, way.library, how, skipped=skipped)
            continue
        seconds = median(figures.laps[number] for figures in rounds)
        builds = [figures.build_seconds for figures in rounds if figures.build_seconds is not None]
        peaks = [figures.peak_memory for figures in rounds if figures.peak_memory is not None]
        differences = filter(None, (figures.differences[number] for figures in rounds))
        yield Measured(
            way.work, way.library, how, seconds, size / seconds,
            build_seconds=median(builds) if builds else None,
            peak_memory=int(median(peaks)) if peaks else None,
            difference=next(differences, None if way.first and number == 0 else ""),
        )  # fmt: skip

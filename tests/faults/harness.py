"""Run command lines on damaged files, and check what must hold whatever the damage is.

The exit code is 0, 1 or 2, with a message if it is not 0; no traceback, no warning of Python, no hang, no flood of
memory or processes; and every other file is as it was.
"""

import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from damages import Damage

from glassgpt.cli.main import main

#: What a case may take: CPU seconds, bytes of memory, and child processes.
MOST_SECONDS, MOST_MEMORY, MOST_PROCESSES = 10, 4 << 30, 20
SMALL = (
    "n_layer=1 n_head=1 n_embd=8 block_size=8 batch_size=4 micro_batch_size=4 eval_interval=2 save_interval=2 "
    "log_interval=1 sample_tokens=0 device=cpu dtype=float32 compile=false threads=1"
)
PREPARE = "data prepare docs -o prepared --processes 1 tokenizer=bpe:260"
#: A number of cases: all that there are, in `make test-all`.
ALL = pytest.param(10**6, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])
_OUTSIDE = -(10**9)  # outside of a case, processes are not limited
_started = [_OUTSIDE]


class TooMuch(BaseException):
    """A case takes too long, or starts too many processes. Not an Exception, so that nothing catches it."""


def _count_processes(event: str, _: object) -> None:
    if event in ("subprocess.Popen", "os.fork", "os.posix_spawn"):
        _started[0] += 1
        if _started[0] > MOST_PROCESSES:
            raise TooMuch(f"more than {MOST_PROCESSES} processes")


sys.addaudithook(_count_processes)  # for good


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Interrupt what computes for too long (what waits for ever is left to pytest), and refuse too much else."""

    def interrupt(*_: object) -> None:
        raise TooMuch(f"more than {MOST_SECONDS} s of CPU time")

    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limits, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGPROF, interrupt)
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    _started[0] = 0
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        _started[0] = _OUTSIDE


@dataclass(frozen=True)
class Outcome:
    """How a command line ended; ``problem`` is empty if it ended as it should."""

    code: int
    problem: str


def run(command: str, *more: str) -> Outcome:
    """Run a command line, and more arguments that are not split at spaces, in this process."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    code, problem, argv, stdin = 0, "", sys.argv, sys.stdin
    sys.argv = ["glassgpt", *command.split(), *more]
    sys.stdin = io.TextIOWrapper(io.BytesIO(b"he\n/exit\n"), encoding="utf-8")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]), limited():
                main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
        except (Exception, TooMuch) as error:
            frames = [f for f in traceback.extract_tb(error.__traceback__) if "/glassgpt/" in f.filename]
            where = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames[:-3:-1])
            code, problem = -1, f"{type(error).__name__}: {str(error)[:120]} at {where}"
    sys.argv, sys.stdin = argv, stdin
    torch.set_num_threads(1)
    message = streams[1].buffer.getvalue().decode()  # type: ignore[attr-defined]
    if not problem and code not in (0, 1, 2):
        problem = f"exit code {code}"
    elif not problem and code and not message.strip():
        problem = f"exit code {code} without a message"
    elif not problem and "Traceback" in message:
        problem = f"a traceback: {message[-200:]}"
    elif not problem and warned:
        problem = f"{warned[0].category.__name__}: {str(warned[0].message)[:120]}"
    return Outcome(code, problem)


def succeed(command: str) -> None:
    """Run a command line that has nothing to complain about."""
    outcome = run(command)
    assert outcome == Outcome(0, ""), (command, outcome)


def contents(folder: Path) -> dict[str, bytes]:
    """The content of every file, by its path in the folder."""
    files = (Path(root) / name for root, _, names in os.walk(folder) for name in names)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


#: Given an outcome, the files that were whole before and the files of now, returns a problem or "".
Check = Callable[[Outcome, dict[str, bytes], dict[str, bytes]], str]
#: The fixture record_property; the terminal summary adds up the numbers of cases.
Record = Callable[[str, object], None]


def nothing_changed(outcome: Outcome, before: dict[str, bytes], now: dict[str, bytes]) -> str:
    """Every file is as it was."""
    lost = [name for name, content in before.items() if now.get(name) != content]
    return f"changed or lost: {lost[:5]}" if lost else ""


class Cases:
    """Runs cases in a folder, which is after each what it was before, and collects what failed."""

    def __init__(self, folder: Path):
        self.folder, self.files = folder, contents(folder)
        self.count, self.failed = 0, list[str]()

    def run(self, command: str, *more: str, damage: Damage | None = None, check: Check = nothing_changed) -> None:
        """Run a case: damage, command line, checks; then undo it."""
        self.count += 1
        damaged = damage.apply(self.folder) if damage else []
        with contextlib.chdir(self.folder):
            outcome = run(command, *more)
        for name in damaged:
            with contextlib.suppress(FileNotFoundError):
                (self.folder / name).chmod(0o700)
        now = contents(self.folder)
        whole = {name: content for name, content in self.files.items() if name not in damaged}
        problem = outcome.problem or check(outcome, whole, now)
        if not problem and outcome.code == 2 and (left := sorted(now.keys() - self.files.keys())):
            problem = f"a mistake, and files left behind: {left[:5]}"
        if problem:
            case = f"glassgpt {command} {' '.join(more)[:80]!r}" if more else f"glassgpt {command}"
            self.failed.append(f"{damage or 'nothing damaged'} | {case} | {problem}")
        self._restore(now)

    def _restore(self, now: dict[str, bytes]) -> None:
        for name in now.keys() - self.files.keys():
            (self.folder / name).unlink()
        for name, content in self.files.items():
            if now.get(name) != content:
                path = self.folder / name
                if path.is_dir():
                    shutil.rmtree(path)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        for root, _, _ in os.walk(self.folder, topdown=False):
            with contextlib.suppress(OSError):
                Path(root).rmdir()  # if it is empty

    def report(self, record: Record) -> None:
        """Count the cases for the summary of all tests; fail with those that failed."""
        record("cases", self.count)
        assert not self.failed, f"{len(self.failed)} of {self.count} cases failed:\n" + "\n".join(self.failed)


def some(items: Sequence, count: int) -> Sequence:
    """So many of the items, always the same ones."""
    return items if count >= len(items) else random.Random(count).sample(items, count)


def make_files(folder: Path) -> Path:
    """Make ``text.txt``; ``docs/`` of the same text; ``prepared/`` of those; ``runs/a`` with checkpoints best, last,
    step-000002 and step-000004; ``runs/b``; ``runs/c``, trained on ``prepared/``; ``talker/``, a model with a chat
    template; and ``chats.jsonl``, conversations that fit the context of the run ``bases/d``."""
    generator = random.Random(7)
    words = ["".join(generator.choices("etaoinshrdlc", k=generator.randint(1, 6))) for _ in range(100)]
    lines = [" ".join(generator.choices(words, k=6)) + "\n" for _ in range(250)]
    (folder / "text.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "docs").mkdir()
    for number in range(25):
        (folder / "docs" / f"{number}.txt").write_text("".join(lines[number * 10 :][:10]), encoding="utf-8")
    with contextlib.chdir(folder):
        succeed(PREPARE)
        succeed(f"train text.txt {SMALL} tokenizer=bpe:260 steps=4 --name a")
        succeed(f"train text.txt {SMALL} tokenizer=bpe:260 steps=2 --name b")
        succeed(f"train prepared {SMALL} steps=2 --name c")
        succeed(f"train text.txt {SMALL} tokenizer=bpe:260 block_size=96 steps=2 --name d --runs-dir bases")
    rows = [json.dumps({"prompt": line[:9], "completion": line[9:18]}) + "\n" for line in lines[:20]]
    (folder / "chats.jsonl").write_text("".join(rows), encoding="utf-8")
    shutil.copytree(folder / "runs" / "a" / "best", folder / "talker")
    (folder / "talker" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}", encoding="utf-8"
    )
    return folder

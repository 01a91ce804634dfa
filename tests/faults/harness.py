"""Run the command line on damaged files, and check what must hold whatever the damage is.

The exit code is 0, 1 or 2, with a message if it is not 0; no traceback, no warning of Python, no hang; and every other
file is as it was.
"""

import contextlib
import io
import os
import random
import resource
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from damages import Damage

from glassgpt.cli.main import main

#: CPU seconds and bytes that a case may take.
LONGEST, MOST_MEMORY = 10, 4 << 30


class Hang(BaseException):
    """A case takes too long. Not an Exception, so that nothing catches it."""


@dataclass(frozen=True)
class Outcome:
    """How a command line ended; ``problem`` is empty if it ended as it should."""

    code: int
    out: str
    err: str
    problem: str


def run(command: str, *more: str) -> Outcome:
    """Run a command line, and more arguments that are not split at spaces, in this process."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    code, problem, argv = 0, "", sys.argv
    sys.argv = ["glassgpt", *command.split(), *more]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]), limited():
                main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
        except (Exception, Hang, KeyboardInterrupt) as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = next((f for f in reversed(frames) if "glassgpt" in f.filename and "tests" not in f.filename), None)
            where = f"{Path(ours.filename).name}:{ours.lineno} {ours.name}" if ours else ""
            code, problem = -1, f"{type(error).__name__} at {where}: {str(error)[:150]}"
    sys.argv = argv
    torch.set_num_threads(1)
    out, err = (stream.buffer.getvalue().decode() for stream in streams)  # type: ignore[attr-defined]
    if not problem and code not in (0, 1, 2):
        problem = f"exit code {code}"
    if not problem and code and not err.strip():
        problem = f"exit code {code} without a message"
    if not problem and "Traceback" in err:
        problem = "a traceback: " + err[-200:]
    if not problem and warned:
        problem = f"{warned[0].category.__name__}: {str(warned[0].message)[:150]}"
    return Outcome(code, out, err, problem)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Interrupt what computes for too long (what waits for ever is left to pytest), and refuse too much memory."""

    def interrupt(*_: object) -> None:
        raise Hang(f"more than {LONGEST} s of CPU time")

    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limits, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGPROF, interrupt)
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def contents(folder: Path) -> dict[str, bytes]:
    """The content of every file, by its path in the folder."""
    files = (Path(root) / name for root, _, names in os.walk(folder) for name in names)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@dataclass
class Room:
    """A folder to run cases in. After each case it is what it was before."""

    path: Path
    files: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.files = contents(self.path)

    def restore(self) -> None:
        """Undo a case."""
        now: dict[str, bytes | None] = {}
        for root, folders, names in os.walk(self.path, topdown=False):
            for name in names:
                path = Path(root) / name
                path.chmod(0o600)
                if str(path.relative_to(self.path)) in self.files:
                    now[str(path.relative_to(self.path))] = path.read_bytes()
                else:
                    path.unlink()
            for name in folders:
                with contextlib.suppress(OSError):
                    (Path(root) / name).rmdir()  # if it is empty
        for name, content in self.files.items():
            if now.get(name) != content:
                path = self.path / name
                if path.is_dir():
                    shutil.rmtree(path)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)


#: Checks an outcome further: given the files that were whole before and those of now, it returns a problem or "".
Check = Callable[[Outcome, dict[str, bytes], dict[str, bytes]], str]


def nothing_changed(outcome: Outcome, before: dict[str, bytes], now: dict[str, bytes]) -> str:
    """Every file is as it was; after a mistake (exit code 2) there is no new one either."""
    lost = [name for name, content in before.items() if now.get(name) != content]
    left = [name for name in now if name not in before] if outcome.code == 2 else []
    return (f"changed or lost: {lost[:5]}" if lost else "") + (f" left behind: {left[:5]}" if left else "")


#: The fixture record_property: the terminal summary adds up the numbers of cases.
Record = Callable[[str, object], None]


class Cases:
    """Runs cases and collects what failed."""

    def __init__(self, room: Room):
        self.room, self.count, self.failed = room, 0, list[str]()

    def run(
        self, command: str, *more: str, damage: Damage | None = None, check: Check = nothing_changed
    ) -> None:  # fmt: skip
        """Run a case: damage, command line, checks; then undo it."""
        self.count += 1
        if damage:
            damage.apply(self.room.path)
        before = contents(self.room.path)
        with contextlib.chdir(self.room.path):
            outcome = run(command, *more)
        problem = outcome.problem or check(outcome, before, contents(self.room.path))
        if problem:
            self.failed.append(f"{damage or 'undamaged'} | glassgpt {command} {' '.join(more)[:60]} | {problem}")
        self.room.restore()

    def report(self, record: Record) -> None:
        """Count the cases for the summary of all tests; fail with those that failed."""
        record("cases", self.count)
        assert not self.failed, f"{len(self.failed)} of {self.count} cases failed:\n" + "\n".join(self.failed)


def some(items: Sequence, count: int, seed: str) -> Sequence:
    """So many of the items, always the same ones."""
    return items if count >= len(items) else random.Random(seed).sample(items, count)

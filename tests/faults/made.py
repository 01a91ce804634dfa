"""What the cases are run on: a tiny run with its checkpoints, and prepared corpora."""

import functools
import random
import tempfile
from pathlib import Path

from harness import run

SMALL = (
    "n_layer=1 n_head=1 n_embd=8 block_size=8 batch_size=4 micro_batch_size=4 eval_interval=2 save_interval=2 "
    "log_interval=1 sample_tokens=0 device=cpu dtype=float32 compile=false threads=1"
).split()


@functools.cache
def words() -> str:
    """Some 6 KB of word-like text."""
    generator = random.Random(7)
    vocabulary = ["".join(generator.choices("etaoinshrdlc", k=generator.randint(1, 6))) for _ in range(100)]
    return "".join(" ".join(generator.choices(vocabulary, k=6)) + "\n" for _ in range(250))


def write_texts(folder: Path) -> None:
    """``text.txt``, and ``docs/`` with the same text as documents."""
    (folder / "text.txt").write_text(words(), encoding="utf-8")
    (folder / "docs").mkdir()
    lines = words().splitlines(keepends=True)
    for number in range(25):
        (folder / "docs" / f"{number}.txt").write_text("".join(lines[number * 10 :][:10]), encoding="utf-8")


def write_runs(folder: Path) -> None:
    """``runs/a`` with the checkpoints best, last, step-000002 and step-000004; and ``runs/b``."""
    for name, steps in (("a", 4), ("b", 2)):
        done("train", "text.txt", *SMALL, f"steps={steps}", "tokenizer=bpe:260", "--name", name)
    assert (folder / "runs/a/step-000002").exists()


def done(*arguments: str) -> str:
    """Run a command line that has to succeed; what it printed."""
    outcome = run(*arguments)
    assert outcome.code == 0 and not outcome.problem, (arguments, outcome)
    return outcome.out


def temporary() -> Path:
    """A new folder of this session."""
    return Path(tempfile.mkdtemp(prefix="faults-"))

"""What the cases are run on: texts, tiny runs with their checkpoints, and a prepared corpus."""

import contextlib
import random
from pathlib import Path

from harness import Room, run

SMALL = (
    "n_layer=1 n_head=1 n_embd=8 block_size=8 batch_size=4 micro_batch_size=4 eval_interval=2 save_interval=2 "
    "log_interval=1 sample_tokens=0 device=cpu dtype=float32 compile=false threads=1"
)
PREPARE = "data prepare docs -o prepared --processes 1 tokenizer=bpe:260"


def words() -> str:
    """Some 6 KB of word-like text, always the same."""
    generator = random.Random(7)
    vocabulary = ["".join(generator.choices("etaoinshrdlc", k=generator.randint(1, 6))) for _ in range(100)]
    return "".join(" ".join(generator.choices(vocabulary, k=6)) + "\n" for _ in range(250))


def made_room(folder: Path) -> Room:
    """A folder with ``text.txt``; ``docs/`` with the same text as documents; ``prepared/`` made of it; ``runs/a`` with
    the checkpoints best, last, step-000002 and step-000004; ``runs/b``; and ``runs/c``, trained on ``prepared/``."""
    (folder / "text.txt").write_text(words(), encoding="utf-8")
    (folder / "docs").mkdir()
    lines = words().splitlines(keepends=True)
    for number in range(25):
        (folder / "docs" / f"{number}.txt").write_text("".join(lines[number * 10 :][:10]), encoding="utf-8")
    with contextlib.chdir(folder):
        succeed(PREPARE)
        for name, text, steps in (("a", "text.txt", 4), ("b", "text.txt", 2), ("c", "prepared", 2)):
            tokenizer = "tokenizer=bpe:260" if text == "text.txt" else ""
            succeed(f"train {text} {SMALL} {tokenizer} steps={steps} --name {name}")
    assert (folder / "runs/a/step-000002").exists()
    return Room(folder)


def succeed(command: str) -> None:
    """Run a command line that has nothing to complain about."""
    outcome = run(command)
    assert outcome.code == 0 and not outcome.problem, (command, outcome)

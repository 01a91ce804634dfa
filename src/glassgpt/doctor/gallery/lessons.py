"""Two lessons: how little the loss tells of a bug, and a bug to find by reading."""

import difflib
import hashlib
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from glassgpt.doctor.gallery.bug import Bug, Change, import_program, program_source
from glassgpt.doctor.gallery.loop_bugs import LOOP_BUGS
from glassgpt.doctor.gallery.model_bugs import MODEL_BUGS
from glassgpt.doctor.loops.quiet import quiet
from glassgpt.doctor.report import FINDINGS, one_thread
from glassgpt.doctor.subject import Subject, cross_entropy
from glassgpt.errors import SubjectError
from glassgpt.files import read_json_object, write_text

#: The bugs of programs that train: models, and loops with their models.
BUGS = (*MODEL_BUGS, *LOOP_BUGS)
BATCH, LEARNING_RATE, STEPS_PER_REPORT = 16, 3e-3, 10
PROGRAM_FILE, STATE_FILE = "quiz.py", "quiz.json"


@dataclass(frozen=True)
class Step:
    """Losses in training, in nats: means over the ten steps that end with this one."""

    step: int
    seconds: float
    right: float
    broken: float


def factory_name(bug: Bug) -> str:
    """Return the name of the function that makes the model, or the loop, in a program with this bug."""
    return "loop" if bug in LOOP_BUGS else "model"


class _Loop:
    """A training loop, which draws its own batches."""

    def __init__(self, program: str, change: Change | None):
        self.loop = import_program(program, change).loop()

    def step(self, seed: int) -> float:
        """Train on the batches that a seed gives, and return the loss; not a number if the bug ends the program."""
        with quiet(seed):
            try:
                return torch.as_tensor(self.loop.train_step()).detach().item()
            except Exception:
                return math.nan


class _Learner:
    """A model in training; its own loss where it computes one."""

    def __init__(self, program: str, change: Change | None):
        factory = import_program(program, change).model
        self.module: nn.Module = factory().train()
        self.subject = Subject(self.module, program, factory=factory)
        trained = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)

    def step(self, text: Tensor) -> float:
        """Train on ids ``[B, T + 1]`` and return the loss."""
        inputs, targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()
        shifts = (self.subject.targets or "").startswith("label")  # labels are the ids, and the model shifts them
        given = None if not self.subject.computes_loss else inputs if shifts else targets
        output = self.subject.forward(self.module, inputs.clone(), None if given is None else given.clone())
        loss = cross_entropy(output.logits, targets) if output.loss is None or given is None else output.loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def compare_training(bug: Bug, program: str, seconds: float, text: str) -> Iterator[Step]:
    """Train a program with and without a bug, side by side, on the same batches.

    Args:
        bug: the bug.
        program: one of the programs that it can be put into.
        seconds: how long; at least ten steps are done.
        text: more than a few hundred characters, which a model is trained on. A loop has a text of its own.

    Raises:
        SubjectError: if the bug cannot be put into this program, or the text is too short.
    """
    if program not in bug.changes:
        raise SubjectError(f"{bug.name} cannot be put into {program!r}; it can into: {', '.join(bug.changes)}")
    step_both = _loops(bug, program) if bug in LOOP_BUGS else _models(bug, program, text)
    start, step, losses = time.monotonic(), 0, []
    while step < STEPS_PER_REPORT or time.monotonic() - start < seconds:
        step += 1
        with torch.random.fork_rng(devices=[]), one_thread():
            losses.append(step_both(step))
        if step % STEPS_PER_REPORT == 0:
            right, broken = torch.tensor(losses).mean(0).tolist()
            losses = []
            yield Step(step, time.monotonic() - start, right, broken)


def _loops(bug: Bug, program: str) -> Callable[[int], list[float]]:
    """Make both loops; return the function that trains each for one step, and returns the losses."""
    with torch.random.fork_rng(devices=[]):
        loops = [_Loop(program, change) for change in (None, bug)]
    return lambda step: [loop.step(step) for loop in loops]


def _models(bug: Bug, program: str, text: str) -> Callable[[int], list[float]]:
    """The same for models, on windows of the text."""
    with torch.random.fork_rng(devices=[]):
        learners = [_Learner(program, change) for change in (None, bug)]
    subject = learners[0].subject
    ids = _characters(text, subject.vocab)
    if len(ids) < 2 * subject.context + 2:
        raise SubjectError(f"the text has {len(text)} characters; at least {2 * subject.context + 2} are needed")
    generator = torch.Generator().manual_seed(0)

    def step_both(step: int) -> list[float]:
        starts = torch.randint(len(ids) - subject.context - 1, (BATCH,), generator=generator)  # [B]
        batch = ids[starts[:, None] + torch.arange(subject.context)]  # [B, T]
        return [learner.step(batch) for learner in learners]

    return step_both


def _characters(text: str, vocab: int) -> Tensor:
    """Number the characters of a text from the most frequent on; the last number is for all that are left."""
    counts: dict[str, int] = {}
    for character in text:
        counts[character] = counts.get(character, 0) + 1
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    numbers = {character: min(rank, vocab - 1) for rank, character in enumerate(ranked)}
    return torch.tensor([numbers[character] for character in text])


@dataclass(frozen=True)
class Answer:
    """What a guess was worth.

    Attributes:
        right: whether it names the bug or its finding.
        known: whether it names any bug or finding at all.
        similar: names like it, where it is not known.
    """

    right: bool
    known: bool
    similar: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quiz:
    """An unnamed bug in a program.

    Attributes:
        path: the file to read: the program with the bug in it.
        program: the program's name; the right one is in the gallery.
        bug: the answer.
    """

    path: Path
    program: str
    bug: Bug

    def check(self, guess: str) -> Answer:
        """Compare a guess with the bug: a finding ("leak"), or the bug's name ("no-causal-mask")."""
        names = {_plain(name): name for name in (*FINDINGS, *(bug.name for bug in BUGS))}
        name = names.get(_plain(guess))
        if name is None:
            similar = difflib.get_close_matches(_plain(guess), names, n=3)
            return Answer(False, False, tuple(names[one] for one in similar))
        return Answer(name in (self.bug.name, self.bug.finding), True)

    def difference(self) -> str:
        """Return the lines that the bug changed, as a unified diff from the right program to the broken one."""
        right, broken = (program_source(self.program, change).splitlines() for change in (None, self.bug))
        return "\n".join(difflib.unified_diff(right, broken, "right", "broken", lineterm="", n=2))


def make_quiz(seed: int, folder: Path) -> Quiz:
    """Choose a bug and a program, and write the broken program to ``folder/quiz.py``.

    The same seed gives the same quiz. ``quiz.json`` beside it keeps the answer as a hash, for :func:`load_quiz`.
    """
    chance = random.Random(seed)
    bug = chance.choice(BUGS)
    program = chance.choice(sorted(bug.changes))
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / PROGRAM_FILE, program_source(program, bug))
    state = f'{{"seed": {seed}, "program": "{program}", "answer": "{_digest(seed, bug)}"}}\n'
    write_text(folder / STATE_FILE, state)
    return Quiz(folder / PROGRAM_FILE, program, bug)


def load_quiz(folder: Path) -> Quiz:
    """Read the quiz that :func:`make_quiz` wrote into a folder, in this process or an earlier one.

    Raises:
        SubjectError: if there is none, or it is of another version of this package.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise SubjectError(f"no quiz in {folder}: {STATE_FILE} is not there; start one first")
    try:
        state = read_json_object(path)
        bug = next(bug for bug in BUGS if _digest(state["seed"], bug) == state["answer"])
        program_source(state["program"], bug)
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise SubjectError(f"{path} is damaged, or from another version; start a new quiz") from error
    return Quiz(folder / PROGRAM_FILE, state["program"], bug)


def _digest(seed: int, bug: Bug) -> str:
    return hashlib.sha256(f"{seed} {bug.name}".encode()).hexdigest()


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", " ").replace("_", " ")

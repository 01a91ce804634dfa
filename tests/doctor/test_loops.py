"""The checks of training loops: every bug of the gallery is found under its class, every correct loop is silent."""

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glassgpt.doctor.gallery.bug import Bug, import_program
from glassgpt.doctor.gallery.loop_bugs import LOOP_BUGS, LOOP_PROGRAMS, UNUSUAL_LOOPS
from glassgpt.doctor.loops.checks import LOOP_CHECKS
from glassgpt.doctor.loops.loop import Loop, load_loop
from glassgpt.doctor.loops.targets import agreement
from glassgpt.doctor.report import Outcome, run_checks
from glassgpt.errors import SubjectError

CORRECT = [(name, "loop") for name in LOOP_PROGRAMS] + [("loop_unusual", name) for name in UNUSUAL_LOOPS]
PAIRS = [(bug, program) for bug in LOOP_BUGS for program in bug.changes]
FAST_CORRECT = {("loop_unusual", "two_optimizers")}
FAST_BUGS = {
    "no-zero-grad": "loop_trainer", "mean-of-means": "loop_tuning", "parameters-left-out": "loop_lecture",
    "clip-after-step": "loop_tuning", "clip-a-part": "loop_script", "decay-exchanged": "loop_script",
    "no-eval-mode": "loop_lecture", "targets-shifted-twice": "loop_trainer", "validation-in-training": "loop_lecture",
    "masked-positions-trained": "loop_tuning",
}  # fmt: skip


def examine(
    program: str, factory: str = "loop", bug: Bug | None = None, only: Collection[str] = (), **options: object
) -> list[Outcome]:
    make = getattr(import_program(program, bug), factory)
    return list(run_checks(LOOP_CHECKS, Loop(lambda: make(**options), program), only))


def alarms(outcomes: list[Outcome]) -> list[tuple[str, str | None, str]]:
    return [
        (o.result.status, o.result.finding, o.result.message) for o in outcomes if o.result.status in ("FAIL", "WARN")
    ]


def broke(outcomes: list[Outcome]) -> list[str]:
    """Messages of checks that ended with an exception."""
    return [o.result.message for o in outcomes if "ended with" in o.result.message]


def assert_found(bug: Bug, program: str, **options: object) -> None:
    outcomes = examine(program, bug=bug, only={bug.finding}, **options)
    assert ("FAIL", bug.finding) in [(status, finding) for status, finding, _ in alarms(outcomes)], (
        bug.name, [(o.check.name, o.result.status, o.result.message) for o in outcomes],
    )  # fmt: skip


@pytest.mark.parametrize(("program", "factory"), sorted(FAST_CORRECT))
def test_a_correct_loop_raises_nothing(program: str, factory: str) -> None:
    outcomes = examine(program, factory)
    assert alarms(outcomes) == [] and broke(outcomes) == []


@pytest.mark.parametrize("name", FAST_BUGS)
def test_a_bug_is_found_under_its_class(name: str) -> None:
    assert_found(next(bug for bug in LOOP_BUGS if bug.name == name), FAST_BUGS[name])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("program", "factory"), CORRECT)
def test_every_correct_loop_raises_nothing(program: str, factory: str, seed: int, size: int, dtype: str) -> None:
    outcomes = examine(program, factory, seed=seed, size=size, dtype=dtype)
    assert alarms(outcomes) == [] and broke(outcomes) == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("bug", "program"), PAIRS, ids=[f"{bug.name}-{program}" for bug, program in PAIRS])
def test_every_bug_is_found_under_its_class(bug: Bug, program: str, seed: int, dtype: str) -> None:
    for size in (1, 2):
        assert_found(bug, program, seed=seed, size=size, dtype=dtype)


def test_a_loop_without_parts_is_examined_as_far_as_it_goes_and_says_what_it_lacks() -> None:
    batch = torch.randint(50, (4, 9), generator=torch.Generator().manual_seed(0))
    outcomes = list(run_checks(LOOP_CHECKS, Loop(lambda: {"get_batch": lambda split: (batch[:, :-1], batch[:, 1:])})))
    reasons = {o.check.name: o.result.message for o in outcomes if o.result.status == "NOT RUN"}
    assert reasons["update"] == "the loop has no `model`" and not broke(outcomes)
    assert {o.result.status for o in outcomes if o.check.name == "batches"} == {"PASS"}


class Tiny(nn.Module):
    """A model of 2,000 parameters for loops of a few lines."""

    def __init__(self, keeps: bool = False, cut: bool = False, positions: bool = True):
        super().__init__()
        self.tokens, self.places, self.head = nn.Embedding(20, 16), nn.Embedding(24, 16), nn.Linear(16, 20)
        self.keeps, self.cut, self.positions = keeps, cut, positions
        self.last = torch.zeros(16)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.tokens(ids) + (self.places(torch.arange(ids.shape[1])) if self.positions else 0)
        if self.keeps:
            h, self.last = h + self.last, h.detach().mean((0, 1))
        return self.head(h.detach() if self.cut else h)


class TinyLoop:
    """A loop that draws its batches from the global generator of torch."""

    def __init__(self, decay: float = 0.0, ignore: int = -100, reseed: str = "", **model: bool):
        self.model = Tiny(**model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2, weight_decay=decay)
        self.data = torch.randint(20, (400,), generator=torch.Generator().manual_seed(1))
        self.ignore, self.reseed = ignore, reseed

    def get_batch(self, split: str) -> tuple[Tensor, Tensor]:
        if self.reseed == "batch":
            torch.manual_seed(0)
        start, end = (0, 280) if split == "train" else (300, 380)
        rows = torch.stack([self.data[i : i + 17] for i in torch.randint(start, end, (4,)).tolist()])
        return rows[:, :-1], rows[:, 1:]

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.model(x).flatten(0, 1), y.flatten(), ignore_index=self.ignore)

    def train_step(self, micro: list[tuple[Tensor, Tensor]] | None = None) -> float:
        if self.reseed == "step":
            torch.manual_seed(0)
        self.optimizer.zero_grad()
        loss = self.loss(*(micro[0] if micro else self.get_batch("train")))
        loss.backward()
        self.optimizer.step()
        return float(loss)

    @torch.no_grad()
    def evaluate(self) -> float:
        if self.reseed == "evaluate":
            torch.manual_seed(0)
        return float(self.loss(*self.get_batch("val")))


def test_the_small_loop_raises_nothing() -> None:
    only = {"dead parameters", "state", "weight decay", "targets"}
    assert alarms(list(run_checks(LOOP_CHECKS, Loop(TinyLoop), only))) == []


@pytest.mark.parametrize(
    ("finding", "changes"),
    [
        ("dead parameters", {"cut": True}), ("dead parameters", {"positions": False}), ("state", {"keeps": True}),
        ("state", {"reseed": "batch"}), ("state", {"reseed": "step"}), ("state", {"reseed": "evaluate"}),
        ("weight decay", {"decay": 10.0}), ("targets", {"ignore": 0}),
    ],
)  # fmt: skip
def test_one_cause_in_a_small_loop_is_found(finding: str, changes: dict[str, Any]) -> None:
    outcomes = list(run_checks(LOOP_CHECKS, Loop(lambda: TinyLoop(**changes)), only={finding}))
    assert ("FAIL", finding) in [(status, found) for status, found, _ in alarms(outcomes)]


def test_answers_whose_end_is_cut_from_the_input_agree_with_it() -> None:
    x = torch.tensor([[5, 6, 7, 8, 0, 0], [5, 6, 7, 0, 0, 0]])  # padded with 0, the end token 9 is only a target
    y = torch.tensor([[-100, 7, 8, 9, -100, -100], [6, 7, 9, -100, -100, -100]])
    assert agreement(y, x, 1) == 1.0 and agreement(y, x, 2) < 0.5


def test_the_random_state_and_prints_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    make = import_program("loop_lecture").loop

    def loud() -> object:
        print("made")
        return make()

    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    list(run_checks(LOOP_CHECKS, Loop(loud), only={"gradients cleared", "evaluation"}))
    assert torch.equal(torch.rand(3), expected) and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def loop(seed):\n    return 1\n", "without arguments"),
        ("def loop():\n    raise ValueError('no such file')\n", "no such file"),
        ("def loop():\n    return 7\n", "returned int, which has none of: model"),
    ],
)
def test_a_factory_that_cannot_be_used_gives_one_message(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / f"bad_{abs(hash(message))}.py"
    path.write_text(text, encoding="utf-8")
    before = list(sys.path)
    with pytest.raises(SubjectError, match=message):
        load_loop(f"{path}:loop")
    sys.path[:] = before

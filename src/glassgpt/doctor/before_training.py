"""Examine a run before its first step: the quick checks, on a copy of its model and on its first batches."""

import copy
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from glassgpt.data.batch import Batch
from glassgpt.doctor.advice import ADVICE
from glassgpt.doctor.checks import MODEL_CHECKS
from glassgpt.doctor.loading import subject_of
from glassgpt.doctor.loops.loop import Loop
from glassgpt.doctor.loops.targets import TARGET_CHECKS
from glassgpt.doctor.report import Outcome, run_checks, threads_for
from glassgpt.errors import TrainingStopped
from glassgpt.training.loop import Trainer
from glassgpt.transforms.parallel import is_sharded


def examine_trainer(trainer: Trainer) -> Iterator[Outcome]:
    """Run the quick checks. The trainer stays as it is; a model that is sharded over processes is not examined."""
    if not is_sharded(trainer.model):
        model = copy.deepcopy(trainer.model).to("cpu")
        with threads_for(model):
            yield from run_checks(MODEL_CHECKS, subject_of(model, trainer.run.name), fast=True)
            yield from run_checks(TARGET_CHECKS, loop_of(trainer), fast=True)


def loop_of(trainer: Trainer) -> Loop:
    """Show a trainer's batches and loss to the checks of training loops; of the model, each gets a copy.

    Whatever the split, ``get_batch`` gives training batches, from the next one on.
    """

    def make() -> dict[str, Any]:
        model, numbers = copy.deepcopy(trainer.model).to("cpu").float(), itertools.count(trainer.state.step)

        def get_batch(split: str) -> tuple[Tensor, Tensor]:
            batch = trainer.task.batch(next(numbers))
            return batch.idx, batch.targets

        def loss(idx: Tensor, targets: Tensor) -> Tensor:
            batch = Batch(idx, targets)
            return trainer.task.loss(model, batch) / trainer.task.count(batch)

        return {"model": model, "get_batch": get_batch, "loss": loss}

    return Loop(make, trainer.run.name)


def require_healthy(trainer: Trainer) -> list[Outcome]:
    """Run the quick checks and report them in one line, with one more for each warning.

    Raises:
        TrainingStopped: if one of them fails; the message names every class of bug.
    """
    outcomes = list(examine_trainer(trainer))
    problems = []
    for outcome in outcomes:
        result = outcome.result
        line = f"{result.finding} ({outcome.check.name}): {result.message}"
        if result.status == "WARN":
            trainer.reporter.warn(f"doctor: {line}")
        elif result.status == "FAIL" and result.finding:
            where = f"; in {result.module}" if result.module else ""
            problems.append(f"  {line}{where}\n    fix: {ADVICE[result.finding].fix}")
    if problems:
        raise TrainingStopped(
            "the doctor found a bug before the first step, so nothing was trained:\n" + "\n".join(problems)
        )
    counts = Counter(outcome.result.status for outcome in outcomes)
    seconds = sum({outcome.check.name: outcome.seconds for outcome in outcomes}.values())
    not_run = f", {counts['NOT RUN']} were not run" if counts["NOT RUN"] else ""
    trainer.reporter.note(f"doctor: {counts['PASS']} checks passed before the first step{not_run}; {seconds:.1f} s")
    return outcomes

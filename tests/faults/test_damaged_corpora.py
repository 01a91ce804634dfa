"""Every file of a prepared corpus is damaged in turn: no verb ends in a traceback, and none loses what is whole."""

from pathlib import Path

import pytest
from damages import Damage, field_damages, whole_damages
from harness import ALL, PREPARE, Cases, Outcome, Record, nothing_changed, some

VERBS = [
    "data show prepared", "data show prepared --json", "data show prepared --leaks", "tokenizer show prepared",
    "data show text.txt tokenizer=prepared", "plan prepared n_layer=1 n_head=1 n_embd=8 --no-measure",
]  # fmt: skip


def damages(cases: Cases) -> list[Damage]:
    files = {name: content for name, content in sorted(cases.files.items()) if name.startswith("prepared/")}
    found = [damage for name, content in files.items() for damage in whole_damages(name, content)]
    return found + [damage for name, content in files.items() for damage in field_damages(name, content)]


@pytest.mark.parametrize("count", [150, ALL])
def test_verbs(files: Path, record_property: Record, count: int) -> None:
    cases = Cases(files)
    for command in VERBS:
        cases.run(command)
    for number, damage in enumerate(some(damages(cases), count)):
        cases.run(VERBS[number % len(VERBS)], damage=damage)
    cases.report(record_property)


@pytest.mark.parametrize("count", [30, ALL])
def test_preparing_again(files: Path, record_property: Record, count: int) -> None:
    """It is refused, or the corpus is then as it was before the damage."""
    cases = Cases(files)

    def check(outcome: Outcome, before: dict[str, bytes], now: dict[str, bytes]) -> str:
        return nothing_changed(outcome, before if outcome.code else cases.files, now)

    valid = (
        "lossless: true",
        *(f"{name}: {how}" for name in ("duplicates", "left_out") for how in ("removed", "no fields")),
    )
    possible = [d for d in damages(cases) if not str(d).endswith(valid)]  # nothing says that these are wrong
    for damage in some(possible, count):
        cases.run(PREPARE, damage=damage, check=check)
    cases.report(record_property)


@pytest.mark.parametrize("count", [20, ALL])
def test_resuming_a_run_of_it(files: Path, record_property: Record, count: int) -> None:
    """It is refused, and all is as it was; or it resumes."""

    def check(outcome: Outcome, before: dict[str, bytes], now: dict[str, bytes]) -> str:
        return nothing_changed(outcome, before, now) if outcome.code else ""

    cases = Cases(files)
    for damage in some(damages(cases), count):
        cases.run("train --resume c steps=4", damage=damage, check=check)
    cases.report(record_property)

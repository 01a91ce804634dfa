"""Every file of a prepared corpus is damaged in turn: no verb ends in a traceback, and none loses what is whole."""

import contextlib

import pytest
from damages import Damage, field_damages, whole_damages
from harness import Cases, Outcome, Record, Room, nothing_changed, some
from made import PREPARE, made_room, succeed

VERBS = [
    "data show prepared", "data show prepared --json", "data show prepared --leaks", "tokenizer show prepared",
    "data show text.txt tokenizer=prepared", "plan prepared n_layer=1 n_head=1 n_embd=8 --no-measure",
]  # fmt: skip


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    return made_room(tmp_path_factory.mktemp("room"))


def damages(room: Room) -> list[Damage]:
    files = {name: content for name, content in sorted(room.files.items()) if name.startswith("prepared/")}
    found = [damage for name, content in files.items() for damage in whole_damages(name, content)]
    return found + [damage for name, content in files.items() for damage in field_damages(name, content)]


def test_nothing_is_wrong_with_undamaged_files(room: Room) -> None:
    with contextlib.chdir(room.path):
        for command in VERBS:
            succeed(command)


@pytest.mark.parametrize("count", [150, pytest.param(10**6, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])])
def test_verbs(room: Room, record_property: Record, count: int) -> None:
    cases = Cases(room)
    for number, damage in enumerate(some(damages(room), count, "corpora")):
        cases.run(VERBS[number % len(VERBS)], damage=damage)
    cases.report(record_property)


@pytest.mark.parametrize("count", [30, pytest.param(10**6, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])])
def test_preparing_again(room: Room, record_property: Record, count: int) -> None:
    """It is refused, or the corpus is then as it was before the damage."""

    def check(outcome: Outcome, before: dict[str, bytes], now: dict[str, bytes]) -> str:
        return nothing_changed(outcome, before if outcome.code else room.files, now)

    cases = Cases(room)
    for damage in some(damages(room), count, "again"):
        cases.run(PREPARE, damage=damage, check=check)
    cases.report(record_property)


@pytest.mark.parametrize("count", [20, pytest.param(10**6, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])])
def test_resuming_a_run_of_it(room: Room, record_property: Record, count: int) -> None:
    """It is refused, and all is as it was; or it resumes."""

    def check(outcome: Outcome, before: dict[str, bytes], now: dict[str, bytes]) -> str:
        return nothing_changed(outcome, before, now) if outcome.code else ""

    cases = Cases(room)
    for damage in some(damages(room), count, "resume"):
        cases.run("train --resume c steps=4", damage=damage, check=check)
    cases.report(record_property)

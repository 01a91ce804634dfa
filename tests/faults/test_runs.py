"""Every file of a run is damaged in turn: no verb ends in a traceback, and none loses what is whole."""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from damages import Damage, field_damages, whole_damages
from harness import Cases, Outcome, Room, nothing_changed, some
from made import SMALL, done, write_runs, write_texts

VERBS = {
    name: name.split()
    for name in (
        "runs list", "runs list --json", "runs show a", "runs show a --json", "runs compare a b", "sample a -n 3",
        "sample runs/a/last -n 3 --json", "export a --to hf -o out", "export a --to gguf -o out.gguf",
        "export a --to tiktoken -o out.tiktoken", "pull runs/a/best -o out", "pull runs/a/step-000004 --explain",
        "tokenizer show a", "tokenizer show runs/a/last --merges the", "plan init_from=a --no-measure", "data show text.txt tokenizer=runs/a/best",
    )
}  # fmt: skip
RESUME = "train --resume a steps=6".split()
COSTLY = {"plot": ["plot", "a", "b", "-o", "out.png"], "init": ["train", "text.txt", *SMALL, "steps=1", "init_from=a"]}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    folder = tmp_path_factory.mktemp("room")
    with contextlib.chdir(folder):
        write_texts(folder)
        write_runs(folder)
    return Room(folder)


Record = Callable[[str, object], None]


def damages(room: Room, of: Callable[[str, bytes], Iterator[Damage]], *names: str) -> list[Damage]:
    files = [name for name in room.files if name.startswith("runs/a/") and (not names or Path(name).name in names)]
    return [damage for name in sorted(files) for damage in of(name, room.files[name])]


def readers(damage: Damage) -> list[str]:
    """The verbs that may read the file: a model folder is named by few."""
    folder = damage.file.split("/")[2]
    named = [name for name in VERBS if folder in name]
    return named if folder in ("last", "step-000004") else list(VERBS) if folder not in ("step-000002",) else ["runs show a"]


def test_whole_files(room: Room, record_property: Record) -> None:
    cases = Cases(room)
    for number, damage in enumerate(damages(room, whole_damages)):
        names = readers(damage)
        for name in {names[number % len(names)], names[(number // 7) % len(names)]}:
            cases.run(VERBS[name], damage.apply, str(damage))
    cases.report(record_property)


def test_fields(room: Room, record_property: Record) -> None:
    cases = Cases(room)
    for number, damage in enumerate(some(damages(room, field_damages), 400, "fields")):
        names = readers(damage)
        cases.run(VERBS[names[number % len(names)]], damage.apply, str(damage))
    cases.report(record_property)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", [*VERBS, *COSTLY])
def test_everything(room: Room, record_property: Record, name: str) -> None:
    cases = Cases(room)
    for damage in itertools.chain(damages(room, whole_damages), damages(room, field_damages)):
        if name in COSTLY or name in readers(damage):
            cases.run({**VERBS, **COSTLY}[name], damage.apply, str(damage), check=lambda *a: "" if name == "init" else nothing_changed(*a))
    cases.report(record_property)


def rows(content: bytes) -> list[dict]:
    """The rows of metrics.jsonl up to step 4, without what differs from run to run, and without the final evaluation."""
    found = [json.loads(line) for line in content.splitlines()]
    found = [{k: v for k, v in row.items() if not k.startswith(("perf/", "time/"))} for row in found]
    return [row for row in found if row["step"] <= 4 and "final/val_loss" not in row]


def resumed(damage: Damage) -> Callable[[Outcome, dict[str, bytes], dict[str, bytes]], str]:
    def check(outcome: Outcome, before: dict[str, bytes], now: dict[str, bytes]) -> str:
        if outcome.code:
            return nothing_changed(outcome, before, now)
        if "runs/a/last/trainer/state.json" not in now:
            return "no last checkpoint"
        if json.loads(now["runs/a/last/trainer/state.json"])["step"] != 6:
            return "last is not step 6"
        metrics = "runs/a/metrics.jsonl"
        if damage.file != metrics and rows(now[metrics]) != rows(before[metrics]):
            return "the metrics before are others"
        return ""

    return check


def test_resume(room: Room, record_property: Record) -> None:
    cases = Cases(room)
    chosen = damages(room, whole_damages, "run.toml", "metrics.jsonl", "state.json", "SHA256SUMS")
    chosen += damages(room, field_damages, "state.json", "metrics.jsonl", "run.toml", "validation.json")
    for damage in some(chosen, 60, "resume"):
        cases.run(RESUME, damage.apply, str(damage), check=resumed(damage))
    cases.report(record_property)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_resume_after_everything(room: Room, record_property: Record) -> None:
    cases = Cases(room)
    for damage in itertools.chain(damages(room, whole_damages), damages(room, field_damages)):
        cases.run(RESUME, damage.apply, str(damage), check=resumed(damage))
    cases.report(record_property)


def test_undamaged(room: Room) -> None:
    with contextlib.chdir(room.path):
        for arguments in (*VERBS.values(), *COSTLY.values(), RESUME):
            done(*arguments)
            room.restore()

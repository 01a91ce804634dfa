"""Every file of a run is damaged in turn: no verb ends in a traceback, and none loses what is whole."""

import json
from pathlib import Path

import pytest
from damages import Damage, field_damages, whole_damages
from harness import ALL, SMALL, Cases, Check, Outcome, Record, nothing_changed, some, succeed

VERBS = [
    "runs list", "runs list --json", "runs show a", "runs show a --json", "runs compare a b", "sample a -n 3",
    "sample runs/a/last -n 3 --json", "export a --to hf -o out", "export a --to gguf -o out.gguf",
    "export a --to tiktoken -o out.tiktoken", "pull runs/a/best -o out", "pull runs/a/step-000004 --explain",
    "tokenizer show a", "tokenizer show runs/a/last --merges the", "plan init_from=a --no-measure",
    "data show text.txt tokenizer=runs/a/best",
]  # fmt: skip
COSTLY = ["plot a b -o out.png", f"train text.txt {SMALL} steps=1 init_from=a"]
RESUME = "train --resume a steps=6"
#: Fields for people, or to recognise the model; the end tokens of the tokenizer are always added to those of the file.
NOT_COMPARED = (
    "about",
    "model",
    "model_id",
    "tokenizer_id",
    "made_with",
    "prompt",
    "chat",
    "complete",
    "end_token_ids",
)
LEDGER = "ledgers/l.json"
REPLAY = f"sample a --replay {LEDGER}"


def damages(cases: Cases, *folders: str) -> tuple[list[Damage], list[Damage]]:
    """Damages to whole files, and to single fields, of ``runs/a``."""
    files = [name for name in sorted(cases.files) if name.startswith(tuple(f"runs/a/{folder}" for folder in folders))]
    whole = [damage for name in files for damage in whole_damages(name, cases.files[name])]
    fields = [damage for name in files for damage in field_damages(name, cases.files[name])]
    # without data.source, whose default takes a minute to make, and compile, which starts a process per CPU and more
    return whole, [d for d in fields if not any(name in str(d) for name in ("data.source", "runtime.compile"))]


def readers(damage: Damage) -> list[str]:
    """The verbs that may read the file."""
    folder = damage.file.split("/")[2]
    if folder in ("last", "step-000004"):
        return [name for name in VERBS if folder in name]
    if folder == "step-000002" or (folder in ("run.toml", "metrics.jsonl") and damage.well_formed):
        return [name for name in VERBS if name.startswith("runs")]
    return VERBS


def test_verbs_on_a_damaged_run(files: Path, record_property: Record) -> None:
    cases = Cases(files)
    for command in [*VERBS, *COSTLY]:
        cases.run(command)
    whole, fields = damages(cases, "")
    for number, damage in enumerate([*some(whole, 250), *some(fields, 200)]):
        names = readers(damage)
        cases.run(names[number % len(names)], damage=damage)
    cases.report(record_property)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", [*VERBS, *COSTLY])
def test_every_verb_on_every_damage(files: Path, record_property: Record, name: str) -> None:
    cases = Cases(files)
    whole, fields = damages(cases, "")
    for damage in [*whole, *fields] if name in VERBS else whole:
        if name in COSTLY or name in readers(damage):
            cases.run(name, damage=damage)
    cases.report(record_property)


def rows(content: bytes) -> list[dict]:
    """The rows of metrics.jsonl up to step 4, without the final evaluation and what differs from run to run."""
    found = [json.loads(line) for line in content.splitlines()]
    found = [{k: v for k, v in row.items() if not k.startswith(("perf/", "time/"))} for row in found]
    return [row for row in found if row["step"] <= 4 and "final/val_loss" not in row]


def resumed(damage: Damage) -> Check:
    """Either all is as it was, or the run is at step 6, and the numbers before are those that were there."""

    def check(outcome: Outcome, before: dict[str, bytes], now: dict[str, bytes]) -> str:
        if outcome.code:
            return nothing_changed(outcome, before, now)
        if json.loads(now["runs/a/last/trainer/state.json"])["step"] != 6:
            return "last is not step 6"
        metrics = "runs/a/metrics.jsonl"
        kept = rows(before[metrics]) if metrics in before else []
        return "" if rows(now[metrics])[: len(kept)] == kept else "rows of metrics.jsonl are lost"

    return check


@pytest.mark.parametrize("count", [12, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])])
def test_resume(files: Path, record_property: Record, count: int) -> None:
    cases = Cases(files)
    own, own_fields = damages(cases, "run.toml", "metrics", "last/trainer/state")
    whole, fields = damages(cases, "best", "last")
    for each in (own, own_fields, whole, fields):
        for damage in some(each, count):
            cases.run(RESUME, damage=damage, check=resumed(damage))
    cases.report(record_property)


def noticed(outcome: Outcome, before: dict[str, bytes], now: dict[str, bytes]) -> str:
    return "" if outcome.code in (1, 2) else f"not noticed: exit code {outcome.code}"


@pytest.mark.parametrize("count", [40, ALL])
def test_replay_of_a_damaged_ledger_ends_with_a_message_or_names_the_difference(
    files: Path, record_property: Record, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    path = files / LEDGER
    path.parent.mkdir()
    try:
        with monkeypatch.context() as inside:
            inside.chdir(files)
            succeed(f"sample a -n 2 --top-k 3 --min-p 0.5 --seed 1 --device cpu --ledger {LEDGER}")
        cases, content = Cases(files), path.read_bytes()
        cases.run(REPLAY)
        for damage in some(list(whole_damages(LEDGER, content)), count // 2):
            cases.run(REPLAY, damage=damage)
        for damage in some(list(field_damages(LEDGER, content)), count):
            if damage.name.split(":")[0].split(".")[0] not in NOT_COMPARED:
                cases.run(REPLAY, damage=damage, check=noticed)
        cases.report(record_property)
    finally:
        path.unlink()
        path.parent.rmdir()

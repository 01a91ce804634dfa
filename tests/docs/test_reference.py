"""The reference is what the program gives now, and docs/reference/files.md is what it writes."""

import dataclasses
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import glassgpt
from glassgpt.cli.main import app
from glassgpt.config import ALIASES, SECTIONS, presets
from glassgpt.data.conversations.rows import read_rows

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "reference"
FILES = (FOLDER / "files.md").read_text(encoding="utf-8")
SMALL = (
    "n_layer=1", "n_head=1", "n_embd=8", "block_size=32", "batch_size=4", "micro_batch_size=4", "sample_tokens=0",
    "max_val_tokens=500", "dtype=float32", "compile=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def reference() -> Iterator[Any]:
    """The script that writes the pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools" / "docs"))
        yield importlib.import_module("reference")


def section(text: str, heading: str) -> str:
    """Return the lines of a section, up to the next heading of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    return re.split(rf"^#{{1,{level}}} ", text.split(f"{heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def test_the_pages_are_what_the_program_gives(reference: Any) -> None:
    assert not (wrong := reference.differing()), f"{', '.join(wrong)}: run `{reference.COMMAND}`, and commit the pages"


def test_the_pages_do_not_depend_on_the_machine(
    reference: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = reference.pages()
    monkeypatch.setenv("GLASSGPT_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.chdir(tmp_path)
    assert reference.pages() == before
    assert str(Path.home()) not in "".join(before.values())


def leaves(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Give every verb of the command line, as Click has it."""
    for name, verb in command.commands.items():
        if hasattr(verb, "commands"):
            yield from leaves(verb, f"{path} {name}")
        else:
            yield f"{path} {name}", verb


def test_every_verb_and_every_option_is_described() -> None:
    page = (FOLDER / "commands.md").read_text(encoding="utf-8")
    verbs = dict(leaves(typer.main.get_command(app), "glassgpt"))
    assert sorted(verbs) == sorted(re.findall(r"^### (.*)$", page, re.MULTILINE))
    for name, verb in verbs.items():
        shown = section(page, f"### {name}")
        heads = re.findall(r"^- `([^`]+)`", shown, re.MULTILINE)
        for parameter in verb.params:
            for option in parameter.opts if parameter.param_type_name == "option" else []:
                assert any(option in re.split(r"[, ]+", head) for head in heads) or option in ("--help", "-h"), (
                    f"{name} {option}"
                )
        count = sum(parameter.param_type_name == "argument" for parameter in verb.params)
        described = shown.partition("Arguments:\n")[2].partition("Options:\n")[0]
        assert len(re.findall(r"^- ", described, re.MULTILINE)) == count, name


def test_every_setting_preset_and_other_name_is_described() -> None:
    page = (FOLDER / "settings.md").read_text(encoding="utf-8")
    for name, part in SECTIONS.items():
        keys = re.findall(r"^- `(\w+)` \(", section(page, f"## {name}"), re.MULTILINE)
        assert keys == [field.name for field in dataclasses.fields(part)]
    for name in presets.names():
        assert f"| `{name}` |" in page
        assert f"- `{name}`: " in page
    assert re.findall(r"^\| `(\w+)` \| `", page, re.MULTILINE)[-len(ALIASES) :] == list(ALIASES)


def test_every_public_name_is_described() -> None:
    page = (FOLDER / "python.md").read_text(encoding="utf-8")
    for name in glassgpt.__all__:
        assert re.search(rf"^- \[?`{name}`", section(page, "## glassgpt"), re.MULTILINE), name


def test_signatures_are_those_of_the_program(reference: Any) -> None:
    """The pages are made from the source text. Their names and parameters are those of the imported functions."""
    import inspect

    for name in ("api", "sampling", "loss", "estimate", "model.cache", "config.presets"):
        module = importlib.import_module(f"glassgpt.{name}")
        page = next(page for page, (_, _, names) in reference.PYTHON_PAGES.items()
                    if any(each.partition(":")[0] == module.__name__ for each in names))  # fmt: skip
        text = section((FOLDER / page).read_text(encoding="utf-8"), f"## {module.__name__}")
        for heading in re.findall(r"^### (?:\w+\.)?(?:class )?(\w+)$", text, re.MULTILINE):
            code = re.search(rf"^```py\n(?:with )?{heading}\((.*?)^```", text, re.MULTILINE | re.DOTALL)
            assert code, heading
            for parameter in inspect.signature(getattr(module, heading)).parameters:
                assert re.search(rf"\b{parameter}\b", code[1]), f"{heading}({parameter})"


def listed(text: str) -> set[str]:
    """Return the names at the beginning of the lines of the first listing."""
    return {line.split()[0] for line in re.search(r"```text\n(.*?)```", text, re.DOTALL)[1].splitlines()}  # type: ignore[index]


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("quick_measuring")
def test_the_listings_are_what_real_commands_write(cli: Any, text_file: Path, tmp_path: Path) -> None:
    run, chats = tmp_path / "runs" / "my", tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps({"prompt": f"a {i}", "completion": f"b {i}"}) + "\n" for i in range(20)))
    (tmp_path / "docs").mkdir()
    for number, line in enumerate(text_file.read_text(encoding="utf-8").splitlines()[:60]):
        (tmp_path / "docs" / f"{number}.txt").write_text(line, encoding="utf-8")
    for command in (
        ["train", text_file, *SMALL, "steps=4", "eval_interval=2", "keep_every=2", "ema=0.9", "tokenizer=bpe:300",
         "--name", "my"],
        ["tune", "lora", "my", chats, "steps=1", "batch_size=2", "lora_rank=1", "dtype=float32", "--name", "adapter"],
        ["data", "prepare", "docs", "-o", "prepared", "tokenizer=bpe:300", "--processes", "1"],
    ):  # fmt: skip
        code, _, err = cli(*command)
        assert code == 0, err
    assert {path.name + "/" * path.is_dir() for path in run.iterdir()} == listed(section(FILES, "## A run"))
    checkpoint = listed(section(FILES, "## A checkpoint"))
    assert written(run / "last") == written(run / "step-000004") == checkpoint
    assert written(run / "best") == {name for name in checkpoint if "/" not in name} | {"validation.json"}
    assert written(run / "kept" / "step-000002") == {name for name in checkpoint if "/" not in name}
    assert written(tmp_path / "runs" / "adapter" / "best") == listed(section(FILES, "## A LoRA adapter"))
    assert written(tmp_path / "prepared") == listed(section(FILES, "## A prepared corpus"))
    check_keys(run, tmp_path / "prepared")


def check_keys(run: Path, prepared: Path) -> None:
    """Every key of the JSON files is in the text, and every metric of the table is in the file."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    metrics = set(re.findall(r"`(\w+/\w+)`", section(FILES, "### metrics.jsonl")))
    assert metrics == {key for row in rows for key in row} - {"step"}
    for file, heading in (
        (run / "last" / "trainer" / "state.json", "## A checkpoint"),
        (run / "best" / "validation.json", "## A checkpoint"),
        (prepared / "manifest.json", "## A prepared corpus"),
    ):
        for key in json.loads(file.read_text(encoding="utf-8")):
            assert f"`{key}`" in section(FILES, heading), f"{file.name}: {key}"


def test_the_forms_of_conversations_are_read(tmp_path: Path) -> None:
    text = section(FILES, "## Conversations")
    rows = re.findall(r"```json\n(.*?)\n```", text)
    (tmp_path / "all.jsonl").write_text("\n".join(rows), encoding="utf-8")
    found = read_rows(tmp_path / "all.jsonl")
    assert not found.problems
    assert len(found.conversations) == len(rows) == 5
    for name in re.sub(r" \(1\)", "", found.format).split(", "):
        assert name.lower() in text.lower()


def test_every_environment_variable_is_named() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
    used = {name for text in sources for name in re.findall(r"\bGLASSGPT_[A-Z_]+\b", text)}
    assert used == set(re.findall(r"^- `(GLASSGPT_\w+)`", section(FILES, "## Environment variables"), re.MULTILINE))


def test_the_exit_codes_are_those_of_the_program(cli: Any) -> None:
    assert cli("presets")[0] == 0
    assert cli("train", "absent.txt")[0] == 2
    assert cli("no-such-verb")[0] == 2

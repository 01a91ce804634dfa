"""Every command and Python block of the README and the guide runs, in order, with short trainings; links exist."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
#: Added to trainings that would take minutes.
SHORT = ["dtype=float32", "steps=4", "n_layer=1", "max_val_tokens=500"]


def blocks(page: str) -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def shortened(command: list[str]) -> list[str]:
    if command[0] in ("train", "quickstart") and not {"--help", "--resume", "--dry-run"} & set(command):
        return [*command, *(setting for setting in SHORT if setting.split("=")[0] not in " ".join(command))]
    if command[:2] in (["tune", "sft"], ["tune", "lora"]) and not {"--resume", "--dry-run"} & set(command):
        return [*command, "dtype=float32", "steps=4", "batch_size=2"]
    if command[:2] == ["data", "prepare"]:
        return [*command, SHORT[-1]]
    return command


@pytest.mark.timeout(900)  # the guide has some eighty commands
@pytest.mark.usefixtures("quick_measuring")
@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_every_command_works(page: str, cli: Any, text_file: Path, tmp_path: Path) -> None:
    prose = text_file.read_text(encoding="utf-8")
    (tmp_path / "my.txt").write_text("The quick brown fox jumps over the lazy dog.\n" + prose, encoding="utf-8")
    lines = [line for line in prose.splitlines() if line.strip()]
    (tmp_path / "texts").mkdir()
    rows = "".join(json.dumps({"text": line}) + "\n" for line in lines[::2])
    (tmp_path / "texts" / "rows.jsonl").write_text(rows, encoding="utf-8")
    (tmp_path / "texts" / "page.md").write_text("\n".join(lines[1::2]), encoding="utf-8")
    chats = [{"prompt": line.split(" ")[0], "completion": line} for line in lines[:40]]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats), encoding="utf-8")
    ran = 0
    for language, block in blocks(page):
        if language == "python":
            exec(compile(block, page, "exec"), {})
            ran += 1
            continue
        for line in block.splitlines():
            if line.startswith("glassgpt "):
                command = shlex.split(line, comments=True)[1:]
                code, out, err = cli(*shortened(command))
                assert code == 0, f"{line}: {err}"
                assert out
                ran += 1
            elif line.startswith("torchrun "):
                command = shlex.split(line, comments=True)[1:]
                launcher = [sys.executable, "-m", "torch.distributed.run", *command, *SHORT[2:]]
                done = subprocess.run(launcher, cwd=tmp_path, capture_output=True, text=True, check=False)
                assert done.returncode == 0, f"{line}: {done.stderr}"
                ran += 1
            else:
                assert not line.strip() or line.startswith("make "), f"not run: {line}"
    assert ran >= 8


def test_the_readme_agrees_with_the_makefile() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([a-z-]+)", readme, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for carrier in re.findall(r"[\w-]+==[\d.]+", readme):
        assert carrier in makefile + (ROOT / "constraints.txt").read_text(encoding="utf-8"), carrier


@pytest.mark.parametrize("page", PAGES)
def test_every_link_exists(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


def test_the_architecture_page_is_true() -> None:
    """It lists the rooms in the order that import-linter checks, and every path and `Class.name` in it exists."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    rooms = page.partition("## How data flows")[0]
    assert re.findall(r"^\| `(\w+)` \|", rooms, re.MULTILINE) == contracts["contracts"][0]["layers"]
    package = ROOT / "src" / "glassgpt"
    paths = re.findall(r"`((?:\w+/)+(?:\w+\.py)?|\w+\.py)`", page)
    assert len(paths) > 15
    for path in paths:
        assert (package / path).exists(), path
    source = "\n".join(file.read_text(encoding="utf-8") for file in package.rglob("*.py"))
    for owner, member in re.findall(r"`([A-Z]\w+)\.(\w+)", page):
        body = re.search(rf"^class {owner}\b.*?(?=^\S|\Z)", source, re.MULTILINE | re.DOTALL)
        assert body and re.search(rf"^    (?:def )?{member}\b", body[0], re.MULTILINE), f"{owner}.{member}"

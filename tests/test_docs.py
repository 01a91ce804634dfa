"""Every command and every Python block of the README and the guide is run, in order, by a short training."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
#: Added to trainings that would take minutes.
SHORT = ["steps=4", "n_layer=1", "max_val_tokens=500"]


def blocks(page: str) -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def shortened(command: list[str]) -> list[str]:
    if command[0] in ("train", "quickstart") and not {"--help", "--resume", "--dry-run"} & set(command):
        return [*command, *(setting for setting in SHORT if setting.split("=")[0] not in " ".join(command))]
    if command[:2] == ["data", "prepare"]:
        return [*command, SHORT[-1]]
    return command


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_every_command_works(page: str, cli: Any, text_file: Path, tmp_path: Path) -> None:
    prose = text_file.read_text(encoding="utf-8")
    (tmp_path / "my.txt").write_text("The quick brown fox jumps over the lazy dog.\n" + prose, encoding="utf-8")
    lines = [line for line in prose.splitlines() if line.strip()]
    (tmp_path / "texts").mkdir()
    rows = "".join(json.dumps({"text": line}) + "\n" for line in lines[::2])
    (tmp_path / "texts" / "rows.jsonl").write_text(rows, encoding="utf-8")
    (tmp_path / "texts" / "page.md").write_text("\n".join(lines[1::2]), encoding="utf-8")
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
                launcher = [sys.executable, "-m", "torch.distributed.run", *command, *SHORT[1:]]
                done = subprocess.run(launcher, cwd=tmp_path, capture_output=True, text=True, check=False)
                assert done.returncode == 0, f"{line}: {done.stderr}"
                ran += 1
            else:
                assert not line.strip() or line.startswith("make "), f"not run: {line}"
    assert ran >= 8


def test_the_help_of_make_and_the_project_agree_with_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([a-z-]+)", readme, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for link in re.findall(r"\]\(([^)#:]+)\)", readme):
        assert (ROOT / link).exists(), link
    for carrier in re.findall(r"[\w-]+==[\d.]+", readme):
        assert carrier in makefile + (ROOT / "constraints.txt").read_text(encoding="utf-8"), carrier

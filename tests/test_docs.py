"""Every command and Python block of the documentation runs, with short trainings; links exist; the tables are true.

Each page runs in a folder of its own. A page that does not train the models `my` and `pieces` finds them there. Both
are trained once.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import glassgpt
from glassgpt.learn.lesson import lessons

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
#: Pages whose commands run here. The doctor's page has tests of its own; the reference is generated.
TAUGHT = [
    page for page in PAGES
    if page not in (ROOT / "CHANGELOG.md", DOCS / "doctor.md")
    and (page.parent.name != "reference" or page.name == "files.md")
]  # fmt: skip
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^(```+).*?^\1$", re.MULTILINE | re.DOTALL)
#: Runs that stand ready for a page that does not make them, the command that makes them, and the page that shows it.
READY = {
    "my": (re.compile(r"^glassgpt train my\.txt$", re.MULTILINE), "Start"),
    "pieces": (re.compile(r"^glassgpt train my\.txt .*--name pieces$", re.MULTILINE), "Tokenizers"),
}
#: Added to trainings that would take minutes.
SHORT = ["dtype=float32", "steps=4", "n_layer=1", "max_val_tokens=500"]
#: Added to measurements, which by default repeat for each dtype.
ONE_DTYPE = {
    ("bench", "generate"): ["--dtype", "float32", "--decode", "eager"],
    ("bench", "train"): ["dtype=float32"],
    ("plan",): ["dtype=float32"],
    ("train",): ["dtype=float32"],
}


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def added(command: list[str], arguments: list[str]) -> list[str]:
    """The command with these arguments, but for settings that it names itself."""
    given = " ".join(command)
    return [*command, *(one for one in arguments if "=" not in one or one.split("=")[0] not in given)]


def shortened(command: list[str]) -> list[str]:
    if command[0] == "train" and not {"--help", "--resume", "--dry-run"} & set(command):
        return added(command, SHORT)
    if command[:2] in (["tune", "sft"], ["tune", "lora"]) and not {"--resume", "--dry-run"} & set(command):
        return added(command, ["dtype=float32", "steps=4", "batch_size=2"])
    if command[:2] == ["data", "prepare"]:
        return added(command, SHORT[-1:])
    for verbs, arguments in ONE_DTYPE.items():
        if tuple(command[: len(verbs)]) == verbs and not {"--help", "--resume"} & set(command):
            return added(command, arguments)
    return command


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Path:
    """A folder with a text, texts, conversations, and the runs `my` and `pieces`."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "my.txt").write_text("The quick brown fox jumps over the lazy dog.\n" + prose, encoding="utf-8")
    lines = [line for line in prose.splitlines() if line.strip()]
    (folder / "texts").mkdir()
    rows = "".join(json.dumps({"text": line}) + "\n" for line in lines[::2])
    (folder / "texts" / "rows.jsonl").write_text(rows, encoding="utf-8")
    (folder / "texts" / "page.md").write_text("\n".join(lines[1::2]), encoding="utf-8")
    chats = [{"prompt": line.split(" ")[0], "completion": line} for line in lines[:40]]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats), encoding="utf-8")
    short = {"dtype": "float32", "steps": 4, "n_layer": 1, "max_val_tokens": 500}
    for name, preset, extra in (("my", "tiny-modern", {}), ("pieces", "tiny", {"tokenizer": "bpe:512"})):
        glassgpt.train(preset, data=folder / "my.txt", name=name, runs=folder / "runs", overrides=short | extra)
    return folder


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("quick_measuring")
@pytest.mark.parametrize(
    "page", [page for page in TAUGHT if blocks(page)], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_every_command_works(
    page: Path, cli: Any, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLASSGPT_LEARN_SHORT", "1")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    commands = "\n".join(block for _, block in blocks(page))
    other_runs = shutil.ignore_patterns(*(name for name, (made, _) in READY.items() if made.search(commands)))
    for name in ("my.txt", "chats.jsonl"):
        shutil.copy(prepared / name, tmp_path)
    for name in ("texts", "runs"):
        shutil.copytree(prepared / name, tmp_path / name, ignore=other_runs)
    for language, block in blocks(page):
        if language == "python":
            exec(compile(block, str(page), "exec"), {"__name__": "documentation"})
            continue
        for line in block.splitlines():
            if line.startswith("glassgpt "):
                command = shlex.split(line, comments=True)[1:]
                code, out, err = cli(*shortened(command))
                assert code == 0, f"{line}: {err}"
                assert out + err, line
            elif line.startswith("torchrun "):
                command = shlex.split(line, comments=True)[1:]
                launcher = [sys.executable, "-m", "torch.distributed.run", *command, *SHORT[2:]]
                done = subprocess.run(launcher, cwd=tmp_path, capture_output=True, text=True, check=False)
                assert done.returncode == 0, f"{line}: {done.stderr}"
            else:
                assert not line.strip() or line.startswith("#"), f"not run: {line}"


def test_the_readme_agrees_with_the_makefile() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([a-z-]+)", readme, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for carrier in re.findall(r"[\w-]+==[\d.]+", readme):
        assert carrier in makefile + (ROOT / "constraints.txt").read_text(encoding="utf-8"), carrier


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts and the site make them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_exists(page: Path) -> None:
    """Links and pictures name files that exist, and headings that exist in them."""
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue  # another host
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


def test_the_learning_path_lists_every_lesson() -> None:
    """Number, file, title and minutes are those of the lessons, in order."""
    page = (DOCS / "learn.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \[(.+?)\]\(\.\./lessons/(.+?)\) \|.*\| (\d+) min, ", page, re.MULTILINE)
    found = [(int(number), file, title, int(minutes)) for number, title, file, minutes in rows]
    expected = []
    for lesson in lessons():
        minutes = re.search(r"Time: (\d+) minutes", lesson.cells()[0].text)
        assert minutes, lesson.path
        title = lesson.title[0].upper() + lesson.title[1:]
        expected.append((lesson.number, lesson.path.name, title, int(minutes[1])))
    assert found == expected
    assert f"{len(expected)} lessons" in page
    assert f"about {sum(row[3] for row in expected) / 60:.1f} hours" in " ".join(page.split())


def test_every_guide_leads_on() -> None:
    """A guide says which models it uses, what can go wrong, with a link, and what to read next."""
    for page in sorted((DOCS / "guides").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        commands = "\n".join(block for _, block in blocks(page))
        for name, (made, shown_in) in READY.items():
            if re.search(rf"\b{name}(?!-|\.txt)\b", commands) and not made.search(commands):
                assert re.search(rf"`{name}`\s+of\s+\[{shown_in}\]", text), f"{page} uses {name}"
        assert "../wrong.md" in text.partition("## What can go wrong\n")[2], page
        assert "../../lessons/" in text.partition("## Next\n")[2], page


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
        assert (package / path).exists() or (ROOT / path).exists(), path
    source = "\n".join(file.read_text(encoding="utf-8") for file in package.rglob("*.py"))
    for owner, member in re.findall(r"`([A-Z]\w+)\.(\w+)", page):
        body = re.search(rf"^class {owner}\b.*?(?=^\S|\Z)", source, re.MULTILINE | re.DOTALL)
        assert body and re.search(rf"^    (?:def )?{member}\b", body[0], re.MULTILINE), f"{owner}.{member}"

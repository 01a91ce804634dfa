"""Pages that the site adds to those of ``docs/``: the lessons, and the files of code that a page links to.

On a code host, a link to ``../lessons/01_tensors.py`` opens the file. In the site it opens a page made of it here: a
lesson's prose and code one below the other, other files as highlighted code.
"""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

from glassgpt.learn.lesson import find, lessons

ROOT = Path(__file__).parents[2]
_LINK = re.compile(r"(\]\()((?:\.\./)+[^)#\s]+)(\))")
_LANGUAGES = {".py": "python", ".toml": "toml", ".txt": "text"}


def on_config(config: Any) -> Any:
    """List the lessons in the navigation, after the learning path."""
    pages = [{f"{lesson.number}. {lesson.title}".replace("`", ""): _page_of(lesson.path)} for lesson in lessons()]
    (learn,) = (entry for entry in config.nav if isinstance(entry, dict) and "Learn" in entry)
    learn["Learn"] = [{"The path": learn["Learn"]}, {"Lessons": pages}]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each file outside ``docs/`` that a page links to, and one for each lesson."""
    targets = {lesson.path for lesson in lessons()}
    pages = [file for file in files if file.src_uri.endswith(".md")]
    for file in pages:
        for match in _LINK.finditer(file.content_string):
            if outside := _outside(file.src_uri, match[2]):
                targets.add(outside)
    for target in sorted(targets):
        files.append(File.generated(config, _page_of(target), content=_content(target)))
    files.append(File.generated(config, "changes.md", content=_content(ROOT / "CHANGELOG.md")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links that leave ``docs/`` point to the added pages."""
    here = PurePosixPath(page.file.src_uri).parent

    def replaced(match: re.Match[str]) -> str:
        target = _outside(page.file.src_uri, match[2])
        return match[1] + "../" * len(here.parts) + _page_of(target) + match[3] if target else match[0]

    markdown = markdown.replace("```console\n", "```sh\n")  # Pygments takes a console's lines without $ as output
    return _LINK.sub(replaced, markdown)


def _outside(page: str, link: str) -> Path | None:
    """The file that a relative link names, if it exists and lies outside ``docs/``."""
    path = (ROOT / "docs" / page).parent.joinpath(link).resolve()
    inside = path.is_relative_to(ROOT / "docs") or not path.is_relative_to(ROOT)
    return None if inside or not path.exists() else path


def _page_of(target: Path) -> str:
    relative = target.relative_to(ROOT)
    if relative.parts[0] == "lessons" and target.suffix == ".py":
        return f"lessons/{target.stem}.md"
    return f"source/{relative.as_posix()}.md"


def _content(target: Path) -> str:
    relative = target.relative_to(ROOT).as_posix()
    if target.is_dir():
        names = sorted(path.name + "/" * path.is_dir() for path in target.iterdir() if not path.name.startswith("_"))
        return f"# {relative}/\n\n" + "\n".join(f"- `{name}`" for name in names) + "\n"
    text = target.read_text(encoding="utf-8")
    if target.suffix == ".md":
        return _LINK.sub(r"`\2`", re.sub(r"\]\((?!https?:|#)[^)]+\)", "]", text))
    if relative.startswith("lessons/"):
        return _lesson(target)
    code = f"````{_LANGUAGES.get(target.suffix, 'text')}\n{text}````"
    return f"---\nsearch:\n  exclude: true\n---\n# {relative}\n\n{code}\n"


def _lesson(path: Path) -> str:
    lesson = find(int(path.name[:2]))
    cells = [cell.text if cell.is_prose else f"```python\n{cell.text}\n```" for cell in lesson.cells()]
    return (
        "\n\n".join(cells) + f"\n\n---\n\nRun it: `glassgpt learn {lesson.number}`. The file: `lessons/{path.name}`.\n"
    )

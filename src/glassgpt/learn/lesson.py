"""Find the lessons, and cut one into its cells. The files are Python in the percent format of notebooks."""

import re
from dataclasses import dataclass
from pathlib import Path

import glassgpt
from glassgpt.errors import ConfigError

_MARK = re.compile(r"^# %%(?P<kind> \[markdown\])?.*$", re.MULTILINE)


@dataclass(frozen=True)
class Cell:
    """A piece of a lesson.

    Attributes:
        is_prose: whether it is prose (Markdown), or code.
        text: without the comment signs, if it is prose.
        line: of the file, from 1, where the text begins.
    """

    is_prose: bool
    text: str
    line: int


@dataclass(frozen=True)
class Lesson:
    """One lesson.

    Attributes:
        number: from 1.
        path: of its file.
    """

    number: int
    path: Path

    @property
    def title(self) -> str:
        """Its title: what follows the number in its first heading."""
        found = re.search(r"^# # Lesson \d+: (.+)$", self.path.read_text(encoding="utf-8"), re.MULTILINE)
        assert found, f"{self.path} has no heading '# # Lesson N: TITLE'"
        return found[1]

    def cells(self) -> list[Cell]:
        """Its cells, from the first."""
        source = self.path.read_text(encoding="utf-8")
        marks = [*_MARK.finditer(source)]
        ends = [mark.start() for mark in marks[1:]] + [len(source)]
        cells = []
        for mark, end in zip(marks, ends, strict=True):
            text = source[mark.end() : end]
            line = 1 + source.count("\n", 0, mark.end()) + len(text) - len(text.lstrip("\n"))
            text = text.strip("\n")
            if mark["kind"]:
                text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in text.splitlines())
            cells.append(Cell(bool(mark["kind"]), text, line))
        return cells


def folder() -> Path:
    """The lessons: inside an installed package, or beside ``src`` in a clone."""
    package = Path(glassgpt.__file__).parent
    return next(
        (f for f in (package / "lessons", package.parent.parent / "lessons") if f.is_dir()), package / "lessons"
    )


def lessons() -> list[Lesson]:
    """All lessons, by number."""
    files = sorted(folder().glob("[0-9][0-9]_*.py"))
    return [Lesson(int(path.name[:2]), path) for path in files]


def find(number: int) -> Lesson:
    """The lesson with this number.

    Raises:
        ConfigError: if there is none.
    """
    found = {lesson.number: lesson for lesson in lessons()}
    if number not in found:
        raise ConfigError(
            f"there is no lesson {number}; `glassgpt learn` lists those from {min(found)} to {max(found)}"
        )
    return found[number]

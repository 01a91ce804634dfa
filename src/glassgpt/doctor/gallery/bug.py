"""A bug as a change of a program's text, so that it can be injected, shown, and handed out as a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

from glassgpt.doctor.report import FINDINGS

#: The correct programs, one file each.
PROGRAMS = Path(__file__).parent / "programs"


@dataclass(frozen=True)
class Bug:
    """One bug, with the programs that it can be put into.

    Attributes:
        name: lower case words joined by hyphens, unique ("no-causal-mask").
        finding: the class that the doctor must name, one of FINDINGS.
        story: what the programmer did, in one sentence.
        changes: by the name of a program ("lecture"): the pairs (old text, new text); each old text occurs once.
    """

    name: str
    finding: str
    story: str
    changes: Mapping[str, tuple[tuple[str, str], ...]]

    def __post_init__(self) -> None:
        assert self.finding in FINDINGS, self.finding


@dataclass(frozen=True)
class Correct:
    """A correct model.

    Attributes:
        name: lower case words joined by hyphens.
        story: what is unusual in it.
        program: the program it starts from.
        edits: the changes of its text, as of a Bug.
        window: what the user has to declare with `--window`, or None.
    """

    name: str
    story: str
    program: str
    edits: tuple[tuple[str, str], ...] = ()
    window: int | None = None

    @property
    def changes(self) -> Mapping[str, tuple[tuple[str, str], ...]]:
        """The changes by program, as a Bug has them."""
        return {self.program: self.edits}


class Change(Protocol):
    """A change of programs' texts: a bug, or a correct variant."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def changes(self) -> Mapping[str, tuple[tuple[str, str], ...]]:
        """By program: pairs of old and new text."""


def program_source(program: str, change: Change | None = None) -> str:
    """Return the text of a program, with a bug (or a correct change) in it."""
    source = (PROGRAMS / f"{program}.py").read_text(encoding="utf-8")
    for old, new in change.changes[program] if change else ():
        assert source.count(old) == 1, f"{change and change.name} in {program}: found {source.count(old)} times: {old}"
        source = source.replace(old, new)
    return source


def import_program(program: str, change: Change | None = None) -> ModuleType:
    """Run the text of a program as a module of its own."""
    module = ModuleType(f"{program}_{change.name.replace('-', '_') if change else 'correct'}")
    exec(compile(program_source(program, change), f"{program}.py", "exec"), module.__dict__)  # our own files
    return module

"""Maps: the rooms of the code, and the path of the lessons."""

import ast
import re
import tomllib
from pathlib import Path

from drawn.canvas import Canvas
from glassgpt.learn.lesson import lessons

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "src" / "glassgpt"


def layers() -> list[str]:
    """The rooms, from the one that imports to the one that is imported, as the import-linter checks them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    return next(contract["layers"] for contract in contracts if contract["containers"] == ["glassgpt"])


def imports(room: str, rooms: set[str]) -> set[str]:
    """The other rooms that a room imports, anywhere in its files; not those that only its type hints name."""
    files = [SOURCE / f"{room}.py"] if (SOURCE / f"{room}.py").exists() else (SOURCE / room).rglob("*.py")
    found = set()
    for file in files:
        text = file.read_text("utf-8")
        if "glassgpt" in text:
            found |= {name for name in _imported(ast.parse(text)) if name in rooms}
    return found - {room}


_WITH_STATEMENTS = (ast.stmt, ast.ExceptHandler, ast.match_case)  # not expressions: they have no imports


def _imported(node: ast.AST) -> set[str]:
    """Room names in the import statements below a node."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        return set().union(*map(_imported, node.orelse))
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("glassgpt.")}
    if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "glassgpt":
        parts = (node.module or "").split(".")
        return {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    below = (child for child in ast.iter_child_nodes(node) if isinstance(child, _WITH_STATEMENTS))
    return set().union(*map(_imported, below))


def rooms() -> str:
    """The rooms in import order, with a dot for each import."""
    names = layers()
    described = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "architecture.md").read_text("utf-8"), re.MULTILINE)
    assert described == names, "docs/architecture.md and pyproject.toml name different rooms, or in another order"
    found = {room: imports(room, set(names)) for room in names}
    assert all(names.index(other) > i for i, room in enumerate(names) for other in found[room])
    c = Canvas(
        "The rooms of the code, in import order",
        f"{len(names)} rooms. A room imports only rooms below it: "
        + "; ".join(f"{room}: {', '.join(sorted(found[room], key=names.index)) or 'nothing'}" for room in names) + ".",
    )  # fmt: skip
    return _grid(c, names, found)


def _grid(c: Canvas, names: list[str], found: dict[str, set[str]]) -> str:
    """Each name at its place on the diagonal; an import is a dot in the importer's row, above the imported name."""
    left, step, row = 78.0, 12.6, 21
    top = 86.0
    c.paragraph(16, 26, [
        "A dot is an import: its row is the room that imports, and",
        "the name below it, at the end of its line, is the room that",
        "is imported. No dot lies below the diagonal.",
    ], "small")  # fmt: skip
    for i, name in enumerate(names):
        y, x = top + row * (i + 0.5), left + step * i
        used = [names.index(other) for other in found[name]]
        if used:
            c.line((x + 4, y), (left + step * (max(used) + 0.5), y), classes="thin")
        importers = [k for k, other in enumerate(names) if name in found[other]]
        if importers:
            c.line((x + step / 2, top + row * (min(importers) + 0.5)), (x + step / 2, y - 6), classes="thin")
        c.text(x, y + 5, name, "mono end")
    for i, name in enumerate(names):
        for other in sorted(found[name], key=names.index):
            x, y = left + step * (names.index(other) + 0.5), top + row * (i + 0.5)
            c.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" class="activation-deep"/>')
    return c.svg(top + row * len(names) + 12)


#: The parts of the path: a name, and its lessons.
PARTS = [
    ("Tensors and training", range(1, 7)),
    ("From text to numbers", range(7, 11)),
    ("Attention", range(11, 16)),
    ("The model", range(16, 20)),
    ("Choices in training", range(20, 24)),
    ("Real models", range(24, 29)),
    ("Judgement", range(29, 32)),
]


def path() -> str:
    """The lessons in their parts, and which part comes after which, from the line "Before:" of each lesson."""
    titles = {lesson.number: lesson.title.replace("`", "") for lesson in lessons()}
    assert list(titles) == [number for _, numbers in PARTS for number in numbers], "a lesson is in no part"
    needs = {lesson.number: _needs(lesson.path.read_text("utf-8")) for lesson in lessons()}
    c = Canvas(
        f"The path through the {len(titles)} lessons",
        "Parts and their lessons: " + "; ".join(f"{name} ({ns[0]} to {ns[-1]})" for name, ns in PARTS)
        + ". The parts after The model can be read in any order.",
    )  # fmt: skip
    tops, bottoms, y = [], [], 12.0
    for name, numbers in PARTS:
        tops.append(y)
        c.text(24, y + 26, name, "bold")
        minutes = sum(_minutes(lesson.path.read_text("utf-8")) for lesson in lessons() if lesson.number in numbers)
        c.text(412, y + 26, f"{minutes} minutes", "soft small end")
        y += 50
        for number in numbers:
            c.text(42, y, str(number), "mono end")
            c.text(52, y, titles[number][0].upper() + titles[number][1:], "small")
            if (other := _direct(needs, number)) != [number - 1]:
                c.text(412, y, f"after {', '.join(map(str, other))}" if other else "", "soft small end")
            y += 24
        y -= 6
        c.rect(8, tops[-1], 416, y - tops[-1], "plain", "none", r=10)
        bottoms.append(y)
        y += 26
    _arrows(c, needs, tops, bottoms)
    notes = [
        "A part comes after the part where its arrow starts.",
        "A lesson without a note comes after the one above it.",
    ]
    return c.svg(c.paragraph(16, y + 6, notes, "soft small") - 6)


def _arrows(c: Canvas, needs: dict[int, list[int]], tops: list[float], bottoms: list[float]) -> None:
    """From the last part that a part needs: down to the next one, or at the right past those between."""
    part_of = {number: i for i, (_, numbers) in enumerate(PARTS) for number in numbers}
    for i, (_, numbers) in enumerate(PARTS[1:], 1):
        latest = max(part_of[need] for number in numbers for need in needs[number] if part_of[need] < i)
        if latest == i - 1:
            c.arrow((216, bottoms[latest]), (216, tops[i]))
        else:
            c.arrow((424, bottoms[latest] - 24), (450, bottoms[latest] - 24), (450, tops[i] + 22), (424, tops[i] + 22))


def _direct(needs: dict[int, list[int]], number: int) -> list[int]:
    """The lessons before a lesson, without those that come before another of them."""

    def before(lesson: int) -> set[int]:
        return set(needs[lesson]).union(*map(before, needs[lesson]))

    return [need for need in needs[number] if not any(need in before(other) for other in needs[number])]


def _needs(text: str) -> list[int]:
    """The numbers of the lessons that a lesson says come before it."""
    found = re.search(r"Before: ([^.]*)\.", text)
    return [int(number) for number in re.findall(r"\b\d+\b", found[1])] if found else []


def _minutes(text: str) -> int:
    found = re.search(r"^# Time: (\d+) minutes", text, re.MULTILINE)
    assert found, "a lesson does not say how long it takes"
    return int(found[1])

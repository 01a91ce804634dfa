"""Public functions and classes as Markdown: from the syntax tree of their files, which imports nothing."""

import ast
import functools
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FIELDS = ("Args", "Attributes", "Raises", "Returns", "Yields")
_WIDTH = 88
Linked = Callable[[str], str]
Definition = ast.FunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Module:
    """A module of the package.

    Attributes:
        name: dotted.
        path: of its file, relative to the project.
        tree: the syntax tree.
        lines: of the file.
        chosen: names to describe; empty: every public function and class.
    """

    name: str
    path: str
    tree: ast.Module
    lines: tuple[str, ...]
    chosen: tuple[str, ...] = ()

    def definitions(self) -> list[Definition]:
        """Return the functions and classes to describe, in the order of the file."""
        kinds = (ast.FunctionDef, ast.ClassDef)
        nodes = [node for node in self.tree.body if isinstance(node, kinds)]
        return [node for node in nodes if (node.name in self.chosen if self.chosen else is_public(node.name))]

    def exported(self) -> dict[str, str]:
        """Return the names of ``__all__`` that are imported, with the module of each."""
        imports = {
            alias.asname or alias.name: str(node.module)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        names: list[str] = []
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names = ast.literal_eval(node.value)
        return {name: imports[name] for name in names if name in imports}

    def constant(self, name: str) -> ast.expr | None:
        """Find the value that the module gives a name, here or where it is imported from."""
        for node in self.tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return node.value  # type: ignore[union-attr]
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
                return node.value
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("glassgpt"):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return load_module(str(node.module)).constant(alias.name)
        return None


@functools.cache
def load_module(name: str) -> Module:
    """Parse the file of a module; ``module:Name,name`` chooses what to describe of it."""
    name, _, chosen = name.partition(":")
    path = ROOT / "src" / Path(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = path.read_text(encoding="utf-8")
    names = tuple(filter(None, chosen.split(",")))
    return Module(name, path.relative_to(ROOT).as_posix(), ast.parse(text), tuple(text.splitlines()), names)


def is_public(name: str) -> bool:
    """Return whether a name does not begin with an underscore."""
    return not name.startswith("_")


def title(node: Definition) -> str:
    """Return the heading of a function or class. A class and a function can have one name, but for its case."""
    return f"class {node.name}" if isinstance(node, ast.ClassDef) else node.name


def describe(module: Module, node: Definition, link: Linked) -> Iterator[str]:
    """Give the lines of a function or a class, below its heading."""
    settings = _is_section(node)
    if not settings:
        yield from ["```py", _signature(module, node), "```", ""]
    yield from _documentation(ast.get_docstring(node) or "", link)
    if settings:
        section = next(ast.literal_eval(part.value) for part in node.body if _assigns(part, "section"))  # type: ignore[attr-defined]
        yield from [f"Fields: the settings of [`{section}`](settings.md#{section}), as keyword arguments.", ""]
    if isinstance(node, ast.ClassDef):
        yield from _fields(module, node, link)
        yield from _members(module, node, link)


def about(module: Module, link: Linked) -> Iterator[str]:
    """Give the lines of a module's docstring."""
    yield from _documentation(ast.get_docstring(module.tree) or "", link)


def markdown(text: str, link: Linked) -> str:
    """Turn the markup of a docstring into Markdown."""
    text = text.removesuffix(":") if text.endswith("::") else text
    text = re.sub(r":(\w+):`~?([^`]+)`", lambda match: link(match[2]), text)
    parts = re.split(r"(``[^`]+``|\[?`[^`]+`(?:\]\([^)]*\))?)", text)
    return "".join(part.replace("``", "`") if index % 2 else escape(part) for index, part in enumerate(parts))


def escape(text: str) -> str:
    """Escape what Markdown would read as markup; text in backticks must not be in it."""
    text = text.replace("<", "&lt;").replace("*", r"\*")
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)


def _fields(module: Module, node: ast.ClassDef, link: Linked) -> Iterator[str]:
    """Give the fields that a comment on their line explains."""
    found = []
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and is_public(name := ast.unparse(part.target)):
            comment = module.lines[(part.end_lineno or 0) - 1][part.end_col_offset or 0 :].strip()
            if comment.startswith("# ") and not comment.startswith(("# type:", "# noqa")):
                found.append(f"- `{name}`: {markdown(comment[2:], link)}")
    if found:
        yield from ["Fields:", "", *found, ""]


def _members(module: Module, node: ast.ClassDef, link: Linked) -> Iterator[str]:
    functions = [part for part in node.body if isinstance(part, ast.FunctionDef)]
    functions = [part for part in functions if is_public(part.name) or part.name == "__call__"]
    shown = [part for part in functions if not any("setter" in word for word in _decorators(part))]
    for kind, name in ((True, "Properties"), (False, "Methods")):
        members = [part for part in shown if _is_property(part) == kind]
        if members:
            yield from [f"{name}:", ""]
        for part in members:
            lines = [line for line in _documentation(ast.get_docstring(part) or "", link) if line]
            head = f"`{_signature(module, part, in_class=True)}`"
            first, rest = (lines[0], lines[1:]) if lines else ("", [])
            yield f"- {head}: {first}" if first else f"- {head}"
            for before, line in zip(lines, rest, strict=False):
                together = line.startswith("- ") and before.startswith("- ")
                yield from [] if together else [""]
                yield textwrap.indent(line, "    ")
            yield from [""] if rest else []
        if members:
            yield ""


def _documentation(docstring: str, link: Linked) -> Iterator[str]:
    """Give the paragraphs of a docstring, and its fields as lists."""
    for block in re.split(r"\n\s*\n", docstring.strip()):
        head, _, body = block.partition("\n")
        if head.rstrip(":") in _FIELDS and head.endswith(":"):
            yield from _field(head.rstrip(":"), textwrap.dedent(body), link)
        elif head.startswith("===") or all(line.startswith("    ") for line in block.splitlines()):
            lines = [line for line in block.splitlines() if not line.startswith("===")]  # of a table
            yield from ["```text", textwrap.dedent("\n".join(lines)).replace("``", ""), "```", ""]
        elif re.match(r"(- |\d+\. )", head):
            items = re.split(r"\n(?=- |\d+\. )", block)
            yield from [*(_one_line(item, link) for item in items), ""]
        elif head:
            yield from [_one_line(block, link), ""]


def _field(name: str, body: str, link: Linked) -> Iterator[str]:
    yield from [f"{name}:", ""]
    named = name in ("Args", "Attributes", "Raises")
    for item in re.split(r"\n(?=\S)", body) if named else [body]:
        key, colon, text = item.partition(":")
        if named and colon:
            yield f"- `{key.strip()}`: {_one_line(text, link)}"
        else:
            yield f"- {_one_line(item, link)}"
    yield ""


def _one_line(text: str, link: Linked) -> str:
    return markdown(" ".join(text.split()), link)


def _assigns(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name


def _is_section(node: Definition) -> bool:
    return isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Section" for base in node.bases)


def _decorators(node: Definition) -> list[str]:
    return [ast.unparse(decorator) for decorator in node.decorator_list]


def _is_property(node: ast.FunctionDef) -> bool:
    return bool({"property", "cached_property", "functools.cached_property"} & set(_decorators(node)))


def _signature(module: Module, node: Definition, *, in_class: bool = False) -> str:
    """Write a signature: on one line if it fits, or in a class, else with one parameter per line."""
    if isinstance(node, ast.ClassDef):
        found = _parameters_of_class(module, node)
        if found is None:
            return f"class {node.name}({', '.join(map(ast.unparse, node.bases))})".removesuffix("()")
        parameters, returns = found, ""
    else:
        parameters = _parameters(module, node)
        returns = f" -> {_annotation(node.returns)}" if node.returns else ""
        if in_class and _is_property(node):
            return node.name + returns.replace(" -> ", ": ")
        if in_class and "staticmethod" not in _decorators(node):
            parameters = parameters[1:]
    before = "with " if any("contextmanager" in word for word in _decorators(node)) else ""
    line = f"{before}{node.name}({', '.join(parameters)}){returns}"
    if in_class or len(line) <= _WIDTH:
        return line
    return f"{before}{node.name}(\n" + "".join(f"    {parameter},\n" for parameter in parameters) + f"){returns}"


def _parameters_of_class(module: Module, node: ast.ClassDef) -> list[str] | None:
    """Give the parameters of a class; None if it has no constructor of its own."""
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return _parameters(module, part)[1:]
    bases = {ast.unparse(base) for base in node.bases}
    if not any("dataclass" in word for word in _decorators(node)) and "NamedTuple" not in bases:
        return None
    return [
        _parameter(module, ast.unparse(part.target), part.annotation, _default(part.value))
        for part in node.body
        if isinstance(part, ast.AnnAssign)
        and is_public(ast.unparse(part.target))
        and "ClassVar" not in ast.unparse(part.annotation)
    ]


def _default(value: ast.expr | None) -> ast.expr | None:
    """Return the default of a dataclass's field: of ``field(default_factory=list)``, ``list()``."""
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field"):
        keywords = {keyword.arg: keyword.value for keyword in value.keywords}
        if "default_factory" in keywords:
            return ast.Call(keywords["default_factory"], [], [])
        return keywords.get("default")
    return value


def _parameters(module: Module, node: ast.FunctionDef) -> list[str]:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    found = [_parameter(module, a.arg, a.annotation, d) for a, d in zip(positional, defaults, strict=True)]
    if arguments.posonlyargs:
        found.insert(len(arguments.posonlyargs), "/")
    if arguments.vararg:
        found.append(_parameter(module, f"*{arguments.vararg.arg}", arguments.vararg.annotation, None))
    elif arguments.kwonlyargs:
        found.append("*")
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found.append(_parameter(module, argument.arg, argument.annotation, default))
    if arguments.kwarg:
        found.append(_parameter(module, f"**{arguments.kwarg.arg}", arguments.kwarg.annotation, None))
    return found


def _parameter(module: Module, name: str, annotation: ast.expr | None, default: ast.expr | None) -> str:
    kind = f": {_annotation(annotation)}" if annotation else ""
    if default is None:
        return name + kind
    if isinstance(default, ast.Name) and default.id.isupper():
        default = module.constant(default.id) or default
    return f"{name}{kind}{' = ' if kind else '='}{ast.unparse(default)}"


def _annotation(node: ast.expr) -> str:
    """Write an annotation without quotes around it or around a part."""

    class Unquoted(ast.NodeTransformer):
        def visit_Subscript(self, part: ast.Subscript) -> ast.AST:  # the strings of a Literal are values
            return part if ast.unparse(part.value).endswith("Literal") else self.generic_visit(part)

        def visit_Constant(self, part: ast.Constant) -> ast.AST:
            return ast.parse(part.value, mode="eval").body if isinstance(part.value, str) else part

    copy = ast.parse(ast.unparse(node), mode="eval")
    return ast.unparse(Unquoted().visit(copy))

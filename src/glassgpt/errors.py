"""The errors a user can cause. Each message says what is wrong, what was found, and what to do.

The command line prints the message alone, without a traceback, and exits with code 2 (1 for TrainingStopped).
Bugs of our own are plain ``AssertionError``s and keep their traceback.
"""

import reprlib
import shlex
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path


class GlassError(Exception):
    """Base of every error that the user can correct; ``str(error)`` is the whole message."""


class ConfigError(GlassError):
    """A configuration that cannot be run. Carries every problem found, not just the first."""

    def __init__(self, problems: str | Sequence[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        if len(self.problems) == 1:
            super().__init__(self.problems[0])
        else:
            lines = "\n".join(f"  - {problem}" for problem in self.problems)
            super().__init__(f"{len(self.problems)} problems in the configuration:\n{lines}")


def wrong_type(name: str, value: object, expected: str) -> str:
    """Word a problem for a :class:`ConfigError`: an argument of a wrong type."""
    shown = " ".join(reprlib.repr(value).split())  # in one line
    return f"{name}: expected {expected}, got {shown} ({type(value).__name__})"


def type_problems(name: str, value: object, kind: type | tuple[type, ...], expected: str) -> list[str]:
    """Return that problem if an argument is not of this kind, else none. A bool is not a number."""
    return [] if isinstance(value, kind) and not isinstance(value, bool) else [wrong_type(name, value, expected)]


class DataError(GlassError):
    """A text or token stream that cannot be used."""


class TokenizerError(GlassError):
    """Text that a tokenizer cannot encode, or a tokenizer file that cannot be read."""


class CheckpointError(GlassError):
    """A model folder or run that cannot be loaded, or that does not match the request."""


class AssetError(GlassError):
    """A named file (corpus, vocabulary, weights) that could not be found or has the wrong content."""


class MissingExtraError(GlassError):
    """An optional library is needed and not installed."""

    def __init__(self, library: str, extra: str, purpose: str):
        super().__init__(
            f"{purpose} needs the library {library!r}, which is not installed. Install it with: {install_extra(extra)}"
        )


class GenerationError(GlassError):
    """A model that cannot continue a prompt: logits that are not numbers, or a token that it does not have."""


class SubjectError(GlassError):
    """Code, or what it returns, that the doctor cannot examine."""


class TrainingStopped(GlassError):
    """Training could not continue: after several non-finite gradients in a row, on a full disk, and so on."""


def shell_command(*arguments: str | Path) -> str:
    """Write a command of glassgpt as a shell reads it: quoted, and ``./`` before a path that begins with ``-``."""
    words = [f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in arguments]
    return shlex.join(["glassgpt", *words])


def has_pip() -> bool:
    """Whether pip is installed here; ``find_spec`` of importlib.util would run a hook of setuptools, which warns."""
    return PathFinder.find_spec("pip") is not None


def pip_install(*arguments: str) -> str:
    """Write a command that installs packages; in an environment of uv, which has no pip, one of uv."""
    return shlex.join([*([] if has_pip() else ["uv"]), "pip", "install", *arguments])


def install_extra(extra: str) -> str:
    """Write the command that installs an extra: of the clone, if the package is imported from one."""
    clone = Path(__file__).parents[2]
    named = [f"glassgpt[{extra}]"] if not (clone / "pyproject.toml").is_file() else ["-e", f"{clone}[{extra}]"]
    return pip_install(*named)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    names = ("MemoryError", "OutOfMemoryError")  # Python's and torch's, which is not imported here
    return type(error).__name__ in names or "can't allocate memory" in str(error)


def first_line(error: Exception) -> str:
    """The first line of an error's message, 200 characters at most; its type if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__

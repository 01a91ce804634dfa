"""From `module.py:factory` or `package.module:factory` to what is examined."""

import contextlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glassgpt.doctor.report import NotRun
from glassgpt.doctor.subject import Subject
from glassgpt.errors import SubjectError, first_line
from glassgpt.model import GPT


def names_a_factory(target: str) -> bool:
    """Whether a target is `something:factory`."""
    place, colon, factory = target.rpartition(":")
    return bool(colon and place) and factory.isidentifier()


def import_factory(target: str) -> Callable[[], Any]:
    """Import `module.py:factory` or `package.module:factory` and return a function that calls it without arguments.

    Raises:
        SubjectError: if the file, the module or the factory is not there, or cannot be imported. The function that is
            returned raises it, too, if the factory fails.
    """
    if not names_a_factory(target):
        raise SubjectError(f"{target} names no factory; write FILE.py:FACTORY or PACKAGE.MODULE:FACTORY")
    place, _, name = target.rpartition(":")
    try:
        with _without_compiler():
            module = _import_file(Path(place)) if place.endswith(".py") else _import_name(place)
    except SubjectError:
        raise
    except BaseException as error:  # a script may call sys.exit while it is imported
        if isinstance(error, KeyboardInterrupt):
            raise
        raise SubjectError(f"{place} cannot be imported: {_reason(error)}") from error
    factory = getattr(module, name, None)
    if factory is None:
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise SubjectError(f"{place} has no {name!r}; it has: {', '.join(names[:20]) or 'no functions or classes'}")
    if isinstance(factory, nn.Module) or not callable(factory):  # what a factory would make
        return lambda: factory

    def make() -> Any:
        try:
            with _without_compiler():
                return factory()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            hint = "" if _takes_no_arguments(factory) else ". The factory has to work without arguments"
            raise SubjectError(f"{target} failed: {_reason(error)}{hint}") from error

    return make


@contextlib.contextmanager
def _without_compiler() -> Iterator[None]:
    """While the code is loaded, `torch.compile` returns what it is given: compiled code hides its operations."""
    compile = torch.compile

    def plain(model: Any = None, **options: Any) -> Any:
        return (lambda decorated: decorated) if model is None else model

    torch.compile = plain
    try:
        yield
    finally:
        torch.compile = compile


def _takes_no_arguments(factory: Callable[..., Any]) -> bool:
    try:
        inspect.signature(factory).bind()
    except (TypeError, ValueError):
        return False
    return True


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return (
            f"it ends with sys.exit({error.code!r}). Put what only a program needs (its arguments, its training) "
            "under `if __name__ == '__main__':`"
        )
    text = f"{type(error).__name__}: {first_line(error) if isinstance(error, Exception) else error}"
    if "not compiled with CUDA" in text or "No CUDA" in text or "NVIDIA driver" in text:
        return f"{text}. The code asks for CUDA, which this machine does not have"
    return text


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise SubjectError(f"{path} is not there")
    sys.path.insert(0, str(path.resolve().parent))  # as if it were run: it may import its neighbours
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if before is None:
            del sys.modules[path.stem]
        else:
            sys.modules[path.stem] = before
        raise
    return module


def _import_name(name: str) -> Any:
    sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(name)


def load_subject(
    target: str, vocab: int | None = None, context: int | None = None, window: int | None = None
) -> Subject:
    """Make the model of somebody's own code: `module.py:factory` or `package.module:factory`.

    Args:
        target: the code.
        vocab, context: where they cannot be found, or are found wrongly.
        window: how many tokens, its own included, a position needs to see; default: all.

    Raises:
        SubjectError: if it cannot be imported, or is no model over token ids.
    """
    factory = import_factory(target)
    module = _module_in(factory(), target)

    def again() -> nn.Module:
        other = _module_in(factory(), target)
        if other is module:
            raise NotRun("the module cannot be copied, and the factory gives the same one again")
        return other

    return Subject(module, target, vocab, context, window, again)


def _module_in(made: Any, target: str) -> nn.Module:
    """The module that a factory returned, also as one part of a tuple."""
    parts = made if isinstance(made, tuple) else (made,)
    module = next((part for part in parts if isinstance(part, nn.Module)), None)
    if module is None:
        raise SubjectError(f"{target} gave an object of type {type(made).__name__}; an nn.Module is needed")
    return module


def subject_of(model: GPT, name: str, window: int | None = None) -> Subject:
    """Examine a model of this package, as a run, a folder or a `.gguf` was loaded."""
    windows = [size for size in model.config.windows if size > 0]
    return Subject(model, name, model.config.vocab_size, model.config.block_size, window or min(windows, default=None))

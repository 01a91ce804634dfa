"""glassgpt: a small GPT whose code is readable, from a text file to a model of your own.

Importing this package is quick; torch is imported when a name that needs it is first used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from glassgpt.api import generate, load, load_tokenizer, plan, quantize, save, train, tune
    from glassgpt.config import presets
    from glassgpt.glass import choices, inside

__all__ = [
    "__version__",
    "choices",
    "generate",
    "inside",
    "load",
    "load_tokenizer",
    "plan",
    "presets",
    "quantize",
    "save",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    import importlib

    modules = {"presets": "glassgpt.config.presets", "inside": "glassgpt.glass.inside"}
    modules |= {"choices": "glassgpt.glass.choices"}
    if name in modules:
        return importlib.import_module(modules[name])
    if name in __all__:
        return getattr(importlib.import_module("glassgpt.api"), name)
    raise AttributeError(f"module 'glassgpt' has no attribute {name!r}")

"""Tokenizers: text to token ids and back. Names are imported on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glassgpt.tokenizer.base import Tokenizer, save
    from glassgpt.tokenizer.bpe.tokenizer import BPETokenizer
    from glassgpt.tokenizer.char import CharTokenizer
    from glassgpt.tokenizer.pretrained import load
    from glassgpt.tokenizer.word import WordTokenizer

_MODULE_OF = {
    "BPETokenizer": "bpe.tokenizer",
    "CharTokenizer": "char",
    "Tokenizer": "base",
    "WordTokenizer": "word",
    "load": "pretrained",
    "save": "base",
}
__all__ = ["BPETokenizer", "CharTokenizer", "Tokenizer", "WordTokenizer", "load", "save"]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"glassgpt.tokenizer.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

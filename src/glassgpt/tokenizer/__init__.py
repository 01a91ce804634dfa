"""Tokenizers: text to token ids and back."""

from glassgpt.tokenizer.base import Tokenizer, load, save
from glassgpt.tokenizer.char import CharTokenizer

__all__ = ["CharTokenizer", "Tokenizer", "load", "save"]

"""Tokenizers: text to token ids and back."""

from glassgpt.tokenizer.base import Tokenizer, load, save
from glassgpt.tokenizer.bpe import BPETokenizer
from glassgpt.tokenizer.char import CharTokenizer
from glassgpt.tokenizer.word import WordTokenizer

__all__ = ["BPETokenizer", "CharTokenizer", "Tokenizer", "WordTokenizer", "load", "save"]

"""The character tokenizer: one id per Unicode code point, in sorted order."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glassgpt.errors import TokenizerError
from glassgpt.tokenizer.base import json_file
from glassgpt.tokenizer.pretokenize import Texts

#: Split pattern of tokenizer.json: every character by itself, line ends included.
_EVERY_CHARACTER = r"[\s\S]"


class CharTokenizer:
    """One token per character of a fixed alphabet. Refuses what is not in it, naming the character.

    Args:
        alphabet: distinct single characters; the id of a character is its place in the list.
    """

    kind = "char"
    can_encode_in_chunks = True
    eos_token_id: int | None = None
    bos_token_id: int | None = None

    def __init__(self, alphabet: list[str]):
        assert alphabet and len(set(alphabet)) == len(alphabet), "an alphabet has distinct characters"
        self.alphabet = alphabet
        self.vocab_size = len(alphabet)
        codes = np.array([ord(character) for character in alphabet], dtype=np.uint32)
        self._table = np.full(int(codes.max()) + 1, -1, dtype=np.int64)  # code point -> id, or -1
        self._table[codes] = np.arange(len(alphabet))

    @classmethod
    def train(cls, *texts: Texts) -> "CharTokenizer":
        """The alphabet of one or more texts, sorted by code point."""
        alphabet: set[str] = set()
        for text in texts:
            for part in [text] if isinstance(text, str) else text:
                alphabet.update(part)
        return cls(sorted(alphabet))

    def encode_array(self, text: str) -> np.ndarray:
        """As :meth:`encode`, to an int64 array ``[len(text)]``; some 50 times faster than a loop."""
        codes = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
        known = codes < len(self._table)
        ids = np.where(known, self._table[np.where(known, codes, 0)], -1)
        if ids.size and ids.min() < 0:
            raise TokenizerError(self._unknown_message(text, int(np.argmin(ids))))
        return ids

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Ids of the characters. There are no special tokens to allow.

        Raises:
            TokenizerError: naming the first character that is not in the alphabet.
        """
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The characters of these ids, joined.

        Raises:
            TokenizerError: for an id beyond the vocabulary.
        """
        if len(ids) and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise TokenizerError(f"ids are from 0 to {self.vocab_size - 1}, got {min(ids)} to {max(ids)}")
        return "".join(self.alphabet[i] for i in ids)

    def token_bytes(self, i: int) -> bytes:
        """The UTF-8 bytes of a character.

        Raises:
            TokenizerError: for an id beyond the vocabulary.
        """
        return self.decode([i]).encode("utf-8", errors="surrogatepass")

    def files(self) -> dict[str, bytes]:
        """What a model folder holds of it, beside tokenizer_config.json."""
        return json_file(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """A word-level model that splits at every character; raises on unknown ones just as we do."""
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": _EVERY_CHARACTER},
                "behavior": "Isolated",
                "invert": False,
            },
            "post_processor": None,
            "decoder": {"type": "Fuse"},
            "model": {
                "type": "WordLevel",
                "vocab": {character: i for i, character in enumerate(self.alphabet)},
                "unk_token": "<unk>",  # required by the format, and not in the vocabulary
            },
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], path: Path) -> "CharTokenizer | None":
        """Read what :meth:`to_json` wrote; None if the file describes something else.

        Raises:
            TokenizerError: if the file is damaged.
        """
        vocab = vocabulary(content, path)
        if any(len(character) != 1 for character in vocab):
            return None
        tokenizer = cls(vocab)
        ours = tokenizer.to_json()
        return tokenizer if means_the_same(content, ours) else None

    def special_tokens(self) -> dict[str, str]:
        """None."""
        return {}

    def special_ids(self) -> dict[str, int]:
        """None."""
        return {}

    def _unknown_message(self, text: str, position: int) -> str:
        character = text[position]
        shown = "".join(self.alphabet)
        shown = shown if len(shown) <= 120 else shown[:117] + "..."
        return (
            f"the character {character!r} (U+{ord(character):04X}, at position {position}) is not among the "
            f"{self.vocab_size} characters this tokenizer was made from: {shown!r}. "
            "Leave it out, or train on a text that has it."
        )


def vocabulary(content: Mapping[str, Any], path: Path) -> list[str]:
    """The tokens of a word-level ``tokenizer.json`` in the order of their ids.

    Raises:
        TokenizerError: if the ids are not 0, 1, 2, ...
    """
    vocab = content["model"].get("vocab")
    vocab = vocab if isinstance(vocab, dict) else {}
    ids = list(vocab.values())
    if not ids or any(type(i) is not int for i in ids) or sorted(ids) != list(range(len(ids))):
        raise TokenizerError(f"{path} is damaged: the ids of its vocabulary are not 0, 1, 2, ...")
    return sorted(vocab, key=lambda token: vocab[token])


def means_the_same(content: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether a word-level ``tokenizer.json`` gives the ids and texts of ours, which has the same vocabulary."""
    changing = ("added_tokens", "normalizer", "pre_tokenizer", "decoder")
    unknown = content["model"].get("unk_token") == ours["model"]["unk_token"]
    return unknown and all(content.get(key) == ours[key] for key in changing)

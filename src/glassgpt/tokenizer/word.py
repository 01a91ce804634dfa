"""Word tokenizers: one id per word or punctuation mark, of those that a text has.

Two rungs of a ladder. With a closed vocabulary a word that was not in the text is refused by name. With ``<|unk|>`` it
becomes that token: nothing is refused any more, and what the word was is lost. Byte-level BPE
(:mod:`glassgpt.tokenizer.bpe.tokenizer`) is the rung that needs neither.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import regex

from glassgpt.errors import TokenizerError
from glassgpt.tokenizer.base import END_OF_TEXT, added_token, json_file
from glassgpt.tokenizer.char import means_the_same, vocabulary
from glassgpt.tokenizer.pretokenize import Splitter, Texts, count_pieces

#: A word (letters, marks, digits, and apostrophes inside) or a punctuation mark, each with the space before it if there
#: is one; or a single white space. Every text is a sequence of these, so joining the tokens gives it back.
PATTERN = r" ?[\p{L}\p{M}\p{N}_]+(?:['’]\p{L}+)*| ?[^\s\p{L}\p{M}\p{N}_]|\s"
UNKNOWN = "<|unk|>"
SPECIAL = (UNKNOWN, END_OF_TEXT)


class WordTokenizer:
    """One token per word of a vocabulary, with the space before it.

    Args:
        words: distinct words; the id of a word is its place in the list.
        open_vocabulary: whether ``<|unk|>`` (for words that are not in the list) and ``<|endoftext|>`` follow them.
    """

    kind = "word"
    can_encode_in_chunks = True
    bos_token_id: int | None = None

    def __init__(self, words: Sequence[str], open_vocabulary: bool = False):
        assert words and len(set(words)) == len(words), "a vocabulary has distinct words"
        self.words = [*words, *(SPECIAL if open_vocabulary else ())]
        self.vocab_size = len(self.words)
        self._ids = {word: i for i, word in enumerate(words)}
        self._special = {name: len(words) + i for i, name in enumerate(SPECIAL)} if open_vocabulary else {}
        self.unk_token_id = self._special.get(UNKNOWN)
        self.eos_token_id = self._special.get(END_OF_TEXT)
        self._splitter = Splitter([PATTERN])
        self._named = regex.compile("(" + "|".join(map(regex.escape, SPECIAL)) + ")")

    @classmethod
    def train(cls, *texts: Texts, vocab_size: int | None = None) -> "WordTokenizer":
        """The words of one or more texts, most frequent first; words of equal frequency by code point.

        Args:
            texts: to take the words from.
            vocab_size: of an open vocabulary, ``<|unk|>`` and ``<|endoftext|>`` among it; None for a closed one with
                all words.

        Raises:
            TokenizerError: if there is no word, or no room for one.
        """
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(count_pieces(text, Splitter([PATTERN]), processes=1))
        words = sorted(counts, key=lambda word: (-counts[word], word))
        if vocab_size is not None:
            if vocab_size <= len(SPECIAL):
                raise TokenizerError(
                    f"an open vocabulary of words has at least {len(SPECIAL) + 1} tokens, {' and '.join(SPECIAL)} "
                    f"among them; got {vocab_size}"
                )
            words = words[: vocab_size - len(SPECIAL)]
        if not words:
            raise TokenizerError("the text is empty; there are no words to take")
        return cls(words, vocab_size is not None)

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Ids of the words.

        Raises:
            TokenizerError: naming the first word that is not in a closed vocabulary.
        """
        if not (allow_special and self._special):
            return self._known(text)
        ids = []
        for part in filter(None, self._named.split(text)):
            ids += [self._special[part]] if part in self._special else self._known(part)
        return ids

    def encode_array(self, text: str) -> np.ndarray:
        """As :meth:`encode`, to an int64 array ``[tokens]``."""
        return np.array(self.encode(text), dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """The words of these ids, joined; unknown words are ``<|unk|>``.

        Raises:
            TokenizerError: for an id that is not in the vocabulary.
        """
        if len(ids) and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise TokenizerError(f"ids are from 0 to {self.vocab_size - 1}, got {min(ids)} to {max(ids)}")
        return "".join(self.words[i] for i in ids)

    def token_bytes(self, i: int) -> bytes:
        """The UTF-8 bytes of a word.

        Raises:
            TokenizerError: for an id that is not in the vocabulary.
        """
        return self.decode([i]).encode("utf-8")

    def special_tokens(self) -> dict[str, str]:
        """``unk_token`` and ``eos_token`` of an open vocabulary, and ``bos_token`` where documents begin with it."""
        begin = {"bos_token": END_OF_TEXT} if self.bos_token_id is not None else {}
        return {"unk_token": UNKNOWN, "eos_token": END_OF_TEXT, **begin} if self._special else {}

    def special_ids(self) -> dict[str, int]:
        """Every special token and its id."""
        return dict(self._special)

    def to_json(self) -> dict[str, Any]:
        """The content of ``tokenizer.json``: a word-level model, which is what `tokenizers` calls this."""
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [added_token(i, name, special=True) for name, i in self._special.items()],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False,
            },
            "post_processor": None,
            "decoder": {"type": "Fuse"},
            "model": {
                "type": "WordLevel",
                "vocab": {word: i for i, word in enumerate(self.words)},
                "unk_token": UNKNOWN,  # required by the format; a closed vocabulary does not have it
            },
        }  # fmt: skip

    @classmethod
    def from_json(cls, content: Mapping[str, Any], path: Path) -> "WordTokenizer | None":
        """Read what :meth:`to_json` wrote; None if the file describes something else.

        Raises:
            TokenizerError: if the file is damaged.
        """
        words = vocabulary(content, path)
        open_vocabulary = tuple(words[-len(SPECIAL) :]) == SPECIAL
        words = words[: -len(SPECIAL)] if open_vocabulary else words
        if not words:
            return None
        tokenizer = cls(words, open_vocabulary)
        ours = tokenizer.to_json()
        return tokenizer if means_the_same(content, ours) else None

    def files(self) -> dict[str, bytes]:
        """What a model folder holds of it, beside tokenizer_config.json."""
        return json_file(self.to_json())

    def _known(self, text: str) -> list[int]:
        pieces = self._splitter.split(text)
        if self.unk_token_id is not None:
            unknown = self.unk_token_id
            return [self._ids.get(piece, unknown) for piece in pieces]
        try:
            return [self._ids[piece] for piece in pieces]
        except KeyError as error:
            word = error.args[0]
            position = sum(map(len, pieces[: pieces.index(word)]))
            raise TokenizerError(self._unknown_message(word, position)) from None

    def _unknown_message(self, word: str, position: int) -> str:
        other = word[1:] if word.startswith(" ") else f" {word}"
        hint = f" (it is there as {other!r})" if other in self._ids else ""
        shown = word if len(word) <= 60 else f"{word[:57]}..."
        return (
            f"the word {shown!r} (at position {position}) is not among the {self.vocab_size:,} words of this closed "
            f"vocabulary{hint}. Leave it out, train on a text that has it, or take a tokenizer that knows every text: "
            "tokenizer=word:N puts <|unk|> in its place, tokenizer=bpe:N spells it"
        )

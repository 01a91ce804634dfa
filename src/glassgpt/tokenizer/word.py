"""The word tokenizer: one token per word or punctuation mark.

With a closed vocabulary, a word that was not in the training text raises. With an open vocabulary it becomes
``<|unk|>``: nothing raises, but the word is lost. Byte-level BPE (:mod:`glassgpt.tokenizer.bpe.tokenizer`) has neither
problem.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glassgpt.errors import TokenizerError
from glassgpt.tokenizer.base import END_OF_TEXT, WordLevelTokenizer, word_level_tokens
from glassgpt.tokenizer.pretokenize import PreTokenizer, Texts, count_pre_tokens

#: A word (letters, marks, digits, and apostrophes inside) or a punctuation mark, each with the space before it, if any;
#: or a single white space. Every text is a sequence of these, so joining the tokens restores it.
PATTERN = r" ?[\p{L}\p{M}\p{N}_]+(?:['’]\p{L}+)*| ?[^\s\p{L}\p{M}\p{N}_]|\s"
UNKNOWN = "<|unk|>"
SPECIAL = (UNKNOWN, END_OF_TEXT)


class WordTokenizer(WordLevelTokenizer):
    """One token per word of a vocabulary, with the space before it.

    Args:
        words: distinct words in the order of their ids.
        open_vocabulary: whether to add ``<|unk|>`` (for unknown words) and ``<|endoftext|>`` after the words.
        special: names of more special tokens, whose ids follow.
    """

    kind = "word"
    split_pattern = PATTERN
    unk_token = UNKNOWN

    def __init__(self, words: Sequence[str], open_vocabulary: bool = False, special: Sequence[str] = ()):
        super().__init__(words, (*(SPECIAL if open_vocabulary else ()), *special))
        self._ids = {word: i for i, word in enumerate(words)}
        self.unk_token_id = self._special.get(UNKNOWN)
        self.eos_token_id = self._special.get(END_OF_TEXT)
        self._pre_tokenizer = PreTokenizer([PATTERN])

    @classmethod
    def train(cls, *texts: Texts, vocab_size: int | None = None) -> "WordTokenizer":
        """Collect the words of one or more texts, most frequent first; equally frequent words by code point.

        ``vocab_size`` is that of an open vocabulary, including ``<|unk|>`` and ``<|endoftext|>``; None for a closed
        vocabulary with all words.

        Raises:
            TokenizerError: if the texts have no words, or ``vocab_size`` leaves no room for one.
        """
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(count_pre_tokens(text, PreTokenizer([PATTERN]), processes=1))
        words = sorted(counts, key=lambda word: (-counts[word], word))
        if vocab_size is not None:
            if vocab_size <= len(SPECIAL):
                raise TokenizerError(
                    f"an open vocabulary of words has at least {len(SPECIAL) + 1} tokens, including "
                    f"{' and '.join(SPECIAL)}; got {vocab_size}"
                )
            words = words[: vocab_size - len(SPECIAL)]
        if not words:
            raise TokenizerError("the text is empty: it has no words to learn")
        return cls(words, vocab_size is not None)

    def special_tokens(self) -> dict[str, str]:
        """``unk_token`` and ``eos_token`` of an open vocabulary, and ``bos_token`` if documents begin with it."""
        unknown = {} if self.unk_token_id is None else {"unk_token": UNKNOWN}
        return unknown | super().special_tokens()

    @classmethod
    def from_json(cls, content: Mapping[str, Any], path: Path) -> "WordTokenizer | None":
        """Read the output of :meth:`to_json`; None if the file describes another tokenizer.

        Raises:
            TokenizerError: if the file is damaged.
        """
        tokens = word_level_tokens(content, path)
        if tokens is None:
            return None
        words, special = tokens
        open_vocabulary = tuple(special[: len(SPECIAL)]) == SPECIAL
        tokenizer = cls(words, open_vocabulary, special[len(SPECIAL) :] if open_vocabulary else special)
        return tokenizer if tokenizer.equals_json(content) else None

    def _encode_plain(self, text: str) -> list[int]:
        words = self._pre_tokenizer.split(text)
        if (unknown := self.unk_token_id) is not None:
            return [self._ids.get(word, unknown) for word in words]
        try:
            return [self._ids[word] for word in words]
        except KeyError as error:
            word = error.args[0]
            position = sum(map(len, words[: words.index(word)]))
            raise TokenizerError(self._unknown_message(word, position)) from None

    def _unknown_message(self, word: str, position: int) -> str:
        variant = word[1:] if word.startswith(" ") else f" {word}"
        hint = f" (but {variant!r} is)" if variant in self._ids else ""
        shown = word if len(word) <= 60 else f"{word[:57]}..."
        return (
            f"the word {shown!r} (at position {position}) is not among the {self.vocab_size:,} words of this closed "
            f"vocabulary{hint}. Remove it, train on a text that contains it, or use a tokenizer that encodes any text: "
            "tokenizer=word:N replaces it by <|unk|>, tokenizer=bpe:N splits it into smaller tokens"
        )

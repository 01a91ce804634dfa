"""A prompt as the model reads it: token ids, and how each token is shown."""

from dataclasses import dataclass

import torch
from torch import Tensor

from glassgpt.errors import ConfigError
from glassgpt.glass.tokens import escaped
from glassgpt.inference.stream import encode_prompt, require_known
from glassgpt.model import GPT
from glassgpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """Token ids ``[T]``, at least one, and the tokens as printable text (a line end is ``\\n``)."""

    ids: list[int]
    tokens: list[str]

    @classmethod
    def of(cls, tokenizer: Tokenizer, ids: list[int]) -> "Prompt":
        """Return these ids with the texts of their tokens."""
        return cls(ids, [token_text(tokenizer, i) for i in ids])

    def idx(self, model: GPT) -> Tensor:
        """Return the ids as one row ``[1, T]`` on the model's device."""
        return torch.tensor([self.ids], device=model.device)


def read_prompt(model: GPT, tokenizer: Tokenizer, text: str) -> Prompt:
    """Encode a text as it is encoded for sampling; an empty text is the one token that a sample begins with.

    Raises:
        TokenizerError: if the text has characters that the tokenizer does not know.
        ConfigError: if it does not fit the context.
        GenerationError: if the model does not have one of its tokens.
    """
    ids = encode_prompt(tokenizer, text)
    if len(ids) > (context := model.config.block_size):
        raise ConfigError(
            f"the prompt has {len(ids):,} tokens; the model reads {context:,} at once. Give a shorter prompt"
        )
    require_known(ids, model.config.vocab_size, "the prompt")
    return Prompt.of(tokenizer, ids)


def token_text(tokenizer: Tokenizer, i: int) -> str:
    """Return a token as printable text; ``<id 7>`` where the vocabulary has no token of that id."""
    content = tokenizer.token_bytes(i) if 0 <= i < tokenizer.vocab_size else b""
    return escaped(content) or f"<id {i}>"

"""A prompt to tokens, and generated tokens to text."""

import codecs
from collections.abc import Collection, Sequence

from glassgpt.errors import ConfigError, GenerationError
from glassgpt.tokenizer import Tokenizer
from glassgpt.tokenizer.base import adds_bos_token


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Encode the prompt, to at least one token; prepend BOS if the model was trained with it.

    A prompt without tokens (empty, or for example a space under SentencePiece) becomes BOS if there is one, else a line
    end, else the first token.

    Raises:
        TokenizerError: if the prompt has characters that the tokenizer does not know.
    """
    bos = tokenizer.bos_token_id
    ids = tokenizer.encode(prompt) if prompt else []
    if bos is not None and (not ids or adds_bos_token(tokenizer)):
        return [bos, *ids]
    return ids or [_line_end_or_first(tokenizer)]


def require_known(ids: Sequence[int], vocab_size: int, what: str) -> None:
    """Check that a model with so many tokens has those of a text or prompt.

    Raises:
        GenerationError: if not.
    """
    if wrong := [i for i in ids if not 0 <= i < vocab_size]:
        raise GenerationError(
            f"{what} has the token {wrong[0]}, but the model's tokens are 0 to {vocab_size - 1}; "
            "the tokenizer belongs to another model"
        )


def _line_end_or_first(tokenizer: Tokenizer) -> int:
    unused = set(tokenizer.unused_ids())
    used = [i for i in range(tokenizer.vocab_size) if i not in unused]
    return next((i for i in used if tokenizer.token_bytes(i) == b"\n"), used[0])


class TextStreamer:
    """Turns the tokens of one row into text as they come, up to an end token or the first stop string.

    It returns only text that is final: bytes that do not yet make a character are held back, and so is text that may be
    the beginning of a stop string. The stop string that is completed first counts; if several are completed by the
    same character, the longest. So the text does not depend on how it was cut into tokens.

    Args:
        tokenizer: gives the bytes of a token.
        stop: strings that end the text; they are not part of it.
        end_token_ids: tokens that end the text; they are not part of it.

    Attributes:
        tokens: the tokens so far, without the end token.
        text: the text so far, without what is held back.
        stopped: whether a stop string was found. Later tokens add no text.

    Raises:
        ConfigError: for an empty stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: str | Sequence[str] = (), end_token_ids: Collection[int] = ()):
        self.tokenizer = tokenizer
        self.end_token_ids = end_token_ids
        self.stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if "" in self.stop:
            raise ConfigError("stop: an empty string would end every text at once; leave it out")
        self.tokens: list[int] = []
        self.text = ""
        self.stopped = False
        self._held = ""  # a beginning of a stop string
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Add a token; return the text that became final with it, often none."""
        if token in self.end_token_ids:
            return self.finish()
        self.tokens.append(token)
        return self._release(self._decoder.decode(self.tokenizer.token_bytes(token)))

    def finish(self) -> str:
        """Return the text that is still held back, when no more tokens come."""
        released = self._release(self._decoder.decode(b"", final=True)) + self._held
        self.text += self._held
        self._held = ""
        return released

    def _release(self, new: str) -> str:
        """Add new text; return all that cannot be part of a stop string any more."""
        released = ""
        for character in "" if self.stopped else new:
            self._held += character
            longest = max((len(stop) for stop in self.stop if self._held.endswith(stop)), default=0)
            if longest:
                released += self._held[:-longest]
                self.stopped, self._held = True, ""
                break
            while self._held and not any(stop.startswith(self._held) for stop in self.stop):
                released += self._held[0]
                self._held = self._held[1:]
        self.text += released
        return released

"""A conversation with a model: the messages, what fits the context, and answers token by token.

The conversation is rendered anew for every answer, with the model's own chat template. The key/value cache is kept: it
serves the tokens with which the new prompt and the cached one begin, and only the others are read. So an answer is that
of a new session with the same messages, but for rounding.
"""

import dataclasses
import json
from bisect import bisect_left
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glassgpt.data.conversations.rows import USER_TURN_CUT, read_rows
from glassgpt.errors import ConfigError, DataError, GenerationError, TokenizerError, shell_command
from glassgpt.files import write_text
from glassgpt.inference.decode import DecodeStep, Request, generate_text
from glassgpt.inference.decoders import Decoder
from glassgpt.model import GPT, KVCache
from glassgpt.tokenizer import Tokenizer, chat
from glassgpt.tokenizer.base import join_surrogates

#: Logits of the last answer that are kept to explain it, in bytes at most; those of its first tokens are left out.
KEPT_LOGITS = 256 << 20


def chat_template(tokenizer: Tokenizer, name: str) -> str:
    """Return the chat template of a model; ``name`` is for the error.

    Raises:
        ConfigError: if it has none.
    """
    if "default" not in tokenizer.published.chat_templates:
        tune = shell_command("tune", "sft", Path(name))
        raise ConfigError(
            f"{name} has no chat template. `glassgpt sample` without --chat continues a text with it; "
            f"`{tune} DATA` trains it to answer"
        )
    return tokenizer.published.chat_templates["default"]


def encode_messages(tokenizer: Tokenizer, messages: Sequence[chat.Message], name: str) -> list[int]:
    """Encode a conversation up to the assistant's next answer, in the chat template of the model.

    Args:
        tokenizer: of the model.
        messages: in order.
        name: of the model, for errors.

    Raises:
        ConfigError: if the model has no chat template, or it makes no tokens.
        TokenizerError: as :func:`glassgpt.tokenizer.chat.encode`.
    """
    ids = chat.encode(tokenizer, chat_template(tokenizer, name), messages)
    if not ids:
        raise ConfigError(f"the chat template of {name} makes no tokens of this prompt; choose another model")
    return ids


@dataclass
class Answer:
    """An answer, before and while it is generated.

    Attributes:
        message: the user's.
        prompt: token ids of the conversation up to the answer.
        settings: of this answer, with the prompt.
        first: index of the first turn in the prompt.
        left_out: messages that were in the prompt before and are not any more.
        cached: tokens of the prompt that were in the cache.
        text: so far.
        tokens: generated so far, with the end token.
        steps: the last of them, as far as they are kept.
        ending: why it ended: "end" (an end token or a stop string), "length" (max_new_tokens), "context" (it is full),
            or "stopped" (interrupted); empty before.
    """

    message: str
    prompt: list[int]
    settings: Request
    first: int
    left_out: int
    cached: int = 0
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    steps: deque[DecodeStep] = field(default_factory=deque, repr=False)
    ending: str = ""


class ChatSession:
    """A conversation with a model.

    If the conversation and room for an answer (max_new_tokens, but at most half of the context) do not fit the context,
    the oldest turns are left out of the prompt. Then a quarter of the context is freed, so that the cache can serve the
    next turns again. A turn begins with a user's message; the system message always stays.

    Args:
        model: in eval mode.
        tokenizer: of the model, with a chat template.
        settings: of every answer; prompt and sample_index are not used. Answer k draws the random numbers of (seed, k).
        name: of the model, for errors.
        decoder: computes the decode steps of all answers; by default the model itself.

    Attributes:
        system: the system message, or None.
        turns: all other messages, also those that are left out of the prompt.
        last: the last answer, or None.
        unsaved: whether there are turns that are in no file.

    Raises:
        ConfigError: if there is no chat template.
        TokenizerError: if it is damaged.
    """

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, settings: Request, name: str = "the model",
        decoder: Decoder | None = None,
    ):  # fmt: skip
        chat.render(
            chat_template(tokenizer, name), [{"role": "user", "content": ""}], **dict[str, Any](tokenizer.roles())
        )
        self.model, self.tokenizer, self.settings, self.name = model, tokenizer, settings, name
        self.decoder = decoder
        self.system: str | None = None
        self.turns: list[dict[str, str]] = []
        self.last: Answer | None = None
        self.unsaved = False
        self._first = 0  # the first turn in the prompt
        self._cache = KVCache(model.config, 1, capacity=0)
        self._cached_ids: list[int] = []

    @property
    def messages(self) -> list[dict[str, str]]:
        """The whole conversation."""
        return self._with_system(self.turns)

    def ask(self, text: str) -> Answer:
        """Prepare the answer to a user's message; nothing is changed yet.

        Raises:
            GenerationError: if the message does not fit the context.
            TokenizerError: if it cannot be encoded.
        """
        text = join_surrogates(text)
        turns = [*self.turns, {"role": "user", "content": text}]
        context, first = self.model.config.block_size, self._first
        limit = context - min(self.settings.max_new_tokens, context // 2)
        ids = self._encode(turns[first:])
        if len(ids) > limit:
            starts = [i for i, turn in enumerate(turns) if i >= first and turn["role"] == "user"]
            fitting = bisect_left(
                starts, True, key=lambda start: len(self._encode(turns[start:])) <= min(limit, context * 3 // 4)
            )
            first = starts[min(fitting, len(starts) - 1)]
            ids = self._encode(turns[first:])
        if len(ids) >= context:
            beside = " and the system message" if self.system else ""
            raise GenerationError(
                f"the message is too long: with the chat template{beside} it has {len(ids):,} tokens, and the model's "
                f"context, which the answer needs too, has {context:,}; shorten it. The conversation is unchanged"
            )
        settings = dataclasses.replace(
            self.settings,
            prompt=ids,
            sample_index=sum(turn["role"] == "user" for turn in self.turns),
            max_new_tokens=min(self.settings.max_new_tokens, context - len(ids)),
        )
        kept = deque[DecodeStep](maxlen=max(1, KEPT_LOGITS // (4 * self.model.config.vocab_size)))
        return Answer(text, ids, settings, first, first - self._first, steps=kept)

    def stream(self, answer: Answer) -> Generator[str]:
        """Generate an answer, and yield its text as it comes; at the end, message and answer join the conversation.

        An interrupted answer (KeyboardInterrupt, or the generator is closed) joins it as far as it came. After an
        error, or without any text, the conversation is as before.

        Raises:
            GenerationError: as :func:`glassgpt.inference.decode.generate_rows`.
        """
        cache = self._prepare_cache(answer)
        self.last = answer
        try:
            for step, (streamer,) in generate_text(
                self.model, self.tokenizer, [answer.settings], cache=cache, decoder=self.decoder
            ):
                answer.tokens += step.tokens
                answer.steps.append(step)
                new, answer.text = streamer.text[len(answer.text) :], streamer.text
                if new:
                    yield new
            if len(answer.tokens) < answer.settings.max_new_tokens or answer.tokens[-1] in self.tokenizer.end_token_ids:
                answer.ending = "end"
            else:
                full = answer.settings.max_new_tokens < self.settings.max_new_tokens
                answer.ending = "context" if full else "length"
        except (KeyboardInterrupt, GeneratorExit):
            answer.ending = "stopped"
            raise
        finally:
            self._cached_ids = [*answer.prompt, *answer.tokens][: cache.longest]
            if answer.ending and answer.text.strip():  # a turn without text is no turn to train on, or to load
                self.turns += [
                    {"role": "user", "content": answer.message},
                    {"role": "assistant", "content": answer.text},
                ]
                self._first, self.unsaved = answer.first, True

    def reset(self) -> None:
        """Begin a new conversation, with the same system message."""
        self.turns, self.last, self.unsaved, self._first = [], None, False, 0

    def save(self, path: Path) -> None:
        """Write the whole conversation as one JSONL row of OpenAI messages.

        A file that holds anything but one conversation is not replaced.

        Raises:
            DataError: if it would be replaced, or the conversation is empty.
            OSError: if it cannot be written.
        """
        if not self.turns:
            raise DataError("there is nothing to save yet")
        if path.exists() and path.stat().st_size:
            try:
                read_conversation(path)
            except DataError as error:
                raise DataError(f"{path} exists and is not replaced; choose another name ({error})") from None
        write_text(path, json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")
        self.unsaved = False

    def load(self, path: Path) -> None:
        """Replace the conversation by the one in a file.

        Raises:
            DataError: if the file does not hold exactly one conversation.
            TokenizerError: if the chat template rejects it; nothing is changed.
        """
        messages = read_conversation(path)
        try:
            encode_messages(self.tokenizer, messages, self.name)
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from None
        has_system = messages[0]["role"] == "system"
        self.reset()
        self.system, self.turns = messages[0]["content"] if has_system else None, messages[has_system:]

    def _with_system(self, turns: list[dict[str, str]]) -> list[dict[str, str]]:
        return ([] if self.system is None else [{"role": "system", "content": self.system}]) + turns

    def _encode(self, turns: list[dict[str, str]]) -> list[int]:
        return encode_messages(self.tokenizer, self._with_system(turns), self.name)

    def _prepare_cache(self, answer: Answer) -> KVCache:
        """Make room for the answer, and keep what the prompt and the cached tokens have in common."""
        cached = self._cached_ids[: self._cache.longest]
        common = next((i for i, (a, b) in enumerate(zip(cached, answer.prompt, strict=False)) if a != b), len(cached))
        answer.cached = min(common, len(answer.prompt) - 1)  # the last token is read for its logits
        self._cache.roll_back(0, answer.cached)
        needed = len(answer.prompt) + answer.settings.max_new_tokens
        if self._cache.capacity < needed:
            model, held = self.model, self._cache
            capacity = min(model.config.block_size, max(needed, 2 * held.capacity))
            self._cache = KVCache(model.config, 1, rows=0, capacity=capacity, device=model.device, dtype=model.dtype)
            self._cache.admit(held)
        return self._cache


def read_conversation(path: Path) -> list[dict[str, str]]:
    """Read the messages of a file with one conversation, in any format that ``tune`` reads.

    Raises:
        DataError: if it does not hold exactly one.
    """
    rows = read_rows(path)
    if problems := [problem for problem in rows.problems if problem.kind != USER_TURN_CUT]:
        raise DataError(f"{path}, line {problems[0].line}: {problems[0].kind}: {problems[0].reason}")
    if len(rows.conversations) != 1:
        raise DataError(f"{path} has {len(rows.conversations):,} conversations; a chat is one")
    return list(rows.conversations[0].messages)

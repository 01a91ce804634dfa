"""Chat templates: from messages to the text and token ids that a model was trained on.

A template is a Jinja program that comes with the model. It runs in a sandbox with the filters, globals and extensions
of `transformers` (utils/chat_template_utils.py), so it renders the same text here as there.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from glassgpt.errors import TokenizerError
from glassgpt.tokenizer.base import Tokenizer, name_pattern

#: One turn of a conversation: ``{"role": "user", "content": "Hello"}``.
Message = Mapping[str, Any]
#: The ChatML template. The marks of generation are for tools that take the loss mask from them, as TRL does.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def render(template: str, messages: Sequence[Message], *, prompt: bool = True, **variables: Any) -> str:
    """Render the text of a conversation.

    Args:
        template: the Jinja program.
        messages: in order. Entries that are None are left out.
        prompt: whether to end with the start of the assistant's next message (`add_generation_prompt`).
        variables: more variables of the template: ``bos_token``, ``tools``, ``documents`` and so on.

    Raises:
        TokenizerError: if the template is damaged, or raises for these messages.
    """
    import jinja2

    messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
    defaults = {"tools": None, "documents": None}
    try:
        return str(
            _program(template).render({**defaults, **variables, "messages": messages, "add_generation_prompt": prompt})
        )
    except jinja2.TemplateError as error:
        raise TokenizerError(f"the chat template is damaged, or rejects these messages: {error.message}") from None
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        raise TokenizerError(f"the chat template fails on these messages: {type(error).__name__}: {error}") from None


def encode(tokenizer: Tokenizer, template: str, messages: Sequence[Message], **options: Any) -> list[int]:
    """Encode a conversation. The content of a message is plain text, even if it contains the name of a control token.

    The options are those of :func:`render`.

    Raises:
        TokenizerError: as for :func:`render`; or if a message contains the name of a control token and the template
            changes the content of messages.
    """
    options = tokenizer.roles() | options
    text = render(template, messages, **options)
    contents = [message["content"] for message in messages if isinstance(message.get("content"), str)]
    ids = tokenizer.special_ids()
    names = name_pattern(tuple(ids))
    name_in_content = next((match[0] for content in contents if (match := names.search(content))), None)
    if name_in_content is None:
        return tokenizer.encode(text, allow_special=True)
    # render placeholders for the contents, find the template's own control tokens, then put the contents back
    placeholders = [f"\ue000{i}\ue001" for i in range(len(contents))]
    remaining = iter(placeholders)
    replaced = [
        {**message, "content": next(remaining)} if isinstance(message.get("content"), str) else message
        for message in messages
    ]
    parts = names.split(render(template, replaced, **options))  # text, name, text, ..., text
    for placeholder, content in zip(placeholders, contents, strict=True):
        parts[::2] = [part.replace(placeholder, content) for part in parts[::2]]
    if "".join(parts) != text:
        raise TokenizerError(
            f"a message contains {name_in_content!r}, the name of a control token, and this chat template changes the "
            "content of messages, so the two cannot be told apart; remove it from the message"
        )
    return tokenizer.encode_parts(ids[part] if at % 2 else part for at, part in enumerate(parts) if part)


def encode_trained(tokenizer: Tokenizer, template: str, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
    """Encode a conversation, and mark the tokens to train: the assistant's, and the token that ends each of its turns.

    Answer i begins where the tokens of the messages before it, with the start of an answer (``prompt=True``), end. It
    ends with the first end token, or if there is none, with the first control token. So any template will do whose
    tokens of those messages are the first tokens of the whole conversation.

    Returns:
        the ids of ``encode(tokenizer, template, messages, prompt=False)``, and for each whether it is trained.

    Raises:
        TokenizerError: as for :func:`encode`; if those tokens are not the first ones; or if no token ends an answer.
    """
    ids = encode(tokenizer, template, messages, prompt=False)
    trained = [False] * len(ids)
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = encode(tokenizer, template, messages[:i], prompt=True)
        start, limit = len(before), _next_content(tokenizer, template, messages, i, ids)
        if ids[:start] != before:
            hint = ""
            if str(message["content"])[:1].isspace():
                hint = "; the answer begins with white space, which may be one token with the text before it: remove it"
            raise TokenizerError(
                f"the chat template is not prefix-preserving: the tokens of the messages before message {i + 1} are "
                f"not the first tokens of the whole conversation, so its own tokens cannot be found{hint}"
            )
        ends = (tokenizer.end_token_ids, tokenizer.special_ids().values())
        places = (next((at for at in range(start, limit) if ids[at] in kind), None) for kind in ends)
        end = next((at for at in places if at is not None), None)
        if end is None:
            raise TokenizerError(
                f"no end token or control token ends message {i + 1} in this chat template, so the model would not "
                "learn to end its answers; use a template that ends them, as ChatML does"
            )
        trained[start : end + 1] = [True] * (end + 1 - start)
    return ids, trained


def _next_content(tokenizer: Tokenizer, template: str, messages: Sequence[Message], i: int, ids: list[int]) -> int:
    """Find where the content of the message after message i begins: where the ids change if it is another one."""
    if i + 1 == len(messages):
        return len(ids)
    following = messages[i + 1]
    other = "1" if str(following["content"]).lstrip().startswith("0") else "0"
    others = encode(tokenizer, template, [*messages[: i + 1], {**following, "content": other}], prompt=False)
    return next((at for at, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b), min(len(ids), len(others)))


@functools.lru_cache(16)
def _program(template: str) -> Any:
    """Compile a template; damaged ones raise jinja2.TemplateError."""
    return _environment().from_string(template)


def _environment() -> Any:
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks the assistant's text for training; the text stays the same."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    return environment

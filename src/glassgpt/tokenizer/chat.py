"""Chat templates: from messages to the text, and the token ids, that a model was trained on.

A template is a Jinja program that comes with the model. It runs in a sandbox, with what `transformers` gives it
(utils/chat_template_utils.py there), so that it renders here as it does everywhere.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import regex

from glassgpt.errors import TokenizerError
from glassgpt.tokenizer.base import Tokenizer

#: One turn of a conversation: ``{"role": "user", "content": "Hello"}``.
Message = Mapping[str, Any]
TEMPLATE_FILE = "chat_template.jinja"


def template_in(folder: Path) -> str | None:
    """The chat template of a model folder: a file, or an entry of tokenizer_config.json; None where there is none.

    Raises:
        TokenizerError: if it cannot be read.
    """
    try:
        if (folder / TEMPLATE_FILE).exists():
            return (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
        path = folder / "tokenizer_config.json"
        found = json.loads(path.read_text(encoding="utf-8")).get("chat_template") if path.exists() else None
    except (OSError, ValueError, AttributeError) as error:
        raise TokenizerError(f"the chat template in {folder} cannot be read: {error}") from None
    if isinstance(found, list):  # several, by name
        found = next((entry.get("template") for entry in found if entry.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def render(template: str, messages: Sequence[Message], *, prompt: bool = True, **variables: Any) -> str:
    """The text of a conversation.

    Args:
        template: the Jinja program.
        messages: in order. Entries that are None are left out.
        prompt: whether it ends with the beginning of the assistant's next message.
        variables: what else the template is given: ``bos_token``, ``tools``, ``documents`` and so on.

    Raises:
        TokenizerError: if the template is damaged, or refuses the messages.
    """
    import jinja2

    plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
    known = {"tools": None, "documents": None, "bos_token": "", "eos_token": ""}
    try:
        program = _environment().from_string(template)
        return str(program.render({**known, **variables, "messages": plain, "add_generation_prompt": prompt}))
    except jinja2.TemplateError as error:
        raise TokenizerError(f"the chat template refuses these messages, or is damaged: {error.message}") from None
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        raise TokenizerError(f"the chat template fails on these messages: {type(error).__name__}: {error}") from None


def encode(tokenizer: Tokenizer, template: str, messages: Sequence[Message], **more: Any) -> list[int]:
    """The ids of a conversation. What is written in a message stays text, even where it is the name of a control token.

    Args:
        tokenizer: of the model.
        template: its chat template.
        messages: in order.
        more: as for :func:`render`.

    Raises:
        TokenizerError: as for :func:`render`; or if a template that changes what messages say is given one that names
            a control token.
    """
    more = tokenizer.special_tokens() | more
    text = render(template, messages, **more)
    contents = [message["content"] for message in messages if isinstance(message.get("content"), str)]
    names = sorted(tokenizer.special_ids(), key=len, reverse=True)
    named = regex.compile("|".join(map(regex.escape, names)) if names else r"(?!)")
    written = next((found[0] for content in contents if (found := named.search(content))), None)
    if written is None:
        return tokenizer.encode(text, allow_special=True)
    marks = [f"\ue000{i}\ue001" for i in range(len(contents))]
    waiting = iter(marks)
    marked = [
        {**message, "content": next(waiting)} if isinstance(message.get("content"), str) else message
        for message in messages
    ]
    pieces = _split(render(template, marked, **more), named)
    for mark, content in zip(marks, contents, strict=True):
        pieces = [(piece if special else piece.replace(mark, content), special) for piece, special in pieces]
    if "".join(piece for piece, _ in pieces) != text:
        raise TokenizerError(
            f"a message holds {written!r}, the name of a control token, and this chat template changes what messages "
            "say, so the two cannot be told apart; take it out of the message"
        )
    ids = tokenizer.special_ids()
    return [i for piece, special in pieces for i in ([ids[piece]] if special else tokenizer.encode(piece))]


def _split(text: str, named: "regex.Pattern[str]") -> list[tuple[str, bool]]:
    """A text cut at the names of control tokens: its parts, and whether each is such a name."""
    pieces, begin = [], 0
    for match in named.finditer(text):
        pieces += [(text[begin : match.start()], False), (match[0], True)]
        begin = match.end()
    return [(piece, special) for piece, special in [*pieces, (text[begin:], False)] if piece]


def _environment() -> Any:
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks what the assistant says, for training; it changes nothing of the text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def as_json(value: Any, indent: int | None = None, **more: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent, **more)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = as_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    return environment

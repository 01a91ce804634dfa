"""Read messages and commands, and print answers: in a terminal, from a pipe, or as JSON lines."""

import contextlib
import io
import json
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassgpt.cli.chatting.commands import run_command
from glassgpt.cli.printing.output import error_message, pluralize, say
from glassgpt.cli.printing.token_tables import has_colours
from glassgpt.errors import shell_command

if TYPE_CHECKING:
    from glassgpt.inference.conversation import Answer, ChatSession


@dataclass
class Chat:
    """A chat session and how it is shown.

    Attributes:
        session: the conversation.
        history: the file that keeps it, if any.
        in_terminal: whether a person sees it.
        failed: whether a message or command failed.
    """

    session: "ChatSession"
    history: Path | None
    in_terminal: bool
    failed: bool = False

    def note(self, text: str) -> None:
        """Print a remark to standard error, less bright than the answers."""
        from rich.console import Console

        style = "dim" if has_colours() else ""
        Console(stderr=True).print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def handle(self, line: str) -> bool:
        """Run a command or answer a message; return whether the chat goes on. No error ends it."""
        try:
            if line.startswith("/") and not line.startswith("//"):
                return self.command(line)
            if line.strip():
                self.answer(line[1:] if line.startswith("//") else line)
        except KeyboardInterrupt:
            if not self.in_terminal:
                raise
            print()
        except BrokenPipeError:
            raise
        except Exception as error:
            self.failed = True
            say(error_message(error) or traceback.format_exc())
        return True

    def command(self, line: str) -> bool:
        """Run a command; return whether the chat goes on."""
        turns = self.session.turns
        goes_on = run_command(self.session, line)
        if self.history and turns and self.session.turns is not turns:
            self.note(
                f"the next answer replaces the conversation in {self.history}; /load {self.history} brings it back"
            )
        return goes_on

    def answer(self, text: str) -> None:
        """Answer a message, print the answer as it comes, and keep the history."""
        answer = self.session.ask(text)
        if answer.left_out:
            self.note(_left_out(answer, self.session))
        try:
            with contextlib.closing(self.session.stream(answer)) as pieces:
                for piece in pieces:
                    print(piece, end="", flush=True)
        except KeyboardInterrupt:
            if not self.in_terminal:
                raise
        finally:
            print()  # what comes next begins on a line of its own
        if remark := _remark(answer, self.session):
            self.note(remark)
        if self.history and self.session.unsaved:
            self.session.save(self.history)


def run(session: "ChatSession", history: Path | None, as_json: bool) -> int:
    """Chat until the input ends; return the exit code, which is 2 if a message or command of a pipe failed."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are not UTF-8 become U+FFFD
    in_terminal = not as_json and sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    chat = Chat(session, history, in_terminal)
    if in_terminal:
        _talk(chat)
        return 0
    for line in _piped_lines():
        if as_json:
            print(json.dumps(_answer_as_json(chat, line), ensure_ascii=False), flush=True)
        elif not chat.handle(line):
            break
    return 2 if chat.failed else 0


def _piped_lines() -> Iterator[str]:
    """Yield the lines of standard input that are not blank."""
    for line in sys.stdin or ():
        text = line.removesuffix("\n").removeprefix("\ufeff")
        if text.strip():
            yield text


def _talk(chat: Chat) -> None:
    """Chat in a terminal until Ctrl-D, /exit, or Ctrl-C twice at the prompt."""
    from glassgpt.estimate import count_parameters

    session = chat.session
    config = session.model.config
    count, context = sum(count_parameters(config).values()), config.block_size  # also of a quantised model
    print(f"{session.name}: {count:,} parameters, context of {context:,} tokens")
    if session.turns:
        print(f"continued: {pluralize(len(session.messages), 'message')} of {chat.history}")
    chat.note("/help lists the commands; Ctrl-C stops an answer; Ctrl-D ends the chat")
    with contextlib.suppress(KeyboardInterrupt):  # one that comes while the program is busy with the last one
        _answer_lines(chat)
    if session.unsaved:
        chat.note("the conversation was not saved; /save FILE or --history FILE would keep it")
    elif session.turns and chat.history:
        again = shell_command("chat", Path(session.name), "--history", chat.history)
        chat.note(f"the conversation is in {chat.history}; continue it with: {again}")


def _answer_lines(chat: Chat) -> None:
    prompt, interrupted = _prompt(), False
    while True:
        try:
            print()
            line = input(prompt)
            interrupted = False
            if not chat.handle(line):
                return
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            if interrupted:
                return
            interrupted = True
            chat.note("Ctrl-C again, Ctrl-D or /exit ends the chat")


def _prompt() -> str:
    """Turn on line editing if there is readline; return the prompt for `input`."""
    try:
        import readline
    except ImportError:
        return "> "
    readline.parse_and_bind("set enable-bracketed-paste on")  # pasted lines are one message
    return "\x01\x1b[1m\x02>\x01\x1b[0m\x02 " if has_colours() else "> "  # \x01 and \x02: these take no columns


def _answer_as_json(chat: Chat, text: str) -> dict[str, Any]:
    """Answer a message; return the answer, or the error, as JSON values."""
    session = chat.session
    try:
        answer = session.ask(text)
        for _ in session.stream(answer):
            pass
        if chat.history and session.unsaved:
            session.save(chat.history)
    except Exception as error:
        if not (message := error_message(error)):
            raise
        chat.failed = True
        return {"message": text, "error": message.removeprefix("error: ")}
    return {
        "message": text, "answer": answer.text, "ending": answer.ending, "tokens": len(answer.tokens),
        "prompt_tokens": len(answer.prompt), "cached_tokens": answer.cached, "left_out": answer.left_out,
    }  # fmt: skip


def _left_out(answer: "Answer", session: "ChatSession") -> str:
    context = session.model.config.block_size
    return (
        f"the context of {context:,} tokens is full: the model no longer reads the oldest "
        f"{pluralize(answer.left_out, 'message')}"
    )


def _remark(answer: "Answer", session: "ChatSession") -> str:
    """Say how an answer ended, unless it ended by itself."""
    if answer.ending == "stopped":
        if answer.text.strip():
            return "stopped; the answer so far is kept"
        return "stopped before the answer began; the message is not kept"
    if not answer.text.strip():
        return "the answer is empty; the message is not kept"
    if answer.ending == "length":
        count = answer.settings.max_new_tokens
        return f"cut off after {pluralize(count, 'token')}; /settings max_new_tokens=N changes that"
    if answer.ending == "context":
        return f"cut off: the context of {session.model.config.block_size:,} tokens is full"
    return ""

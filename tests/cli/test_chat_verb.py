"""`glassgpt chat`: from a pipe, as JSON lines, its commands, and Ctrl-C in a terminal."""

import contextlib
import errno
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from glassgpt.cli.chatting.commands import COMMANDS
from talking import talker

Said = Callable[..., tuple[int, str, str]]
PLAIN = ["--greedy", "-n", 12]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import glassgpt

    path = tmp_path_factory.mktemp("models") / "talker"
    glassgpt.save(*talker(block_size=256), path)
    return path


@pytest.fixture
def said(cli: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Said:
    """Pipe lines into a chat: ``said("Hello", options) -> (code, out, err)``."""

    def run(lines: str | bytes, *options: object) -> tuple[int, str, str]:
        content = lines if isinstance(lines, bytes) else f"{lines}\n".encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
        return cli("chat", folder, *options)

    return run


def session(folder: Path, **settings: Any) -> Any:
    from glassgpt import load
    from glassgpt.inference.conversation import ChatSession
    from glassgpt.inference.decode import Request
    from glassgpt.sampling import SamplingConfig

    sampling = {"temperature": 0.7, "top_p": 0.9} | settings
    return ChatSession(*load(folder), Request((), 12, SamplingConfig(**sampling), 5))


def answers(chat: Any, *messages: str) -> list[str]:
    return ["".join(chat.stream(chat.ask(message))) for message in messages]


def test_each_piped_line_is_a_message_and_the_first_answer_is_that_of_sample(
    cli: Any, said: Said, folder: Path
) -> None:
    messages = ["Hello!", "Why? 😀 <|im_end|>"]
    expected = answers(session(folder), *messages)
    code, out, err = said("\n \n".join(messages), "-n", 12, "--seed", 5)
    assert (code, out) == (0, "".join(f"{text}\n" for text in expected)), err
    same = ["-n", 12, "--seed", 5, "--temperature", 0.7, "--top-p", 0.9]
    assert cli("sample", folder, "--chat", "-p", "Hello!", *same)[1] == f"{expected[0]}\n"


def test_json_has_one_line_per_message_also_for_an_error(said: Said, folder: Path) -> None:
    lines = "\ufeffHello!\r\n/help\n".encode() + b"x" * 300 + "\nGrö\xdfe".encode("latin-1")
    code, out, err = said(lines, "-n", 12, "--seed", 5, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (2, "")
    assert [row["message"] for row in rows] == ["Hello!", "/help", "x" * 300, "Gr\ufffd\ufffde"[:3] + "\ufffde"]
    assert "the message is too long" in rows.pop(2)["error"]
    assert [row["answer"] for row in rows] == answers(session(folder), *(row["message"] for row in rows))
    assert rows[1]["cached_tokens"] == rows[0]["prompt_tokens"] + rows[0]["tokens"] - 1


def test_history_continues_where_the_last_chat_ended(said: Said, folder: Path, tmp_path: Path) -> None:
    one = said("Hello!\nWhy?", *PLAIN, "--system", "Be brief.")[1]
    options = [*PLAIN, "--history", "h.jsonl"]
    two = said("Hello!", *options, "--system", "Be brief.")[1] + said("Why?", *options)[1]
    assert one == two
    row = json.loads((tmp_path / "h.jsonl").read_text())
    assert [m["role"] for m in row["messages"]] == ["system", *["user", "assistant"] * 2]
    assert "the next answer replaces the conversation in h.jsonl" in said("/reset", *options)[2]
    (tmp_path / "h.jsonl").write_text("something else")
    code, out, err = said("Hello!", *options)
    assert (code, out, "none of its 1 rows" in err) == (2, "", True)
    assert (tmp_path / "h.jsonl").read_text() == "something else"


def test_commands(said: Said, folder: Path, tmp_path: Path) -> None:
    chat = session(folder, temperature=0.0)
    first, second = answers(chat, "Hello!", "/etc")
    chat.system = "Be brief."
    third = answers(chat, "Hello!")[0]
    script = ["Hello!", "//etc", "/system Be brief.", "/system", "Hello!", "/save c.jsonl", "/reset", "/load c.jsonl"]
    code, out, err = said("\n".join(script), *PLAIN)
    saved = ["saved: c.jsonl, 7 messages", "a new conversation, with the same system message"]
    shown = ["system message: Be brief."] * 2
    assert (code, out.splitlines()) == (
        0, [first, second, *shown, third, *saved, "loaded: c.jsonl, 7 messages"]
    ), err  # fmt: skip
    assert json.loads((tmp_path / "c.jsonl").read_text(encoding="utf-8"))["messages"] == chat.messages
    assert said("/exit\nHello!", *PLAIN) == (0, "", "")
    shown = said("/help", *PLAIN)[1]
    assert all(f"\n{name}" in f"\n{shown}" for name in COMMANDS)


MISTAKES = {
    "/foo bar": "there is no command /foo; there are /help, ",
    "/why": "there is no answer yet",
    "/save": "/save needs the name of a file",
    "/save c.jsonl": "nothing to save",
    "/load nothing.jsonl": "there is no file of conversations",
    "/load .": "is a folder",
    "/settings temprature=1": "there is no setting 'temprature'; there are temperature, ",
    "/settings seed=1.5 top_k=x": "2 problems",
    "/settings temperature=-1": "temperature: -1.0 is not",
    "/settings max_new_tokens=0": "max_new_tokens: 0 is less than 1",
    "x" * 300: "the message is too long",
}


def test_a_mistake_is_one_message_and_the_chat_goes_on(said: Said, folder: Path) -> None:
    code, out, err = said("\n".join([*MISTAKES, "Hello!", "/save no/such/folder.jsonl", "/why 99", "Why?"]), *PLAIN)
    assert (code, out.splitlines()) == (2, answers(session(folder, temperature=0.0), "Hello!", "Why?"))
    for message in [*MISTAKES.values(), "error: no/such/", "/why 99: give a step from 1 to 11"]:
        assert message in err
    assert err.count("error: ") == len(MISTAKES) + 2 and "Traceback" not in err


def test_settings_change_the_next_answer_and_why_explains_it(said: Said, folder: Path) -> None:
    changed = "/settings temperature=0.4 top_k=3 seed=5 max_new_tokens=12"
    chat = session(folder, temperature=0.4, top_k=3)
    text = answers(chat, "Hello!")[0]
    code, out, err = said("\n".join([changed, "Hello!", "/why", "/why 2"]))
    assert code == 0, err
    lines = out.splitlines()
    shown = "top_p=0.9 min_p=0.0 repetition_penalty=1.0 seed=5 max_new_tokens=12"
    assert lines[:2] == [f"temperature=0.4 top_k=3 {shown}", text]
    assert lines[2].split() == ["step", "token", "model", "sampled", "alternatives", "(model)"]
    step, tokens = chat.last.steps[1], chat.last.tokens
    probability = step.logits[0].double().softmax(dim=-1)
    row = lines[4].split(maxsplit=4)
    assert row[:3] == ["2", repr(chr(tokens[1])), f"{probability[tokens[1]]:.1%}"]
    others = [i for i in probability.argsort(descending=True).tolist() if i != tokens[1]][:3]
    assert row[4] == ", ".join(f"{chr(i)!r} {probability[i]:.1%}" for i in others)
    assert lines[16].startswith(f"step 2  after {text[:1]!r}  draw {float(step.uniform[0]):.4f}, in [")
    assert sum(line.startswith("  > ") for line in lines[17:]) == 1


def test_an_error_of_the_program_is_shown_and_the_chat_goes_on(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    from glassgpt.inference.conversation import ChatSession

    def broken(*_: object) -> None:
        raise ValueError("a bug")

    ask = ChatSession.ask
    monkeypatch.setattr(ChatSession, "ask", lambda self, text: broken() if text == "break" else ask(self, text))
    code, out, err = said("break\nHello!", *PLAIN)
    assert code == 2 and "ValueError: a bug" in err and len(out.splitlines()) == 1
    code, out, err = said("Hello!", *PLAIN, "--temperature", 1)
    assert (code, out, "--greedy is a temperature of 0" in err) == (2, "", True)


ENDS = {
    "Ctrl-D": ([EOFError], 0),
    "/exit": (["/exit"], 0),
    "Ctrl-C twice": ([KeyboardInterrupt, KeyboardInterrupt], 1),
    "not twice in a row": ([KeyboardInterrupt, "/reset", KeyboardInterrupt, "Hello!", EOFError], 2),
}


@pytest.mark.parametrize("which", ENDS)
def test_the_ends_of_a_chat_in_a_terminal_and_what_they_say(
    which: str, cli: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, hints = ENDS[which]
    typed = iter(["Hello!", *lines])

    def type_line(prompt: str) -> str:
        line = next(typed)
        if isinstance(line, type):
            raise line
        return line

    monkeypatch.setattr("builtins.input", type_line)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, err = cli("chat", folder, *PLAIN)
    assert (code, next(typed, "")) == (0, "")
    assert err.count("Ctrl-C again, Ctrl-D or /exit ends the chat") == hints
    assert err.splitlines()[-1] == "the conversation was not saved; /save FILE or --history FILE would keep it"
    assert "\x1b" not in out + err
    expected = answers(session(folder, temperature=0.0), "Hello!")[0]
    assert f"{expected}\n" in out


class Terminal:
    """A chat in a pseudo-terminal of its own."""

    def __init__(self, *arguments: object, **environment: str):
        self.master, slave = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "glassgpt", "chat", *map(str, arguments)],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=os.environ | environment,
        )  # fmt: skip
        os.close(slave)
        self.unread = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def interrupt(self) -> None:
        """To be used while it computes: a signal between the prompt and Python's wait for keys waits for a key."""
        self.process.send_signal(signal.SIGINT)

    def until(self, text: str) -> str:
        """What is printed up to this text; an error if it ends before."""
        while text not in self.unread:
            try:
                self.unread += os.read(self.master, 65536).decode(errors="replace")
            except OSError as error:
                assert error.errno == errno.EIO
                raise AssertionError(f"{text!r} did not come: {self.unread}") from None
        found, _, self.unread = self.unread.partition(text)
        return found


@contextlib.contextmanager
def terminal(*arguments: object, **environment: str) -> Iterator[Terminal]:
    chat = Terminal(*arguments, **environment)
    try:
        yield chat
        with contextlib.suppress(AssertionError):
            chat.until("what never comes")
        assert chat.process.wait() == 0, chat.unread
    finally:
        chat.process.kill()
        chat.process.wait()
        os.close(chat.master)


def test_ctrl_c_stops_an_answer_and_keeps_it(tmp_path: Path) -> None:
    """The answer would go on for 262,144 tokens; the signal comes after the first of them."""
    import glassgpt

    model, tokenizer = talker(block_size=2**19, ends=False)
    glassgpt.save(model, tokenizer, tmp_path / "talker")
    history = tmp_path / "h.jsonl"
    with terminal(tmp_path / "talker", "-n", 2**18, "--decode", "eager", "--history", history, TERM="dumb") as chat:
        chat.until("> ")
        chat.type("Hello!\r")
        chat.until("Hello!\r\n")
        while len(chat.unread) < 50:  # part of the answer, beside what readline prints
            chat.unread += os.read(chat.master, 100).decode()
        chat.interrupt()
        answer = chat.until("\r\nstopped; the answer so far is kept\r\n").rpartition("\r")[2]
        chat.until("> ")
        chat.type("/settings max_new_tokens=5\r")
        chat.until("max_new_tokens=5\r\n")
        chat.until("> ")
        chat.type("Go on.\r")
        chat.until("cut off after 5 tokens")
        chat.until("> ")
        chat.type("\x04")
        chat.until("the conversation is in")
    messages = json.loads(history.read_text())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert messages[1]["content"] == answer.removesuffix("^C") and len(messages[3]["content"]) == 5

"""The commands of ``glassgpt chat``."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassgpt.cli.printing.output import pluralize, print_table, print_text
from glassgpt.cli.printing.steps import print_step
from glassgpt.errors import ConfigError
from glassgpt.glass.tokens import quoted

if TYPE_CHECKING:
    from glassgpt.inference.conversation import ChatSession
    from glassgpt.inference.decode import Request
    from glassgpt.tokenizer import Tokenizer

#: Candidates of a step that /why STEP shows, and alternatives to each token that /why shows.
_CANDIDATES, _ALTERNATIVES = 6, 3
#: What /settings changes.
_SETTINGS: dict[str, type[int] | type[float]] = {
    "temperature": float, "top_k": int, "top_p": float, "min_p": float, "repetition_penalty": float, "seed": int,
    "max_new_tokens": int,
}  # fmt: skip


def run_command(session: "ChatSession", line: str) -> bool:
    """Run the command of a line; return whether the chat goes on.

    Raises:
        GlassError: if there is no such command, or it fails.
    """
    name, argument = [*line.split(maxsplit=1), ""][:2]
    if name == "/exit":
        return False
    if name not in COMMANDS:
        raise ConfigError(
            f"there is no command {name}; there are {', '.join([*COMMANDS, '/exit'])}. "
            "To send a message that begins with /, write //"
        )
    COMMANDS[name][2](session, argument.strip())
    return True


def _help(session: "ChatSession", argument: str) -> None:
    rows = [[f"{name} {usage}".rstrip(), text] for name, (usage, text, _) in COMMANDS.items()]
    rows += [["/exit", "end the chat; Ctrl-D, too"], ["//TEXT", "send a message that begins with /"]]
    print_table([], rows)


def _system(session: "ChatSession", argument: str) -> None:
    if argument:
        session.system = argument
    none = "no system message; the chat template may have its own"
    print_text(none if session.system is None else f"system message: {session.system}")


def _reset(session: "ChatSession", argument: str) -> None:
    session.reset()
    print("a new conversation" + ("" if session.system is None else ", with the same system message"))


def _save(session: "ChatSession", argument: str) -> None:
    path = _path(argument, "/save")
    session.save(path)
    print_text(f"saved: {path}, {pluralize(len(session.messages), 'message')}")


def _load(session: "ChatSession", argument: str) -> None:
    path = _path(argument, "/load")
    session.load(path)
    print_text(f"loaded: {path}, {pluralize(len(session.messages), 'message')}")


def _path(argument: str, command: str) -> Path:
    if not argument:
        raise ConfigError(f"{command} needs the name of a file: {command} chat.jsonl")
    return Path(argument).expanduser()


def _settings(session: "ChatSession", argument: str) -> None:
    if argument:
        session.settings = _changed(session.settings, argument.split())
    values = vars(session.settings) | vars(session.settings.sampling)
    print_text(" ".join(f"{name}={values[name]}" for name in _SETTINGS))


def _changed(settings: "Request", words: list[str]) -> "Request":
    """Return the settings with changes as ``temperature=0.2``; raise a ConfigError if one is wrong."""
    sampling, others, problems = dict[str, Any](), dict[str, Any](), list[str]()
    for word in words:
        name, _, value = word.partition("=")
        kind = _SETTINGS.get(name)
        try:
            if kind is None:
                problems.append(f"there is no setting {name!r}; there are {', '.join(_SETTINGS)}")
            elif name in vars(settings.sampling):
                sampling[name] = kind(value)
            else:
                others[name] = kind(value)
        except ValueError:
            expected = "a whole number" if kind is int else "a number"
            problems.append(f"{name}: expected {expected}, got {value!r}; write {name}=VALUE")
    if others.get("max_new_tokens", 1) < 1:
        problems.append(f"max_new_tokens: {others['max_new_tokens']} is less than 1")
    if problems:
        raise ConfigError(problems)
    return dataclasses.replace(settings, sampling=dataclasses.replace(settings.sampling, **sampling), **others)


def _why(session: "ChatSession", argument: str) -> None:
    from glassgpt.glass.choices.step import describe_step, step_probabilities

    answer, tokenizer = session.last, session.tokenizer
    if answer is None or not answer.steps:
        raise ConfigError("there is no answer yet; /why explains the last one")
    first = len(answer.tokens) - len(answer.steps)  # index of the first step that is kept
    sampling = answer.settings.sampling
    if argument:
        number = int(argument) if argument.isascii() and argument.isdigit() else 0
        if not first < number <= len(answer.tokens):
            raise ConfigError(f"/why {argument}: give a step from {first + 1} to {len(answer.tokens)}, or none")
        before = answer.tokens[: number - 1]
        described = describe_step(
            answer.steps[number - 1 - first], sampling, [*answer.prompt, *before], tokenizer, _CANDIDATES
        )
        print_step(number, described, tokenizer.decode(before), sampling, tokenizer)
        return
    if first:
        print_text(
            f"the last {pluralize(len(answer.steps), 'token')} of {len(answer.tokens):,}; no more logits are kept"
        )
    rows = []
    for number, step in enumerate(answer.steps, start=first + 1):
        previous_ids = [*answer.prompt, *answer.tokens[: number - 1]]
        chosen, alternatives = step_probabilities(step, sampling, previous_ids, _ALTERNATIVES)
        others = ", ".join(f"{_named(tokenizer, i)} {p:.1%}" for i, p in alternatives)
        rows.append([str(number), _named(tokenizer, step.tokens[0]), f"{chosen[0]:.1%}", f"{chosen[1]:.1%}", others])
    print_table(["step", "token", "model", "sampled", "alternatives (model)"], rows, right=(0, 2, 3))
    print_text("model: its probability; sampled: after the settings. /why STEP shows all about a step")


def _named(tokenizer: "Tokenizer", token: int) -> str:
    return quoted(tokenizer.token_bytes(token))


#: By name: the arguments, the line of /help, and the function.
COMMANDS: dict[str, tuple[str, str, Callable[["ChatSession", str], None]]] = {
    "/help": ("", "list the commands", _help),
    "/system": ("[TEXT]", "show or change the system message", _system),
    "/reset": ("", "begin a new conversation", _reset),
    "/save": ("FILE", "save the conversation, as `glassgpt tune` reads it", _save),
    "/load": ("FILE", "continue a saved conversation", _load),
    "/settings": ("[NAME=VALUE ...]", "show or change the settings: temperature=0.2 seed=3", _settings),
    "/why": ("[STEP]", "show how the tokens of the last answer were chosen; all about one STEP", _why),
}

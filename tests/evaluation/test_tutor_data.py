"""The data of the tutor: complete, without overlap, and true of this program's command line."""

import functools
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from glassgpt.assets import tutor
from glassgpt.cli.chatting.commands import COMMANDS
from glassgpt.cli.main import app
from glassgpt.config import SECTIONS, ConfigOverrides, parse_overrides, presets
from glassgpt.data.audit.leaks import Grams, overlap
from glassgpt.data.conversations.rows import read_rows
from glassgpt.evaluation.questions import read_questions, refuses, score
from glassgpt.files import parse_json

#: Words after the program's name that are not verbs.
NOT_VERBS = {"command", "tutor", "or"}
SETTINGS = {name for section in SECTIONS.values() for name in section.__dataclass_fields__} | {"preset"}


@functools.cache
def lines() -> list[dict[str, Any]]:
    return [parse_json(line) for line in tutor.conversations_path().read_text(encoding="utf-8").splitlines()]


def rows() -> list[dict[str, Any]]:
    """The conversations, without the general texts."""
    return [row for row in lines() if "messages" in row]


def general_texts() -> list[str]:
    return [row["text"] for row in lines() if "text" in row]


def texts_of(role: str) -> list[str]:
    return [message["content"] for row in rows() for message in row["messages"] if message["role"] == role]


def conversations() -> Iterator[tuple[str, list[str]]]:
    """The whole text of each conversation, also of held-out questions, and its answers."""
    for row in rows():
        answers = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
        yield " ".join(message["content"] for message in row["messages"]), answers
    for question in read_questions(tutor.questions_path()):
        yield f"{question.text} {question.answer}", [question.answer]


@functools.cache
def program() -> Any:
    return typer.main.get_command(app)


def command_of(words: list[str]) -> tuple[str, Any, list[str]]:
    """The verb that a command line begins with, its command, and its arguments."""
    group = program()
    names: list[str] = []
    while hasattr(group, "commands") and words:
        assert words[0] in group.commands, f"there is no verb {words[0]!r}"
        group, names, words = group.commands[words[0]], [*names, words[0]], words[1:]
    return " ".join(names), group, words


@functools.cache
def options_of(verb: str) -> frozenset[str]:
    _, command, _ = command_of(verb.split())
    return frozenset(name for parameter in command.params for name in parameter.opts)


@functools.cache
def all_verbs() -> frozenset[str]:
    def below(command: Any, names: tuple[str, ...]) -> Iterator[str]:
        if hasattr(command, "commands"):
            for name, child in command.commands.items():
                yield from below(child, (*names, name))
        else:
            yield " ".join(names)

    return frozenset(below(program(), ()))


def check_settings(words: list[str]) -> None:
    """Every key=value can be read; the value of a setting is of its type."""
    overrides: list[ConfigOverrides] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or word.startswith("-"):
            continue
        assert key in SETTINGS, f"there is no setting {key!r}"
        if key == "preset":
            presets.get(value)
        else:
            overrides.append(parse_overrides([word]))
    for given in overrides:
        for section, values in given.items():
            SECTIONS[section](**values)


# --- the size and the kinds


def test_there_are_enough_examples_of_every_kind() -> None:
    found = read_rows("tutor")
    assert not found.problems
    assert len(lines()) == len(found.conversations)
    assert len(rows()) >= 400
    assert len(general_texts()) + len(rows()) == len(lines())
    assert sum(len(row["messages"]) > 2 for row in rows()) >= len(rows()) / 10
    assert sum(row["topic"] == "refusal" for row in rows()) >= len(rows()) / 10


def test_every_topic_has_examples_and_questions() -> None:
    questions = read_questions(tutor.questions_path())
    assert len(questions) == 80
    assert all(question.must and question.answer for question in questions)
    assert {row["topic"] for row in rows()} == {question.topic for question in questions} | {"greeting"}
    counts = Counter(row["topic"] for row in rows())
    assert min(counts[question.topic] for question in questions) >= 6


def test_the_data_card_has_the_numbers() -> None:
    card = tutor.conversations_path().with_name("README.md").read_text(encoding="utf-8")
    assert f"**{len(rows())}** conversations" in card
    assert f"**{len(general_texts())}** pieces" in card
    assert "{n}" not in card


def test_answers_are_short_and_plain() -> None:
    for text in texts_of("assistant"):
        assert 8 <= len(text.split()) <= 60, text
        assert not re.search(r"\*\*|^\s*[-#*] |\n", text), text
        assert text.count("`") % 2 == 0, text


# --- the rubrics


def test_reference_answers_get_full_points() -> None:
    for question in read_questions(tutor.questions_path()):
        scored = score(question, question.answer)
        assert scored is not None and scored.points == 1, (question, scored)
        assert question.is_refusal == refuses(question.answer), question


def test_a_repeated_question_gets_no_points() -> None:
    for question in read_questions(tutor.questions_path()):
        scored = score(question, question.text)
        assert scored is not None and len(scored.missed) == len(question.must), (question, scored)


def test_only_refusals_refuse() -> None:
    for row in rows():
        answers = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
        assert any(map(refuses, answers)) == (row["topic"] == "refusal"), answers


# --- no overlap


def test_no_question_repeats() -> None:
    first = Counter(" ".join(row["messages"][0]["content"].lower().split()) for row in rows())
    assert max(first.values()) == 1, first.most_common(1)
    asked = {" ".join(text.lower().split()) for text in texts_of("user")}
    questions = [" ".join(question.text.lower().split()) for question in read_questions(tutor.questions_path())]
    assert len(set(questions)) == len(questions)
    assert not asked.intersection(questions)


def test_the_leak_audit_finds_no_held_out_text_in_the_examples() -> None:
    questions = read_questions(tutor.questions_path())
    held_out = [text for question in questions for text in (question.text, question.answer)]
    held_out.append(tutor.general_path().read_text(encoding="utf-8"))
    found = overlap(Grams.of(held_out), texts_of("user") + texts_of("assistant") + general_texts())
    assert found.hit == 0, found.passages
    assert found.documents > 140


# --- the command line


def test_every_command_in_an_answer_is_accepted() -> None:
    for _, answers in conversations():
        for line in (line for answer in answers for line in re.findall(r"`(glassgpt [^`]+)`", answer)):
            verb, command, arguments = command_of(shlex.split(line)[1:])
            if arguments:  # else it is only named
                try:
                    command.make_context(verb, list(arguments))
                except Exception as error:
                    pytest.fail(f"{line}: {error!r}")
            check_settings(arguments)


def test_every_option_and_setting_in_an_answer_exists() -> None:
    for whole, answers in conversations():
        named = {verb for verb in all_verbs() if re.search(rf"\b{verb}\b", whole)}
        named |= {"train"} if "training" in whole else set()  # which its answers call by its noun, too
        options = frozenset().union(*(options_of(verb) for verb in named or all_verbs()))
        for answer in answers:
            spans = re.findall(r"`([^`]+)`", answer)
            for word in re.findall(r"(?<![\w-])--?[a-z][\w-]*", " ".join(spans)):
                assert word in options, (word, answer)
            for key in (match[1] for span in spans if (match := re.match(r"([a-z_]+)=", span))):
                assert key in SETTINGS, (key, answer)
            for name in re.findall(r"^(/[a-z]+)", "\n".join(spans), re.MULTILINE):
                assert name in {*COMMANDS, "/exit"}, (name, answer)


def test_every_verb_in_plain_text_exists() -> None:
    first_words = {verb.split()[0] for verb in all_verbs()}
    for text in (answer for _, answers in conversations() for answer in answers):
        for first, second in re.findall(r"glassgpt ([a-z]+)(?: ([a-z]+))?", text):
            assert first in first_words | NOT_VERBS, text
            assert {first, f"{first} {second}"} & {*all_verbs(), *NOT_VERBS}, text

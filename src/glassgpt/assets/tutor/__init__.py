"""The data of the glassgpt tutor: conversations to train on, held-out questions, and a general text.

``README.md`` beside this file is the data card.
"""

from pathlib import Path

_FOLDER = Path(__file__).parent


def conversations_path() -> Path:
    """The training conversations: JSONL, OpenAI messages, with a topic each."""
    return _FOLDER / "conversations.jsonl"


def questions_path() -> Path:
    """The held-out questions with reference answers and rubrics: JSONL, for ``glassgpt.evaluation.questions``."""
    return _FOLDER / "questions.jsonl"


def general_path() -> Path:
    """A text about everyday subjects, to measure how much a model forgets."""
    return _FOLDER / "general.txt"

"""The exercises of lesson 28."""

import random
from collections.abc import Callable
from pathlib import Path

from glassgpt.learn.exercises import Exercise, Wrong
from glassgpt.tokenizer import CharTokenizer
from glassgpt.tokenizer.chat import CHATML, encode_trained
from glassgpt.tokenizer.chatml import IM_END, IM_START, with_chatml


def check_targets(answer: Callable[[list[int], list[bool]], list[int]]) -> None:
    """Compare with the definition."""
    rng = random.Random(0)
    for length in (2, 3, 9):
        ids = [rng.randrange(50) for _ in range(length)]
        for trained in ([False] * length, [True] * length, [rng.random() < 0.5 for _ in range(length)]):
            right = [ids[t + 1] if trained[t + 1] else -100 for t in range(length - 1)]
            found = [int(number) for number in answer(list(ids), list(trained))]
            if found != right:
                raise Wrong(f"targets({ids}, {trained}) should be {right}, and is {found}")


def check_trained_tokens(answer: Callable[[list[int], int, int, list[int]], list[bool]]) -> None:
    """Compare with the package's mask, for one turn, several, a system message, and words that look like roles."""
    tokenizer = with_chatml(CharTokenizer.train("abcdefghijklmnopqrstuvwxyz \n"), Path("exercise"))
    special = tokenizer.special_ids()
    for roles, contents in (
        (("user", "assistant"), ("hi", "hello")),
        (("user", "assistant", "user", "assistant"), ("a", "b", "c", "d")),
        (("system", "user", "assistant"), ("be short", "say assistant\n", "no")),
        (("user", "assistant"), ("a", "b\nc")),
        (("user",), ("nobody answers",)),
    ):
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        ids, right = encode_trained(tokenizer, CHATML, messages) if "assistant" in roles else (None, None)
        if ids is None or right is None:
            ids = [special[IM_START], *tokenizer.encode("user\nnobody answers"), special[IM_END]]
            right = [False] * len(ids)
        found = [
            bool(b) for b in answer(list(ids), special[IM_START], special[IM_END], tokenizer.encode("assistant\n"))
        ]
        what = ", ".join(f"{message['role']}: {message['content']!r}" for message in messages)
        if len(found) != len(ids):
            raise Wrong(f"{what}: there are {len(ids)} tokens, and {len(found)} answers")
        for place, (mine, wanted) in enumerate(zip(found, right, strict=True)):
            if mine != wanted:
                token = tokenizer.decode([ids[place]])
                raise Wrong(f"{what}: token {place} ({token!r}) should be {wanted}, and is {mine}")


EXERCISES = (
    Exercise("targets", "Targets with -100 where nothing is trained.", check_targets,
             "The mask says of a *token* that it is trained. At which position is this token the target?"),
    Exercise("trained_tokens", "Which tokens of a ChatML conversation are trained.", check_trained_tokens,
             "After each start token, look whether the ids of the role follow. An answer begins behind them."),
)  # fmt: skip

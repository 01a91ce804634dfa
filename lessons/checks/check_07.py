"""The exercises of lesson 7."""

from collections import Counter
from collections.abc import Callable

import torch

from glassgpt.learn.compare import compare
from glassgpt.learn.exercises import Exercise, Wrong

UNKNOWN, END = "<|unk|>", "<|endoftext|>"


def _vocabulary(words: list[str], size: int) -> dict[str, int]:
    counts = Counter(words)
    kept = sorted(counts, key=lambda word: (-counts[word], word))[: size - 2]
    return {word: i for i, word in enumerate([*kept, UNKNOWN, END])}


def check_build_vocabulary(answer: Callable[[list[str], int], dict[str, int]]) -> None:
    """Compare with sorting by count, then by word."""
    for words, size in (
        (["the", "soup", "the", "bread", "the", "salt", "soup"], 5),
        (["b", "a", "b", "a", "c"], 10),
        (["z", "y", "x", "w", "v"], 4),
        (["A", "a", "B", "b", "a"], 6),
        (["x"], 3),
    ):
        right, found = _vocabulary(words, size), answer(list(words), size)
        where = f"for {words} and size {size}"
        if not isinstance(found, dict):
            raise Wrong(f"{where}: it should return a dict, and returns {type(found).__name__}")
        if found != right:
            raise Wrong(f"{where}: it should be {right}, and is {found}")


def check_encode_documents(answer: Callable[[list[list[str]], dict[str, int]], list[int]]) -> None:
    """Compare id by id."""
    vocabulary = _vocabulary(["the", "soup", "the", "bread", "the", "salt", "soup"], 6)
    for documents in (
        [["the", "soup"]],
        [["the", "paprika"], ["salt"]],
        [["pepper"], [], ["bread", "the"]],
        [["a", "<|endoftext|>", "b"]],
        [],
    ):
        right = []
        for document in documents:
            for word in document:
                special = word in (UNKNOWN, END)  # a word of the text is never a special token
                right.append(vocabulary[UNKNOWN] if special else vocabulary.get(word, vocabulary[UNKNOWN]))
            right.append(vocabulary[END])
        found = answer([list(document) for document in documents], dict(vocabulary))
        compare(f"the ids of {documents} with {vocabulary}", found, torch.tensor(right, dtype=torch.int64))


EXERCISES = (
    Exercise("build_vocabulary", "A dict from the most frequent words to ids.", check_build_vocabulary,
             "Sort with a key of two parts. How many words fit, if two special tokens come after them?"),
    Exercise("encode_documents", "The ids of several documents in one list.", check_encode_documents,
             "Is there an end after the last document, and after an empty one? Which words do you look up?"),
)  # fmt: skip

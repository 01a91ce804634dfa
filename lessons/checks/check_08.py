"""The exercises of lesson 8."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from glassgpt.learn.exercises import Exercise, Wrong
from glassgpt.tokenizer import BPETokenizer

_TEXT = (
    "the other mother bathes the brother there; another weather gathers. banana bananas, aaaa aaa aa. "
    "née née Zürich lower lowest newer newest wider widest " * 3
)


def check_most_frequent_pair(answer: Callable[[dict[tuple[int, ...], int]], tuple[int, int] | None]) -> None:
    """Compare with a plain count."""
    cases: list[dict[tuple[int, ...], int]] = [
        {(1, 2, 3): 1, (2, 3): 1},
        {(1, 2): 5, (3, 4): 1, (3, 4, 5): 1, (3, 4, 6): 1},
        {(9, 8): 2, (1, 5): 2, (1, 3): 2},
        {(7, 7, 7): 2, (1, 2): 3},
        {(4, 5, 4, 5): 1, (9, 9): 1},
        {(3,): 100, (1, 2): 1},
        {(3,): 100},
        {},
    ]
    for words in cases:
        counts: Counter[tuple[int, int]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                counts[pair] += count
        right = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        found = answer(dict(words))
        if found is None or right is None:
            if found is not right:
                raise Wrong(f"for {words} it should be {right}, and is {found!r}")
        elif tuple(found) != right:
            times = counts.get(tuple(found), 0)
            raise Wrong(
                f"for {words} it should be {right} ({counts[right]} times), and is {tuple(found)} ({times} times)"
            )


def check_apply_merges(answer: Callable[[bytes, list[tuple[bytes, bytes]]], list[bytes]]) -> None:
    """Compare with the package, for words that it was trained on, and for others."""
    package = BPETokenizer.train(_TEXT, 320)
    merges = package.model.merges
    words = ["the", " another", " banana", " aaaaaaa", " née", " Zürich", " gathering", "x", " lowestwidest", "🙂"]
    for word in words:
        right = [package.token_bytes(i) for i in package.encode(word)]
        found = list(answer(word.encode("utf-8"), list(merges)))
        if found != right:
            raise Wrong(f"the tokens of {word!r} should be {right}, and are {found!r}")
    given = [(b"b", b"c"), (b"a", b"b"), (b"a", b"bc")]
    if (found := list(answer(b"abc", given))) != [b"abc"]:
        raise Wrong(f"with the merges {given}, the tokens of b'abc' should be [b'abc'], and are {found!r}")
    if (found := list(answer(b"abc", given[:2]))) != [b"a", b"bc"]:
        raise Wrong(f"with the merges {given[:2]}, the tokens of b'abc' should be [b'a', b'bc'], and are {found!r}")
    if (found := list(answer(b"", given))) != []:
        raise Wrong(f"the tokens of b'' should be [], and are {found!r}")


EXERCISES = (
    Exercise("most_frequent_pair", "The pair of neighbours that occurs most often.", check_most_frequent_pair,
             "How often does a pair count if its word occurs 5 times? What decides between equal counts?"),
    Exercise("apply_merges", "The tokens of a word, by merges in the order in which they were learned.",
             check_apply_merges,
             "Begin with single bytes. If two merges are possible, which comes first: the left one, or the older one?"),
)  # fmt: skip

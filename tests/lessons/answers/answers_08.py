"""Right and wrong answers to the exercises of lesson 8."""

from collections import Counter
from itertools import pairwise


def most_frequent_pair(words):
    counts = count(words)
    return min(counts, key=lambda pair: (-counts[pair], pair), default=None)


def count(words, times=True):
    counts = Counter()
    for word, number in words.items():
        for pair in pairwise(word):
            counts[pair] += number if times else 1
    return counts


def apply_merges(word, merges):
    tokens = [bytes([b]) for b in word]
    for left, right in merges:
        merged, place = [], 0
        while place < len(tokens):
            if tokens[place : place + 2] == [left, right]:
                merged.append(left + right)
                place += 2
            else:
                merged.append(tokens[place])
                place += 1
        tokens = merged
    return tokens


def longest_match(word, merges):
    known, out = {left + right for left, right in merges}, []
    while word:
        size = next((size for size in range(len(word), 1, -1) if word[:size] in known), 1)
        out.append(word[:size])
        word = word[size:]
    return out


def from_left_to_right(word, merges):
    out = []
    for byte in word:
        out.append(bytes([byte]))
        while len(out) > 1 and (out[-2], out[-1]) in merges:
            out[-2:] = [out[-2] + out[-1]]
    return out


RIGHT = {"most_frequent_pair": most_frequent_pair, "apply_merges": apply_merges}
WRONG = {
    "most_frequent_pair": [
        lambda words: max(c, key=c.__getitem__) if (c := count(words)) else None,  # of equals, the first
        lambda words: min(c, key=lambda p: (-c[p], p), default=None) if (c := count(words, times=False)) else None,
        lambda words: min(c, key=lambda p: (-c[p], p)) if (c := count(words)) else (0, 0),  # no pair
    ],
    "apply_merges": [
        longest_match,
        from_left_to_right,
        lambda word, merges: apply_merges(word, list(reversed(merges))),
        lambda word, merges: apply_merges(word.decode("utf-8").encode("ascii", "ignore"), merges),  # drops bytes
    ],
}

"""Learning the merges of BPE from the pre-tokens of a text.

**A pre-token is held as a str, one character per token:** the token with id i is ``chr(i)``. So a pair of neighbours
is a str of two characters, and merging it everywhere, from left to right, is ``pre_token.replace(pair, new)``.
"""

import heapq
from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise

from glassgpt.files import Progress
from glassgpt.tokenizer.bpe.bytelevel import BYTES

#: Byte -> id, for `bytes.translate`.
_BYTE_IDS = bytes(sorted(range(256), key=lambda byte: BYTES[byte]))


def learn_merges(
    pre_tokens: Mapping[bytes, int], max_merges: int, min_frequency: int = 2, progress: Progress | None = None
) -> list[tuple[int, int]]:
    """Learn merges, as pairs of ids in order, from the distinct pre-tokens of a text and their counts.

    Each merge takes the most frequent pair of neighbours; of equally frequent pairs the one with the smallest left id,
    then the smallest right id. Ids 0 to 255 are the bytes in GPT-2's order (:data:`bytelevel.BYTES`), and merge i
    creates the token 256 + i. Pairs are counted once; after that, a merge visits only the pre-tokens that contain its
    pair, and updates the counts around it.

    Args:
        pre_tokens: the UTF-8 bytes of each pre-token, and its count.
        max_merges: fewer are learned when no pair occurs ``min_frequency`` times any more.
        min_frequency: the least count of a pair that is merged.
        progress: callback.
    """
    symbols = [pre_token.translate(_BYTE_IDS).decode("latin-1") for pre_token in pre_tokens]
    counts = list(pre_tokens.values())
    pair_counts: defaultdict[str, int] = defaultdict(int)
    places: defaultdict[str, list[int]] = defaultdict(list)  # pair -> pre-tokens that contain it, or did
    for i, (pre_token, count) in enumerate(zip(symbols, counts, strict=True)):
        for pair in map(str.__add__, pre_token, pre_token[1:]):
            pair_counts[pair] += count
            places[pair].append(i)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)
    merges: list[str] = []
    min_frequency = max(min_frequency, 1)  # a pair with count 0 does not exist any more
    while heap and len(merges) < max_merges:
        negative, pair = heapq.heappop(heap)
        count = pair_counts[pair]
        if count < min_frequency:
            continue
        if count != -negative:  # earlier merges removed some of its occurrences since it was queued
            heapq.heappush(heap, (-count, pair))
            continue
        for new_pair in _merge_everywhere(pair, chr(256 + len(merges)), symbols, counts, pair_counts, places):
            heapq.heappush(heap, (-pair_counts[new_pair], new_pair))
        merges.append(pair)
        if progress and (len(merges) % 64 == 0 or len(merges) == max_merges):
            progress("merging", len(merges), max_merges)
    return [(ord(pair[0]), ord(pair[1])) for pair in merges]


def _merge_everywhere(
    pair: str,
    new: str,
    symbols: list[str],
    counts: list[int],
    pair_counts: defaultdict[str, int],
    places: defaultdict[str, list[int]],
) -> set[str]:
    """Merge a pair in all pre-tokens, and update the counts and places of pairs. Returns the new pairs."""
    left, right = pair[0], pair[1]
    created: set[str] = set()
    for i in places.pop(pair):
        parts = symbols[i].split(pair)
        if len(parts) == 1:
            continue  # the pair is gone, or the pre-token was listed twice
        symbols[i], count = new.join(parts), counts[i]
        for number, (before, after) in enumerate(pairwise(parts)):  # an occurrence of the pair lies between the two
            neighbours = []
            if before:
                pair_counts[before[-1] + left] -= count
                neighbours.append(before[-1] + new)
            elif number > 0:  # directly after another occurrence
                pair_counts[right + left] -= count
                neighbours.append(new + new)
            if after:
                pair_counts[right + after[0]] -= count
                neighbours.append(new + after[0])
            for new_pair in neighbours:
                pair_counts[new_pair] += count
                places[new_pair].append(i)
                created.add(new_pair)
    del pair_counts[pair]
    return created

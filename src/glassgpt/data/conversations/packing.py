"""Pack conversations into rows of a fixed length, so that little is padding."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], block_size: int) -> list[list[int]]:
    """Distribute items over packs that hold at most ``block_size``; return the items of each pack.

    Best-fit decreasing: the longest item first, each into the fullest pack that has room for it. It needs at most 11/9
    of the smallest possible number of packs, plus one (Johnson, 1973). The result depends on the lengths alone.
    """
    assert not lengths or max(lengths) <= block_size, "an item is longer than a pack"
    packs = list[list[int]]()
    by_space = dict[int, list[int]]()  # packs by the space that is left in them
    spaces = list[int]()  # the keys of it, sorted
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        at = bisect_left(spaces, lengths[item])
        if at == len(spaces):
            number, space = len(packs), block_size
            packs.append([])
        else:
            space = spaces[at]
            number = by_space[space].pop()
            if not by_space[space]:
                del by_space[space], spaces[at]
        packs[number].append(item)
        space -= lengths[item]
        if space not in by_space:
            by_space[space] = []
            insort(spaces, space)
        by_space[space].append(number)
    return packs

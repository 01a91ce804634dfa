"""Right and wrong answers to the exercises of lesson 28."""


def trained_tokens(ids, start, end, assistant, with_end=True, all_roles=False, last_only=False):
    trained, at = [False] * len(ids), 0
    for at, i in enumerate(ids):
        begin = at + 1 + len(assistant)
        if i == start and (all_roles or ids[at + 1 : begin] == assistant):
            if last_only:
                trained = [False] * len(ids)
            stop = ids.index(end, at)
            for place in range(begin, stop + with_end):
                trained[place] = True
    return trained


RIGHT = {
    "targets": lambda ids, trained: [i if counts else -100 for i, counts in zip(ids[1:], trained[1:], strict=True)],
    "trained_tokens": trained_tokens,
}

WRONG = {
    "targets": [
        lambda ids, trained: [i if c else -100 for i, c in zip(ids[1:], trained[:-1], strict=True)],  # mask not shifted
        lambda ids, trained: [i if c else -100 for i, c in zip(ids, trained, strict=True)][:-1],  # nothing shifted
        lambda ids, trained: [i if c else 0 for i, c in zip(ids[1:], trained[1:], strict=True)],  # 0 is a token
        lambda ids, trained: ids[1:],
    ],
    "trained_tokens": [
        lambda *given: trained_tokens(*given, with_end=False),  # never stops
        lambda *given: trained_tokens(*given, all_roles=True),  # questions too
        lambda *given: trained_tokens(*given, last_only=True),
    ],
}

"""Right and wrong answers to the exercises of lesson 22."""


def induction_target(ids, after=1, itself=False, last=False):
    targets = []
    for t, i in enumerate(ids):
        places = [s + after for s in range(t) if ids[s] == i and s + after < t + itself]
        targets.append(places[-1:] if last else places)
    return targets


RIGHT = {
    "previous_share": lambda weights: weights.diagonal(-1).mean(),
    "induction_target": induction_target,
}

WRONG = {
    "previous_share": [
        lambda weights: weights.diagonal().mean(),  # the token itself
        lambda weights: weights.diagonal(1).mean(),  # rows and columns mixed up
        lambda weights: weights.diagonal(-1).sum() / len(weights),  # counts the first query, too
    ],
    "induction_target": [
        lambda ids: induction_target(ids, after=0),  # the same token, not what followed
        lambda ids: induction_target(ids, itself=True),
        lambda ids: induction_target(ids, last=True),  # only the last appearance
    ],
}

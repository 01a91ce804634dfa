"""Right and wrong answers to the exercises of lesson 1."""


def shares_memory(a, b):
    saved_a, saved_b = a.clone(), b.clone()
    a += 1000.0
    changed = not b.equal(saved_b)
    a.copy_(saved_a)
    return changed


def changes_for_ever(a, b):
    saved = b.clone()
    a += 1000.0
    return not b.equal(saved)


RIGHT = {
    "shares_memory": shares_memory,
    "split_heads": lambda x, heads: x.view(*x.shape[:2], heads, -1).transpose(1, 2),
}
WRONG = {
    "shares_memory": [
        lambda a, b: a.data_ptr() == b.data_ptr(),  # a slice begins elsewhere
        lambda a, b: a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr(),  # slices that do not overlap
        changes_for_ever,
        lambda a, b: a.shape == b.shape and a.equal(b),  # equal numbers
    ],
    "split_heads": [
        lambda x, heads: x.view(x.size(0), heads, x.size(1), -1),  # view where transpose is meant
        lambda x, heads: x.view(*x.shape[:2], heads, -1),  # not exchanged
        lambda x, heads: x.view(*x.shape[:2], -1, heads).permute(0, 3, 1, 2),  # every heads-th number
    ],
}

"""Right and wrong answers to the exercises of lesson 12."""


def cross(x, memory, W_q, W_k, W_v, scale=None, dim=-1):
    scores = (x @ W_q) @ (memory @ W_k).mT * (W_k.size(1) ** -0.5 if scale is None else scale)
    return scores.softmax(dim) @ (memory @ W_v)


RIGHT = {"attention": lambda x, W_q, W_k, W_v: cross(x, x, W_q, W_k, W_v), "cross_attention": cross}


WRONG = {
    "attention": [
        lambda x, W_q, W_k, W_v: cross(x, x, W_q, W_k, W_v, scale=1),  # no scale
        lambda x, W_q, W_k, W_v: cross(x, x, W_q, W_k, W_v, scale=x.size(1) ** -0.5),  # the width C
        lambda x, W_q, W_k, W_v: cross(x, x, W_q, W_k, W_v, scale=W_v.size(1) ** -0.5),  # the width of the values
        lambda x, W_q, W_k, W_v: cross(x, x, W_q, W_k, W_v, dim=0),  # the softmax over the queries
        lambda x, W_q, W_k, W_v: cross(x, x, W_k, W_q, W_v),  # keys and queries exchanged
    ],
    "cross_attention": [
        lambda x, memory, W_q, W_k, W_v: cross(x, x, W_q, W_k, W_v),  # looks at itself
        lambda x, memory, W_q, W_k, W_v: cross(memory, x, W_q, W_k, W_v),  # the memory asks
        lambda x, memory, W_q, W_k, W_v: cross(x, memory, W_q, W_k, W_v, dim=0),
    ],
}

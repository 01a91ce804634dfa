"""Right and wrong answers to the exercises of lesson 15."""

RIGHT = {
    "merge": lambda y: y.transpose(1, 2).flatten(2),
    "share": lambda k, H: k.repeat_interleave(H // k.size(1), dim=1),
}


WRONG = {
    "merge": [
        lambda y: y.reshape(y.size(0), y.size(2), -1),  # no transpose
        lambda y: y.transpose(1, 2).view(y.size(0), y.size(2), -1),  # view after transpose
        lambda y: y.permute(0, 2, 3, 1).flatten(2),  # heads interleaved
    ],
    "share": [
        lambda k, H: k.repeat(1, H // k.size(1), 1, 1),  # 0 1 0 1
        lambda k, H: k[:, :1].expand(-1, H, -1, -1),  # one head for all
        lambda k, H: k,  # not repeated
        lambda k, H: k.repeat_interleave(H // k.size(1), dim=2).reshape(k.size(0), H, k.size(2), -1),  # tokens
    ],
}

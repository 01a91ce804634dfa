"""Right and wrong answers to the exercises of lesson 15."""

RIGHT = {
    "split": lambda x, H: x.unflatten(-1, (H, -1)).transpose(1, 2),
    "merge": lambda y: y.transpose(1, 2).flatten(2),
}


WRONG = {
    "split": [
        lambda x, H: x.view(x.size(0), H, x.size(1), -1),  # no transpose
        lambda x, H: x.unflatten(-1, (H, -1)),  # [B, T, H, D]
        lambda x, H: x.unflatten(-1, (-1, H)).permute(0, 3, 1, 2),  # heads interleaved
    ],
    "merge": [
        lambda y: y.reshape(y.size(0), y.size(2), -1),  # no transpose
        lambda y: y.transpose(1, 2).view(y.size(0), y.size(2), -1),  # view after transpose
        lambda y: y.permute(0, 2, 3, 1).flatten(2),  # heads interleaved
    ],
}

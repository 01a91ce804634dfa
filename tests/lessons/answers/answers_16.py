"""Right and wrong answers to the exercises of lesson 16."""


def rms_norm(x, weight, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def block(x, attention, mlp, norm_1, norm_2, before):
    for layer, norm in ((attention, norm_1), (mlp, norm_2)):
        x = x + layer(norm(x)) if before else norm(x + layer(x))
    return x


def without_residual(x, attention, mlp, norm_1, norm_2, before):
    return mlp(norm_2(attention(norm_1(x)))) if before else norm_2(mlp(norm_1(attention(x))))


def first_stream(x, attention, mlp, norm_1, norm_2, before):
    """Adds the MLP to the block's input, not to what attention gave."""
    if not before:
        return block(x, attention, mlp, norm_1, norm_2, before)
    return x + mlp(norm_2(x + attention(norm_1(x))))


def in_place(x, attention, mlp, norm_1, norm_2, before):
    if not before:
        return block(x, attention, mlp, norm_1, norm_2, before)
    x += attention(norm_1(x))
    x += mlp(norm_2(x))
    return x


RIGHT = {"rms_norm": rms_norm, "block": block}


WRONG = {
    "rms_norm": [
        lambda x, weight, eps: rms_norm(x - x.mean(-1, keepdim=True), weight, eps),  # a layer norm
        lambda x, weight, eps: x / (x.square().mean(-1, keepdim=True).sqrt() + eps) * weight,  # eps behind the root
        lambda x, weight, eps: x / (x.square().sum(-1, keepdim=True) + eps).sqrt() * weight,  # the sum
        lambda x, weight, eps: rms_norm(x, 1, eps),  # no weight
    ],
    "block": [
        without_residual,
        first_stream,
        in_place,
        lambda x, attention, mlp, norm_1, norm_2, before: block(x, attention, mlp, norm_1, norm_2, True),
        lambda x, attention, mlp, norm_1, norm_2, before: block(x, mlp, attention, norm_1, norm_2, before),
        lambda x, attention, mlp, norm_1, norm_2, before: block(x, attention, mlp, norm_1, norm_1, before),
    ],
}

"""Right and wrong answers to the exercises of lesson 24."""

NAMES = {
    "transformer.wte": "token_embedding", "transformer.wpe": "position_embedding", "transformer.ln_f": "final_norm",
    "transformer.h.": "blocks.", ".ln_1.": ".norm_1.", ".ln_2.": ".norm_2.", ".attn.c_attn.": ".attention.qkv.",
    ".attn.c_proj.": ".attention.out.", ".mlp.c_fc.": ".mlp.up.", ".mlp.c_proj.": ".mlp.down.", "lm_head": "head",
}  # fmt: skip


def convert(published, n_layer, transposed=("qkv", "out", "up", "down")):
    found = {}
    for name, tensor in published.items():
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        matrix = name.endswith(tuple(f".{end}.weight" for end in transposed))
        found[name] = tensor.T if matrix else tensor
    return found


RIGHT = {
    "convert": convert,
    "split_qkv": lambda weight, n_head, n_kv_head, head_dim: weight.split(
        [n_head * head_dim, n_kv_head * head_dim, n_kv_head * head_dim]
    ),
}

WRONG = {
    "convert": [
        lambda published, n_layer: convert(published, n_layer, ("qkv", "up", "down")),  # the square one forgotten
        lambda published, n_layer: convert(published, n_layer, ()),
        lambda published, n_layer: published,
        lambda published, n_layer: {k: v for k, v in convert(published, 1).items() if "blocks.2" not in k},
    ],
    "split_qkv": [
        lambda weight, n_head, n_kv_head, head_dim: weight.chunk(3),  # as if there were no groups
        lambda weight, n_head, n_kv_head, head_dim: weight.split([n_kv_head * head_dim] * 2 + [n_head * head_dim]),
        lambda weight, n_head, n_kv_head, head_dim: [  # k and v exchanged
            weight.split([n_head * head_dim, n_kv_head * head_dim, n_kv_head * head_dim])[i] for i in (0, 2, 1)
        ],
    ],
}

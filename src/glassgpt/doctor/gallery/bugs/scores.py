"""Bugs of the attention's arithmetic: the softmax, the scale, the order of grouped heads."""

from glassgpt.doctor.gallery.bug import Bug

_LECTURE_SOFTMAX = "        att = F.softmax(att, dim=-1)\n"
_BOOK_SOFTMAX = "torch.softmax(attn_scores / self.head_dim**0.5, dim=-1)"
_OURS_BUILT = "    gpt = Model(config)\n"
_KV_K = "        k = k.repeat_interleave(self.n_heads // self.n_kv, dim=1)\n"
_KV_V = "        v = v.repeat_interleave(self.n_heads // self.n_kv, dim=1)\n"
_OURS_GROUPS = (
    _OURS_BUILT + "    for block in gpt.blocks:\n        block.attention.attend.register_forward_pre_hook({hook})\n"
)

_SOFTMAX_AXIS = (
    Bug(
        "softmax-over-queries",
        "softmax axis",
        "The softmax normalises over the queries.",
        {
            "hf_like": (("scores.softmax(dim=-1)", "scores.softmax(dim=-2)"),),
            "complex_rope": (("F.softmax(scores.float(), dim=-1)", "F.softmax(scores.float(), dim=-2)"),),
            "lecture": ((_LECTURE_SOFTMAX, "        att = F.softmax(att, dim=-2)\n"),),
            "book": ((_BOOK_SOFTMAX, _BOOK_SOFTMAX.replace("dim=-1", "dim=2")),),
            "llama_like": (("F.softmax(scores.float(), dim=-1)", "F.softmax(scores.float(), dim=-2)"),),
            "functional": (("scores.softmax(dim=-1)", "scores.softmax(dim=-2)"),),
        },
    ),
    Bug(
        "softmax-over-heads",
        "softmax axis",
        "The softmax normalises over the heads.",
        {
            "book": ((_BOOK_SOFTMAX, _BOOK_SOFTMAX.replace("dim=-1", "dim=1")), (", -torch.inf)", ", -1e9)")),
            "llama_like": (("F.softmax(scores.float(), dim=-1)", "F.softmax(scores.float(), dim=1)"),),
            "functional": (("scores.softmax(dim=-1)", "scores.softmax(dim=1)"), ('float("-inf"))', "-1e9)")),
        },
    ),
    Bug(
        "softmax-over-batch",
        "softmax axis",
        "The softmax normalises over the rows of the batch.",
        {
            "book": ((_BOOK_SOFTMAX, _BOOK_SOFTMAX.replace("dim=-1", "dim=0")), (", -torch.inf)", ", -1e9)")),
            "llama_like": (("F.softmax(scores.float(), dim=-1)", "F.softmax(scores.float(), dim=0)"),),
        },
    ),
)

_SCALE = (
    Bug(
        "no-scale",
        "scale",
        "Scores are not divided by the square root of the head's width.",
        {
            "complex_rope": ((" / math.sqrt(self.head_dim)", ""),),
            "hf_like": (("        scores = scores / value.size(-1) ** 0.5\n", ""),),
            "lecture": ((" * k.shape[-1] ** -0.5", ""),),
            "classes": (("is_causal=True", "is_causal=True, scale=1.0"),),
            "book": (("attn_scores / self.head_dim**0.5", "attn_scores"),),
            "llama_like": (("k.transpose(2, 3) / self.head_dim**0.5", "k.transpose(2, 3)"),),
        },
    ),
    Bug(
        "scaled-twice",
        "scale",
        "Queries are scaled, and then the scores again.",
        {
            "hf_like": (("scores = query @ key.mT", "scores = query / value.size(-1) ** 0.5 @ key.mT"),),
            "classes": (("        p = self.dropout if", "        q = q / math.sqrt(hs)\n        p = self.dropout if"),),
            "llama_like": (("scores = q @", "q = q * self.head_dim**-0.5\n        scores = q @"),),
            "book": (
                ("attn_scores = queries @", "queries = queries / self.head_dim**0.5\n        attn_scores = queries @"),
            ),
        },
    ),
    Bug(
        "scaled-by-all-heads",
        "scale",
        "Scores are divided by the square root of the model's width, not of a head's.",
        {
            "lecture": (("k.shape[-1] ** -0.5", "C**-0.5"),),
            "classes": (("is_causal=True", "is_causal=True, scale=C**-0.5"),),
            "book": (("self.head_dim**0.5", "self.d_out**0.5"),),
        },
    ),
    Bug(
        "scaled-up",
        "scale",
        "Scores are multiplied by the square root of the head's width.",
        {
            "lecture": (("k.shape[-1] ** -0.5", "k.shape[-1] ** 0.5"),),
            "book": (("attn_scores / self.head_dim**0.5", "attn_scores * self.head_dim**0.5"),),
            "functional": (("/ q.shape[-1] ** 0.5", "* q.shape[-1] ** 0.5"),),
        },
    ),
)

_GROUPS = (
    Bug(
        "keys-and-values-in-different-order",
        "grouped queries",
        "Keys are repeated head by head, values as a whole.",
        {
            "complex_rope": (("values = repeat_kv(xv, self.n_rep)", "values = xv.repeat(1, 1, self.n_rep, 1)"),),
            "llama_like": ((_KV_V, "        v = v.repeat(1, self.n_heads // self.n_kv, 1, 1)\n"),),
            "ours": (
                (
                    _OURS_BUILT,
                    _OURS_GROUPS.format(
                        hook="\n            lambda m, a: (\n                a[0],\n"
                        "                a[1].repeat_interleave(2, dim=1),\n                a[2].repeat(1, 2, 1, 1),\n"
                        "                a[3],\n            )\n        "
                    ),
                ),
            ),
        },
    ),
    Bug(
        "groups-by-repeat",
        "grouped queries",
        "Keys and values are repeated as a whole, not head by head.",
        {
            "complex_rope": (
                (
                    "return x[:, :, :, None, :].expand(B, T, n_kv, n_rep, d).reshape(B, T, n_kv * n_rep, d)",
                    "return x[:, :, None, :, :].expand(B, T, n_rep, n_kv, d).reshape(B, T, n_kv * n_rep, d)",
                ),
            ),
            "llama_like": (
                (_KV_K, "        k = k.repeat(1, self.n_heads // self.n_kv, 1, 1)\n"),
                (_KV_V, "        v = v.repeat(1, self.n_heads // self.n_kv, 1, 1)\n"),
            ),
        },
    ),
)

SCORES_BUGS = _SOFTMAX_AXIS + _SCALE + _GROUPS

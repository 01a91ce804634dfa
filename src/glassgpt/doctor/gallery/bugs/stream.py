"""Bugs of the norms and of the residual stream."""

from glassgpt.doctor.gallery.bug import Bug

_BOOK_NORM_MEAN = "x.mean(dim=-1, keepdim=True)"
_BOOK_NORM_VAR = "x.var(dim=-1, keepdim=True, unbiased=False)"

_NORM = (
    Bug(
        "norm-over-time",
        "norm",
        "Mean and variance are taken over the positions instead of the channels.",
        {
            "book": (
                (_BOOK_NORM_MEAN, "x.mean(dim=1, keepdim=True)"),
                (_BOOK_NORM_VAR, "x.var(dim=1, keepdim=True, unbiased=False)"),
            ),
            "llama_like": (("h.pow(2).mean(-1, keepdim=True)", "h.pow(2).mean(1, keepdim=True)"),),
            "functional": (("x.square().mean(dim=-1, keepdim=True)", "x.square().mean(dim=1, keepdim=True)"),),
        },
    ),
    Bug(
        "norm-over-batch",
        "norm",
        "Mean and variance are taken over the rows of the batch.",
        {
            "book": (
                (_BOOK_NORM_MEAN, "x.mean(dim=0, keepdim=True)"),
                (_BOOK_NORM_VAR, "x.var(dim=0, keepdim=True, unbiased=False)"),
            ),
            "llama_like": (("h.pow(2).mean(-1, keepdim=True)", "h.pow(2).mean(0, keepdim=True)"),),
        },
    ),
    Bug(
        "norm-over-everything",
        "norm",
        "Mean and variance are taken over the whole tensor.",
        {
            "book": ((_BOOK_NORM_MEAN, "x.mean()"), (_BOOK_NORM_VAR, "x.var(unbiased=False)")),
            "functional": (("x.square().mean(dim=-1, keepdim=True)", "x.square().mean()"),),
        },
    ),
    Bug(
        "variance-for-deviation",
        "norm",
        "The norm divides by the variance instead of its root.",
        {
            "book": (("torch.sqrt(var + self.eps)", "(var + self.eps)"),),
            "llama_like": (
                (
                    "torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)",
                    "(h.pow(2).mean(-1, keepdim=True) + self.eps).reciprocal()",
                ),
            ),
            "functional": (
                (
                    "torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-5)",
                    "1 / (x.square().mean(dim=-1, keepdim=True) + 1e-5)",
                ),
            ),
        },
    ),
    Bug(
        "norms-not-called",
        "dead parameters",
        "The norms are built, but the blocks do not call them.",
        {
            "lecture": (("self.sa(self.ln1(x))", "self.sa(x)"), ("self.ff(self.ln2(x))", "self.ff(x)")),
            "classes": (("self.attn(self.ln_1(x))", "self.attn(x)"), ("self.mlp(self.ln_2(x))", "self.mlp(x)")),
            "book": (("self.att(self.norm1(x))", "self.att(x)"), ("self.ff(self.norm2(x))", "self.ff(x)")),
        },
    ),
)

_RESIDUAL = (
    Bug(
        "no-residual-around-attention",
        "residual",
        "The attention's output replaces the stream.",
        {
            "lecture": (("x = x + self.sa(", "x = self.sa("),),
            "classes": (("x = x + self.attn(", "x = self.attn("),),
            "book": (("x = self.drop_shortcut(x) + shortcut", "x = self.drop_shortcut(x)"),),
            "llama_like": (("        x = x + h\n", "        x = h\n"),),
            "functional": (("x = x + attention(", "x = attention("),),
        },
    ),
    Bug(
        "no-residual-around-mlp",
        "residual",
        "The MLP's output replaces the stream.",
        {
            "lecture": (("x = x + self.ff(", "x = self.ff("),),
            "classes": (("x = x + self.mlp(", "x = self.mlp("),),
            "book": (("return self.drop_shortcut(x) + shortcut", "return self.drop_shortcut(x)"),),
            "llama_like": (("x = x + self.mlp(", "x = self.mlp("),),
            "functional": (("x = x + mlp(", "x = mlp("),),
        },
    ),
    Bug(
        "no-residual-at-all",
        "residual",
        "Neither attention nor MLP is added to the stream.",
        {
            "lecture": (("x = x + self.sa(", "x = self.sa("), ("x = x + self.ff(", "x = self.ff(")),
            "classes": (("x = x + self.attn(", "x = self.attn("), ("x = x + self.mlp(", "x = self.mlp(")),
        },
    ),
    Bug(
        "shortcut-of-the-wrong-stream",
        "residual",
        "The MLP's output is added to the block's input, not to what attention made.",
        {
            "book": (("        shortcut = x\n        x = self.ff(", "        x = self.ff("),),
            "classes": (
                ("x = x + self.attn(self.ln_1(x))", "y = x + self.attn(self.ln_1(x))"),
                ("x = x + self.mlp(self.ln_2(x))", "x = x + self.mlp(self.ln_2(y))"),
            ),
        },
    ),
)

STREAM_BUGS = _NORM + _RESIDUAL

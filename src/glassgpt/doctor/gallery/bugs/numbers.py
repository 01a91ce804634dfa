"""Bugs that make numbers infinite, NaN, or too large for float16."""

from glassgpt.doctor.gallery.bug import Bug

_LECTURE_X = "        x = self.tokens(idx)  # (B, T, C)\n"
_TORCH_X = "        x = self.pos_encoder(x)\n"

_NUMBERS = (
    Bug(
        "first-row-masked",
        "non-finite",
        "The first query may see nothing: its softmax is NaN.",
        {
            "lecture": (
                (
                    "torch.tril(torch.ones(block_size, block_size))",
                    "torch.tril(torch.ones(block_size, block_size), diagonal=-1)",
                ),
            ),
            "book": (("diagonal=1", "diagonal=0"),),
            "functional": (("distance < 0", "distance <= 0"),),
        },
    ),
    Bug(
        "log-of-zero",
        "non-finite",
        "The logarithm of a ReLU is minus infinity.",
        {
            "lecture": (("logits = self.lm_head(x)  # (B, T, V)", "logits = torch.log(F.relu(self.lm_head(x)))"),),
            "torch_layers": (
                ("logits = self.decoder(x)  # [T, B, V]", "logits = torch.log(torch.relu(self.decoder(x)))"),
            ),
        },
    ),
    Bug(
        "root-of-zero",
        "non-finite",
        "The gradient of a square root at zero is infinite; a mask of zeros makes it NaN.",
        {
            "lecture": (
                ("            nn.ReLU(),\n", ""),
                (
                    "        return self.net(x)\n",
                    "        h = self.net[0](x)\n        return self.net[1:](torch.sqrt(h * (h > 0)))\n",
                ),
            ),
            "functional": (
                (
                    'hidden = F.relu(h @ p[prefix + "w1"]).square()',
                    'h = h @ p[prefix + "w1"]\n    hidden = (h * (h > 0)).sqrt()',
                ),
            ),
            "llama_like": (
                (
                    "        return self.down_proj(F.silu(self.gate_proj(x)) *",
                    "        g = self.gate_proj(x)\n        return self.down_proj(torch.sqrt(g * (g > 0)) *",
                ),
            ),
        },
    ),
    Bug(
        "nan-for-one-token",
        "non-finite",
        "Positions are divided by T - 1, which is 0 for one token.",
        {
            "lecture": (
                (
                    _LECTURE_X,
                    "        where = torch.arange(T, device=idx.device) / (T - 1)\n"
                    + _LECTURE_X
                    + "        x = x + where[:, None].to(x.dtype)\n",
                ),
            ),
            "torch_layers": (
                (
                    _TORCH_X,
                    _TORCH_X
                    + "        x = x + (torch.arange(T, device=src.device) / (T - 1))[:, None, None].to(x.dtype)\n",
                ),
            ),
        },
    ),
    Bug(
        "temperature-after-the-mask",
        "non-finite",
        "A learned temperature multiplies scores that are minus infinity: its gradient is NaN.",
        {
            "book": (
                (
                    "        self.dropout = nn.Dropout(dropout)\n",
                    "        self.dropout = nn.Dropout(dropout)\n"
                    "        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))\n",
                ),
                ("attn_scores / self.head_dim**0.5", "attn_scores * self.temperature / self.head_dim**0.5"),
            ),
            "functional": (
                (
                    '            p[f"block{i}_norm1"]',
                    '            p[f"block{i}_heat"] = torch.ones(n_heads, 1, 1)\n            p[f"block{i}_norm1"]',
                ),
                ("weights = scores.softmax(dim=-1)", 'weights = (scores * p[prefix + "heat"]).softmax(dim=-1)'),
            ),
        },
    ),
    Bug(
        "norm-without-epsilon",
        "non-finite",
        "A norm divides by the deviation without an epsilon, and the stream starts at zero.",
        {
            "book": (
                ("torch.sqrt(var + self.eps)", "torch.sqrt(var)"),
                (
                    '        self.drop_emb = nn.Dropout(cfg["drop_rate"])\n',
                    '        self.drop_emb = nn.Dropout(cfg["drop_rate"])\n'
                    "        nn.init.zeros_(self.tok_emb.weight)\n        nn.init.zeros_(self.pos_emb.weight)\n",
                ),
            ),
        },
    ),
)

_OVERFLOW = (
    Bug(
        "stream-times-a-million",
        "overflow",
        "The stream is multiplied by a large number before a norm that does not need it.",
        {
            "lecture": (("        x = self.ln_f(x)\n", "        x = self.ln_f(x * 1e5)\n"),),
            "classes": (("        x = self.ln_f(x)\n", "        x = self.ln_f(x * 1e6)\n"),),
        },
    ),
    Bug(
        "exponential-without-maximum",
        "overflow",
        "The softmax is written with exp of the raw scores.",
        {
            "lecture": (
                (" * k.shape[-1] ** -0.5", " * 12"),
                ("att = F.softmax(att, dim=-1)", "att = att.exp() / att.exp().sum(dim=-1, keepdim=True)"),
            ),
            "functional": (
                (
                    "weights = scores.softmax(dim=-1)",
                    "e = (scores * 12).exp()\n    weights = e / e.sum(dim=-1, keepdim=True)",
                ),
            ),
        },
    ),
    Bug(
        "squares-summed-in-half",
        "overflow",
        "A norm sums squares of large numbers in half precision.",
        {
            "functional": (('x = p["embed"][tokens]', 'x = p["embed"][tokens] * 10_000'),),
        },
    ),
)

NUMBERS_BUGS = _NUMBERS + _OVERFLOW

"""Correct but unusual attention and positions."""

from glassgpt.doctor.gallery.bug import Correct

_SDPA = "F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)"
_WPE = "        self.wpe = nn.Embedding(config.block_size, config.n_embd)\n"
_LECTURE_MASK = '        att = att.masked_fill(self.tril[:T, :T] == 0, float("-inf"))\n'
_FUNCTIONAL_X = '        x = p["embed"][tokens]\n'
_T5 = """scores = q @ k.transpose(-2, -1)
        distance = torch.arange(T, device=x.device)[:, None] - torch.arange(T, device=x.device)
        scores = scores + self.relative.weight[distance.clamp(0, 15)].permute(2, 0, 1)
        y = scores.masked_fill(distance < 0, float("-inf")).softmax(-1) @ v"""

ATTENTION_VARIANTS = (
    Correct(
        "no-positions",
        "No position encoding: two causal layers can count.",
        "classes",
        (
            (_WPE, ""),
            ("self.wte(idx) + self.wpe(pos)", "self.wte(idx)"),
            ("        pos = torch.arange(T, dtype=torch.long, device=idx.device)\n", ""),
        ),
    ),
    Correct(
        "sliding-window",
        "The last eight tokens per layer; declared.",
        "functional",
        (("distance < 0", "(distance < 0) | (distance >= 8)"),),
        window=8,
    ),
    Correct(
        "ours-sliding-window",
        "Four tokens per layer; declared.",
        "ours",
        (('position="rope",', 'position="rope",\n        sliding_window=4,'),),
        window=4,
    ),
    Correct(
        "ours-gpt2",
        "The package's model as a GPT-2, with QK-norm.",
        "ours",
        (
            ('position="rope"', 'position="learned",\n        qk_norm=True'),
            ('mlp="swiglu"', 'mlp="gelu"'),
            ('norm="rmsnorm"', 'norm="layernorm"'),
            ("tie_embeddings=False", "tie_embeddings=True"),
        ),
    ),
    Correct(
        "multi-query",
        "All query heads share one key and value head.",
        "llama_like",
        (("num_key_value_heads: int = 2", "num_key_value_heads: int = 1"),),
    ),
    Correct(
        "qk-norm",
        "Queries and keys are normalised before the rotation.",
        "llama_like",
        (
            (
                "        q = (q * cos",
                "        q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])\n        q = (q * cos",
            ),
        ),
    ),
    Correct(
        "cosine-attention",
        "Queries and keys have length 1; a learned temperature takes the place of the scale.",
        "book",
        (
            (
                "        self.dropout = nn.Dropout(dropout)\n",
                "        self.dropout = nn.Dropout(dropout)\n"
                "        self.temperature = nn.Parameter(torch.full((num_heads, 1, 1), 10.0))\n",
            ),
            (
                "attn_scores = queries @ keys.transpose(2, 3)",
                "queries, keys = (nn.functional.normalize(t, dim=-1) for t in (queries, keys))\n"
                "        attn_scores = queries @ keys.transpose(2, 3)\n"
                "        attn_scores = attn_scores * self.temperature",
            ),
            ("attn_scores / self.head_dim**0.5", "attn_scores"),
        ),
    ),
    Correct(
        "soft-capped-scores",
        "A tanh keeps the scores within 50.",
        "complex_rope",
        (
            (
                "        scores = scores + mask\n",
                "        scores = 50 * torch.tanh(scores / 50)\n        scores = scores + mask\n",
            ),
        ),
    ),
    Correct(
        "relative-bias",
        "T5: a learned bias per distance, and no scale, which the initial queries contain (arXiv:1910.10683).",
        "classes",
        (
            (
                "        self.n_head = config.n_head\n",
                "        self.n_head = config.n_head\n        self.relative = nn.Embedding(16, config.n_head)\n",
            ),
            (f"y = {_SDPA}", _T5),
            ("        p = self.dropout if self.training else 0.0\n", ""),
            (_WPE, ""),
            ("self.wte(idx) + self.wpe(pos)", "self.wte(idx)"),
            ("        pos = torch.arange(T, dtype=torch.long, device=idx.device)\n", ""),
            (
                '            if name.endswith("c_proj',
                '            if name.endswith("c_attn.weight"):\n'
                "                p.data[: config.n_embd] *= (config.n_embd // config.n_head) ** -0.5\n"
                '            if name.endswith("c_proj',
            ),
        ),
    ),
    Correct(
        "mup-scale",
        "Scores are divided by d, not by its root (arXiv:2203.03466).",
        "classes",
        (("is_causal=True", "is_causal=True, scale=1 / hs"),),
    ),
    Correct(
        "attention-sinks",
        "A learned extra logit per head takes weight and gives nothing.",
        "book",
        (
            (
                "        self.dropout = nn.Dropout(dropout)\n",
                "        self.dropout = nn.Dropout(dropout)\n"
                "        self.sinks = nn.Parameter(torch.zeros(num_heads, 1, 1))\n",
            ),
            (
                "        attn_weights = torch.softmax(attn_scores / self.head_dim**0.5, dim=-1)\n",
                "        sinks = self.sinks.expand(b, -1, num_tokens, 1)\n"
                "        attn_scores = torch.cat((attn_scores / self.head_dim**0.5, sinks), dim=-1)\n"
                "        attn_weights = torch.softmax(attn_scores, dim=-1)[..., :-1]\n",
            ),
        ),
    ),
    Correct(
        "softmax-plus-one",
        "exp(s) / (1 + sum exp(s)): a head may attend to nothing.",
        "functional",
        (("    weights = scores.softmax(dim=-1)\n", "    weights = F.pad(scores, (1, 0)).softmax(dim=-1)[..., 1:]\n"),),
    ),
    Correct(
        "linear-attention",
        "Positive features in place of the softmax.",
        "functional",
        (
            (" / q.shape[-1] ** 0.5\n", "\n"),
            (
                '    scores = torch.einsum("bhtd,bhsd->bhts", q, k)',
                '    q, k = F.elu(q) + 1, F.elu(k) + 1\n    scores = torch.einsum("bhtd,bhsd->bhts", q, k).tril()',
            ),
            (
                "    scores = scores + alibi(n_heads, T, x.device).to(x.dtype)\n",
                "    scores = scores * alibi(n_heads, T, x.device).exp().to(x.dtype)\n",
            ),
            ("scores.softmax(dim=-1)", "scores / (scores.sum(dim=-1, keepdim=True) + 1e-6)"),
        ),
    ),
    Correct(
        "sigmoid-attention",
        "A sigmoid in place of the softmax: rows do not sum to 1 (arXiv:2409.04431).",
        "functional",
        (("scores.softmax(dim=-1)", "torch.sigmoid(scores - 2.0)"),),
    ),
    Correct(
        "token-shift",
        "RWKV: half of the channels come from the token before.",
        "functional",
        (
            (
                _FUNCTIONAL_X,
                _FUNCTIONAL_X + "        half = x.shape[-1] // 2\n"
                "        x = torch.cat((F.pad(x, (0, 0, 1, -1))[..., :half], x[..., half:]), dim=-1)\n",
            ),
        ),
    ),
    Correct(
        "lazy-mask",
        "The mask is a plain attribute that is made anew when the length or the device changes.",
        "lecture",
        (
            (
                '        self.register_buffer("tril", torch.tril(torch.ones(block_size, block_size)))\n',
                "        self.mask = None\n",
            ),
            (
                _LECTURE_MASK,
                "        if self.mask is None or self.mask.shape[0] != T or self.mask.device != x.device:\n"
                "            self.mask = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)\n"
                '        att = att.masked_fill(self.mask, float("-inf"))\n',
            ),
        ),
    ),
    Correct(
        "large-negative-mask", "The mask is -1e9 instead of minus infinity.", "lecture", (('float("-inf")', "-1e9"),)
    ),
    Correct(
        "long-rotary",
        "No limit of length: rotary positions go on.",
        "llama_like",
        (("max_position_embeddings: int = 24", "max_position_embeddings: int = 20"),),
    ),
    Correct(
        "lstm",
        "Long short-term memory with its own state, given and returned.",
        "recurrent",
        (("nn.GRU(", "nn.LSTM("),),
    ),
    Correct(
        "n-gram", "One convolution of three tokens; declared.", "convolutional", (("layers=4", "layers=1"),), window=3
    ),
)

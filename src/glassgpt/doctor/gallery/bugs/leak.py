"""Bugs by which a position sees its future."""

from glassgpt.doctor.gallery.bug import Bug

_LECTURE_MASK = '        att = att.masked_fill(self.tril[:T, :T] == 0, float("-inf"))\n'
_LECTURE_SOFTMAX = "        att = F.softmax(att, dim=-1)\n"
_CLASSES_SDPA = "F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)"
_BOOK_MASK = "        attn_scores.masked_fill_(self.mask[:num_tokens, :num_tokens], -torch.inf)\n"
_BOOK_SOFTMAX = "torch.softmax(attn_scores / self.head_dim**0.5, dim=-1)"
_BOOK_MERGE = "context_vec = (attn_weights @ values).transpose(1, 2)"
_LLAMA_CAUSAL = "causal = here[None, :] <= here[past_len:, None]"
_TORCH_MASK = 'torch.triu(torch.full((T, T), float("-inf"), device=src.device, dtype=x.dtype), diagonal=1)'
_ALIBI_MASK = 'bias.masked_fill(distance < 0, float("-inf"))'
_OURS_RETURN = "        logits = super().forward(idx, **keywords)\n"
_OURS_BUILT = "    gpt = Model(config)\n"

LEAK_BUGS = (
    Bug(
        "no-causal-mask",
        "leak",
        "The causal mask was forgotten: every position sees the whole text.",
        {
            "complex_rope": (("        scores = scores + mask\n", ""),),
            "hf_like": (
                ("mask = self.bias[:, :, S - T : S, :S]", "mask = torch.ones_like(self.bias[:, :, S - T : S, :S])"),
            ),
            "lecture": ((_LECTURE_MASK, ""),),
            "classes": ((", is_causal=True", ""),),
            "book": ((_BOOK_MASK, ""),),
            "llama_like": (("causal[None, None] & attention_mask", "attention_mask"),),
            "torch_layers": (("self.encoder(x, mask=mask)", "self.encoder(x)"),),
            "functional": ((_ALIBI_MASK, "bias"), ("* distance\n", "* distance.abs()\n")),
        },
    ),
    Bug(
        "mask-off-by-one",
        "leak",
        "The triangle is one diagonal too wide: every position sees the next token.",
        {
            "complex_rope": (("diagonal=1", "diagonal=2"),),
            "lecture": (("torch.ones(block_size, block_size))", "torch.ones(block_size, block_size), diagonal=1)"),),
            "classes": (
                (
                    _CLASSES_SDPA,
                    "F.scaled_dot_product_attention(\n            q, k, v, dropout_p=p,\n"
                    "            attn_mask=torch.ones(T, T, device=x.device).tril(1).bool(),\n        )",
                ),
            ),
            "book": (("diagonal=1", "diagonal=2"),),
            "llama_like": ((_LLAMA_CAUSAL, "causal = here[None, :] <= here[past_len:, None] + 1"),),
            "torch_layers": (("diagonal=1", "diagonal=2"),),
            "functional": (("distance < 0", "distance < -1"),),
        },
    ),
    Bug(
        "mask-transposed",
        "leak",
        "The mask hides the past and shows the future.",
        {
            "lecture": (("torch.tril(", "torch.triu("),),
            "book": (("torch.triu(", "torch.tril("), ("diagonal=1", "diagonal=-1")),
            "llama_like": ((_LLAMA_CAUSAL, "causal = here[None, :] >= here[past_len:, None]"),),
            "functional": (("distance < 0", "distance > 0"), ("* distance\n", "* distance.abs()\n")),
        },
    ),
    Bug(
        "mask-for-the-full-length-only",
        "leak",
        "Only texts as long as the context get the mask.",
        {
            "lecture": (
                (
                    _LECTURE_MASK,
                    "        if T == self.tril.size(0):\n"
                    '            att = att.masked_fill(self.tril == 0, float("-inf"))\n',
                ),
            ),
            "book": (
                (
                    _BOOK_MASK,
                    "        if num_tokens == self.mask.shape[0]:\n"
                    "            attn_scores.masked_fill_(self.mask, -torch.inf)\n",
                ),
            ),
            "torch_layers": (("mask=mask", "mask=mask if T == self.max_len else None"),),
        },
    ),
    Bug(
        "masked-with-zero",
        "leak",
        "Scores of the future are set to 0 instead of minus infinity.",
        {
            "lecture": (('float("-inf"))', "0.0)"),),
            "book": ((", -torch.inf)", ", 0.0)"),),
            "llama_like": (("torch.finfo(scores.dtype).min", "0.0"),),
            "functional": (('bias.masked_fill(distance < 0, float("-inf"))', "bias.masked_fill(distance < 0, 0.0)"),),
        },
    ),
    Bug(
        "mask-times-scores",
        "leak",
        "Scores are multiplied by the mask of zeros and ones before the softmax.",
        {
            "lecture": ((_LECTURE_MASK, "        att = att * self.tril[:T, :T]\n"),),
            "book": ((_BOOK_MASK, "        attn_scores = attn_scores * ~self.mask[:num_tokens, :num_tokens]\n"),),
        },
    ),
    Bug(
        "mask-after-softmax",
        "leak",
        "The weights are masked after the softmax, whose sum still contains the future.",
        {
            "lecture": (
                (_LECTURE_MASK, ""),
                (_LECTURE_SOFTMAX, _LECTURE_SOFTMAX + "        att = att.masked_fill(self.tril[:T, :T] == 0, 0.0)\n"),
            ),
            "book": (
                (_BOOK_MASK, ""),
                (
                    _BOOK_SOFTMAX,
                    _BOOK_SOFTMAX + ".masked_fill(\n            self.mask[:num_tokens, :num_tokens], 0.0\n        )",
                ),
            ),
            "functional": (
                (_ALIBI_MASK, "bias"),
                ("* distance\n", "* distance.abs()\n"),
                ("weights = scores.softmax(dim=-1)", "weights = scores.softmax(dim=-1).tril()"),
            ),
        },
    ),
    Bug(
        "additive-mask-of-booleans",
        "leak",
        "A mask of zeros and ones is added to the scores.",
        {
            "lecture": ((_LECTURE_MASK, "        att = att + self.tril[:T, :T]\n"),),
            "torch_layers": (
                (_TORCH_MASK, "torch.triu(torch.ones(T, T, device=src.device, dtype=x.dtype), diagonal=1)"),
            ),
        },
    ),
    Bug(
        "leak-in-train-mode",
        "leak",
        "The mask is used for generation only.",
        {
            "lecture": ((_LECTURE_MASK, "        if not self.training:\n    " + _LECTURE_MASK),),
            "classes": (("is_causal=True", "is_causal=not self.training"),),
            "torch_layers": (("mask=mask", "mask=None if self.training else mask"),),
        },
    ),
    Bug(
        "leak-in-one-layer",
        "leak",
        "The last block has no mask.",
        {
            "book": (
                (
                    "        self.final_norm = LayerNorm(cfg",
                    "        self.trf_blocks[-1].att.mask.zero_()\n        self.final_norm = LayerNorm(cfg",
                ),
            ),
            "classes": (
                ("is_causal=True", "is_causal=self.causal"),
                (
                    "        self.n_head = config.n_head\n",
                    "        self.n_head = config.n_head\n        self.causal = True\n",
                ),
                (
                    "        self.ln_f = nn.LayerNorm(config.n_embd)\n",
                    "        self.h[-1].attn.causal = False\n        self.ln_f = nn.LayerNorm(config.n_embd)\n",
                ),
            ),
            "ours": (
                (
                    _OURS_BUILT,
                    _OURS_BUILT + "    attend = gpt.blocks[-1].attention.attend\n"
                    "    ones = lambda q: torch.ones(q.size(2), q.size(2), dtype=torch.bool, device=q.device)\n"
                    "    attend.register_forward_pre_hook(lambda m, a: (a[0], a[1], a[2], ones(a[0])))\n",
                ),
            ),
        },
    ),
    Bug(
        "heads-by-view",
        "leak",
        "Queries, keys and values are cut into heads by view, without a transpose.",
        {
            "classes": tuple(
                (
                    f"{name} = {name}.view(B, T, self.n_head, hs).transpose(1, 2)",
                    f"{name} = {name}.reshape(B, self.n_head, T, hs)",
                )
                for name in "qkv"
            ),
            "book": (
                *(
                    (
                        f"{name} = {name}.view(b, num_tokens, self.num_heads, self.head_dim)",
                        f"{name} = {name}.view(b, self.num_heads, num_tokens, self.head_dim)",
                    )
                    for name in ("queries", "keys", "values")
                ),
                (
                    "        queries, keys, values = (t.transpose(1, 2) for t in (queries, keys, values))\n",
                    "",
                ),
            ),
            "llama_like": tuple(
                (
                    f"{n}_proj(x).view(B, T, self.n_{kind}, self.head_dim).transpose(1, 2)",
                    f"{n}_proj(x).view(B, self.n_{kind}, T, self.head_dim)",
                )
                for n, kind in (("q", "heads"), ("k", "kv"), ("v", "kv"))
            ),
        },
    ),
    Bug(
        "merge-without-transpose",
        "leak",
        "The heads are put together by view, without a transpose.",
        {
            "hf_like": (("out = out.permute(0, 2, 1, 3)", "out = out"),),
            "complex_rope": (("output = output.transpose(1, 2).contiguous()", "output = output.contiguous()"),),
            "classes": (("y.transpose(1, 2).contiguous().view(B, T, C)", "y.contiguous().view(B, T, C)"),),
            "book": ((_BOOK_MERGE, "context_vec = attn_weights @ values"),),
            "llama_like": (("(weights @ v).transpose(1, 2).reshape", "(weights @ v).reshape"),),
        },
    ),
    Bug(
        "mean-over-time",
        "leak",
        "The mean over all positions is taken from every position.",
        {
            "lecture": (("        x = self.ln_f(x)\n", "        x = self.ln_f(x - x.mean(dim=1, keepdim=True))\n"),),
            "classes": (
                (
                    "self.drop(self.wte(idx) + self.wpe(pos))",
                    "self.drop(self.wte(idx) + self.wpe(pos))\n        x = x - x.mean(1, keepdim=True)",
                ),
            ),
            "ours": ((_OURS_RETURN, _OURS_RETURN + "        logits = logits - logits.mean(dim=1, keepdim=True)\n"),),
        },
    ),
    Bug(
        "convolution-not-causal",
        "leak",
        "A convolution before the blocks is padded on both sides.",
        {
            "lecture": (
                (
                    "        self.ln_f = nn.LayerNorm(n_embd)\n",
                    "        self.conv = nn.Conv1d(n_embd, n_embd, 3, padding=1)\n"
                    "        self.ln_f = nn.LayerNorm(n_embd)\n",
                ),
                (
                    "        x = self.blocks(x)\n",
                    "        x = x + self.conv(x.transpose(1, 2)).transpose(1, 2)\n        x = self.blocks(x)\n",
                ),
            ),
            "torch_layers": (
                (
                    "        self.init_weights()\n",
                    "        self.conv = nn.Conv1d(d_model, d_model, 3, padding=1)\n        self.init_weights()\n",
                ),
                (
                    "        x = self.pos_encoder(x)\n",
                    "        x = self.pos_encoder(x)\n        x = x + self.conv(x.permute(1, 2, 0)).permute(2, 0, 1)\n",
                ),
            ),
        },
    ),
    Bug(
        "scores-normalised-over-time",
        "leak",
        "Scores are centred over all keys and divided by their spread, before the mask.",
        {
            "lecture": (
                (_LECTURE_MASK, "        att = att / (att.std(dim=-1, keepdim=True) + 1e-5)\n" + _LECTURE_MASK),
            ),
            "book": (
                (
                    _BOOK_MASK,
                    "        attn_scores = attn_scores / (attn_scores.std(dim=-1, keepdim=True) + 1e-5)\n" + _BOOK_MASK,
                ),
            ),
        },
    ),
)

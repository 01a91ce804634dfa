"""Bugs of attention: what a position sees, how heads are cut and put together, softmax, scale, positions."""

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

_LEAK = (
    Bug(
        "no-causal-mask", "leak", "The causal mask was forgotten: every position sees the whole text.",
        {
            "complex_rope": (("        scores = scores + mask\n", ""),),
            "hf_like": (("mask = self.bias[:, :, S - T : S, :S]", "mask = torch.ones_like(self.bias[:, :, S - T : S, :S])"),),
            "lecture": ((_LECTURE_MASK, ""),),
            "classes": ((", is_causal=True", ""),),
            "book": ((_BOOK_MASK, ""),),
            "llama_like": (("causal[None, None] & attention_mask", "attention_mask"),),
            "torch_layers": (("self.encoder(x, mask=mask)", "self.encoder(x)"),),
            "functional": ((_ALIBI_MASK, "bias"), ("* distance\n", "* distance.abs()\n")),
        },
    ),
    Bug(
        "mask-off-by-one", "leak", "The triangle is one diagonal too wide: every position sees the next token.",
        {
            "complex_rope": (("diagonal=1", "diagonal=2"),),
            "lecture": (("torch.ones(block_size, block_size))", "torch.ones(block_size, block_size), diagonal=1)"),),
            "classes": ((
                _CLASSES_SDPA,
                "F.scaled_dot_product_attention(\n            q, k, v, dropout_p=p,\n"
                "            attn_mask=torch.ones(T, T, device=x.device).tril(1).bool(),\n        )",
            ),),
            "book": (("diagonal=1", "diagonal=2"),),
            "llama_like": ((_LLAMA_CAUSAL, "causal = here[None, :] <= here[past_len:, None] + 1"),),
            "torch_layers": (("diagonal=1", "diagonal=2"),),
            "functional": (("distance < 0", "distance < -1"),),
        },
    ),
    Bug(
        "mask-transposed", "leak", "The mask hides the past and shows the future.",
        {
            "lecture": (("torch.tril(", "torch.triu("),),
            "book": (("torch.triu(", "torch.tril("), ("diagonal=1", "diagonal=-1")),
            "llama_like": ((_LLAMA_CAUSAL, "causal = here[None, :] >= here[past_len:, None]"),),
            "functional": (("distance < 0", "distance > 0"), ("* distance\n", "* distance.abs()\n")),
        },
    ),
    Bug(
        "mask-for-the-full-length-only", "leak", "Only texts as long as the context get the mask.",
        {
            "lecture": ((
                _LECTURE_MASK,
                '        if T == self.tril.size(0):\n            att = att.masked_fill(self.tril == 0, float("-inf"))\n',
            ),),
            "book": ((
                _BOOK_MASK,
                "        if num_tokens == self.mask.shape[0]:\n"
                "            attn_scores.masked_fill_(self.mask, -torch.inf)\n",
            ),),
            "torch_layers": (("mask=mask", "mask=mask if T == self.max_len else None"),),
        },
    ),
    Bug(
        "masked-with-zero", "leak", "Scores of the future are set to 0 instead of minus infinity.",
        {
            "lecture": (('float("-inf"))', "0.0)"),),
            "book": ((", -torch.inf)", ", 0.0)"),),
            "llama_like": (("torch.finfo(scores.dtype).min", "0.0"),),
            "functional": (("bias.masked_fill(distance < 0, float(\"-inf\"))", "bias.masked_fill(distance < 0, 0.0)"),),
        },
    ),
    Bug(
        "mask-times-scores", "leak", "Scores are multiplied by the mask of zeros and ones before the softmax.",
        {
            "lecture": ((_LECTURE_MASK, "        att = att * self.tril[:T, :T]\n"),),
            "book": ((_BOOK_MASK, "        attn_scores = attn_scores * ~self.mask[:num_tokens, :num_tokens]\n"),),
        },
    ),
    Bug(
        "mask-after-softmax", "leak", "The weights are masked after the softmax, whose sum still contains the future.",
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
        "additive-mask-of-booleans", "leak", "A mask of zeros and ones is added to the scores.",
        {
            "lecture": ((_LECTURE_MASK, "        att = att + self.tril[:T, :T]\n"),),
            "torch_layers": ((_TORCH_MASK, "torch.triu(torch.ones(T, T, device=src.device, dtype=x.dtype), diagonal=1)"),),
        },
    ),
    Bug(
        "leak-in-train-mode", "leak", "The mask is used for generation only.",
        {
            "lecture": ((_LECTURE_MASK, "        if not self.training:\n    " + _LECTURE_MASK),),
            "classes": (("is_causal=True", "is_causal=not self.training"),),
            "torch_layers": (("mask=mask", "mask=None if self.training else mask"),),
        },
    ),
    Bug(
        "leak-in-one-layer", "leak", "The last block has no mask.",
        {
            "book": ((
                "        self.final_norm = LayerNorm(cfg",
                "        self.trf_blocks[-1].att.mask.zero_()\n        self.final_norm = LayerNorm(cfg",
            ),),
            "classes": (
                ("is_causal=True", "is_causal=self.causal"),
                ("        self.n_head = config.n_head\n", "        self.n_head = config.n_head\n        self.causal = True\n"),
                (
                    "        self.ln_f = nn.LayerNorm(config.n_embd)\n",
                    "        self.h[-1].attn.causal = False\n        self.ln_f = nn.LayerNorm(config.n_embd)\n",
                ),
            ),
            "ours": ((
                _OURS_BUILT,
                _OURS_BUILT + "    attend = gpt.blocks[-1].attention.attend\n"
                "    ones = lambda q: torch.ones(q.size(2), q.size(2), dtype=torch.bool, device=q.device)\n"
                "    attend.register_forward_pre_hook(lambda m, a: (a[0], a[1], a[2], ones(a[0])))\n",
            ),),
        },
    ),
    Bug(
        "heads-by-view", "leak", "Queries, keys and values are cut into heads by view, without a transpose.",
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
                ("        queries, keys, values = queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)\n", ""),
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
        "merge-without-transpose", "leak", "The heads are put together by view, without a transpose.",
        {
            "hf_like": (("out = out.permute(0, 2, 1, 3)", "out = out"),),
            "complex_rope": (("output = output.transpose(1, 2).contiguous()", "output = output.contiguous()"),),
            "classes": (("y.transpose(1, 2).contiguous().view(B, T, C)", "y.contiguous().view(B, T, C)"),),
            "book": ((_BOOK_MERGE, "context_vec = attn_weights @ values"),),
            "llama_like": (("(weights @ v).transpose(1, 2).reshape", "(weights @ v).reshape"),),
        },
    ),
    Bug(
        "mean-over-time", "leak", "The mean over all positions is taken from every position.",
        {
            "lecture": (("        x = self.ln_f(x)\n", "        x = self.ln_f(x - x.mean(dim=1, keepdim=True))\n"),),
            "classes": (("self.drop(self.wte(idx) + self.wpe(pos))", "self.drop(self.wte(idx) + self.wpe(pos))\n        x = x - x.mean(1, keepdim=True)"),),
            "ours": ((_OURS_RETURN, _OURS_RETURN + "        logits = logits - logits.mean(dim=1, keepdim=True)\n"),),
        },
    ),
    Bug(
        "convolution-not-causal", "leak", "A convolution before the blocks is padded on both sides.",
        {
            "lecture": (
                (
                    "        self.ln_f = nn.LayerNorm(n_embd)\n",
                    "        self.conv = nn.Conv1d(n_embd, n_embd, 3, padding=1)\n        self.ln_f = nn.LayerNorm(n_embd)\n",
                ),
                ("        x = self.blocks(x)\n", "        x = x + self.conv(x.transpose(1, 2)).transpose(1, 2)\n        x = self.blocks(x)\n"),
            ),
            "torch_layers": (
                ("        self.init_weights()\n", "        self.conv = nn.Conv1d(d_model, d_model, 3, padding=1)\n        self.init_weights()\n"),
                ("        x = self.pos_encoder(x)\n", "        x = self.pos_encoder(x)\n        x = x + self.conv(x.permute(1, 2, 0)).permute(2, 0, 1)\n"),
            ),
        },
    ),
    Bug(
        "scores-normalised-over-time", "leak", "Scores are centred over all keys and divided by their spread, before the mask.",
        {
            "lecture": ((_LECTURE_MASK, "        att = att / (att.std(dim=-1, keepdim=True) + 1e-5)\n" + _LECTURE_MASK),),
            "book": ((_BOOK_MASK, "        attn_scores = attn_scores / (attn_scores.std(dim=-1, keepdim=True) + 1e-5)\n" + _BOOK_MASK),),
        },
    ),
)  # fmt: skip

_REACH = (
    Bug(
        "heads-by-view-both-ways", "reach", "Heads are cut and merged without a transpose: pieces of a few positions.",
        {
            "classes": (
                *(
                    (
                        f"{name} = {name}.view(B, T, self.n_head, hs).transpose(1, 2)",
                        f"{name} = {name}.reshape(B, self.n_head, T, hs)",
                    )
                    for name in "qkv"
                ),
                ("y.transpose(1, 2).contiguous().view(B, T, C)", "y.contiguous().view(B, T, C)"),
            ),
            "book": (
                *(
                    (
                        f"{name} = {name}.view(b, num_tokens, self.num_heads, self.head_dim)",
                        f"{name} = {name}.view(b, self.num_heads, num_tokens, self.head_dim)",
                    )
                    for name in ("queries", "keys", "values")
                ),
                ("        queries, keys, values = queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)\n", ""),
                (_BOOK_MERGE, "context_vec = attn_weights @ values"),
            ),
        },
    ),
    Bug(
        "window-by-mistake", "reach", "The mask keeps only the last four positions.",
        {
            "lecture": (("torch.tril(torch.ones(block_size, block_size))", "torch.tril(torch.ones(block_size, block_size)).triu(-3)"),),
            "llama_like": ((_LLAMA_CAUSAL, _LLAMA_CAUSAL + " & (here[None, :] > here[past_len:, None] - 4)"),),
            "functional": (("distance < 0", "(distance < 0) | (distance > 3)"),),
        },
    ),
    Bug(
        "late-keys-cut", "reach", "A limit of eight keys is left in the code: later ones are never attended to.",
        {
            "lecture": ((_LECTURE_MASK, _LECTURE_MASK + '        att[:, :, 8:] = float("-inf")\n'),),
            "book": ((_BOOK_MASK, _BOOK_MASK + "        attn_scores[..., 8:] = -torch.inf\n"),),
            "functional": (("distance < 0", "(distance < 0) | (pos[None, :] >= 8)"),),
        },
    ),
    Bug(
        "own-position-only", "reach", "Every position attends to itself alone.",
        {
            "lecture": (("torch.tril(torch.ones(block_size, block_size))", "torch.eye(block_size)"),),
            "book": (("future = torch.triu(torch.ones(context_length, context_length), diagonal=1)", "future = 1 - torch.eye(context_length)"),),
            "llama_like": ((_LLAMA_CAUSAL, _LLAMA_CAUSAL.replace("<=", "==")),),
        },
    ),
    Bug(
        "inputs-shifted-inside", "reach", "The model shifts its input to the right, though the data does it already.",
        {
            "functional": (('x = p["embed"][tokens]', 'x = F.pad(p["embed"][tokens][:, :-1], (0, 0, 1, 0))'),),
            "lecture": (("x = self.tokens(idx)  # (B, T, C)", "x = F.pad(self.tokens(idx)[:, :-1], (0, 0, 1, 0))"),),
        },
    ),
    Bug(
        "first-token-never-seen", "reach", "The column of the first key is masked for all but the first query.",
        {
            "book": ((_BOOK_MASK, _BOOK_MASK + "        attn_scores[..., 1:, 0] = -torch.inf\n"),),
            "functional": (("distance < 0", "(distance < 0) | ((pos[None, :] == 0) & (pos[:, None] > 0))"),),
        },
    ),
)  # fmt: skip

_SOFTMAX_AXIS = (
    Bug(
        "softmax-over-queries", "softmax axis", "The softmax normalises over the queries.",
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
        "softmax-over-heads", "softmax axis", "The softmax normalises over the heads.",
        {
            "book": ((_BOOK_SOFTMAX, _BOOK_SOFTMAX.replace("dim=-1", "dim=1")), (", -torch.inf)", ", -1e9)")),
            "llama_like": (("F.softmax(scores.float(), dim=-1)", "F.softmax(scores.float(), dim=1)"),),
            "functional": (("scores.softmax(dim=-1)", "scores.softmax(dim=1)"), ('float("-inf"))', "-1e9)")),
        },
    ),
    Bug(
        "softmax-over-batch", "softmax axis", "The softmax normalises over the rows of the batch.",
        {
            "book": ((_BOOK_SOFTMAX, _BOOK_SOFTMAX.replace("dim=-1", "dim=0")), (", -torch.inf)", ", -1e9)")),
            "llama_like": (("F.softmax(scores.float(), dim=-1)", "F.softmax(scores.float(), dim=0)"),),
        },
    ),
)  # fmt: skip

_SCALE = (
    Bug(
        "no-scale", "scale", "Scores are not divided by the square root of the head's width.",
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
        "scaled-twice", "scale", "Queries are scaled, and then the scores again.",
        {
            "hf_like": (("scores = query @ key.mT", "scores = query / value.size(-1) ** 0.5 @ key.mT"),),
            "classes": (("        p = self.dropout if", "        q = q / math.sqrt(hs)\n        p = self.dropout if"),),
            "llama_like": (("scores = q @", "q = q * self.head_dim**-0.5\n        scores = q @"),),
            "book": (("attn_scores = queries @", "queries = queries / self.head_dim**0.5\n        attn_scores = queries @"),),
        },
    ),
    Bug(
        "scaled-by-all-heads", "scale", "Scores are divided by the square root of the model's width, not of a head's.",
        {
            "lecture": (("k.shape[-1] ** -0.5", "C**-0.5"),),
            "classes": (("is_causal=True", "is_causal=True, scale=C**-0.5"),),
            "book": (("self.head_dim**0.5", "self.d_out**0.5"),),
        },
    ),
    Bug(
        "scaled-up", "scale", "Scores are multiplied by the square root of the head's width.",
        {
            "lecture": (("k.shape[-1] ** -0.5", "k.shape[-1] ** 0.5"),),
            "book": (("attn_scores / self.head_dim**0.5", "attn_scores * self.head_dim**0.5"),),
            "functional": (("/ q.shape[-1] ** 0.5", "* q.shape[-1] ** 0.5"),),
        },
    ),
)  # fmt: skip

_KV_K = "        k = k.repeat_interleave(self.n_heads // self.n_kv, dim=1)\n"
_KV_V = "        v = v.repeat_interleave(self.n_heads // self.n_kv, dim=1)\n"
_OURS_GROUPS = (
    _OURS_BUILT + "    for block in gpt.blocks:\n"
    "        block.attention.attend.register_forward_pre_hook({hook})\n"
)  # fmt: skip
_GROUPS = (
    Bug(
        "keys-and-values-in-different-order", "grouped queries", "Keys are repeated head by head, values as a whole.",
        {
            "complex_rope": (("values = repeat_kv(xv, self.n_rep)", "values = xv.repeat(1, 1, self.n_rep, 1)"),),
            "llama_like": ((_KV_V, "        v = v.repeat(1, self.n_heads // self.n_kv, 1, 1)\n"),),
            "ours": ((
                _OURS_BUILT,
                _OURS_GROUPS.format(
                    hook="\n            lambda m, a: (\n                a[0],\n"
                    "                a[1].repeat_interleave(2, dim=1),\n                a[2].repeat(1, 2, 1, 1),\n"
                    "                a[3],\n            )\n        "
                ),
            ),),
        },
    ),
    Bug(
        "groups-by-repeat", "grouped queries", "Keys and values are repeated as a whole, not head by head.",
        {
            "complex_rope": (("return x[:, :, :, None, :].expand(B, T, n_kv, n_rep, d).reshape(B, T, n_kv * n_rep, d)", "return x[:, :, None, :, :].expand(B, T, n_rep, n_kv, d).reshape(B, T, n_kv * n_rep, d)"),),
            "llama_like": (
                (_KV_K, "        k = k.repeat(1, self.n_heads // self.n_kv, 1, 1)\n"),
                (_KV_V, "        v = v.repeat(1, self.n_heads // self.n_kv, 1, 1)\n"),
            ),
        },
    ),
)  # fmt: skip

_CLASSES_WPE = "self.wte(idx) + self.wpe(pos)"
_LECTURE_POS = "        x = x + self.positions(torch.arange(T, device=idx.device))\n"
_BOOK_POS = "self.pos_emb(torch.arange(seq_len, device=in_idx.device))"
_ROTATE_K = "        k = (k * cos + rotate_half(k) * sin).to(v.dtype)\n"
_ROTATE_Q = "        q = (q * cos + rotate_half(q) * sin).to(v.dtype)\n"
_COMPLEX_ROTATE = "        xq, xk = apply_rotary(xq, freqs_cis), apply_rotary(xk, freqs_cis)\n"
_POSITIONS = (
    Bug(
        "positions-not-added", "position", "Positions are embedded, but not added to the tokens.",
        {
            "hf_like": (("self.wte(input_ids) + self.wpe(position_ids)", "self.wte(input_ids)"),),
            "lecture": ((_LECTURE_POS, "        self.positions(torch.arange(T, device=idx.device))\n"),),
            "classes": ((_CLASSES_WPE, "self.wte(idx)"),),
            "book": (("tok_embeds + pos_embeds", "tok_embeds"),),
            "torch_layers": (("        x = x + self.pe[: x.size(0)]\n", ""),),
        },
    ),
    Bug(
        "same-position-for-all", "position", "Every token gets the embedding of position 0.",
        {
            "complex_rope": (("self.freqs_cis[:T]", "self.freqs_cis[:1].expand(T, -1)"),),
            "hf_like": (("self.wpe(position_ids)", "self.wpe(position_ids * 0)"),),
            "lecture": (("torch.arange(T, device=idx.device)", "torch.zeros(T, dtype=torch.long, device=idx.device)"),),
            "classes": (("self.wpe(pos)", "self.wpe(pos[:1])"),),
            "torch_layers": (("self.pe[: x.size(0)]", "self.pe[:1]"),),
            "llama_like": (("[:, past_len:]\n", "[:, past_len:] * 0\n"),),
        },
    ),
    Bug(
        "positions-of-the-batch-row", "position", "The position is the row's number in the batch.",
        {
            "classes": (("torch.arange(T, dtype=torch.long, device=idx.device)", "torch.arange(B, device=idx.device)[:, None]"),),
            "book": ((_BOOK_POS, "self.pos_emb(torch.arange(batch_size, device=in_idx.device)).unsqueeze(1)"),),
            "torch_layers": (("self.pe[: x.size(0)]", "self.pe[: x.size(1)].transpose(0, 1)"),),
        },
    ),
    Bug(
        "positions-reversed", "position", "Positions count down from the last token, so that the same text moves as it grows.",
        {
            "lecture": (("torch.arange(T, device=idx.device)", "torch.arange(T - 1, -1, -1, device=idx.device)"),),
            "classes": (("self.wpe(pos)", "self.wpe(pos.flip(0))"),),
            "book": (("torch.arange(seq_len, device=in_idx.device)", "torch.arange(seq_len, device=in_idx.device).flip(0)"),),
        },
    ),
    Bug(
        "rotary-pairs-do-not-match", "position", "Neighbouring channels are rotated with the angles of the halves.",
        {
            "complex_rope": ((
                "apply_rotary(xk, freqs_cis)\n",
                "apply_rotary(xk.unflatten(-1, (2, -1)).mT.flatten(3), freqs_cis)\n"
                "        xk = xk.unflatten(-1, (-1, 2)).mT.flatten(3)\n",
            ),),
            "llama_like": ((
                "    a, b = x.chunk(2, dim=-1)\n    return torch.cat((-b, a), dim=-1)\n",
                "    a, b = x[..., ::2], x[..., 1::2]\n    return torch.stack((-b, a), dim=-1).flatten(-2)\n",
            ),),
            "ours": ((
                _OURS_BUILT,
                _OURS_BUILT + "    half = gpt.rope_cos.shape[1] // 2\n"
                "    gpt.rope_cos = gpt.rope_cos[:, :half].repeat_interleave(2, dim=1)\n"
                "    gpt.rope_sin = gpt.rope_sin[:, :half].repeat_interleave(2, dim=1)\n",
            ),),
        },
    ),
    Bug(
        "rotary-of-queries-only", "position", "Queries are rotated, keys are not.",
        {
            "llama_like": ((_ROTATE_K, ""),),
            "complex_rope": (("apply_rotary(xq, freqs_cis), apply_rotary(xk, freqs_cis)", "apply_rotary(xq, freqs_cis), xk"),),
        },
    ),
    Bug(
        "rotary-of-values-too", "position", "Values are rotated as well.",
        {
            "llama_like": ((_ROTATE_K, _ROTATE_K + "        v = (v * cos + rotate_half(v) * sin).to(v.dtype)\n"),),
            "complex_rope": ((_COMPLEX_ROTATE, _COMPLEX_ROTATE + "        xv = apply_rotary(xv, freqs_cis)\n"),),
        },
    ),
    Bug(
        "rotary-over-heads", "position", "The angle is that of the head's number instead of the position.",
        {
            "complex_rope": (("freqs_cis[None, :, None, :]", "freqs_cis[: x.shape[2]][None, None]"),),
            "llama_like": (
                (_ROTATE_Q, "        c, s = rotary(torch.arange(self.n_heads, device=x.device)[None], self.head_dim, 1e4)\n"
                            "        c, s = c.transpose(1, 2), s.transpose(1, 2)\n"
                            "        q = (q * c + rotate_half(q) * s).to(v.dtype)\n"),
                (_ROTATE_K, "        k = (k * c[:, : self.n_kv] + rotate_half(k) * s[:, : self.n_kv]).to(v.dtype)\n"),
            ),
        },
    ),
    Bug(
        "rotary-of-keys-backwards", "position", "Keys are rotated the other way, so that scores depend on the sum of positions.",
        {
            "complex_rope": (("apply_rotary(xk, freqs_cis)", "apply_rotary(xk, freqs_cis.conj())"),),
            "llama_like": ((_ROTATE_K, _ROTATE_K.replace("cos +", "cos -")),),
        },
    ),
    Bug(
        "rotary-tables-zero", "position", "The rotary angles are all zero, because the frequencies are rounded to integers.",
        {
            "complex_rope": (("torch.outer(t, freqs)", "torch.outer(t, freqs) // 100"),),
            "llama_like": (("angles = torch.cat((angles, angles), dim=-1)", "angles = torch.cat((angles, angles), dim=-1) // 100"),),
            "ours": ((_OURS_BUILT, _OURS_BUILT + "    gpt.rope_cos.fill_(1.0)\n    gpt.rope_sin.fill_(0.0)\n"),),
        },
    ),
)  # fmt: skip

ATTENTION_BUGS = _LEAK + _REACH + _SOFTMAX_AXIS + _SCALE + _GROUPS + _POSITIONS

"""Bugs of behaviour: batches, devices, modes, state, numbers that overflow, caches, padding, lengths, targets."""

from glassgpt.doctor.gallery.bug import Bug

_LECTURE_X = "        x = self.tokens(idx)  # (B, T, C)\n"
_LECTURE_MASK = '        att = att.masked_fill(self.tril[:T, :T] == 0, float("-inf"))\n'
_LECTURE_LOSS = "loss = F.cross_entropy(logits, targets.view(B * T))"
_CLASSES_X = "        x = self.drop(self.wte(idx) + self.wpe(pos))\n"
_CLASSES_LOSS = "F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-100)"
_BOOK_X = "        x = self.drop_emb(tok_embeds + pos_embeds)\n"
_LLAMA_LOSS = "F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)"
_LLAMA_CAUSAL = "causal = here[None, :] <= here[past_len:, None]"
_LLAMA_POSITIONS = "positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, past_len:]"
_LLAMA_X = "        x = self.embed_tokens(input_ids)\n"
_HF_LOSS = "loss_fct(shift_logits.view(-1, shift_logits.size(-1)), shift_labels.view(-1))"
_HF_LOGITS = "            shift_logits = logits[..., :-1, :].contiguous()\n"
_HF_LABELS = "            shift_labels = labels[..., 1:].contiguous()\n"
_TORCH_X = "        x = self.pos_encoder(x)\n"
_FUNCTIONAL_X = '        x = p["embed"][tokens]\n'
_OURS_LOGITS = "        logits = super().forward(idx, **keywords)\n"

_BATCH = (
    Bug(
        "mean-of-the-batch", "batch mixing", "The mean over the rows of the batch is taken away.",
        {
            "lecture": (("        x = self.ln_f(x)\n", "        x = self.ln_f(x - x.mean(0))\n"),),
            "classes": ((_CLASSES_X, _CLASSES_X + "        x = x - x.mean(dim=0, keepdim=True)\n"),),
            "ours": ((_OURS_LOGITS, _OURS_LOGITS + "        logits = logits - logits.mean(dim=0)\n"),),
        },
    ),
    Bug(
        "batch-norm", "batch mixing", "BatchNorm is used where LayerNorm belongs.",
        {
            "lecture": (
                ("        self.ln_f = nn.LayerNorm(n_embd)\n", "        self.ln_f = nn.BatchNorm1d(n_embd)\n"),
                ("        x = self.ln_f(x)\n", "        x = self.ln_f(x.transpose(1, 2)).transpose(1, 2)\n"),
            ),
            "classes": (
                ("        self.ln_f = nn.LayerNorm(config.n_embd)\n", "        self.ln_f = nn.BatchNorm1d(config.n_embd)\n"),
                ("        x = self.ln_f(x)\n", "        x = self.ln_f(x.view(B * T, -1)).view(B, T, -1)\n"),
            ),
        },
    ),
    Bug(
        "view-for-transpose", "batch mixing", "[B, T] is viewed as [T, B], not transposed: rows are cut into each other.",
        {
            "torch_layers": (
                ("src = tokens.transpose(0, 1)", "src = tokens.reshape(tokens.size(1), tokens.size(0))"),
                ("logits.transpose(0, 1)", "logits.reshape(tokens.size(0), tokens.size(1), -1)"),
            ),
        },
    ),
    Bug(
        "time-first-forgotten", "batch mixing", "The layers expect time first, and get the batch first.",
        {
            "torch_layers": (
                ("        x = self.encoder(x, mask=mask)\n", "        x = x.transpose(0, 1)  # batch first\n        n = x.size(0)\n        mask = torch.triu(torch.full((n, n), float(\"-inf\"), device=src.device, dtype=x.dtype), diagonal=1)\n        x = self.encoder(x, mask=mask).transpose(0, 1)\n"),
            ),
        },
    ),
    Bug(
        "heads-and-batch-in-another-order", "batch mixing", "Heads are stacked before the batch, and taken apart after it.",
        {
            "classes": (
                *(
                    (
                        f"{n} = {n}.view(B, T, self.n_head, hs).transpose(1, 2)",
                        f"{n} = {n}.view(B, T, self.n_head, hs).permute(2, 0, 1, 3).reshape(-1, T, hs)",
                    )
                    for n in "qkv"
                ),
                ("y = y.transpose(1, 2).contiguous().view(B, T, C)", "y = y.view(B, self.n_head, T, hs).transpose(1, 2).reshape(B, T, C)"),
            ),
        },
    ),
    Bug(
        "rows-share-one-summary", "batch mixing", "A summary of the first row is added to all rows.",
        {
            "book": ((_BOOK_X, _BOOK_X + "        x = x + x[0, 0]\n"),),
            "functional": ((_FUNCTIONAL_X, _FUNCTIONAL_X + "        x = x + 0.1 * x[:1, :1]\n"),),
        },
    ),
)  # fmt: skip

_DEVICE = (
    Bug(
        "arange-on-the-cpu", "device", "Positions are made on the CPU, wherever the model is.",
        {
            "hf_like": (("torch.arange(past_length, past_length + T, device=input_ids.device)", "torch.arange(past_length, past_length + T)"),),
            "lecture": (("torch.arange(T, device=idx.device)", "torch.arange(T)"),),
            "classes": (("torch.arange(T, dtype=torch.long, device=idx.device)", "torch.arange(T, dtype=torch.long)"),),
            "book": (("torch.arange(seq_len, device=in_idx.device)", "torch.arange(seq_len)"),),
            "llama_like": (("torch.arange(total, device=input_ids.device)", "torch.arange(total)"),),
        },
    ),
    Bug(
        "mask-is-no-buffer", "device", "The mask is a plain attribute, which .to() leaves where it is.",
        {
            "lecture": (('self.register_buffer("tril", torch.tril(torch.ones(block_size, block_size)))', "self.tril = torch.tril(torch.ones(block_size, block_size))"),),
            "book": (('self.register_buffer("mask", future.bool())', "self.mask = future.bool()"),),
            "torch_layers": (('self.register_buffer("pe", pe)', "self.pe = pe"),),
        },
    ),
    Bug(
        "mask-made-on-the-cpu", "device", "The mask is made on the CPU in every forward pass.",
        {
            "torch_layers": ((", device=src.device, dtype=x.dtype)", ", dtype=x.dtype)"),),
            "functional": (("    pos = torch.arange(T, device=device)\n", "    pos = torch.arange(T)\n    slopes = slopes.cpu()\n"),),
        },
    ),
    Bug(
        "moved-to-the-cpu", "device", "A result is moved to the CPU in the forward pass.",
        {
            "lecture": (("        att = self.dropout(att)\n", "        att = self.dropout(att.cpu())\n"),),
            "book": ((_BOOK_X, _BOOK_X.replace("tok_embeds +", "tok_embeds.cpu() +")),),
        },
    ),
)  # fmt: skip

_MODE = (
    Bug(
        "dropout-always-on", "mode", "F.dropout is called without training=self.training.",
        {
            "classes": (("        return self.dropout(self.c_proj(x))\n", "        return F.dropout(self.c_proj(x), 0.1)\n"),),
            "lecture": (("        att = self.dropout(att)\n", "        att = F.dropout(att, 0.2)\n"),),
            "functional": (("    hidden = F.relu(", "    h = F.dropout(h, 0.1)\n    hidden = F.relu("),),
        },
    ),
    Bug(
        "train-in-forward", "mode", "The forward pass switches to train mode.",
        {
            "lecture": ((_LECTURE_X, "        self.train()\n" + _LECTURE_X),),
            "book": ((_BOOK_X, "        self.train()\n" + _BOOK_X),),
        },
    ),
    Bug(
        "dropout-made-in-forward", "mode", "nn.Dropout is made in the forward pass, so that it is always in train mode.",
        {
            "book": (("        attn_weights = self.dropout(attn_weights)\n", "        attn_weights = nn.Dropout(0.1)(attn_weights)\n"),),
            "torch_layers": ((_TORCH_X, _TORCH_X + "        x = nn.Dropout(0.1)(x)\n"),),
        },
    ),
    Bug(
        "sdpa-dropout-always-on", "mode", "The dropout of fused attention does not know of eval mode.",
        {"classes": (("dropout_p=p,", "dropout_p=self.dropout,"),)},
    ),
    Bug(
        "noise-always-on", "mode", "Noise is added to the embeddings in eval mode, too.",
        {
            "torch_layers": ((_TORCH_X, _TORCH_X + "        x = x + 0.01 * torch.randn_like(x)\n"),),
            "functional": ((_FUNCTIONAL_X, _FUNCTIONAL_X + "        x = x + 0.01 * torch.randn_like(x)\n"),),
        },
    ),
)  # fmt: skip

_STATE = (
    Bug(
        "state-between-calls", "state", "The last hidden state is kept and added in the next call.",
        {
            "lecture": (
                ("        self.block_size = block_size\n", "        self.block_size = block_size\n        self.memory = None\n"),
                ("        x = self.blocks(x)\n", "        if self.memory is not None:\n            x = x + 0.1 * self.memory\n        x = self.blocks(x)\n        self.memory = x[:1, -1:].detach()\n"),
            ),
            "functional": (
                ("        self.n_ctx, self.n_heads", "        self.last = 0.0\n        self.n_ctx, self.n_heads"),
                (_FUNCTIONAL_X, _FUNCTIONAL_X + "        x = x + 0.1 * self.last\n        self.last = x.detach().mean()\n"),
            ),
        },
    ),
    Bug(
        "values-of-the-call-before", "state", "A cache for generation is never cleared: values of the call before are mixed in.",
        {
            "lecture": (
                ("        self.dropout = nn.Dropout(dropout)\n\n    def forward(self, x):\n        B, T, C = x.shape\n",
                 "        self.dropout = nn.Dropout(dropout)\n        self.kept = None\n\n    def forward(self, x):\n        B, T, C = x.shape\n"),
                ("        return att @ v  # (B, T, head_size)\n",
                 "        v = v if self.kept is None or self.kept.shape != v.shape else 0.5 * (v + self.kept)\n        self.kept = v.detach()\n        return att @ v\n"),
            ),
        },
    ),
    Bug(
        "running-mean", "state", "A running mean of the activations is updated in eval mode, too.",
        {
            "book": (
                ("        self.final_norm = LayerNorm(cfg[\"emb_dim\"])\n", "        self.final_norm = LayerNorm(cfg[\"emb_dim\"])\n        self.register_buffer(\"mean\", torch.zeros(cfg[\"emb_dim\"]))\n"),
                ("        x = self.final_norm(x)\n", "        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 1))\n        x = self.final_norm(x - self.mean)\n"),
            ),
            "torch_layers": (
                ("        self.init_weights()\n", "        self.register_buffer(\"mean\", torch.zeros(d_model))\n        self.init_weights()\n"),
                (_TORCH_X, _TORCH_X + "        self.mean.mul_(0.9).add_(0.1 * x.detach().mean((0, 1)))\n        x = x - self.mean\n"),
            ),
        },
    ),
    Bug(
        "warm-up-by-calls", "state", "A counter of calls, not of training steps, scales the embeddings.",
        {
            "functional": (
                ("        self.n_ctx, self.n_heads", "        self.calls = 0\n        self.n_ctx, self.n_heads"),
                (_FUNCTIONAL_X, "        self.calls += 1\n" + _FUNCTIONAL_X + "        x = x * (1 + 1 / self.calls)\n"),
            ),
        },
    ),
)  # fmt: skip

_IN_PLACE = (
    Bug(
        "ids-changed", "in-place", "The forward pass writes into the caller's ids.",
        {
            "lecture": ((_LECTURE_X, "        idx[:, 0] = 0\n" + _LECTURE_X),),
            "classes": (("        B, T = idx.size()\n", "        idx.clamp_(max=self.config.vocab_size - 2)\n        B, T = idx.size()\n"),),
            "ours": ((_OURS_LOGITS, "        idx[idx == 3] = 0\n" + _OURS_LOGITS),),
        },
    ),
    Bug(
        "targets-changed", "in-place", "The forward pass writes into the caller's targets.",
        {
            "lecture": (("        B, T, V = logits.shape\n", "        B, T, V = logits.shape\n        targets[:, 0] = -100\n"),),
            "classes": (("        logits = self.lm_head(x)\n", "        logits = self.lm_head(x)\n        targets[targets == 0] = -100\n"),),
        },
    ),
    Bug(
        "weights-clipped-in-forward", "in-place", "The forward pass clips the weights.",
        {
            "lecture": ((_LECTURE_X, "        for p in self.parameters():\n            p.data.clamp_(-0.1, 0.1)\n" + _LECTURE_X),),
            "book": ((_BOOK_X, "        self.out_head.weight.data.clamp_(-0.1, 0.1)\n" + _BOOK_X),),
        },
    ),
    Bug(
        "weights-changed", "in-place", "The forward pass decays the weights.",
        {
            "functional": ((_FUNCTIONAL_X, '        p["embed"].data.mul_(0.999)\n' + _FUNCTIONAL_X),),
            "classes": ((_CLASSES_X, "        self.wpe.weight.data[0] = 0.01 * self.wte(idx).detach().mean()\n" + _CLASSES_X),),
        },
    ),
)  # fmt: skip

_NUMBERS = (
    Bug(
        "first-row-masked", "non-finite", "The first query may see nothing: its softmax is NaN.",
        {
            "lecture": (("torch.tril(torch.ones(block_size, block_size))", "torch.tril(torch.ones(block_size, block_size), diagonal=-1)"),),
            "book": (("diagonal=1", "diagonal=0"),),
            "functional": (("distance < 0", "distance <= 0"),),
        },
    ),
    Bug(
        "log-of-zero", "non-finite", "The logarithm of a ReLU is minus infinity.",
        {
            "lecture": (("logits = self.lm_head(x)  # (B, T, V)", "logits = torch.log(F.relu(self.lm_head(x)))"),),
            "torch_layers": (("logits = self.decoder(x)  # [T, B, V]", "logits = torch.log(torch.relu(self.decoder(x)))"),),
        },
    ),
    Bug(
        "root-of-zero", "non-finite", "The gradient of a square root at zero is infinite, and NaN after the ReLU before it.",
        {
            "lecture": (
                ("            nn.ReLU(),\n", ""),
                ("        return self.net(x)\n", "        return self.net[1:](torch.sqrt(F.relu(self.net[0](x))))\n"),
            ),
            "functional": (('F.relu(h @ p[prefix + "w1"]).square()', 'F.relu(h @ p[prefix + "w1"]).sqrt()'),),
            "llama_like": (("F.silu(self.gate_proj(x)) *", "torch.sqrt(F.relu(self.gate_proj(x))) *"),),
        },
    ),
    Bug(
        "nan-for-one-token", "non-finite", "Positions are divided by T - 1, which is 0 for one token.",
        {
            "lecture": ((_LECTURE_X, "        where = torch.arange(T, device=idx.device) / (T - 1)\n" + _LECTURE_X + "        x = x + where[:, None].to(x.dtype)\n"),),
            "torch_layers": ((_TORCH_X, _TORCH_X + "        x = x + (torch.arange(T, device=src.device) / (T - 1))[:, None, None].to(x.dtype)\n"),),
        },
    ),
    Bug(
        "temperature-after-the-mask", "non-finite", "A learned temperature multiplies scores that are minus infinity: its gradient is NaN.",
        {
            "book": (
                ("        self.dropout = nn.Dropout(dropout)\n", "        self.dropout = nn.Dropout(dropout)\n        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))\n"),
                ("attn_scores / self.head_dim**0.5", "attn_scores * self.temperature / self.head_dim**0.5"),
            ),
            "functional": (
                ('            p[f"block{i}_norm1"]', '            p[f"block{i}_heat"] = torch.ones(n_heads, 1, 1)\n            p[f"block{i}_norm1"]'),
                ("weights = scores.softmax(dim=-1)", 'weights = (scores * p[prefix + "heat"]).softmax(dim=-1)'),
            ),
        },
    ),
    Bug(
        "norm-without-epsilon", "non-finite", "A norm divides by the deviation without an epsilon, and the stream starts at zero.",
        {
            "book": (
                ("torch.sqrt(var + self.eps)", "torch.sqrt(var)"),
                ('        self.drop_emb = nn.Dropout(cfg["drop_rate"])\n', '        self.drop_emb = nn.Dropout(cfg["drop_rate"])\n        nn.init.zeros_(self.tok_emb.weight)\n        nn.init.zeros_(self.pos_emb.weight)\n'),
            ),
        },
    ),
)  # fmt: skip

_OVERFLOW = (
    Bug(
        "stream-times-a-million", "overflow", "The stream is multiplied by a large number before a norm that does not need it.",
        {
            "lecture": (("        x = self.ln_f(x)\n", "        x = self.ln_f(x * 1e5)\n"),),
            "classes": (("        x = self.ln_f(x)\n", "        x = self.ln_f(x * 1e6)\n"),),
        },
    ),
    Bug(
        "exponential-without-maximum", "overflow", "The softmax is written with exp of the raw scores.",
        {
            "lecture": (
                (" * k.shape[-1] ** -0.5", " * 40"),
                ("att = F.softmax(att, dim=-1)", "att = att.exp() / att.exp().sum(dim=-1, keepdim=True)"),
            ),
            "functional": (
                ("weights = scores.softmax(dim=-1)", "e = (scores * 12).exp()\n    weights = e / e.sum(dim=-1, keepdim=True)"),
            ),
        },
    ),
    Bug(
        "squares-summed-in-half", "overflow", "A norm sums squares of large numbers in half precision.",
        {
            "functional": (
                ('x = p["embed"][tokens]', 'x = p["embed"][tokens] * 10_000'),
            ),
        },
    ),
)  # fmt: skip

_CACHE = (
    Bug(
        "cached-positions-start-again", "cache", "With a cache, positions start at 0 again.",
        {
            "hf_like": (("torch.arange(past_length, past_length + T, device=input_ids.device)", "torch.arange(T, device=input_ids.device)"),),
            "llama_like": ((_LLAMA_POSITIONS, "positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, :T]"),),
        },
    ),
    Bug(
        "cache-keeps-only-the-new", "cache", "The new keys replace the cached ones.",
        {
            "hf_like": (("            present = (key, value)\n", "            present = (key[:, :, -T:], value[:, :, -T:])\n"),),
            "llama_like": (("        present = (k, v)\n", ""), ("        if past is not None:\n            k, v", "        present = (k, v)\n        if past is not None:\n            k, v")),
        },
    ),
    Bug(
        "cached-values-stale", "cache", "Values in the cache are those of the first call.",
        {
            "hf_like": (("value = torch.cat((layer_past[1], value), dim=-2)", "value = torch.cat((layer_past[1], layer_past[1][:, :, -1:].expand_as(value)), dim=-2)"),),
            "llama_like": (("        present = (k, v)\n", "        present = (k, v if past is None else torch.cat((past[1], past[1][:, :, -T:]), dim=2))\n"),),
        },
    ),
    Bug(
        "cached-keys-not-rotated", "cache", "Keys are stored before the rotation and not rotated later.",
        {
            "llama_like": (
                ("        q = (q * cos", "        raw = k\n        q = (q * cos"),
                ("        present = (k, v)\n", "        present = (k, v) if past is None else (torch.cat((past[0], raw), dim=2), v)\n"),
            ),
        },
    ),
    Bug(
        "cached-mask-for-one-token", "cache", "The mask counts queries from 0, so that a new token sees the first one only.",
        {
            "hf_like": (("self.bias[:, :, S - T : S, :S]", "self.bias[:, :, :T, :S]"),),
            "llama_like": ((_LLAMA_CAUSAL, "causal = here[None, :] <= here[:T, None]"),),
        },
    ),
    Bug(
        "cache-of-the-layer-before", "cache", "Every layer reads the cache of the first layer.",
        {
            "hf_like": (("past_key_values[i]}", "past_key_values[max(i - 1, 0)]}"),),
            "llama_like": (("past = past_key_values[i] if", "past = past_key_values[0] if"),),
        },
    ),
)  # fmt: skip

_PADDING = (
    Bug(
        "attention-mask-ignored", "padding", "attention_mask is accepted and not used.",
        {
            "hf_like": (("if attention_mask is not None:\n            mask", "if False:\n            mask"),),
            "llama_like": (
                ("causal[None, None] & attention_mask[:, None, None, :].bool()", "causal[None, None]"),
                (_LLAMA_POSITIONS, "positions = here_positions[:, past_len:]"),
                ("        total = past_len + T\n", "        total = past_len + T\n        here_positions = torch.arange(total, device=input_ids.device)[None].expand(B, -1)\n"),
            ),
        },
    ),
    Bug(
        "attention-mask-inverted", "padding", "attention_mask hides the tokens and shows the padding.",
        {
            "llama_like": (
                ("        if attention_mask is None:\n", "        inverted = attention_mask is not None\n        if attention_mask is None:\n"),
                ("attention_mask[:, None, None, :].bool()", "(attention_mask[:, None, None, :].bool() != inverted)"),
            ),
            "hf_like": (("attention_mask[:, None, None, :].bool()", "~attention_mask[:, None, None, :].bool()"),),
        },
    ),
    Bug(
        "positions-count-padding", "padding", "Left padding shifts the positions of the text.",
        {
            "hf_like": (("attention_mask is not None and position_ids is None:", "False:"),),
        },
    ),
)  # fmt: skip

_LENGTH = (
    Bug(
        "positions-clamped", "max length", "Positions after the context all get the last embedding.",
        {
            "lecture": (("torch.arange(T, device=idx.device)", "torch.arange(T, device=idx.device).clamp(max=self.block_size - 1)"),
                        (_LECTURE_MASK, '        att = att.masked_fill(torch.ones(T, T, device=x.device).tril() == 0, float("-inf"))\n')),
            "classes": (
                ("        assert T <= self.config.block_size, f\"{T} tokens, but the context is {self.config.block_size}\"\n", ""),
                ("device=idx.device)\n", "device=idx.device).clamp(max=self.config.block_size - 1)\n"),
            ),
        },
    ),
    Bug(
        "positions-wrapped", "max length", "Positions after the context start at 0 again.",
        {
            "classes": (
                ("        assert T <= self.config.block_size, f\"{T} tokens, but the context is {self.config.block_size}\"\n", ""),
                ("device=idx.device)\n", "device=idx.device) % self.config.block_size\n"),
            ),
            "torch_layers": (("self.pe[: x.size(0)]", "self.pe[torch.arange(x.size(0)) % self.pe.size(0)]"),),
        },
    ),
    Bug(
        "silent-crop", "max length", "Longer texts are cut without a word: fewer logits come out than tokens went in.",
        {
            "lecture": (("        B, T = idx.shape\n", "        idx = idx[:, -self.block_size :]\n        B, T = idx.shape\n"),),
            "book": (("        batch_size, seq_len = in_idx.shape\n", "        in_idx = in_idx[:, : self.pos_emb.num_embeddings]\n        batch_size, seq_len = in_idx.shape\n"),),
            "ours": ((_OURS_LOGITS, "        idx = idx[:, -self.config.block_size :]\n" + _OURS_LOGITS),),
        },
    ),
    Bug(
        "one-position-too-few", "max length", "The table of positions has one row less than the context.",
        {
            "classes": (("nn.Embedding(config.block_size, config.n_embd)", "nn.Embedding(config.block_size - 1, config.n_embd)"),),
            "lecture": (("nn.Embedding(block_size, n_embd)", "nn.Embedding(block_size - 1, n_embd)"),),
        },
    ),
)  # fmt: skip

_TARGETS = (
    Bug(
        "labels-not-shifted", "targets", "Labels equal to the ids are compared with the logits of the same position.",
        {
            "hf_like": ((_HF_LOGITS, "            shift_logits = logits.contiguous()\n"), (_HF_LABELS, "            shift_labels = labels.contiguous()\n")),
            "llama_like": ((_LLAMA_LOSS, "F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)"),),
        },
    ),
    Bug(
        "labels-shifted-twice", "targets", "The model shifts the labels by two.",
        {
            "hf_like": ((_HF_LOGITS, "            shift_logits = logits[..., :-2, :].contiguous()\n"), (_HF_LABELS, "            shift_labels = labels[..., 2:].contiguous()\n")),
            "llama_like": ((_LLAMA_LOSS, "F.cross_entropy(logits[:, :-2].flatten(0, 1), labels[:, 2:].flatten(), ignore_index=-100)"),),
        },
    ),
    Bug(
        "targets-shifted-again", "targets", "Targets that the data has shifted already are shifted once more.",
        {
            "lecture": (
                ("        logits = logits.view(B * T, V)\n", "        logits = logits[:, :-1].reshape(B * (T - 1), V)\n"),
                (_LECTURE_LOSS, "loss = F.cross_entropy(logits, targets[:, 1:].reshape(B * (T - 1)))"),
            ),
            "classes": ((_CLASSES_LOSS, "F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100)"),),
        },
    ),
    Bug(
        "shifted-the-wrong-way", "targets", "Logits are compared with the token before.",
        {
            "hf_like": ((_HF_LOGITS, "            shift_logits = logits[..., 1:, :].contiguous()\n"), (_HF_LABELS, "            shift_labels = labels[..., :-1].contiguous()\n")),
            "llama_like": ((_LLAMA_LOSS, "F.cross_entropy(logits[:, 1:].flatten(0, 1), labels[:, :-1].flatten(), ignore_index=-100)"),),
            "classes": ((_CLASSES_LOSS, "F.cross_entropy(logits[:, 1:].flatten(0, 1), targets[:, :-1].flatten(), ignore_index=-100)"),),
        },
    ),
    Bug(
        "ignored-index-trained", "targets", "Ignored targets (-100) are set to token 0 and trained.",
        {
            "hf_like": ((_HF_LABELS, _HF_LABELS.replace("].contig", "].clamp(min=0).contig")),),
            "llama_like": ((_LLAMA_LOSS, "F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().clamp(min=0))"),),
            "classes": ((_CLASSES_LOSS, "F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1).clamp(min=0))"),),
        },
    ),
    Bug(
        "ignored-index-in-the-mean", "targets", "Ignored targets count in the mean, so that the loss is too small.",
        {
            "llama_like": ((_LLAMA_LOSS, _LLAMA_LOSS.replace("ignore_index=-100)", 'ignore_index=-100, reduction="none").mean()')),),
            "classes": ((_CLASSES_LOSS, _CLASSES_LOSS.replace("ignore_index=-100)", 'ignore_index=-100, reduction="none").mean()')),),
        },
    ),
    Bug(
        "flattened-in-another-order", "targets", "Logits are flattened time first, targets batch first.",
        {
            "lecture": (("logits.view(B * T, V)", "logits.transpose(0, 1).reshape(B * T, V)"),),
            "classes": (("logits.view(-1, logits.size(-1))", "logits.transpose(0, 1).flatten(0, 1)"),),
        },
    ),
    Bug(
        "loss-of-the-last-position", "targets", "Only the last position is trained.",
        {
            "lecture": (
                ("        logits = logits.view(B * T, V)\n", ""),
                (_LECTURE_LOSS, "loss = F.cross_entropy(logits[:, -1], targets[:, -1])"),
            ),
            "llama_like": ((_LLAMA_LOSS, "F.cross_entropy(logits[:, -2], labels[:, -1], ignore_index=-100)"),),
        },
    ),
)  # fmt: skip

BEHAVIOUR_BUGS = (
    _BATCH + _DEVICE + _MODE + _STATE + _IN_PLACE + _NUMBERS + _OVERFLOW + _CACHE + _PADDING + _LENGTH + _TARGETS
)

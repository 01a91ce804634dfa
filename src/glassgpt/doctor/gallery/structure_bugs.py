"""Bugs of structure: norms, the residual stream, initial weights, outputs, and parameters that do not learn."""

from glassgpt.doctor.gallery.bug import Bug

_LECTURE_NORMS = "        self.ln1 = nn.LayerNorm(n_embd)\n        self.ln2 = nn.LayerNorm(n_embd)\n"
_LECTURE_BLOCKS = (
    "self.blocks = nn.Sequential(*[Block(n_embd, n_head, block_size, dropout) for _ in range(n_layer)])"
)
_LECTURE_HEADS = (
    "nn.ModuleList([Head(n_embd, n_embd // n_head, block_size, dropout) for _ in range(n_head)])"
)  # fmt: skip
_CLASSES_BLOCKS = "nn.ModuleList([Block(config) for _ in range(config.n_layer)])"
_BOOK_BLOCKS = 'nn.Sequential(*[TransformerBlock(cfg) for _ in range(cfg["n_layers"])])'
_LLAMA_LAYERS = "nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])"
_BOOK_NORM_MEAN = "x.mean(dim=-1, keepdim=True)"
_BOOK_NORM_VAR = "x.var(dim=-1, keepdim=True, unbiased=False)"
_TIE = "        self.lm_head.weight = self.wte.weight\n"
_LOGITS = "        logits = self.out_head(x)\n"
_OURS_RETURN = "        logits = super().forward(idx, **keywords)\n"
_OURS_INIT = "    gpt.init_weights(seed)\n"

_NORM = (
    Bug(
        "norm-over-time", "norm", "Mean and variance are taken over the positions instead of the channels.",
        {
            "book": ((_BOOK_NORM_MEAN, "x.mean(dim=1, keepdim=True)"), (_BOOK_NORM_VAR, "x.var(dim=1, keepdim=True, unbiased=False)")),
            "llama_like": (("h.pow(2).mean(-1, keepdim=True)", "h.pow(2).mean(1, keepdim=True)"),),
            "functional": (("x.square().mean(dim=-1, keepdim=True)", "x.square().mean(dim=1, keepdim=True)"),),
        },
    ),
    Bug(
        "norm-over-batch", "norm", "Mean and variance are taken over the rows of the batch.",
        {
            "book": ((_BOOK_NORM_MEAN, "x.mean(dim=0, keepdim=True)"), (_BOOK_NORM_VAR, "x.var(dim=0, keepdim=True, unbiased=False)")),
            "llama_like": (("h.pow(2).mean(-1, keepdim=True)", "h.pow(2).mean(0, keepdim=True)"),),
        },
    ),
    Bug(
        "norm-over-everything", "norm", "Mean and variance are taken over the whole tensor.",
        {
            "book": ((_BOOK_NORM_MEAN, "x.mean()"), (_BOOK_NORM_VAR, "x.var(unbiased=False)")),
            "functional": (("x.square().mean(dim=-1, keepdim=True)", "x.square().mean()"),),
        },
    ),
    Bug(
        "variance-for-deviation", "norm", "The norm divides by the variance instead of its root.",
        {
            "book": (("torch.sqrt(var + self.eps)", "(var + self.eps)"),),
            "llama_like": (("torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)", "(h.pow(2).mean(-1, keepdim=True) + self.eps).reciprocal()"),),
            "functional": (("torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-5)", "1 / (x.square().mean(dim=-1, keepdim=True) + 1e-5)"),),
        },
    ),
    Bug(
        "norms-not-called", "dead parameters", "The norms are built, but the blocks do not call them.",
        {
            "lecture": (("self.sa(self.ln1(x))", "self.sa(x)"), ("self.ff(self.ln2(x))", "self.ff(x)")),
            "classes": (("self.attn(self.ln_1(x))", "self.attn(x)"), ("self.mlp(self.ln_2(x))", "self.mlp(x)")),
            "book": (("self.att(self.norm1(x))", "self.att(x)"), ("self.ff(self.norm2(x))", "self.ff(x)")),
        },
    ),
)  # fmt: skip

_RESIDUAL = (
    Bug(
        "no-residual-around-attention", "residual", "The attention's output replaces the stream.",
        {
            "lecture": (("x = x + self.sa(", "x = self.sa("),),
            "classes": (("x = x + self.attn(", "x = self.attn("),),
            "book": (("x = self.drop_shortcut(x) + shortcut", "x = self.drop_shortcut(x)"),),
            "llama_like": (("        x = x + h\n", "        x = h\n"),),
            "functional": (("x = x + attention(", "x = attention("),),
        },
    ),
    Bug(
        "no-residual-around-mlp", "residual", "The MLP's output replaces the stream.",
        {
            "lecture": (("x = x + self.ff(", "x = self.ff("),),
            "classes": (("x = x + self.mlp(", "x = self.mlp("),),
            "book": (("return self.drop_shortcut(x) + shortcut", "return self.drop_shortcut(x)"),),
            "llama_like": (("x = x + self.mlp(", "x = self.mlp("),),
            "functional": (("x = x + mlp(", "x = mlp("),),
        },
    ),
    Bug(
        "no-residual-at-all", "residual", "Neither attention nor MLP is added to the stream.",
        {
            "lecture": (("x = x + self.sa(", "x = self.sa("), ("x = x + self.ff(", "x = self.ff(")),
            "classes": (("x = x + self.attn(", "x = self.attn("), ("x = x + self.mlp(", "x = self.mlp(")),
        },
    ),
    Bug(
        "shortcut-of-the-wrong-stream", "residual", "The MLP's output is added to the block's input, not to what attention made.",
        {
            "book": (("        shortcut = x\n        x = self.ff(", "        x = self.ff("),),
            "classes": (
                ("x = x + self.attn(self.ln_1(x))", "y = x + self.attn(self.ln_1(x))"),
                ("x = x + self.mlp(self.ln_2(x))", "x = x + self.mlp(self.ln_2(y))"),
            ),
        },
    ),
)  # fmt: skip

_INIT = (
    Bug(
        "tied-head-std-1", "init", "The tied embedding keeps nn.Embedding's N(0, 1): the first loss is far above ln V.",
        {
            "classes": (("isinstance(module, (nn.Linear, nn.Embedding))", "isinstance(module, nn.Linear) and module is not self.lm_head"),),
            "book": (("        self.out_head = nn.Linear(cfg[\"emb_dim\"], cfg[\"vocab_size\"], bias=False)\n",
                      "        self.out_head = nn.Linear(cfg[\"emb_dim\"], cfg[\"vocab_size\"], bias=False)\n"
                      "        self.out_head.weight = self.tok_emb.weight\n"),),
        },
    ),
    Bug(
        "weights-std-1", "init", "All matrices are drawn from N(0, 1).",
        {
            "classes": (("nn.init.normal_(module.weight, std=0.02)", "nn.init.normal_(module.weight)"),),
            "llama_like": (("nn.init.normal_(p, std=0.02)", "nn.init.normal_(p)"),),
            "functional": (
                ("torch.randn(width, n_vocab) * 0.02", "torch.randn(width, n_vocab)"),
                ("torch.randn(width, n_heads, head) * width**-0.5", "torch.randn(width, n_heads, head)"),
            ),
            "ours": ((_OURS_INIT, _OURS_INIT + "    for p in gpt.parameters():\n        torch.nn.init.normal_(p)\n"),),
        },
    ),
    Bug(
        "weights-constant", "init", "All matrices are filled with one number.",
        {
            "classes": (("nn.init.normal_(module.weight, std=0.02)", "nn.init.constant_(module.weight, 0.02)"),),
            "llama_like": (("nn.init.normal_(p, std=0.02)", "nn.init.constant_(p, 0.02)"),),
        },
    ),
    Bug(
        "weights-zero", "init", "All matrices are zero, and stay so.",
        {
            "classes": (
                ("nn.init.normal_(module.weight, std=0.02)", "nn.init.zeros_(module.weight)"),
                ("nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer))", "nn.init.zeros_(p)"),
            ),
            "llama_like": (("nn.init.normal_(p, std=0.02)", "nn.init.zeros_(p)"),),
        },
    ),
    Bug(
        "logits-too-large", "init", "The head's weights are drawn with a deviation of 1.",
        {
            "lecture": (("        self.lm_head = nn.Linear(n_embd, vocab_size)\n", "        self.lm_head = nn.Linear(n_embd, vocab_size)\n        nn.init.normal_(self.lm_head.weight)\n"),),
            "torch_layers": (("nn.init.uniform_(self.decoder.weight, -0.1, 0.1)", "nn.init.normal_(self.decoder.weight)"),),
            "functional": (("torch.randn(width, n_vocab) * 0.02", "torch.randn(width, n_vocab)"),),
        },
    ),
    Bug(
        "head-bias-of-one-token", "init", "The head's bias starts far from zero for one token.",
        {
            "lecture": (("        self.lm_head = nn.Linear(n_embd, vocab_size)\n", "        self.lm_head = nn.Linear(n_embd, vocab_size)\n        nn.init.constant_(self.lm_head.bias[:1], 10.0)\n"),),
            "torch_layers": (("nn.init.zeros_(self.decoder.bias)", "nn.init.normal_(self.decoder.bias, std=4.0)"),),
        },
    ),
)  # fmt: skip

_OUTPUT = (
    Bug(
        "softmax-in-the-model", "output not logits", "The model returns probabilities.",
        {
            "lecture": (("logits = self.lm_head(x)  # (B, T, V)", "logits = F.softmax(self.lm_head(x), dim=-1)"),),
            "book": ((_LOGITS, "        logits = torch.softmax(self.out_head(x), dim=-1)\n"),),
            "torch_layers": (("logits = self.decoder(x)  # [T, B, V]", "logits = torch.softmax(self.decoder(x), dim=-1)"),),
            "llama_like": (("logits = self.lm_head(self.norm(x)).float()", "logits = self.lm_head(self.norm(x)).float().softmax(-1)"),),
            "ours": ((_OURS_RETURN, _OURS_RETURN + "        logits = logits.softmax(dim=-1)\n"),),
        },
    ),
    Bug(
        "sigmoid-at-the-end", "output not logits", "A sigmoid follows the head.",
        {
            "book": ((_LOGITS, "        logits = torch.sigmoid(self.out_head(x))\n"),),
            "functional": (('return norm(x, p["norm_f"]) @ p["unembed"]', 'return torch.sigmoid(norm(x, p["norm_f"]) @ p["unembed"])'),),
        },
    ),
    Bug(
        "relu-at-the-end", "output not logits", "A ReLU follows the head.",
        {
            "lecture": (("logits = self.lm_head(x)  # (B, T, V)", "logits = F.relu(self.lm_head(x))"),),
            "torch_layers": (("logits = self.decoder(x)  # [T, B, V]", "logits = torch.relu(self.decoder(x))"),),
        },
    ),
    Bug(
        "tanh-at-the-end", "output not logits", "A tanh follows the head, so that no logit is larger than 1.",
        {
            "book": ((_LOGITS, "        logits = torch.tanh(self.out_head(x))\n"),),
            "ours": ((_OURS_RETURN, _OURS_RETURN + "        logits = logits.tanh()\n"),),
        },
    ),
    Bug(
        "softmax-over-time-at-the-end", "output not logits", "A softmax over the positions follows the head.",
        {"book": ((_LOGITS, "        logits = torch.softmax(self.out_head(x), dim=1)\n"),)},
    ),
)  # fmt: skip

_DEAD = (
    Bug(
        "detach-between-blocks", "dead parameters", "The stream is detached: nothing before it learns.",
        {
            "classes": (("            x = block(x)\n", "            x = block(x.detach())\n"),),
            "book": (("        x = self.final_norm(x)\n", "        x = self.final_norm(x.detach())\n"),),
            "functional": (("x = x + attention(x, p,", "x = x + attention(x.detach(), p,"), ("x = x + mlp(x, p,", "x = x.detach() + mlp(x, p,")),
        },
    ),
    Bug(
        "attention-without-gradient", "dead parameters", "Attention is computed under no_grad.",
        {
            "lecture": (("        x = x + self.sa(self.ln1(x))\n", "        with torch.no_grad():\n            y = self.sa(self.ln1(x))\n        x = x + y\n"),),
            "llama_like": (("        h, present = self.self_attn(self.input_layernorm(x), cos, sin, mask, past)\n",
                            "        with torch.no_grad():\n            h, present = self.self_attn(self.input_layernorm(x), cos, sin, mask, past)\n"),),
        },
    ),
    Bug(
        "layer-not-called", "dead parameters", "The last block is built, but not called.",
        {
            "classes": (("for block in self.h:", "for block in self.h[:-1]:"),),
            "llama_like": (("enumerate(self.layers):", "enumerate(self.layers[:-1]):"),),
            "functional": (("for i in range(self.depth):", "for i in range(1, self.depth):"),),
        },
    ),
    Bug(
        "first-layer-called-every-time", "dead parameters", "The loop over the blocks calls the first one every time.",
        {
            "classes": (("            x = block(x)\n", "            x = self.h[0](x)\n"),),
            "functional": (("attention(x, p, f\"block{i}_\"", "attention(x, p, \"block0_\""),),
        },
    ),
    Bug(
        "final-norm-not-called", "dead parameters", "The final norm is built, but not called.",
        {
            "lecture": (("        x = self.ln_f(x)\n", ""),),
            "book": (("        x = self.final_norm(x)\n", ""),),
        },
    ),
    Bug(
        "output-of-mlp-thrown-away", "dead parameters", "The MLP is called, but its output is not used.",
        {
            "lecture": (("        x = x + self.ff(self.ln2(x))\n        return x\n", "        y = x + self.ff(self.ln2(x))\n        return x\n"),),
            "llama_like": (("        x = x + self.mlp(self.post_attention_layernorm(x))\n", "        _ = x + self.mlp(self.post_attention_layernorm(x))\n"),),
        },
    ),
    Bug(
        "hard-attention", "dead parameters", "The largest score is chosen with argmax, which has no gradient.",
        {
            "lecture": (("att = F.softmax(att, dim=-1)", "att = F.one_hot(att.argmax(dim=-1), T).to(x.dtype)"),),
            "functional": (("weights = scores.softmax(dim=-1)", "weights = F.one_hot(scores.argmax(-1), T).to(x.dtype)"),),
        },
    ),
    Bug(
        "keys-from-data", "dead parameters", "Keys are taken with .data, so that their weights have no gradient.",
        {
            "book": (("self.W_key(x)", "self.W_key(x).data"),),
            "functional": (('h, p[prefix + "wk"]', 'h, p[prefix + "wk"].data'),),
        },
    ),
    Bug(
        "head-detached", "dead parameters", "The head's weight is detached.",
        {
            "lecture": (("self.lm_head(x)  # (B, T, V)", "F.linear(x, self.lm_head.weight.detach(), self.lm_head.bias)"),),
            "functional": (('@ p["unembed"]\n', '@ p["unembed"].detach()\n'),),
        },
    ),
    Bug(
        "relu-always-off", "dead parameters", "The biases of the MLP start so low that no unit is ever on.",
        {
            "lecture": (("            nn.Dropout(dropout),\n        )\n", "            nn.Dropout(dropout),\n        )\n        nn.init.constant_(self.net[0].bias, -20.0)\n"),),
        },
    ),
)  # fmt: skip

_UNREGISTERED = (
    Bug(
        "blocks-in-a-list", "unregistered parameters", "The blocks are in a Python list: optimiser and state dict miss them.",
        {
            "lecture": (
                (_LECTURE_BLOCKS, "self.blocks = [Block(n_embd, n_head, block_size, dropout) for _ in range(n_layer)]"),
                ("        x = self.blocks(x)\n", "        for block in self.blocks:\n            x = block(x)\n"),
            ),
            "classes": ((_CLASSES_BLOCKS, "[Block(config) for _ in range(config.n_layer)]"),),
            "llama_like": ((_LLAMA_LAYERS, "[Layer(config) for _ in range(config.num_hidden_layers)]"),),
        },
    ),
    Bug(
        "heads-in-a-list", "unregistered parameters", "The heads are in a Python list.",
        {"lecture": ((_LECTURE_HEADS, "[Head(n_embd, n_embd // n_head, block_size, dropout) for _ in range(n_head)]"),)},
    ),
    Bug(
        "layers-in-a-dict", "unregistered parameters", "Layers are in a Python dict.",
        {
            "book": (
                ("        self.out_proj = nn.Linear(d_out, d_out)\n", '        self.extra = {"out": nn.Linear(d_out, d_out)}\n'),
                ("self.out_proj(context_vec)", 'self.extra["out"](context_vec)'),
            ),
            "llama_like": (
                ("        self.down_proj = nn.Linear(wide, size, bias=False)\n", '        self.proj = {"down": nn.Linear(wide, size, bias=False)}\n'),
                ("self.down_proj(F.silu", 'self.proj["down"](F.silu'),
            ),
        },
    ),
    Bug(
        "tensor-not-a-parameter", "unregistered parameters", "Weights are tensors, not Parameters.",
        {
            "lecture": (
                ("self.positions = nn.Embedding(block_size, n_embd)", "self.positions = torch.randn(block_size, n_embd)"),
                ("self.positions(torch.arange(T, device=idx.device))", "self.positions[:T]"),
            ),
            "functional": (
                ("        self.p = nn.ParameterDict({name: nn.Parameter(value) for name, value in p.items()})\n",
                 '        self.embed = p.pop("embed").requires_grad_()\n'
                 "        self.p = nn.ParameterDict({name: nn.Parameter(value) for name, value in p.items()})\n"),
                ('p["embed"][tokens]', "self.embed[tokens]"),
            ),
            "book": (
                ("self.scale = nn.Parameter(torch.ones(emb_dim))", "self.scale = torch.ones(emb_dim, requires_grad=True)"),
                ("self.shift = nn.Parameter(torch.zeros(emb_dim))", "self.shift = torch.zeros(emb_dim, requires_grad=True)"),
            ),
        },
    ),
    Bug(
        "layer-made-in-forward", "unregistered parameters", "A layer is made anew in every forward pass.",
        {
            "lecture": (("        return self.dropout(self.proj(out))\n", "        proj = nn.Linear(out.shape[-1], out.shape[-1], device=out.device, dtype=out.dtype)\n        return self.dropout(proj(out))\n"),),
            "classes": (("        x = F.gelu(self.c_fc(x)", "        c_fc = nn.Linear(x.size(-1), 4 * x.size(-1), device=x.device, dtype=x.dtype)\n        x = F.gelu(c_fc(x)"),),
        },
    ),
    Bug(
        "parameter-copied-by-to", "unregistered parameters", "A Parameter is kept after an operation, which makes it a plain tensor.",
        {
            "torch_layers": (
                ("        self.d_model = d_model\n", "        self.d_model = d_model\n        self.gain = nn.Parameter(torch.ones(d_model)) * 1.0\n"),
                ("self.embedding(src) * math.sqrt(self.d_model)", "self.embedding(src) * math.sqrt(self.d_model) * self.gain.to(self.embedding.weight.dtype)"),
            ),
            "lecture": (
                (_LECTURE_NORMS, _LECTURE_NORMS + "        self.gate = nn.Parameter(torch.ones(n_embd)) * 0.5\n"),
                ("x = x + self.ff(self.ln2(x))", "x = x + self.gate.to(x.dtype) * self.ff(self.ln2(x))"),
            ),
        },
    ),
)  # fmt: skip

_SHARED = (
    Bug(
        "one-block-n-times", "shared layers", "A list is multiplied: [block] * n is one block, n times.",
        {
            "lecture": ((_LECTURE_BLOCKS, "self.blocks = nn.Sequential(*[Block(n_embd, n_head, block_size, dropout)] * n_layer)"),),
            "classes": ((_CLASSES_BLOCKS, "nn.ModuleList([Block(config)] * config.n_layer)"),),
            "book": ((_BOOK_BLOCKS, 'nn.Sequential(*[TransformerBlock(cfg)] * cfg["n_layers"])'),),
            "llama_like": ((_LLAMA_LAYERS, "nn.ModuleList([Layer(config)] * config.num_hidden_layers)"),),
            "ours": ((_OURS_INIT, _OURS_INIT + "    gpt.blocks = torch.nn.ModuleList([gpt.blocks[0]] * config.n_layer)\n"),),
        },
    ),
    Bug(
        "one-head-n-times", "shared layers", "[head] * n is one head, n times.",
        {"lecture": ((_LECTURE_HEADS, "nn.ModuleList([Head(n_embd, n_embd // n_head, block_size, dropout)] * n_head)"),)},
    ),
    Bug(
        "one-norm-for-all", "shared layers", "The two norms of a block are one object.",
        {
            "lecture": ((_LECTURE_NORMS, "        self.ln1 = self.ln2 = nn.LayerNorm(n_embd)\n"),),
            "book": (("        self.norm2 = LayerNorm(d)\n", "        self.norm2 = self.norm1\n"),),
        },
    ),
    Bug(
        "one-projection-for-keys-and-queries", "shared layers", "Queries and keys use the same matrix by a slip.",
        {
            "book": (("self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)", "self.W_key = self.W_query"),),
        },
    ),
)  # fmt: skip

_TYING = (
    Bug(
        "clone-for-tie", "tying", "The head starts as a copy of the embedding and then goes its own way.",
        {
            "classes": ((_TIE, ""), ("        self.apply(self._init_weights)\n", "        self.apply(self._init_weights)\n        self.lm_head.weight = nn.Parameter(self.wte.weight.clone())\n")),
            "llama_like": (("                nn.init.normal_(p, std=0.02)\n", "                nn.init.normal_(p, std=0.02)\n        self.lm_head.weight.data = self.embed_tokens.weight.data.clone()\n"),),
        },
    ),
    Bug(
        "tied-by-data", "tying", "Two Parameters share one storage: the optimiser has both, and updates it twice.",
        {
            "classes": ((_TIE, "        self.lm_head.weight.data = self.wte.weight.data\n"),),
            "llama_like": (("                nn.init.normal_(p, std=0.02)\n", "                nn.init.normal_(p, std=0.02)\n        self.lm_head.weight.data = self.embed_tokens.weight.data\n"),),
        },
    ),
    Bug(
        "tie-lost", "tying", "The flag says tied, but a later step gave the head its own weights again.",
        {
            "classes": (
                ("    dropout: float = 0.1\n", "    dropout: float = 0.1\n    tie_word_embeddings: bool = True\n"),
                ("        self.apply(self._init_weights)\n", "        self.lm_head.weight = nn.Parameter(torch.empty_like(self.wte.weight))\n        self.apply(self._init_weights)\n"),
            ),
            "llama_like": (
                ("    rope_theta: float = 10000.0\n", "    rope_theta: float = 10000.0\n    tie_word_embeddings: bool = True\n"),
            ),
        },
    ),
)  # fmt: skip

STRUCTURE_BUGS = _NORM + _RESIDUAL + _INIT + _OUTPUT + _DEAD + _UNREGISTERED + _SHARED + _TYING

"""Bugs at the two ends of a model: initial weights and outputs."""

from glassgpt.doctor.gallery.bug import Bug

_OURS_RETURN = "        logits = super().forward(idx, **keywords)\n"
_LOGITS = "        logits = self.out_head(x)\n"
_OURS_INIT = "    gpt.init_weights(seed)\n"

_INIT = (
    Bug(
        "tied-head-std-1",
        "init",
        "The tied embedding keeps nn.Embedding's N(0, 1): the first loss is far above ln V.",
        {
            "classes": (
                (
                    "isinstance(module, (nn.Linear, nn.Embedding))",
                    "isinstance(module, nn.Linear) and module is not self.lm_head",
                ),
            ),
            "book": (
                (
                    '        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)\n',
                    '        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)\n'
                    "        self.out_head.weight = self.tok_emb.weight\n",
                ),
            ),
        },
    ),
    Bug(
        "weights-std-1",
        "init",
        "All matrices are drawn from N(0, 1).",
        {
            "classes": (("nn.init.normal_(module.weight, std=0.02)", "nn.init.normal_(module.weight)"),),
            "llama_like": (("nn.init.normal_(p, std=0.02)", "nn.init.normal_(p)"),),
            "functional": (
                ("torch.randn(width, n_vocab) * 0.02", "torch.randn(width, n_vocab)"),
                ("torch.randn(width, n_heads, head) * width**-0.5", "torch.randn(width, n_heads, head)"),
            ),
            "ours": (
                (
                    _OURS_INIT,
                    _OURS_INIT + "    for p in gpt.parameters():\n"
                    "        p.data = torch.randn_like(p) if p.dim() > 1 else p.data\n",
                ),
            ),
        },
    ),
    Bug(
        "weights-constant",
        "init",
        "All matrices are filled with one number.",
        {
            "classes": (("nn.init.normal_(module.weight, std=0.02)", "nn.init.constant_(module.weight, 0.02)"),),
            "llama_like": (("nn.init.normal_(p, std=0.02)", "nn.init.constant_(p, 0.02)"),),
        },
    ),
    Bug(
        "weights-zero",
        "init",
        "All matrices are zero, and stay so.",
        {
            "classes": (
                ("nn.init.normal_(module.weight, std=0.02)", "nn.init.zeros_(module.weight)"),
                ("nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer))", "nn.init.zeros_(p)"),
            ),
            "llama_like": (("nn.init.normal_(p, std=0.02)", "nn.init.zeros_(p)"),),
        },
    ),
    Bug(
        "logits-too-large",
        "init",
        "The head's weights are drawn with a deviation of 1.",
        {
            "lecture": (
                (
                    "        self.lm_head = nn.Linear(n_embd, vocab_size)\n",
                    "        self.lm_head = nn.Linear(n_embd, vocab_size)\n"
                    "        nn.init.normal_(self.lm_head.weight)\n",
                ),
            ),
            "torch_layers": (
                ("nn.init.uniform_(self.decoder.weight, -0.1, 0.1)", "nn.init.normal_(self.decoder.weight)"),
            ),
            "functional": (("torch.randn(width, n_vocab) * 0.02", "torch.randn(width, n_vocab)"),),
        },
    ),
    Bug(
        "head-bias-of-one-token",
        "init",
        "The head's bias starts far from zero for one token.",
        {
            "lecture": (
                (
                    "        self.lm_head = nn.Linear(n_embd, vocab_size)\n",
                    "        self.lm_head = nn.Linear(n_embd, vocab_size)\n"
                    "        nn.init.constant_(self.lm_head.bias[:1], 10.0)\n",
                ),
            ),
            "torch_layers": (("nn.init.zeros_(self.decoder.bias)", "nn.init.normal_(self.decoder.bias, std=4.0)"),),
        },
    ),
)

_OUTPUT = (
    Bug(
        "softmax-in-the-model",
        "output not logits",
        "The model returns probabilities.",
        {
            "lecture": (("logits = self.lm_head(x)  # (B, T, V)", "logits = F.softmax(self.lm_head(x), dim=-1)"),),
            "book": ((_LOGITS, "        logits = torch.softmax(self.out_head(x), dim=-1)\n"),),
            "torch_layers": (
                ("logits = self.decoder(x)  # [T, B, V]", "logits = torch.softmax(self.decoder(x), dim=-1)"),
            ),
            "llama_like": (
                (
                    "logits = self.lm_head(self.norm(x)).float()",
                    "logits = self.lm_head(self.norm(x)).float().softmax(-1)",
                ),
            ),
            "ours": ((_OURS_RETURN, _OURS_RETURN + "        logits = logits.softmax(dim=-1)\n"),),
        },
    ),
    Bug(
        "sigmoid-at-the-end",
        "output not logits",
        "A sigmoid follows the head.",
        {
            "book": ((_LOGITS, "        logits = torch.sigmoid(self.out_head(x))\n"),),
            "functional": (
                (
                    'return norm(x, p["norm_f"]) @ p["unembed"]',
                    'return torch.sigmoid(norm(x, p["norm_f"]) @ p["unembed"])',
                ),
            ),
        },
    ),
    Bug(
        "relu-at-the-end",
        "output not logits",
        "A ReLU follows the head.",
        {
            "lecture": (("logits = self.lm_head(x)  # (B, T, V)", "logits = F.relu(self.lm_head(x))"),),
            "torch_layers": (("logits = self.decoder(x)  # [T, B, V]", "logits = torch.relu(self.decoder(x))"),),
        },
    ),
    Bug(
        "tanh-at-the-end",
        "output not logits",
        "A tanh follows the head, so that no logit is larger than 1.",
        {
            "book": ((_LOGITS, "        logits = torch.tanh(self.out_head(x))\n"),),
            "ours": ((_OURS_RETURN, _OURS_RETURN + "        logits = logits.tanh()\n"),),
        },
    ),
    Bug(
        "softmax-over-time-at-the-end",
        "output not logits",
        "A softmax over the positions follows the head.",
        {"book": ((_LOGITS, "        logits = torch.softmax(self.out_head(x), dim=1)\n"),)},
    ),
)

ENDS_BUGS = _INIT + _OUTPUT

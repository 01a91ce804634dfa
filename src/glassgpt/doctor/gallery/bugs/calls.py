"""Bugs of modes, of state between calls, and of inputs changed in place."""

from glassgpt.doctor.gallery.bug import Bug

_LECTURE_X = "        x = self.tokens(idx)  # (B, T, C)\n"
_CLASSES_X = "        x = self.drop(self.wte(idx) + self.wpe(pos))\n"
_BOOK_X = "        x = self.drop_emb(tok_embeds + pos_embeds)\n"
_TORCH_X = "        x = self.pos_encoder(x)\n"
_FUNCTIONAL_X = '        x = p["embed"][tokens]\n'
_OURS_LOGITS = "        logits = super().forward(idx, **keywords)\n"

_MODE = (
    Bug(
        "dropout-always-on",
        "mode",
        "F.dropout is called without training=self.training.",
        {
            "classes": (
                ("        return self.dropout(self.c_proj(x))\n", "        return F.dropout(self.c_proj(x), 0.1)\n"),
            ),
            "lecture": (("        att = self.dropout(att)\n", "        att = F.dropout(att, 0.2)\n"),),
            "functional": (("    hidden = F.relu(", "    h = F.dropout(h, 0.1)\n    hidden = F.relu("),),
        },
    ),
    Bug(
        "train-in-forward",
        "mode",
        "The forward pass switches to train mode.",
        {
            "lecture": ((_LECTURE_X, "        self.train()\n" + _LECTURE_X),),
            "book": ((_BOOK_X, "        self.train()\n" + _BOOK_X),),
        },
    ),
    Bug(
        "dropout-made-in-forward",
        "mode",
        "nn.Dropout is made in the forward pass, so that it is always in train mode.",
        {
            "book": (
                (
                    "        attn_weights = self.dropout(attn_weights)\n",
                    "        attn_weights = nn.Dropout(0.1)(attn_weights)\n",
                ),
            ),
            "torch_layers": ((_TORCH_X, _TORCH_X + "        x = nn.Dropout(0.1)(x)\n"),),
        },
    ),
    Bug(
        "sdpa-dropout-always-on",
        "mode",
        "The dropout of fused attention does not know of eval mode.",
        {"classes": (("dropout_p=p,", "dropout_p=self.dropout,"),)},
    ),
    Bug(
        "noise-always-on",
        "mode",
        "Noise is added to the embeddings in eval mode, too.",
        {
            "torch_layers": ((_TORCH_X, _TORCH_X + "        x = x + 0.01 * torch.randn_like(x)\n"),),
            "functional": ((_FUNCTIONAL_X, _FUNCTIONAL_X + "        x = x + 0.01 * torch.randn_like(x)\n"),),
        },
    ),
)

_STATE = (
    Bug(
        "state-between-calls",
        "state",
        "The last hidden state is kept and added in the next call.",
        {
            "lecture": (
                (
                    "        self.block_size = block_size\n",
                    "        self.block_size = block_size\n        self.memory = None\n",
                ),
                (
                    "        x = self.blocks(x)\n",
                    "        if self.memory is not None:\n            x = x + 0.1 * self.memory\n"
                    "        x = self.blocks(x)\n        self.memory = x[:1, -1:].detach()\n",
                ),
            ),
            "functional": (
                ("        self.n_ctx, self.n_heads", "        self.last = 0.0\n        self.n_ctx, self.n_heads"),
                (
                    _FUNCTIONAL_X,
                    _FUNCTIONAL_X + "        x = x + 0.1 * self.last\n        self.last = x.detach().mean()\n",
                ),
            ),
        },
    ),
    Bug(
        "values-of-the-call-before",
        "state",
        "A cache for generation is never cleared: values of the call before are mixed in.",
        {
            "lecture": (
                (
                    "        self.dropout = nn.Dropout(dropout)\n\n    def forward(self, x):\n"
                    "        B, T, C = x.shape\n",
                    "        self.dropout = nn.Dropout(dropout)\n        self.kept = None\n\n"
                    "    def forward(self, x):\n        B, T, C = x.shape\n",
                ),
                (
                    "        return att @ v  # (B, T, head_size)\n",
                    "        v = v if self.kept is None or self.kept.shape != v.shape else 0.5 * (v + self.kept)\n"
                    "        self.kept = v.detach()\n        return att @ v\n",
                ),
            ),
        },
    ),
    Bug(
        "running-mean",
        "state",
        "A running mean of the activations is updated in eval mode, too.",
        {
            "book": (
                (
                    '        self.final_norm = LayerNorm(cfg["emb_dim"])\n',
                    '        self.final_norm = LayerNorm(cfg["emb_dim"])\n'
                    '        self.register_buffer("mean", torch.zeros(cfg["emb_dim"]))\n',
                ),
                (
                    "        x = self.final_norm(x)\n",
                    "        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 1))\n"
                    "        x = self.final_norm(x - self.mean)\n",
                ),
            ),
            "torch_layers": (
                (
                    "        self.init_weights()\n",
                    '        self.register_buffer("mean", torch.zeros(d_model))\n        self.init_weights()\n',
                ),
                (
                    _TORCH_X,
                    _TORCH_X
                    + "        self.mean.mul_(0.9).add_(0.1 * x.detach().mean((0, 1)))\n        x = x - self.mean\n",
                ),
            ),
        },
    ),
    Bug(
        "warm-up-by-calls",
        "state",
        "A counter of calls, not of training steps, scales the embeddings.",
        {
            "functional": (
                ("        self.n_ctx, self.n_heads", "        self.calls = 0\n        self.n_ctx, self.n_heads"),
                (_FUNCTIONAL_X, "        self.calls += 1\n" + _FUNCTIONAL_X + "        x = x * (1 + 1 / self.calls)\n"),
            ),
        },
    ),
)

_IN_PLACE = (
    Bug(
        "ids-changed",
        "in-place",
        "The forward pass writes into the caller's ids.",
        {
            "lecture": ((_LECTURE_X, "        idx[:, 0] = 0\n" + _LECTURE_X),),
            "classes": (
                (
                    "        B, T = idx.size()\n",
                    "        idx.clamp_(max=self.config.vocab_size - 2)\n        B, T = idx.size()\n",
                ),
            ),
            "ours": ((_OURS_LOGITS, "        idx[idx == 3] = 0\n" + _OURS_LOGITS),),
        },
    ),
    Bug(
        "targets-changed",
        "in-place",
        "The forward pass writes into the caller's targets.",
        {
            "lecture": (
                ("        B, T, V = logits.shape\n", "        B, T, V = logits.shape\n        targets[:, 0] = -100\n"),
            ),
            "classes": (
                (
                    "        logits = self.lm_head(x)\n",
                    "        logits = self.lm_head(x)\n        targets[targets == 0] = -100\n",
                ),
            ),
        },
    ),
    Bug(
        "weights-clipped-in-forward",
        "in-place",
        "The forward pass clips the weights.",
        {
            "lecture": (
                (
                    _LECTURE_X,
                    "        for p in self.parameters():\n            p.data.clamp_(-0.1, 0.1)\n" + _LECTURE_X,
                ),
            ),
            "book": ((_BOOK_X, "        self.out_head.weight.data.clamp_(-0.1, 0.1)\n" + _BOOK_X),),
        },
    ),
    Bug(
        "weights-changed",
        "in-place",
        "The forward pass decays the weights.",
        {
            "functional": ((_FUNCTIONAL_X, '        p["embed"].data.mul_(0.999)\n' + _FUNCTIONAL_X),),
            "classes": (
                (_CLASSES_X, "        self.wpe.weight.data[0] = 0.01 * self.wte(idx).detach().mean()\n" + _CLASSES_X),
            ),
        },
    ),
)

CALLS_BUGS = _MODE + _STATE + _IN_PLACE

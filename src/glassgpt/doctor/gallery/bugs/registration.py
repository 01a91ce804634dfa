"""Bugs of parameters that are unregistered, shared, or not tied."""

from glassgpt.doctor.gallery.bug import Bug

_LECTURE_NORMS = "        self.ln1 = nn.LayerNorm(n_embd)\n        self.ln2 = nn.LayerNorm(n_embd)\n"
_LECTURE_BLOCKS = "self.blocks = nn.Sequential(*[Block(n_embd, n_head, block_size, dropout) for _ in range(n_layer)])"
_LECTURE_HEADS = "nn.ModuleList([Head(n_embd, n_embd // n_head, block_size, dropout) for _ in range(n_head)])"
_CLASSES_BLOCKS = "nn.ModuleList([Block(config) for _ in range(config.n_layer)])"
_BOOK_BLOCKS = 'nn.Sequential(*[TransformerBlock(cfg) for _ in range(cfg["n_layers"])])'
_LLAMA_LAYERS = "nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])"
_TIE = "        self.lm_head.weight = self.wte.weight\n"
_OURS_INIT = "    gpt.init_weights(seed)\n"

_UNREGISTERED = (
    Bug(
        "blocks-in-a-list",
        "unregistered parameters",
        "The blocks are in a Python list: optimiser and state dict miss them.",
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
        "heads-in-a-list",
        "unregistered parameters",
        "The heads are in a Python list.",
        {
            "lecture": (
                (_LECTURE_HEADS, "[Head(n_embd, n_embd // n_head, block_size, dropout) for _ in range(n_head)]"),
            )
        },
    ),
    Bug(
        "layers-in-a-dict",
        "unregistered parameters",
        "Layers are in a Python dict.",
        {
            "book": (
                (
                    "        self.out_proj = nn.Linear(d_out, d_out)\n",
                    '        self.extra = {"out": nn.Linear(d_out, d_out)}\n',
                ),
                ("self.out_proj(context_vec)", 'self.extra["out"](context_vec)'),
            ),
            "llama_like": (
                (
                    "        self.down_proj = nn.Linear(wide, size, bias=False)\n",
                    '        self.proj = {"down": nn.Linear(wide, size, bias=False)}\n',
                ),
                ("self.down_proj(F.silu", 'self.proj["down"](F.silu'),
            ),
        },
    ),
    Bug(
        "tensor-not-a-parameter",
        "unregistered parameters",
        "Weights are tensors, not Parameters.",
        {
            "lecture": (
                (
                    "self.positions = nn.Embedding(block_size, n_embd)",
                    "self.positions = torch.randn(block_size, n_embd)",
                ),
                ("self.positions(torch.arange(T, device=idx.device))", "self.positions[:T]"),
            ),
            "functional": (
                (
                    "        self.p = nn.ParameterDict({name: nn.Parameter(value) for name, value in p.items()})\n",
                    '        self.embed = p.pop("embed").requires_grad_()\n'
                    "        self.p = nn.ParameterDict({name: nn.Parameter(value) for name, value in p.items()})\n",
                ),
                ('p["embed"][tokens]', "self.embed[tokens]"),
            ),
            "book": (
                (
                    "self.scale = nn.Parameter(torch.ones(emb_dim))",
                    "self.scale = torch.ones(emb_dim, requires_grad=True)",
                ),
                (
                    "self.shift = nn.Parameter(torch.zeros(emb_dim))",
                    "self.shift = torch.zeros(emb_dim, requires_grad=True)",
                ),
            ),
        },
    ),
    Bug(
        "layer-made-in-forward",
        "unregistered parameters",
        "A layer is made anew in every forward pass.",
        {
            "lecture": (
                (
                    "        return self.dropout(self.proj(out))\n",
                    "        proj = nn.Linear(out.shape[-1], out.shape[-1], device=out.device, dtype=out.dtype)\n"
                    "        return self.dropout(proj(out))\n",
                ),
            ),
            "classes": (
                (
                    "        x = F.gelu(self.c_fc(x)",
                    "        c_fc = nn.Linear(x.size(-1), 4 * x.size(-1), device=x.device, dtype=x.dtype)\n"
                    "        x = F.gelu(c_fc(x)",
                ),
            ),
        },
    ),
    Bug(
        "parameter-copied-by-to",
        "unregistered parameters",
        "A Parameter is kept after an operation, which makes it a plain tensor.",
        {
            "torch_layers": (
                (
                    "        self.d_model = d_model\n",
                    "        self.d_model = d_model\n        self.gain = nn.Parameter(torch.ones(d_model)) * 1.0\n",
                ),
                (
                    "self.embedding(src) * math.sqrt(self.d_model)",
                    "self.embedding(src) * math.sqrt(self.d_model) * self.gain.to(self.embedding.weight.dtype)",
                ),
            ),
            "lecture": (
                (_LECTURE_NORMS, _LECTURE_NORMS + "        self.gate = nn.Parameter(torch.ones(n_embd)) * 0.5\n"),
                ("x = x + self.ff(self.ln2(x))", "x = x + self.gate.to(x.dtype) * self.ff(self.ln2(x))"),
            ),
        },
    ),
)

_SHARED = (
    Bug(
        "one-block-n-times",
        "shared layers",
        "A list is multiplied: [block] * n is one block, n times.",
        {
            "lecture": (
                (
                    _LECTURE_BLOCKS,
                    "self.blocks = nn.Sequential(*[Block(n_embd, n_head, block_size, dropout)] * n_layer)",
                ),
            ),
            "classes": ((_CLASSES_BLOCKS, "nn.ModuleList([Block(config)] * config.n_layer)"),),
            "book": ((_BOOK_BLOCKS, 'nn.Sequential(*[TransformerBlock(cfg)] * cfg["n_layers"])'),),
            "llama_like": ((_LLAMA_LAYERS, "nn.ModuleList([Layer(config)] * config.num_hidden_layers)"),),
            "ours": (
                (_OURS_INIT, _OURS_INIT + "    gpt.blocks = torch.nn.ModuleList([gpt.blocks[0]] * config.n_layer)\n"),
            ),
        },
    ),
    Bug(
        "one-head-n-times",
        "shared layers",
        "[head] * n is one head, n times.",
        {
            "lecture": (
                (_LECTURE_HEADS, "nn.ModuleList([Head(n_embd, n_embd // n_head, block_size, dropout)] * n_head)"),
            )
        },
    ),
    Bug(
        "one-norm-for-all",
        "shared layers",
        "The two norms of a block are one object.",
        {
            "lecture": ((_LECTURE_NORMS, "        self.ln1 = self.ln2 = nn.LayerNorm(n_embd)\n"),),
            "book": (("        self.norm2 = LayerNorm(d)\n", "        self.norm2 = self.norm1\n"),),
        },
    ),
    Bug(
        "one-projection-for-keys-and-queries",
        "shared layers",
        "Queries and keys use the same matrix by a slip.",
        {
            "book": (("self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)", "self.W_key = self.W_query"),),
        },
    ),
)

_TYING = (
    Bug(
        "clone-for-tie",
        "tying",
        "The head starts as a copy of the embedding and then goes its own way.",
        {
            "classes": (
                (_TIE, ""),
                (
                    "        self.apply(self._init_weights)\n",
                    "        self.apply(self._init_weights)\n"
                    "        self.lm_head.weight = nn.Parameter(self.wte.weight.clone())\n",
                ),
            ),
            "llama_like": (
                (
                    "                nn.init.normal_(p, std=0.02)\n",
                    "                nn.init.normal_(p, std=0.02)\n"
                    "        self.lm_head.weight.data = self.embed_tokens.weight.data.clone()\n",
                ),
            ),
        },
    ),
    Bug(
        "tied-by-data",
        "tying",
        "Two Parameters share one storage: the optimiser has both, and updates it twice.",
        {
            "classes": ((_TIE, "        self.lm_head.weight.data = self.wte.weight.data\n"),),
            "llama_like": (
                (
                    "                nn.init.normal_(p, std=0.02)\n",
                    "                nn.init.normal_(p, std=0.02)\n"
                    "        self.lm_head.weight.data = self.embed_tokens.weight.data\n",
                ),
            ),
        },
    ),
    Bug(
        "tie-lost",
        "tying",
        "The flag says tied, but a later step gave the head its own weights again.",
        {
            "classes": (
                ("    dropout: float = 0.1\n", "    dropout: float = 0.1\n    tie_word_embeddings: bool = True\n"),
                (
                    "        self.apply(self._init_weights)\n",
                    "        self.lm_head.weight = nn.Parameter(torch.empty_like(self.wte.weight))\n"
                    "        self.apply(self._init_weights)\n",
                ),
            ),
            "llama_like": (
                (
                    "    rope_theta: float = 10000.0\n",
                    "    rope_theta: float = 10000.0\n    tie_word_embeddings: bool = True\n",
                ),
            ),
        },
    ),
)

REGISTRATION_BUGS = _UNREGISTERED + _SHARED + _TYING

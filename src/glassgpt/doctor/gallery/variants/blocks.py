"""Correct but unusual blocks, norms and initial weights."""

from glassgpt.doctor.gallery.bug import Correct

_LN_F = "        self.ln_f = nn.LayerNorm(config.n_embd)\n"
_CLASSES_BLOCK = "        x = x + self.attn(self.ln_1(x))\n        x = x + self.mlp(self.ln_2(x))\n"
_TIE = "        self.lm_head.weight = self.wte.weight\n"
_LECTURE_HEAD = "        self.lm_head = nn.Linear(n_embd, vocab_size)\n"
_FUNCTIONAL_X = '        x = p["embed"][tokens]\n'
_LLAMA_INIT = "                nn.init.normal_(p, std=0.02)\n"
_LLAMA_X = "        x = self.embed_tokens(input_ids)\n"
_MOE = '''class Mixture(nn.Module):
    """Two of four experts for each token."""

    def __init__(self, config):
        super().__init__()
        self.router = nn.Linear(config.n_embd, 4, bias=False)
        self.experts = nn.ModuleList([MLP(config) for _ in range(4)])

    def forward(self, x):
        weights, chosen = self.router(x).topk(2, dim=-1)
        weights = weights.softmax(dim=-1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows, slot = (chosen.view(-1, 2) == i).nonzero(as_tuple=True)
            if len(rows):
                y = expert(x.reshape(-1, x.size(-1))[rows]) * weights.view(-1, 2)[rows, slot, None]
                out.view(-1, x.size(-1)).index_add_(0, rows, y)
        return out


class Block(nn.Module):
'''

BLOCKS_VARIANTS = (
    Correct(
        "zero-output-projections",
        "Both projections into the stream start at zero, as does the head.",
        "classes",
        (
            ("nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer))", "nn.init.zeros_(p)"),
            (_TIE, ""),
            ("        for name, p in self", "        nn.init.zeros_(self.lm_head.weight)\n        for name, p in self"),
        ),
    ),
    Correct(
        "zero-head",
        "The head starts at zero: the first loss is ln V exactly.",
        "lecture",
        (
            (
                _LECTURE_HEAD,
                _LECTURE_HEAD
                + "        nn.init.zeros_(self.lm_head.weight)\n        nn.init.zeros_(self.lm_head.bias)\n",
            ),
        ),
    ),
    Correct(
        "rezero",
        "A factor that starts at zero is on every branch (arXiv:2003.04887).",
        "classes",
        (
            (
                "        self.mlp = MLP(config)\n",
                "        self.mlp = MLP(config)\n        self.alpha = nn.Parameter(torch.zeros(1))\n",
            ),
            (
                _CLASSES_BLOCK,
                "        x = x + self.alpha * self.attn(self.ln_1(x))\n"
                "        x = x + self.alpha * self.mlp(self.ln_2(x))\n",
            ),
        ),
    ),
    Correct(
        "layer-scale",
        "A small learned gain per channel is on every branch (arXiv:2103.17239).",
        "classes",
        (
            (
                "        self.mlp = MLP(config)\n",
                "        self.mlp = MLP(config)\n"
                "        self.gamma = nn.Parameter(torch.full((2, config.n_embd), 1e-3))\n",
            ),
            (
                _CLASSES_BLOCK,
                "        x = x + self.gamma[0] * self.attn(self.ln_1(x))\n"
                "        x = x + self.gamma[1] * self.mlp(self.ln_2(x))\n",
            ),
        ),
    ),
    Correct(
        "post-norm",
        "The norm follows the sum, as in the first Transformer.",
        "classes",
        (
            (_CLASSES_BLOCK, "        x = self.ln_1(x + self.attn(x))\n        x = self.ln_2(x + self.mlp(x))\n"),
            ("        x = self.ln_f(x)\n", ""),
            (_LN_F, ""),
        ),
    ),
    Correct(
        "torch-post-norm",
        "PyTorch's layers with their default, the norm after the sum.",
        "torch_layers",
        (
            (", norm_first=True", ""),
            ("norm=nn.LayerNorm(d_model), ", ""),
        ),
    ),
    Correct(
        "parallel-blocks",
        "Attention and MLP read the same input.",
        "classes",
        ((_CLASSES_BLOCK, "        x = x + self.attn(self.ln_1(x)) + self.mlp(self.ln_2(x))\n"),),
    ),
    Correct(
        "sandwich-norm",
        "The branches are normalised before and after.",
        "classes",
        (
            (
                "        self.mlp = MLP(config)\n",
                "        self.mlp = MLP(config)\n"
                "        self.post_1, self.post_2 = nn.LayerNorm(config.n_embd), nn.LayerNorm(config.n_embd)\n",
            ),
            (
                _CLASSES_BLOCK,
                "        x = x + self.post_1(self.attn(self.ln_1(x)))\n"
                "        x = x + self.post_2(self.mlp(self.ln_2(x)))\n",
            ),
        ),
    ),
    Correct(
        "mixture-of-experts",
        "Two of four experts per token.",
        "classes",
        (
            ("class Block(nn.Module):\n", _MOE),
            ("self.mlp = MLP(config)", "self.mlp = Mixture(config)"),
        ),
    ),
    Correct(
        "dynamic-tanh",
        "A tanh with a learned slope in place of the norms (arXiv:2503.10622).",
        "book",
        (
            ("        self.eps = 1e-5\n", "        self.alpha = nn.Parameter(torch.tensor(0.5))\n"),
            (
                "        mean = x.mean(dim=-1, keepdim=True)\n"
                "        var = x.var(dim=-1, keepdim=True, unbiased=False)\n",
                "",
            ),
            ("(x - mean) / torch.sqrt(var + self.eps)", "torch.tanh(self.alpha * x)"),
        ),
    ),
    Correct(
        "no-norms",
        "No norms at all.",
        "classes",
        (
            ("        self.ln_1 = nn.LayerNorm(config.n_embd)\n", "        self.ln_1 = nn.Identity()\n"),
            ("        self.ln_2 = nn.LayerNorm(config.n_embd)\n", "        self.ln_2 = nn.Identity()\n"),
            (_LN_F, "        self.ln_f = nn.Identity()\n"),
            ("nn.init.normal_(module.weight, std=0.02)", "nn.init.normal_(module.weight, std=0.1)"),
        ),
    ),
    Correct(
        "normalised-embedding",
        "The embedding is normalised before the first block.",
        "functional",
        ((_FUNCTIONAL_X, _FUNCTIONAL_X + "        x = F.rms_norm(x, x.shape[-1:])\n"),),
    ),
    Correct(
        "tied-and-scaled",
        "A tied embedding, multiplied by sqrt(C) at the input.",
        "llama_like",
        (
            (_LLAMA_INIT, _LLAMA_INIT + "        self.lm_head.weight = self.embed_tokens.weight\n"),
            (_LLAMA_X, "        x = self.embed_tokens(input_ids) * self.config.hidden_size**0.5\n"),
        ),
    ),
    Correct(
        "one-block-called-n-times",
        "ALBERT: one block, called in a loop (arXiv:1909.11942).",
        "classes",
        (
            (
                "        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layer)])\n",
                "        self.block = Block(config)\n",
            ),
            (
                "        for block in self.h:\n            x = block(x)\n",
                "        for _ in range(self.config.n_layer):\n            x = self.block(x)\n",
            ),
        ),
    ),
    Correct(
        "in-place-additions",
        "Branches are added with +=.",
        "classes",
        (
            (
                _CLASSES_BLOCK,
                "        y = self.attn(self.ln_1(x))\n        y += x\n        z = self.mlp(self.ln_2(y))\n"
                "        z += y\n        x = z\n",
            ),
        ),
    ),
)

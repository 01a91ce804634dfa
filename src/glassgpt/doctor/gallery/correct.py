"""Correct models that look unusual: the doctor must raise nothing on them."""

from collections.abc import Mapping
from dataclasses import dataclass

from glassgpt.doctor.gallery.bug import PROGRAMS

#: The programs, each correct as it stands.
MODEL_PROGRAMS = (
    "lecture", "classes", "book", "llama_like", "torch_layers", "functional", "ours", "hf_like", "complex_rope",
    "recurrent", "convolutional", "bigram",
)  # fmt: skip


@dataclass(frozen=True)
class Correct:
    """A correct model.

    Attributes:
        name: lower case words joined by hyphens.
        story: what is unusual in it.
        program: the program it starts from.
        edits: the changes of its text, as of a Bug.
        window: what the user has to declare with `--window`, or None.
    """

    name: str
    story: str
    program: str
    edits: tuple[tuple[str, str], ...] = ()
    window: int | None = None

    @property
    def changes(self) -> Mapping[str, tuple[tuple[str, str], ...]]:
        """The changes by program, as a Bug has them."""
        return {self.program: self.edits}


_LN_F = "        self.ln_f = nn.LayerNorm(config.n_embd)\n"
_CLASSES_BLOCK = "        x = x + self.attn(self.ln_1(x))\n        x = x + self.mlp(self.ln_2(x))\n"
_SDPA = "F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)"
_WPE = "        self.wpe = nn.Embedding(config.block_size, config.n_embd)\n"
_TIE = "        self.lm_head.weight = self.wte.weight\n"
_LECTURE_HEAD = "        self.lm_head = nn.Linear(n_embd, vocab_size)\n"
_LECTURE_MASK = '        att = att.masked_fill(self.tril[:T, :T] == 0, float("-inf"))\n'
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
_T5 = """scores = q @ k.transpose(-2, -1)
        distance = torch.arange(T, device=x.device)[:, None] - torch.arange(T, device=x.device)
        scores = scores + self.relative.weight[distance.clamp(0, 15)].permute(2, 0, 1)
        y = scores.masked_fill(distance < 0, float("-inf")).softmax(-1) @ v"""
_LORA = '''class LoRA(nn.Module):
    """A frozen linear layer with a small trained change."""

    def __init__(self, base, rank=4):
        super().__init__()
        self.base = base
        self.A = nn.Parameter(torch.randn(rank, base.in_features) * 0.1)
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x):
        return self.base(x) + x @ self.A.T @ self.B.T


def model('''

#: The correct models: each program as it is, and these variants.
CORRECT: tuple[Correct, ...] = (
    *(Correct(name, "As it is.", name, window=1 if name == "bigram" else None) for name in MODEL_PROGRAMS),
    Correct("zero-output-projections", "Both projections into the stream start at zero, as does the head.", "classes", (
        ("nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer))", "nn.init.zeros_(p)"),
        (_TIE, ""),
        ("        for name, p in self", "        nn.init.zeros_(self.lm_head.weight)\n        for name, p in self"),
    )),
    Correct("zero-head", "The head starts at zero: the first loss is ln V exactly.", "lecture", (
        (_LECTURE_HEAD, _LECTURE_HEAD + "        nn.init.zeros_(self.lm_head.weight)\n        nn.init.zeros_(self.lm_head.bias)\n"),
    )),
    Correct("rezero", "A factor that starts at zero is on every branch (arXiv:2003.04887).", "classes", (
        ("        self.mlp = MLP(config)\n", "        self.mlp = MLP(config)\n        self.alpha = nn.Parameter(torch.zeros(1))\n"),
        (_CLASSES_BLOCK, "        x = x + self.alpha * self.attn(self.ln_1(x))\n        x = x + self.alpha * self.mlp(self.ln_2(x))\n"),
    )),
    Correct("layer-scale", "A small learned gain per channel is on every branch (arXiv:2103.17239).", "classes", (
        ("        self.mlp = MLP(config)\n", "        self.mlp = MLP(config)\n        self.gamma = nn.Parameter(torch.full((2, config.n_embd), 1e-3))\n"),
        (_CLASSES_BLOCK, "        x = x + self.gamma[0] * self.attn(self.ln_1(x))\n        x = x + self.gamma[1] * self.mlp(self.ln_2(x))\n"),
    )),
    Correct("post-norm", "The norm follows the sum, as in the first Transformer.", "classes", (
        (_CLASSES_BLOCK, "        x = self.ln_1(x + self.attn(x))\n        x = self.ln_2(x + self.mlp(x))\n"),
        ("        x = self.ln_f(x)\n", ""), (_LN_F, ""),
    )),
    Correct("torch-post-norm", "PyTorch's layers with their default, the norm after the sum.", "torch_layers", (
        (", norm_first=True", ""), ("norm=nn.LayerNorm(d_model), ", ""),
    )),
    Correct("parallel-blocks", "Attention and MLP read the same input.", "classes", (
        (_CLASSES_BLOCK, "        x = x + self.attn(self.ln_1(x)) + self.mlp(self.ln_2(x))\n"),
    )),
    Correct("sandwich-norm", "The branches are normalised before and after.", "classes", (
        ("        self.mlp = MLP(config)\n", "        self.mlp = MLP(config)\n        self.post_1, self.post_2 = nn.LayerNorm(config.n_embd), nn.LayerNorm(config.n_embd)\n"),
        (_CLASSES_BLOCK, "        x = x + self.post_1(self.attn(self.ln_1(x)))\n        x = x + self.post_2(self.mlp(self.ln_2(x)))\n"),
    )),
    Correct("mixture-of-experts", "Two of four experts per token.", "classes", (
        ("class Block(nn.Module):\n", _MOE), ("self.mlp = MLP(config)", "self.mlp = Mixture(config)"),
    )),
    Correct("no-positions", "No position encoding: two causal layers can count.", "classes", (
        (_WPE, ""), ("self.wte(idx) + self.wpe(pos)", "self.wte(idx)"),
        ("        pos = torch.arange(T, dtype=torch.long, device=idx.device)\n", ""),
    )),
    Correct("sliding-window", "The last eight tokens per layer; declared.", "functional", (
        ("distance < 0", "(distance < 0) | (distance >= 8)"),
    ), window=8),
    Correct("ours-sliding-window", "Four tokens per layer; declared.", "ours", (
        ('position="rope",', 'position="rope",\n        sliding_window=4,'),
    ), window=4),
    Correct("ours-gpt2", "The package's model as a GPT-2, with QK-norm.", "ours", (
        ('position="rope"', 'position="learned",\n        qk_norm=True'), ('mlp="swiglu"', 'mlp="gelu"'),
        ('norm="rmsnorm"', 'norm="layernorm"'), ("tie_embeddings=False", "tie_embeddings=True"),
    )),
    Correct("multi-query", "All query heads share one key and value head.", "llama_like", (
        ("num_key_value_heads: int = 2", "num_key_value_heads: int = 1"),
    )),
    Correct("qk-norm", "Queries and keys are normalised before the rotation.", "llama_like", (
        ("        q = (q * cos", "        q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])\n        q = (q * cos"),
    )),
    Correct("cosine-attention", "Queries and keys have length 1; a learned temperature takes the place of the scale.", "book", (
        ("        self.dropout = nn.Dropout(dropout)\n", "        self.dropout = nn.Dropout(dropout)\n        self.temperature = nn.Parameter(torch.full((num_heads, 1, 1), 10.0))\n"),
        ("attn_scores = queries @ keys.transpose(2, 3)", "attn_scores = nn.functional.normalize(queries, dim=-1) @ nn.functional.normalize(keys, dim=-1).transpose(2, 3)\n        attn_scores = attn_scores * self.temperature"),
        ("attn_scores / self.head_dim**0.5", "attn_scores"),
    )),
    Correct("soft-capped-logits", "A tanh keeps the logits within 30.", "functional", (
        ('return norm(x, p["norm_f"]) @ p["unembed"]', 'return 30 * torch.tanh(norm(x, p["norm_f"]) @ p["unembed"] / 30)'),
    )),
    Correct("soft-capped-scores", "A tanh keeps the scores within 50.", "complex_rope", (
        ("        scores = scores + mask\n", "        scores = 50 * torch.tanh(scores / 50)\n        scores = scores + mask\n"),
    )),
    Correct("tied-and-scaled", "A tied embedding, multiplied by sqrt(C) at the input.", "llama_like", (
        (_LLAMA_INIT, _LLAMA_INIT + "        self.lm_head.weight = self.embed_tokens.weight\n"),
        (_LLAMA_X, "        x = self.embed_tokens(input_ids) * self.config.hidden_size**0.5\n"),
    )),
    Correct("normalised-embedding", "The embedding is normalised before the first block.", "functional", (
        (_FUNCTIONAL_X, _FUNCTIONAL_X + '        x = F.rms_norm(x, x.shape[-1:])\n'),
    )),
    Correct("one-block-called-n-times", "ALBERT: one block, called in a loop (arXiv:1909.11942).", "classes", (
        ("        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layer)])\n", "        self.block = Block(config)\n"),
        ("        for block in self.h:\n            x = block(x)\n", "        for _ in range(self.config.n_layer):\n            x = self.block(x)\n"),
    )),
    Correct("relative-bias", "T5: a learned bias per distance, and no scale, which the initial queries contain (arXiv:1910.10683).", "classes", (
        ("        self.n_head = config.n_head\n", "        self.n_head = config.n_head\n        self.relative = nn.Embedding(16, config.n_head)\n"),
        (f"y = {_SDPA}", _T5), ("        p = self.dropout if self.training else 0.0\n", ""),
        (_WPE, ""), ("self.wte(idx) + self.wpe(pos)", "self.wte(idx)"),
        ("        pos = torch.arange(T, dtype=torch.long, device=idx.device)\n", ""),
        ("            if name.endswith(\"c_proj", "            if name.endswith(\"c_attn.weight\"):\n                p.data[: config.n_embd] *= (config.n_embd // config.n_head) ** -0.5\n            if name.endswith(\"c_proj"),
    )),
    Correct("mup-scale", "Scores are divided by d, not by its root (arXiv:2203.03466).", "classes", (
        ("is_causal=True", "is_causal=True, scale=1 / hs"),
    )),
    Correct("dynamic-tanh", "A tanh with a learned slope in place of the norms (arXiv:2503.10622).", "book", (
        ("        self.eps = 1e-5\n", "        self.alpha = nn.Parameter(torch.tensor(0.5))\n"),
        ("        mean = x.mean(dim=-1, keepdim=True)\n        var = x.var(dim=-1, keepdim=True, unbiased=False)\n", ""),
        ("(x - mean) / torch.sqrt(var + self.eps)", "torch.tanh(self.alpha * x)"),
    )),
    Correct("no-norms", "No norms at all.", "classes", (
        ("        self.ln_1 = nn.LayerNorm(config.n_embd)\n", "        self.ln_1 = nn.Identity()\n"),
        ("        self.ln_2 = nn.LayerNorm(config.n_embd)\n", "        self.ln_2 = nn.Identity()\n"),
        (_LN_F, "        self.ln_f = nn.Identity()\n"),
        ("nn.init.normal_(module.weight, std=0.02)", "nn.init.normal_(module.weight, std=0.1)"),
    )),
    Correct("attention-sinks", "A learned extra logit per head takes weight and gives nothing.", "book", (
        ("        self.dropout = nn.Dropout(dropout)\n", "        self.dropout = nn.Dropout(dropout)\n        self.sinks = nn.Parameter(torch.zeros(num_heads, 1, 1))\n"),
        ("        attn_weights = torch.softmax(attn_scores / self.head_dim**0.5, dim=-1)\n",
         "        sinks = self.sinks.expand(b, -1, num_tokens, 1)\n"
         "        attn_scores = torch.cat((attn_scores / self.head_dim**0.5, sinks), dim=-1)\n"
         "        attn_weights = torch.softmax(attn_scores, dim=-1)[..., :-1]\n"),
    )),
    Correct("softmax-plus-one", "exp(s) / (1 + sum exp(s)): a head may attend to nothing.", "functional", (
        ("    weights = scores.softmax(dim=-1)\n", "    weights = F.pad(scores, (1, 0)).softmax(dim=-1)[..., 1:]\n"),
    )),
    Correct("linear-attention", "Positive features in place of the softmax.", "functional", (
        (" / q.shape[-1] ** 0.5\n", "\n"),
        ('    scores = torch.einsum("bhtd,bhsd->bhts", q, k)', "    q, k = F.elu(q) + 1, F.elu(k) + 1\n    scores = torch.einsum(\"bhtd,bhsd->bhts\", q, k).tril()"),
        ("    scores = scores + alibi(n_heads, T, x.device).to(x.dtype)\n", "    scores = scores * alibi(n_heads, T, x.device).exp().to(x.dtype)\n"),
        ("scores.softmax(dim=-1)", "scores / (scores.sum(dim=-1, keepdim=True) + 1e-6)"),
    )),
    Correct("sigmoid-attention", "A sigmoid in place of the softmax: rows do not sum to 1 (arXiv:2409.04431).", "functional", (
        ("scores.softmax(dim=-1)", "torch.sigmoid(scores - 2.0)"),
    )),
    Correct("token-shift", "RWKV: half of the channels come from the token before.", "functional", (
        (_FUNCTIONAL_X, _FUNCTIONAL_X + "        half = x.shape[-1] // 2\n        x = torch.cat((F.pad(x, (0, 0, 1, -1))[..., :half], x[..., half:]), dim=-1)\n"),
    )),
    Correct("log-probabilities", "The model returns log-softmax, for nll_loss.", "torch_layers", (
        ("logits = self.decoder(x)  # [T, B, V]", "logits = torch.log_softmax(self.decoder(x), dim=-1)"),
    )),
    Correct("vocabulary-in-the-middle", "Logits are [B, V, T], as cross_entropy wants them.", "torch_layers", (
        ("return logits.transpose(0, 1)", "return logits.permute(1, 2, 0)"),
    )),
    Correct("a-dictionary", "The forward returns a dictionary.", "book", (
        ("        return logits\n", '        return {"logits": logits, "hidden": x}\n'),
    )),
    Correct("frozen-embedding", "The token embedding does not learn.", "lecture", (
        ("        self.tokens = nn.Embedding(vocab_size, n_embd)\n", "        self.tokens = nn.Embedding(vocab_size, n_embd)\n        self.tokens.weight.requires_grad_(False)\n"),
    )),
    Correct("lora", "All is frozen but small changes of the attention's matrices, which start at zero.", "classes", (
        ("def model(", _LORA), ("    return GPT(config)", "    gpt = GPT(config).requires_grad_(False)\n    for block in gpt.h:\n        block.attn.c_attn = LoRA(block.attn.c_attn)\n    return gpt"),
    )),
    Correct("bytes", "256 tokens.", "lecture", (("LectureGPT(65,", "LectureGPT(256,"),)),
    Correct("padded-vocabulary", "The head is wider than the vocabulary, for speed, and its output is cut.", "book", (
        ('cfg["emb_dim"], cfg["vocab_size"], bias=False)', 'cfg["emb_dim"], 128, bias=False)'),
        ("        logits = self.out_head(x)\n", "        logits = self.out_head(x)[..., : self.tok_emb.num_embeddings]\n"),
    )),
    Correct("much-dropout", "Half of everything is dropped in training.", "torch_layers", (
        ("max_len, dropout=0.1)", "max_len, dropout=0.5)"), ("        logits = self.decoder(x)", "        x = nn.functional.dropout(x, 0.5, self.training)\n        logits = self.decoder(x)"),
    )),
    Correct("stochastic-depth", "Whole branches are dropped in training.", "classes", (
        (_CLASSES_BLOCK, "        if self.training and torch.rand(()) < 0.2:\n            return x\n" + _CLASSES_BLOCK),
    )),
    Correct("eval-from-the-factory", "The factory returns the model in evaluation mode.", "book", (
        ("    return GPTModel(cfg).to(getattr(torch, dtype))", "    return GPTModel(cfg).to(getattr(torch, dtype)).eval()"),
    )),
    Correct("lazy-mask", "The mask is a plain attribute that is made anew when the length or the device changes.", "lecture", (
        ('        self.register_buffer("tril", torch.tril(torch.ones(block_size, block_size)))\n', "        self.mask = None\n"),
        (_LECTURE_MASK, "        if self.mask is None or self.mask.shape[0] != T or self.mask.device != x.device:\n"
                        "            self.mask = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)\n"
                        '        att = att.masked_fill(self.mask, float("-inf"))\n'),
    )),
    Correct("large-negative-mask", "The mask is -1e9 instead of minus infinity.", "lecture", (('float("-inf")', "-1e9"),)),
    Correct("ignore-minus-one", "Ignored targets are -1.", "classes", (("ignore_index=-100", "ignore_index=-1"),)),
    Correct("unigram-bias", "The head's bias starts at log frequencies.", "torch_layers", (
        ("        nn.init.zeros_(self.decoder.bias)\n", "        frequencies = 1 / torch.arange(2.0, 2.0 + len(self.decoder.bias)).sqrt()\n        self.decoder.bias.data = torch.log(frequencies / frequencies.sum())\n"),
    )),
    Correct("in-place-additions", "Branches are added with +=.", "classes", (
        (_CLASSES_BLOCK, "        y = self.attn(self.ln_1(x))\n        y += x\n        z = self.mlp(self.ln_2(y))\n        z += y\n        x = z\n"),
    )),
    Correct("long-rotary", "No limit of length: rotary positions go on.", "llama_like", (
        ("max_position_embeddings: int = 24", "max_position_embeddings: int = 20"),
    )),
    Correct("lstm", "Long short-term memory with its own state, given and returned.", "recurrent", (("nn.GRU(", "nn.LSTM("),)),
    Correct("n-gram", "One convolution of three tokens; declared.", "convolutional", (("layers=4", "layers=1"),), window=3),
)  # fmt: skip


def program_names() -> tuple[str, ...]:
    """Names of every model program on disk, correct or base of bugs."""
    return tuple(sorted(path.stem for path in PROGRAMS.glob("*.py") if not path.stem.startswith("loop_")))

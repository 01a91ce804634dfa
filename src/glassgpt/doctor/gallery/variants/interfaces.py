"""Correct models with unusual outputs, modes, or frozen parts."""

from glassgpt.doctor.gallery.bug import Correct

_CLASSES_BLOCK = "        x = x + self.attn(self.ln_1(x))\n        x = x + self.mlp(self.ln_2(x))\n"
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

INTERFACES_VARIANTS = (
    Correct(
        "soft-capped-logits",
        "A tanh keeps the logits within 30.",
        "functional",
        (
            (
                'return norm(x, p["norm_f"]) @ p["unembed"]',
                'return 30 * torch.tanh(norm(x, p["norm_f"]) @ p["unembed"] / 30)',
            ),
        ),
    ),
    Correct(
        "log-probabilities",
        "The model returns log-softmax, for nll_loss.",
        "torch_layers",
        (("logits = self.decoder(x)  # [T, B, V]", "logits = torch.log_softmax(self.decoder(x), dim=-1)"),),
    ),
    Correct(
        "vocabulary-in-the-middle",
        "Logits are [B, V, T], as cross_entropy wants them.",
        "torch_layers",
        (("return logits.transpose(0, 1)", "return logits.permute(1, 2, 0)"),),
    ),
    Correct(
        "a-dictionary",
        "The forward returns a dictionary.",
        "book",
        (("        return logits\n", '        return {"logits": logits, "hidden": x}\n'),),
    ),
    Correct(
        "frozen-embedding",
        "The token embedding does not learn.",
        "lecture",
        (
            (
                "        self.tokens = nn.Embedding(vocab_size, n_embd)\n",
                "        self.tokens = nn.Embedding(vocab_size, n_embd)\n"
                "        self.tokens.weight.requires_grad_(False)\n",
            ),
        ),
    ),
    Correct(
        "lora",
        "All is frozen but small changes of the attention's matrices, which start at zero.",
        "classes",
        (
            ("def model(", _LORA),
            (
                "    return GPT(config)",
                "    gpt = GPT(config).requires_grad_(False)\n    for block in gpt.h:\n"
                "        block.attn.c_attn = LoRA(block.attn.c_attn)\n    return gpt",
            ),
        ),
    ),
    Correct("bytes", "256 tokens.", "lecture", (("LectureGPT(65,", "LectureGPT(256,"),)),
    Correct(
        "padded-vocabulary",
        "The head is wider than the vocabulary, for speed, and its output is cut.",
        "book",
        (
            ('cfg["emb_dim"], cfg["vocab_size"], bias=False)', 'cfg["emb_dim"], 128, bias=False)'),
            (
                "        logits = self.out_head(x)\n",
                "        logits = self.out_head(x)[..., : self.tok_emb.num_embeddings]\n",
            ),
        ),
    ),
    Correct(
        "much-dropout",
        "Half of everything is dropped in training.",
        "torch_layers",
        (
            ("max_len, dropout=0.1)", "max_len, dropout=0.5)"),
            (
                "        logits = self.decoder(x)",
                "        x = nn.functional.dropout(x, 0.5, self.training)\n        logits = self.decoder(x)",
            ),
        ),
    ),
    Correct(
        "stochastic-depth",
        "Whole branches are dropped in training.",
        "classes",
        (
            (
                _CLASSES_BLOCK,
                "        if self.training and torch.rand(()) < 0.2:\n            return x\n" + _CLASSES_BLOCK,
            ),
        ),
    ),
    Correct(
        "eval-from-the-factory",
        "The factory returns the model in evaluation mode.",
        "book",
        (
            (
                "    return GPTModel(cfg).to(getattr(torch, dtype))",
                "    return GPTModel(cfg).to(getattr(torch, dtype)).eval()",
            ),
        ),
    ),
    Correct("ignore-minus-one", "Ignored targets are -1.", "classes", (("ignore_index=-100", "ignore_index=-1"),)),
    Correct(
        "unigram-bias",
        "The head's bias starts at log frequencies.",
        "torch_layers",
        (
            (
                "        nn.init.zeros_(self.decoder.bias)\n",
                "        frequencies = 1 / torch.arange(2.0, 2.0 + len(self.decoder.bias)).sqrt()\n"
                "        self.decoder.bias.data = torch.log(frequencies / frequencies.sum())\n",
            ),
        ),
    ),
)

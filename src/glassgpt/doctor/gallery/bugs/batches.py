"""Bugs of rows that mix, and of tensors on the wrong device."""

from glassgpt.doctor.gallery.bug import Bug

_CLASSES_X = "        x = self.drop(self.wte(idx) + self.wpe(pos))\n"
_BOOK_X = "        x = self.drop_emb(tok_embeds + pos_embeds)\n"
_FUNCTIONAL_X = '        x = p["embed"][tokens]\n'
_OURS_LOGITS = "        logits = super().forward(idx, **keywords)\n"

_BATCH = (
    Bug(
        "mean-of-the-batch",
        "batch mixing",
        "The mean over the rows of the batch is taken away.",
        {
            "lecture": (("        x = self.ln_f(x)\n", "        x = self.ln_f(x - x.mean(0))\n"),),
            "classes": ((_CLASSES_X, _CLASSES_X + "        x = x - x.mean(dim=0, keepdim=True)\n"),),
            "ours": ((_OURS_LOGITS, _OURS_LOGITS + "        logits = logits - logits.mean(dim=0)\n"),),
        },
    ),
    Bug(
        "batch-norm",
        "batch mixing",
        "BatchNorm is used where LayerNorm belongs.",
        {
            "lecture": (
                ("        self.ln_f = nn.LayerNorm(n_embd)\n", "        self.ln_f = nn.BatchNorm1d(n_embd)\n"),
                ("        x = self.ln_f(x)\n", "        x = self.ln_f(x.transpose(1, 2)).transpose(1, 2)\n"),
            ),
            "classes": (
                (
                    "        self.ln_f = nn.LayerNorm(config.n_embd)\n",
                    "        self.ln_f = nn.BatchNorm1d(config.n_embd)\n",
                ),
                ("        x = self.ln_f(x)\n", "        x = self.ln_f(x.view(B * T, -1)).view(B, T, -1)\n"),
            ),
        },
    ),
    Bug(
        "view-for-transpose",
        "batch mixing",
        "[B, T] is viewed as [T, B], not transposed: rows are cut into each other.",
        {
            "torch_layers": (
                ("src = tokens.transpose(0, 1)", "src = tokens.reshape(tokens.size(1), tokens.size(0))"),
                ("logits.transpose(0, 1)", "logits.reshape(tokens.size(0), tokens.size(1), -1)"),
            ),
        },
    ),
    Bug(
        "time-first-forgotten",
        "batch mixing",
        "The layers expect time first, and get the batch first.",
        {
            "torch_layers": (
                (
                    "        x = self.encoder(x, mask=mask)\n",
                    "        x = x.transpose(0, 1)  # batch first\n        n = x.size(0)\n"
                    '        mask = torch.full((n, n), float("-inf"), device=src.device).triu(1).to(x.dtype)\n'
                    "        x = self.encoder(x, mask=mask).transpose(0, 1)\n",
                ),
            ),
        },
    ),
    Bug(
        "heads-and-batch-in-another-order",
        "batch mixing",
        "Heads are stacked before the batch, and taken apart after it.",
        {
            "classes": (
                *(
                    (
                        f"{n} = {n}.view(B, T, self.n_head, hs).transpose(1, 2)",
                        f"{n} = {n}.view(B, T, self.n_head, hs).permute(2, 0, 1, 3).reshape(-1, T, hs)",
                    )
                    for n in "qkv"
                ),
                (
                    "y = y.transpose(1, 2).contiguous().view(B, T, C)",
                    "y = y.view(B, self.n_head, T, hs).transpose(1, 2).reshape(B, T, C)",
                ),
            ),
        },
    ),
    Bug(
        "rows-share-one-summary",
        "batch mixing",
        "A summary of the first row is added to all rows.",
        {
            "book": ((_BOOK_X, _BOOK_X + "        x = x + x[0, 0]\n"),),
            "functional": ((_FUNCTIONAL_X, _FUNCTIONAL_X + "        x = x + 0.1 * x[:1, :1]\n"),),
        },
    ),
)

_DEVICE = (
    Bug(
        "arange-on-the-cpu",
        "device",
        "Positions are made on the CPU, wherever the model is.",
        {
            "hf_like": (
                (
                    "torch.arange(past_length, past_length + T, device=input_ids.device)",
                    "torch.arange(past_length, past_length + T)",
                ),
            ),
            "lecture": (("torch.arange(T, device=idx.device)", "torch.arange(T)"),),
            "classes": (("torch.arange(T, dtype=torch.long, device=idx.device)", "torch.arange(T, dtype=torch.long)"),),
            "book": (("torch.arange(seq_len, device=in_idx.device)", "torch.arange(seq_len)"),),
            "llama_like": (("torch.arange(total, device=input_ids.device)", "torch.arange(total)"),),
        },
    ),
    Bug(
        "mask-is-no-buffer",
        "device",
        "The mask is a plain attribute, which .to() leaves where it is.",
        {
            "lecture": (
                (
                    'self.register_buffer("tril", torch.tril(torch.ones(block_size, block_size)))',
                    "self.tril = torch.tril(torch.ones(block_size, block_size))",
                ),
            ),
            "book": (('self.register_buffer("mask", future.bool())', "self.mask = future.bool()"),),
            "torch_layers": (('self.register_buffer("pe", pe)', "self.pe = pe"),),
        },
    ),
    Bug(
        "mask-made-on-the-cpu",
        "device",
        "The mask is made on the CPU in every forward pass.",
        {
            "torch_layers": ((", device=src.device, dtype=x.dtype)", ", dtype=x.dtype)"),),
            "functional": (
                (
                    "    pos = torch.arange(T, device=device)\n",
                    "    pos = torch.arange(T)\n    slopes = slopes.cpu()\n",
                ),
            ),
        },
    ),
    Bug(
        "moved-to-the-cpu",
        "device",
        "A result is moved to the CPU in the forward pass.",
        {
            "lecture": (("        att = self.dropout(att)\n", "        att = self.dropout(att.cpu())\n"),),
            "book": ((_BOOK_X, _BOOK_X.replace("tok_embeds +", "tok_embeds.cpu() +")),),
        },
    ),
)

BATCHES_BUGS = _BATCH + _DEVICE

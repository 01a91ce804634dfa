"""Bugs of caches, of padding and of the maximum length."""

from glassgpt.doctor.gallery.bug import Bug

_LECTURE_MASK = '        att = att.masked_fill(self.tril[:T, :T] == 0, float("-inf"))\n'
_LLAMA_CAUSAL = "causal = here[None, :] <= here[past_len:, None]"
_LLAMA_POSITIONS = "positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, past_len:]"
_OURS_LOGITS = "        logits = super().forward(idx, **keywords)\n"

_CACHE = (
    Bug(
        "cached-positions-start-again",
        "cache",
        "With a cache, positions start at 0 again.",
        {
            "hf_like": (
                (
                    "torch.arange(past_length, past_length + T, device=input_ids.device)",
                    "torch.arange(T, device=input_ids.device)",
                ),
            ),
            "llama_like": ((_LLAMA_POSITIONS, "positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, :T]"),),
        },
    ),
    Bug(
        "cache-keeps-only-the-new",
        "cache",
        "The new keys replace the cached ones.",
        {
            "hf_like": (
                ("            present = (key, value)\n", "            present = (key[:, :, -T:], value[:, :, -T:])\n"),
            ),
            "llama_like": (
                ("        present = (k, v)\n", ""),
                (
                    "        if past is not None:\n            k, v",
                    "        present = (k, v)\n        if past is not None:\n            k, v",
                ),
            ),
        },
    ),
    Bug(
        "cached-values-stale",
        "cache",
        "Values in the cache are those of the first call.",
        {
            "hf_like": (
                (
                    "value = torch.cat((layer_past[1], value), dim=-2)",
                    "value = torch.cat((layer_past[1], layer_past[1][:, :, -1:].expand_as(value)), dim=-2)",
                ),
            ),
            "llama_like": (
                (
                    "        present = (k, v)\n",
                    "        present = (k, v if past is None else torch.cat((past[1], past[1][:, :, -T:]), dim=2))\n",
                ),
            ),
        },
    ),
    Bug(
        "cached-keys-not-rotated",
        "cache",
        "Keys are stored before the rotation and not rotated later.",
        {
            "llama_like": (
                ("        q = (q * cos", "        raw = k\n        q = (q * cos"),
                (
                    "        present = (k, v)\n",
                    "        present = (k, v) if past is None else (torch.cat((past[0], raw), dim=2), v)\n",
                ),
            ),
        },
    ),
    Bug(
        "cached-mask-for-one-token",
        "cache",
        "The mask counts queries from 0, so that a new token sees the first one only.",
        {
            "hf_like": (("self.bias[:, :, S - T : S, :S]", "self.bias[:, :, :T, :S]"),),
            "llama_like": ((_LLAMA_CAUSAL, "causal = here[None, :] <= here[:T, None]"),),
        },
    ),
    Bug(
        "cache-of-the-layer-before",
        "cache",
        "Every layer reads the cache of the first layer.",
        {
            "hf_like": (("past_key_values[i]}", "past_key_values[max(i - 1, 0)]}"),),
            "llama_like": (("past = past_key_values[i] if", "past = past_key_values[0] if"),),
        },
    ),
)

_PADDING = (
    Bug(
        "attention-mask-ignored",
        "padding",
        "attention_mask is accepted and not used.",
        {
            "hf_like": (("if attention_mask is not None:\n            mask", "if False:\n            mask"),),
            "llama_like": (
                ("causal[None, None] & attention_mask[:, None, None, :].bool()", "causal[None, None]"),
                (_LLAMA_POSITIONS, "positions = here_positions[:, past_len:]"),
                (
                    "        total = past_len + T\n",
                    "        total = past_len + T\n"
                    "        here_positions = torch.arange(total, device=input_ids.device)[None].expand(B, -1)\n",
                ),
            ),
        },
    ),
    Bug(
        "attention-mask-inverted",
        "padding",
        "attention_mask hides the tokens and shows the padding.",
        {
            "llama_like": (
                (
                    "        if attention_mask is None:\n",
                    "        inverted = attention_mask is not None\n        if attention_mask is None:\n",
                ),
                ("attention_mask[:, None, None, :].bool()", "(attention_mask[:, None, None, :].bool() != inverted)"),
            ),
            "hf_like": (("attention_mask[:, None, None, :].bool()", "~attention_mask[:, None, None, :].bool()"),),
        },
    ),
    Bug(
        "positions-count-padding",
        "padding",
        "Left padding shifts the positions of the text, whatever position_ids say.",
        {
            "hf_like": (
                ("attention_mask is not None and position_ids is None:", "False:"),
                ("        if position_ids is None:\n            position_ids = torch", "        position_ids = torch"),
            ),
        },
    ),
)

_LENGTH = (
    Bug(
        "positions-clamped",
        "max length",
        "Positions after the context all get the last embedding.",
        {
            "lecture": (
                (
                    "torch.arange(T, device=idx.device)",
                    "torch.arange(T, device=idx.device).clamp(max=self.block_size - 1)",
                ),
                (
                    _LECTURE_MASK,
                    '        att = att.masked_fill(torch.ones(T, T, device=x.device).tril() == 0, float("-inf"))\n',
                ),
            ),
            "classes": (
                (
                    '        assert self.config.block_size >= T, f"{T} tokens do not fit"\n',
                    "",
                ),
                ("device=idx.device)\n", "device=idx.device).clamp(max=self.config.block_size - 1)\n"),
            ),
        },
    ),
    Bug(
        "positions-wrapped",
        "max length",
        "Positions after the context start at 0 again.",
        {
            "classes": (
                (
                    '        assert self.config.block_size >= T, f"{T} tokens do not fit"\n',
                    "",
                ),
                ("device=idx.device)\n", "device=idx.device) % self.config.block_size\n"),
            ),
            "torch_layers": (("self.pe[: x.size(0)]", "self.pe[torch.arange(x.size(0)) % self.pe.size(0)]"),),
        },
    ),
    Bug(
        "silent-crop",
        "max length",
        "Longer texts are cut without a word: fewer logits come out than tokens went in.",
        {
            "lecture": (
                ("        B, T = idx.shape\n", "        idx = idx[:, -self.block_size :]\n        B, T = idx.shape\n"),
            ),
            "book": (
                (
                    "        batch_size, seq_len = in_idx.shape\n",
                    "        in_idx = in_idx[:, : self.pos_emb.num_embeddings]\n"
                    "        batch_size, seq_len = in_idx.shape\n",
                ),
            ),
            "ours": ((_OURS_LOGITS, "        idx = idx[:, -self.config.block_size :]\n" + _OURS_LOGITS),),
        },
    ),
    Bug(
        "one-position-too-few",
        "max length",
        "The table of positions has one row less than the context.",
        {
            "classes": (
                (
                    "nn.Embedding(config.block_size, config.n_embd)",
                    "nn.Embedding(config.block_size - 1, config.n_embd)",
                ),
            ),
            "lecture": (("nn.Embedding(block_size, n_embd)", "nn.Embedding(block_size - 1, n_embd)"),),
        },
    ),
)

CACHES_BUGS = _CACHE + _PADDING + _LENGTH

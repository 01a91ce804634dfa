"""Bugs of positions: learned, sinusoidal and rotary."""

from glassgpt.doctor.gallery.bug import Bug

_OURS_BUILT = "    gpt = Model(config)\n"
_CLASSES_WPE = "self.wte(idx) + self.wpe(pos)"
_LECTURE_POS = "        x = x + self.positions(torch.arange(T, device=idx.device))\n"
_BOOK_POS = "self.pos_emb(torch.arange(seq_len, device=in_idx.device))"
_ROTATE_K = "        k = (k * cos + rotate_half(k) * sin).to(v.dtype)\n"
_ROTATE_Q = "        q = (q * cos + rotate_half(q) * sin).to(v.dtype)\n"
_COMPLEX_ROTATE = "        xq, xk = apply_rotary(xq, freqs_cis), apply_rotary(xk, freqs_cis)\n"

POSITIONS_BUGS = (
    Bug(
        "positions-not-added",
        "position",
        "Positions are embedded, but not added to the tokens.",
        {
            "hf_like": (("self.wte(input_ids) + self.wpe(position_ids)", "self.wte(input_ids)"),),
            "lecture": ((_LECTURE_POS, "        self.positions(torch.arange(T, device=idx.device))\n"),),
            "classes": ((_CLASSES_WPE, "self.wte(idx)"),),
            "book": (("tok_embeds + pos_embeds", "tok_embeds"),),
            "torch_layers": (("        x = x + self.pe[: x.size(0)]\n", ""),),
        },
    ),
    Bug(
        "same-position-for-all",
        "position",
        "Every token gets the embedding of position 0.",
        {
            "complex_rope": (("self.freqs_cis[:T]", "self.freqs_cis[:1].expand(T, -1)"),),
            "hf_like": (("self.wpe(position_ids)", "self.wpe(position_ids * 0)"),),
            "lecture": (("torch.arange(T, device=idx.device)", "torch.zeros(T, dtype=torch.long, device=idx.device)"),),
            "classes": (("self.wpe(pos)", "self.wpe(pos[:1])"),),
            "torch_layers": (("self.pe[: x.size(0)]", "self.pe[:1]"),),
            "llama_like": (("[:, past_len:]\n", "[:, past_len:] * 0\n"),),
        },
    ),
    Bug(
        "positions-of-the-batch-row",
        "position",
        "The position is the row's number in the batch.",
        {
            "classes": (
                ("torch.arange(T, dtype=torch.long, device=idx.device)", "torch.arange(B, device=idx.device)[:, None]"),
            ),
            "book": ((_BOOK_POS, "self.pos_emb(torch.arange(batch_size, device=in_idx.device)).unsqueeze(1)"),),
            "torch_layers": (("self.pe[: x.size(0)]", "self.pe[: x.size(1)].transpose(0, 1)"),),
        },
    ),
    Bug(
        "positions-reversed",
        "position",
        "Positions count down from the last token, so that the same text moves as it grows.",
        {
            "lecture": (("torch.arange(T, device=idx.device)", "torch.arange(T - 1, -1, -1, device=idx.device)"),),
            "classes": (("self.wpe(pos)", "self.wpe(pos.flip(0))"),),
            "book": (
                ("torch.arange(seq_len, device=in_idx.device)", "torch.arange(seq_len, device=in_idx.device).flip(0)"),
            ),
        },
    ),
    Bug(
        "rotary-pairs-do-not-match",
        "position",
        "Neighbouring channels are rotated with the angles of the halves.",
        {
            "complex_rope": (
                (
                    "apply_rotary(xk, freqs_cis)\n",
                    "apply_rotary(xk.unflatten(-1, (2, -1)).mT.flatten(3), freqs_cis)\n"
                    "        xk = xk.unflatten(-1, (-1, 2)).mT.flatten(3)\n",
                ),
            ),
            "llama_like": (
                (
                    "    a, b = x.chunk(2, dim=-1)\n    return torch.cat((-b, a), dim=-1)\n",
                    "    a, b = x[..., ::2], x[..., 1::2]\n    return torch.stack((-b, a), dim=-1).flatten(-2)\n",
                ),
            ),
            "ours": (
                (
                    _OURS_BUILT,
                    _OURS_BUILT + "    half = gpt.rope_cos.shape[1] // 2\n"
                    "    gpt.rope_cos = gpt.rope_cos[:, :half].repeat_interleave(2, dim=1)\n"
                    "    gpt.rope_sin = gpt.rope_sin[:, :half].repeat_interleave(2, dim=1)\n",
                ),
            ),
        },
    ),
    Bug(
        "rotary-of-queries-only",
        "position",
        "Queries are rotated, keys are not.",
        {
            "llama_like": ((_ROTATE_K, ""),),
            "complex_rope": (
                ("apply_rotary(xq, freqs_cis), apply_rotary(xk, freqs_cis)", "apply_rotary(xq, freqs_cis), xk"),
            ),
        },
    ),
    Bug(
        "rotary-of-values-too",
        "position",
        "Values are rotated as well.",
        {
            "llama_like": ((_ROTATE_K, _ROTATE_K + "        v = (v * cos + rotate_half(v) * sin).to(v.dtype)\n"),),
            "complex_rope": ((_COMPLEX_ROTATE, _COMPLEX_ROTATE + "        xv = apply_rotary(xv, freqs_cis)\n"),),
        },
    ),
    Bug(
        "rotary-over-heads",
        "position",
        "The angle is that of the head's number instead of the position.",
        {
            "complex_rope": (
                ("freqs_cis[None, :, None, :]", "freqs_cis[: x.shape[2]][None, None]"),
                ("self.freqs_cis[:T]", "self.freqs_cis"),
            ),
            "llama_like": (
                (
                    _ROTATE_Q,
                    "        c, s = rotary(torch.arange(self.n_heads, device=x.device)[None], self.head_dim, 1e4)\n"
                    "        c, s = c.transpose(1, 2), s.transpose(1, 2)\n"
                    "        q = (q * c + rotate_half(q) * s).to(v.dtype)\n",
                ),
                (_ROTATE_K, "        k = (k * c[:, : self.n_kv] + rotate_half(k) * s[:, : self.n_kv]).to(v.dtype)\n"),
            ),
        },
    ),
    Bug(
        "rotary-of-keys-backwards",
        "position",
        "Keys are rotated the other way, so that scores depend on the sum of positions.",
        {
            "complex_rope": (("apply_rotary(xk, freqs_cis)", "apply_rotary(xk, freqs_cis.conj())"),),
            "llama_like": ((_ROTATE_K, _ROTATE_K.replace("cos +", "cos -")),),
        },
    ),
    Bug(
        "rotary-tables-zero",
        "position",
        "The rotary angles are all zero, because the frequencies are rounded to integers.",
        {
            "complex_rope": (("torch.outer(t, freqs)", "torch.outer(t, freqs) // 100"),),
            "llama_like": (
                ("angles = torch.cat((angles, angles), dim=-1)", "angles = torch.cat((angles, angles), dim=-1) // 100"),
            ),
            "ours": ((_OURS_BUILT, _OURS_BUILT + "    gpt.rope_cos.fill_(1.0)\n    gpt.rope_sin.fill_(0.0)\n"),),
        },
    ),
)

"""Bugs by which a position does not see its past."""

from glassgpt.doctor.gallery.bug import Bug

_LECTURE_MASK = '        att = att.masked_fill(self.tril[:T, :T] == 0, float("-inf"))\n'
_BOOK_MASK = "        attn_scores.masked_fill_(self.mask[:num_tokens, :num_tokens], -torch.inf)\n"
_BOOK_MERGE = "context_vec = (attn_weights @ values).transpose(1, 2)"
_LLAMA_CAUSAL = "causal = here[None, :] <= here[past_len:, None]"

REACH_BUGS = (
    Bug(
        "heads-by-view-both-ways",
        "reach",
        "Heads are cut and merged without a transpose: pieces of a few positions.",
        {
            "classes": (
                *(
                    (
                        f"{name} = {name}.view(B, T, self.n_head, hs).transpose(1, 2)",
                        f"{name} = {name}.reshape(B, self.n_head, T, hs)",
                    )
                    for name in "qkv"
                ),
                ("y.transpose(1, 2).contiguous().view(B, T, C)", "y.contiguous().view(B, T, C)"),
            ),
            "book": (
                *(
                    (
                        f"{name} = {name}.view(b, num_tokens, self.num_heads, self.head_dim)",
                        f"{name} = {name}.view(b, self.num_heads, num_tokens, self.head_dim)",
                    )
                    for name in ("queries", "keys", "values")
                ),
                (
                    "        queries, keys, values = (t.transpose(1, 2) for t in (queries, keys, values))\n",
                    "",
                ),
                (_BOOK_MERGE, "context_vec = attn_weights @ values"),
            ),
        },
    ),
    Bug(
        "window-by-mistake",
        "reach",
        "The mask keeps only the last four positions.",
        {
            "lecture": (
                (
                    "torch.tril(torch.ones(block_size, block_size))",
                    "torch.tril(torch.ones(block_size, block_size)).triu(-3)",
                ),
            ),
            "llama_like": ((_LLAMA_CAUSAL, _LLAMA_CAUSAL + " & (here[None, :] > here[past_len:, None] - 4)"),),
            "functional": (("distance < 0", "(distance < 0) | (distance > 3)"),),
        },
    ),
    Bug(
        "late-keys-cut",
        "reach",
        "A limit of eight keys is left in the code: later ones are never attended to.",
        {
            "lecture": ((_LECTURE_MASK, _LECTURE_MASK + '        att[:, :, 8:] = float("-inf")\n'),),
            "book": ((_BOOK_MASK, _BOOK_MASK + "        attn_scores[..., 8:] = -torch.inf\n"),),
            "functional": (("distance < 0", "(distance < 0) | (pos[None, :] >= 8)"),),
        },
    ),
    Bug(
        "own-position-only",
        "reach",
        "Every position attends to itself alone.",
        {
            "lecture": (("torch.tril(torch.ones(block_size, block_size))", "torch.eye(block_size)"),),
            "book": (
                (
                    "future = torch.triu(torch.ones(context_length, context_length), diagonal=1)",
                    "future = 1 - torch.eye(context_length)",
                ),
            ),
            "llama_like": ((_LLAMA_CAUSAL, _LLAMA_CAUSAL.replace("<=", "==")),),
        },
    ),
    Bug(
        "inputs-shifted-inside",
        "reach",
        "The model shifts its input to the right, though the data does it already.",
        {
            "functional": (('x = p["embed"][tokens]', 'x = F.pad(p["embed"][tokens][:, :-1], (0, 0, 1, 0))'),),
            "lecture": (("x = self.tokens(idx)  # (B, T, C)", "x = F.pad(self.tokens(idx)[:, :-1], (0, 0, 1, 0))"),),
        },
    ),
    Bug(
        "first-token-never-seen",
        "reach",
        "The column of the first key is masked for all but the first query.",
        {
            "book": ((_BOOK_MASK, _BOOK_MASK + "        attn_scores[..., 1:, 0] = -torch.inf\n"),),
            "functional": (("distance < 0", "(distance < 0) | ((pos[None, :] == 0) & (pos[:, None] > 0))"),),
        },
    ),
)

"""Bugs by which parameters do not learn."""

from glassgpt.doctor.gallery.bug import Bug

DEAD_BUGS = (
    Bug(
        "detach-between-blocks",
        "dead parameters",
        "The stream is detached: nothing before it learns.",
        {
            "classes": (("            x = block(x)\n", "            x = block(x.detach())\n"),),
            "book": (("        x = self.final_norm(x)\n", "        x = self.final_norm(x.detach())\n"),),
            "functional": (
                ("x = x + attention(x, p,", "x = x + attention(x.detach(), p,"),
                ("x = x + mlp(x, p,", "x = x.detach() + mlp(x.detach(), p,"),
            ),
        },
    ),
    Bug(
        "attention-without-gradient",
        "dead parameters",
        "Attention is computed under no_grad.",
        {
            "lecture": (
                (
                    "        x = x + self.sa(self.ln1(x))\n",
                    "        with torch.no_grad():\n            y = self.sa(self.ln1(x))\n        x = x + y\n",
                ),
            ),
            "llama_like": (
                (
                    "        h, present = self.self_attn(self.input_layernorm(x), cos, sin, mask, past)\n",
                    "        with torch.no_grad():\n"
                    "            h, present = self.self_attn(self.input_layernorm(x), cos, sin, mask, past)\n",
                ),
            ),
        },
    ),
    Bug(
        "layer-not-called",
        "dead parameters",
        "The last block is built, but not called.",
        {
            "classes": (("for block in self.h:", "for block in self.h[:-1]:"),),
            "llama_like": (("enumerate(self.layers):", "enumerate(self.layers[:-1]):"),),
            "functional": (("for i in range(self.depth):", "for i in range(1, self.depth):"),),
        },
    ),
    Bug(
        "first-layer-called-every-time",
        "dead parameters",
        "The loop over the blocks calls the first one every time.",
        {
            "classes": (("            x = block(x)\n", "            x = self.h[0](x)\n"),),
            "functional": (('attention(x, p, f"block{i}_"', 'attention(x, p, "block0_"'),),
        },
    ),
    Bug(
        "final-norm-not-called",
        "dead parameters",
        "The final norm is built, but not called.",
        {
            "lecture": (("        x = self.ln_f(x)\n", ""),),
            "book": (("        x = self.final_norm(x)\n", ""),),
        },
    ),
    Bug(
        "output-of-mlp-thrown-away",
        "dead parameters",
        "The MLP is called, but its output is not used.",
        {
            "lecture": (
                (
                    "        x = x + self.ff(self.ln2(x))\n        return x\n",
                    "        y = x + self.ff(self.ln2(x))\n        return x\n",
                ),
            ),
            "llama_like": (
                (
                    "        x = x + self.mlp(self.post_attention_layernorm(x))\n",
                    "        _ = x + self.mlp(self.post_attention_layernorm(x))\n",
                ),
            ),
        },
    ),
    Bug(
        "hard-attention",
        "dead parameters",
        "The largest score is chosen with argmax, which has no gradient.",
        {
            "lecture": (("att = F.softmax(att, dim=-1)", "att = F.one_hot(att.argmax(dim=-1), T).to(x.dtype)"),),
            "functional": (
                ("weights = scores.softmax(dim=-1)", "weights = F.one_hot(scores.argmax(-1), T).to(x.dtype)"),
            ),
        },
    ),
    Bug(
        "keys-from-data",
        "dead parameters",
        "Keys are taken with .data, so that their weights have no gradient.",
        {
            "book": (("self.W_key(x)", "self.W_key(x).data"),),
            "functional": (('h, p[prefix + "wk"]', 'h, p[prefix + "wk"].data'),),
        },
    ),
    Bug(
        "head-detached",
        "dead parameters",
        "The head's weight is detached.",
        {
            "lecture": (
                ("self.lm_head(x)  # (B, T, V)", "F.linear(x, self.lm_head.weight.detach(), self.lm_head.bias)"),
            ),
            "functional": (('@ p["unembed"]\n', '@ p["unembed"].detach()\n'),),
        },
    ),
    Bug(
        "relu-always-off",
        "dead parameters",
        "The biases of the MLP start so low that no unit is ever on.",
        {
            "lecture": (
                (
                    "            nn.Dropout(dropout),\n        )\n",
                    "            nn.Dropout(dropout),\n        )\n        nn.init.constant_(self.net[0].bias, -20.0)\n",
                ),
            ),
        },
    ),
)

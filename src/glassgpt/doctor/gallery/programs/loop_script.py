"""A pre-training script: two parameter groups, warm-up and cosine by hand, micro-batches, clipping, autocast."""

import contextlib
import math
import random
from types import SimpleNamespace

import torch
import torch.nn as nn
from torch.nn import functional as F


def make_text(sentences=2500):
    rng = random.Random(7)
    things = "river, stone, lamp, garden, winter, letter, engine, bridge, window, copper, market, forest, sailor"
    things = things.split(", ")
    acts = "carries, follows, breaks, repairs, remembers, forgets, paints, crosses, measures, borrows"
    acts = acts.split(", ")
    ways = "slowly, twice, again, by, night, without, a, word, in, the, rain, before, noon, for, nothing"
    ways = ways.split(", ")
    lines = []
    for _ in range(sentences):
        a, b, c = rng.sample(things, 3)
        lines.append(f"the {a} {rng.choice(acts)} the {b} {rng.choice(ways)} near {rng.randint(2, 99)} {c}s.")
    return "\n".join(lines)


text = make_text()
chars = sorted(set(text))
ids = torch.tensor([chars.index(c) for c in text])
split_at = int(0.9 * len(ids))
train_data, val_data = ids[:split_at], ids[split_at:]


class Attention(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (t.view(B, T, self.heads, C // self.heads).transpose(1, 2) for t in self.c_attn(x).chunk(3, dim=-1))
        drop = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=drop, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, dropout)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, vocab, context, layers, heads, width, dropout):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.h = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocab, bias=False)
        self.apply(self._init)

    def _init(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)

    def forward(self, idx, targets=None):
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1]))
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)


def make_optimizer(model, rate, weight_decay):
    params = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in params if p.dim() >= 2]
    others = [p for p in params if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))


def loop(seed=0, size=1, dtype="float32"):
    torch.manual_seed(seed)
    context, batch, accum, clip = 32, 4, 4, 1.0
    max_rate, min_rate, warmup, steps = 3e-3, 3e-4, 10, 500
    model = GPT(len(chars), context, layers=1 + size, heads=4, width=32 * size, dropout=0.1)
    optimizer = make_optimizer(model, max_rate, 0.1)
    half = dtype == "bfloat16"
    autocast = (lambda: torch.autocast("cpu", torch.bfloat16)) if half else contextlib.nullcontext
    state = {"step": 0}

    def get_batch(split):
        data = train_data if split == "train" else val_data
        starts = torch.randint(len(data) - context - 1, (batch,))
        x = torch.stack([data[i : i + context] for i in starts])
        y = torch.stack([data[i + 1 : i + 1 + context] for i in starts])
        return x, y

    def loss(x, y):
        with autocast():
            return model(x, y)[1]

    def rate_at(step):
        if step < warmup:
            return max_rate * (step + 1) / warmup
        done = min(1.0, (step - warmup) / (steps - warmup))
        return min_rate + 0.5 * (1 + math.cos(math.pi * done)) * (max_rate - min_rate)

    def train_step(micro=None):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(state["step"])
        total = 0.0
        for i in range(accum):
            x, y = micro[i] if micro else get_batch("train")
            part = loss(x, y) / accum
            total += part.item()
            part.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state["step"] += 1
        return total

    @torch.no_grad()
    def evaluate():
        model.eval()
        losses = [loss(*get_batch("val")).item() for _ in range(4)]
        model.train()
        return sum(losses) / len(losses)

    return SimpleNamespace(
        model=model, optimizer=optimizer, get_batch=get_batch, loss=loss, train_step=train_step, evaluate=evaluate,
        accum=accum, clip=clip,
    )  # fmt: skip

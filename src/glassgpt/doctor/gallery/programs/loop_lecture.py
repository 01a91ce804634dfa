"""A lecture's loop: a tiny model, AdamW with one rate, no accumulation, no schedule, an estimate over both splits."""

import random
from types import SimpleNamespace

import torch
import torch.nn as nn
from torch.nn import functional as F

block_size, batch_size, dropout, learning_rate, eval_iters = 24, 8, 0.2, 1e-3, 4


def make_text():
    rng = random.Random(3)
    people = "anna, boris, clara, david, elena, frank, greta, henry, irene, jonas"
    people = people.split(", ")
    verbs = "asked, told, promised, showed, sold, gave, wrote, sent, lent, brought"
    verbs = verbs.split(", ")
    goods = "a horse, two maps, the blue cup, some bread, an old violin, her answer, nine apples, a long rope"
    goods = goods.split(", ")
    return "".join(
        f"{rng.choice(people)} {rng.choice(verbs)} {rng.choice(people)} {rng.choice(goods)}, "
        f"{rng.choice(people)} paid {rng.randint(1, 999)}.\n"
        for _ in range(2000)
    )


text = make_text()
chars = sorted(set(text))
stoi = {c: i for i, c in enumerate(chars)}
data = torch.tensor([stoi[c] for c in text], dtype=torch.long)
n = int(0.9 * len(data))
train_data = data[:n]
val_data = data[n:]


class Head(nn.Module):
    def __init__(self, n_embd, head_size):
        super().__init__()
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)
        self.register_buffer("tril", torch.tril(torch.ones(block_size, block_size)))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        T = x.shape[1]
        k, q = self.key(x), self.query(x)
        wei = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
        wei = wei.masked_fill(self.tril[:T, :T] == 0, float("-inf"))
        return self.dropout(F.softmax(wei, dim=-1)) @ self.value(x)


class Block(nn.Module):
    def __init__(self, n_embd, n_head):
        super().__init__()
        self.heads = nn.ModuleList([Head(n_embd, n_embd // n_head) for _ in range(n_head)])
        self.proj = nn.Linear(n_embd, n_embd)
        self.ffwd = nn.Sequential(
            nn.Linear(n_embd, 4 * n_embd), nn.ReLU(), nn.Linear(4 * n_embd, n_embd), nn.Dropout(dropout)
        )
        self.ln1, self.ln2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)

    def forward(self, x):
        h = self.ln1(x)
        x = x + self.proj(torch.cat([head(h) for head in self.heads], dim=-1))
        return x + self.ffwd(self.ln2(x))


class LanguageModel(nn.Module):
    def __init__(self, n_embd, n_head, n_layer):
        super().__init__()
        self.token_embedding_table = nn.Embedding(len(chars), n_embd)
        self.position_embedding_table = nn.Embedding(block_size, n_embd)
        self.blocks = nn.Sequential(*[Block(n_embd, n_head) for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, len(chars))

    def forward(self, idx, targets=None):
        x = self.token_embedding_table(idx) + self.position_embedding_table(torch.arange(idx.shape[1]))
        logits = self.lm_head(self.ln_f(self.blocks(x)))
        if targets is None:
            return logits, None
        B, T, C = logits.shape
        logits = logits.view(B * T, C)
        return logits, F.cross_entropy(logits, targets.view(B * T))


def get_batch(split):
    source = train_data if split == "train" else val_data
    ix = torch.randint(len(source) - block_size, (batch_size,))
    x = torch.stack([source[i : i + block_size] for i in ix])
    y = torch.stack([source[i + 1 : i + block_size + 1] for i in ix])
    return x, y


def loop(seed=0, size=1, dtype="float32"):
    torch.manual_seed(seed)
    model = LanguageModel(n_embd=32 * size, n_head=4, n_layer=1 + size).to(getattr(torch, dtype))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)

    def train_step(micro=None):
        xb, yb = micro[0] if micro else get_batch("train")
        logits, loss = model(xb, yb)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    @torch.no_grad()
    def estimate_loss():
        out = {}
        model.eval()
        for split in ["train", "val"]:
            losses = torch.zeros(eval_iters)
            for k in range(eval_iters):
                X, Y = get_batch(split)
                _, loss = model(X, Y)
                losses[k] = loss.item()
            out[split] = losses.mean()
        model.train()
        return float(out["val"])

    return SimpleNamespace(
        model=model, optimizer=optimizer, get_batch=get_batch, train_step=train_step, evaluate=estimate_loss,
        loss=lambda x, y: model(x, y)[1],
    )  # fmt: skip

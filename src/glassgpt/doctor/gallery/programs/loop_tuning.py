"""Instruction tuning: prompts masked by -100, padding on the right, y is x where it trains; accumulation by tokens."""

import random

import torch
import torch.nn as nn
from torch.nn import functional as F

PAD, BOS, EOS, ASK, ANSWER = range(5)
IGNORE = -100
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 ?.+"


def encode(text):
    return [5 + LETTERS.index(c) for c in text]


def make_examples(count, seed):
    rng = random.Random(seed)
    nouns = "apple, river, cloud, table, horse, violin, planet, garden, copper, ladder, pencil, kettle"
    nouns = nouns.split(", ")
    examples = []
    for _ in range(count):
        kind = rng.randrange(3)
        if kind == 0:
            word = "".join(rng.sample("abcdefghijklmnopqrstuvwxyz", rng.randint(3, 9)))
            question, answer = f"spell {word}", " ".join(word)
        elif kind == 1:
            a, b = rng.randint(10, 999), rng.randint(10, 999)
            question, answer = f"{a}+{b}?", str(a + b)
        else:
            picked = rng.sample(nouns, rng.randint(2, 4))
            question, answer = "sort " + " ".join(picked), " ".join(sorted(picked)) + "."
        prompt = [BOS, ASK, *encode(question), ANSWER]
        examples.append((prompt, [*encode(answer), EOS]))
    return examples


class TinyLM(nn.Module):
    def __init__(self, vocab, dim, depth, length=80):
        super().__init__()
        self.embed = nn.Embedding(vocab, dim, padding_idx=PAD)
        self.pos = nn.Parameter(torch.randn(length, dim) * 0.02)
        layer = nn.TransformerEncoderLayer(dim, 4, 3 * dim, dropout=0.05, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(dim), enable_nested_tensor=False)
        self.unembed = nn.Linear(dim, vocab)

    def forward(self, ids):
        length = ids.shape[1]
        mask = torch.full((length, length), float("-inf"), dtype=self.pos.dtype).triu(1)
        hidden = self.body(self.embed(ids) + self.pos[:length], mask=mask, is_causal=True)
        return {"logits": self.unembed(hidden)}


class Tuning:
    clip = 1.0
    accum = 3

    def __init__(self, model, train, val, rate, batch=4):
        self.model, self.batch = model, batch
        self.examples = {"train": train, "val": val}
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, foreach=False)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / 4))

    def get_batch(self, split):
        rows = [self.examples[split][int(torch.randint(len(self.examples[split]), ()))] for _ in range(self.batch)]
        length = max(len(p) + len(a) for p, a in rows)
        x = torch.full((len(rows), length), PAD)
        y = torch.full((len(rows), length), IGNORE)
        for i, (prompt, answer) in enumerate(rows):
            end = len(prompt) + len(answer)
            x[i, :end] = torch.tensor(prompt + answer)
            y[i, len(prompt) : end] = torch.tensor(answer)
        return x, y

    def summed_loss(self, x, y):
        logits = self.model(x)["logits"][:, :-1].float()
        labels = y[:, 1:]
        total = F.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORE, reduction="sum"
        )
        return total, (labels != IGNORE).sum()

    def loss(self, x, y):
        total, count = self.summed_loss(x, y)
        return total / count

    def train_step(self, micro=None):
        self.model.train()
        if micro is None:
            micro = [self.get_batch("train") for _ in range(self.accum)]
        trained = sum((y[:, 1:] != IGNORE).sum() for _, y in micro)
        self.optimizer.zero_grad(set_to_none=False)
        report = 0.0
        for x, y in micro:
            total, _ = self.summed_loss(x, y)
            (total / trained).backward()
            report += float(total.detach() / trained)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.scheduler.step()
        return report

    def evaluate(self):
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad():
            sums = [self.summed_loss(*self.get_batch("val")) for _ in range(4)]
        self.model.train(was_training)
        return float(sum(s for s, _ in sums) / sum(n for _, n in sums))


def loop(seed=0, size=1, dtype="float32"):
    torch.manual_seed(seed)
    model = TinyLM(5 + len(LETTERS), dim=32 * size, depth=size).to(getattr(torch, dtype))
    return Tuning(model, make_examples(600, seed=1), make_examples(80, seed=2), rate=1e-3)

"""A Trainer class: a Dataset of windows, a scheduler, decay groups by name, a gradient scaler."""

import random

import torch
import torch.nn as nn
from torch.nn import functional as F


def make_text():
    rng = random.Random(11)
    towns = "oslo, lima, cairo, paris, delhi, tokyo, quito, minsk, accra, dakar"
    towns = towns.split(", ")
    goods = "salt, wool, paper, glass, tea, rice, iron, cloth, honey, timber"
    goods = goods.split(", ")
    return " ".join(
        f"on day {rng.randint(1, 365)} {rng.choice(towns)} shipped {rng.randint(3, 980)} tons of {rng.choice(goods)}"
        f" to {rng.choice(towns)} for {rng.randint(10, 99)} crowns;"
        for _ in range(1500)
    )


class Windows(torch.utils.data.Dataset):
    def __init__(self, tokens, length):
        self.tokens, self.length = tokens, length

    def __len__(self):
        return (len(self.tokens) - 1) // self.length

    def __getitem__(self, i):
        piece = self.tokens[i * self.length : (i + 1) * self.length + 1]
        return piece[:-1], piece[1:]


class RMSNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight)


class Layer(nn.Module):
    def __init__(self, dim, heads, p):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = RMSNorm(dim), RMSNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.up, self.gate, self.down = nn.Linear(dim, 2 * dim), nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.drop = nn.Dropout(p)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, c)
        x = x + self.drop(self.out(mixed))
        h = self.norm2(x)
        return x + self.drop(self.down(F.silu(self.gate(h)) * self.up(h)))


class Decoder(nn.Module):
    def __init__(self, vocab, length, dim, layers, heads=2, p=0.1):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, dim), nn.Embedding(length, dim)
        self.layers = nn.ModuleList([Layer(dim, heads, p) for _ in range(layers)])
        self.norm = RMSNorm(dim)
        self.head = nn.Linear(dim, vocab, bias=False)
        for weights in (self.tokens.weight, self.positions.weight, self.head.weight):
            nn.init.normal_(weights, std=0.02)

    def forward(self, ids):
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class Trainer:
    def __init__(self, model, train_set, val_set, rate=2e-3, decay=0.05, accum=2, clip=0.5, batch_size=6):
        self.model, self.train_set, self.val_set = model, train_set, val_set
        self.accum, self.clip, self.batch_size = accum, clip, batch_size
        decayed, rest = [], []
        for name, p in model.named_parameters():
            (rest if name.endswith("bias") or "norm" in name else decayed).append(p)
        groups = [{"params": decayed, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=rate)
        warm = torch.optim.lr_scheduler.LinearLR(self.optimizer, start_factor=0.1, total_iters=5)
        cool = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=300)
        self.scheduler = torch.optim.lr_scheduler.SequentialLR(self.optimizer, [warm, cool], milestones=[5])
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def get_batch(self, split):
        dataset = self.train_set if split == "train" else self.val_set
        picks = torch.randint(len(dataset), (self.batch_size,)).tolist()
        xs, ys = zip(*[dataset[i] for i in picks], strict=True)
        return torch.stack(xs), torch.stack(ys)

    def loss(self, x, y):
        logits = self.model(x)
        return F.cross_entropy(logits.transpose(1, 2).float(), y)

    def train_step(self, micro=None):
        self.model.train()
        self.optimizer.zero_grad()
        batches = micro or [self.get_batch("train") for _ in range(self.accum)]
        running = 0.0
        for x, y in batches:
            loss = self.loss(x, y)
            self.scaler.scale(loss / len(batches)).backward()
            running += loss.detach().item()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        return running / len(batches)

    @torch.inference_mode()
    def evaluate(self):
        self.model.eval()
        total = 0.0
        for _ in range(3):
            x, y = self.get_batch("val")
            total += float(self.loss(x, y))
        return total / 3


def loop(seed=0, size=1, dtype="float32"):
    torch.manual_seed(seed)
    text = make_text()
    alphabet = sorted(set(text))
    tokens = torch.tensor([alphabet.index(c) for c in text])
    border = len(tokens) * 9 // 10
    length = 40
    model = Decoder(len(alphabet), length, dim=24 * size, layers=1 + size).to(getattr(torch, dtype))
    return Trainer(model, Windows(tokens[:border], length), Windows(tokens[border:], length))

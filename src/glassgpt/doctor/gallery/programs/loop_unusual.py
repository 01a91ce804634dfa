"""Correct training loops in unusual forms. Each function is a factory, with the same arguments as `loop` elsewhere."""

import math
import random
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn as nn
from torch.nn import functional as F

LENGTH, BATCH = 32, 4
random_words = random.Random(5)
WORDS = ["".join(random_words.choices("abcdefghijklmnoprstuvw", k=random_words.randint(2, 8))) for _ in range(300)]
TEXT = " ".join(random_words.choices(WORDS, k=4000))
SIGNS = sorted(set(TEXT))
TOKENS = torch.tensor([SIGNS.index(sign) for sign in TEXT])
PARTS = {"train": TOKENS[: len(TOKENS) * 4 // 5], "val": TOKENS[len(TOKENS) * 4 // 5 :]}


class Net(nn.Module):
    """A causal mixer of a few earlier tokens: small, and not a transformer."""

    def __init__(self, width=32, depth=2, dropout=0.0):
        super().__init__()
        self.embed = nn.Embedding(len(SIGNS), width)
        self.mix = nn.ModuleList(nn.Conv1d(width, width, 5) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, len(SIGNS))

    def forward(self, ids):
        x = self.embed(ids)
        for mix, norm in zip(self.mix, self.norms, strict=True):
            past = F.pad(norm(x).transpose(1, 2), (4, 0))
            x = x + self.dropout(F.gelu(mix(past)).transpose(1, 2))
        return self.head(x)


def make_net(seed, size, dtype, **options):
    torch.manual_seed(seed)
    return Net(width=32 * size, **options).to(getattr(torch, dtype))


def get_batch(split):
    part = PARTS[split]
    starts = torch.randint(len(part) - LENGTH, (BATCH, 1))
    windows = part[starts + torch.arange(LENGTH + 1)]
    return windows[:, :-1], windows[:, 1:]


def cross_entropy(model, x, y):
    return F.cross_entropy(model(x).float().flatten(0, 1), y.flatten())


def evaluate(model):
    model.eval()
    with torch.no_grad():
        value = cross_entropy(model, *get_batch("val")).item()
    model.train()
    return value


def two_optimizers(seed=0, size=1, dtype="float32"):
    """SGD with momentum for the matrices, Adam for the rest, each clipped by itself; a list of schedulers."""
    model = make_net(seed, size, dtype)
    matrices = [p for n, p in model.named_parameters() if p.dim() >= 2 and not n.startswith(("embed", "head"))]
    rest = [p for n, p in model.named_parameters() if p.dim() < 2 or n.startswith(("embed", "head"))]
    optimizers = [torch.optim.SGD(matrices, lr=0.05, momentum=0.9, nesterov=True), torch.optim.Adam(rest, lr=2e-3)]
    schedulers = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: min(1.0, step / 5)) for o in optimizers]

    def train_step(micro=None):
        x, y = (micro or [get_batch("train")])[0]
        loss = cross_entropy(model, x, y)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for part in (matrices, rest):
            nn.utils.clip_grad_norm_(part, 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        return loss.item()

    return {
        "model": model, "optimizer": optimizers, "scheduler": schedulers, "get_batch": get_batch, "clip": 1.0,
        "loss": lambda x, y: cross_entropy(model, x, y), "train_step": train_step, "evaluate": lambda: evaluate(model),
    }  # fmt: skip


def one_backward(seed=0, size=1, dtype="float32"):
    """The losses of the micro-batches are summed before one backward; gradients are clipped by hand, by value."""
    model = make_net(seed, size, dtype, dropout=0.1)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)

    def train_step(micro=None):
        micro = micro if micro is not None else [get_batch("train") for _ in range(2)]
        for p in model.parameters():
            p.grad = None
        loss = torch.stack([cross_entropy(model, x, y) for x, y in micro]).mean()
        loss.backward()
        for p in model.parameters():
            p.grad.clamp_(-0.01, 0.01)
        optimizer.step()
        return loss.detach()

    return SimpleNamespace(
        model=model, optimizer=optimizer, get_batch=get_batch, train_step=train_step, accum=2, clip=0.01,
        loss=lambda x, y: cross_entropy(model, x, y), evaluate=lambda: evaluate(model),
    )  # fmt: skip


def with_closure(seed=0, size=1, dtype="float32"):
    """An optimiser that computes the loss itself, and a scheduler that waits for the validation loss."""
    model = make_net(seed, size, dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=5)

    def train_step(micro=None):
        x, y = micro[0] if micro else get_batch("train")

        def closure():
            optimizer.zero_grad()
            loss = cross_entropy(model, x, y)
            loss.backward()
            return loss

        return float(optimizer.step(closure))

    def evaluate_and_schedule():
        value = evaluate(model)
        scheduler.step(value)
        return value

    return SimpleNamespace(
        model=model, optimizer=optimizer, scheduler=scheduler, get_batch=get_batch, train_step=train_step,
        loss=lambda x, y: cross_entropy(model, x, y), evaluate=evaluate_and_schedule,
    )  # fmt: skip


class Sign(torch.optim.Optimizer):
    """Steps of one size along the sign of a running mean of the gradients, with decay of matrices."""

    def __init__(self, params, lr=3e-4, beta=0.9, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - group["beta"])
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(mean.sign(), alpha=-group["lr"])


@dataclass
class SignLoop:
    """train_step draws its own batches and takes none; a step with a huge gradient is skipped."""

    model: Any
    optimizer: Any

    def get_batch(self, split):
        return get_batch(split)

    def loss(self, x, y):
        return cross_entropy(self.model, x, y)

    def train_step(self):
        loss = self.loss(*self.get_batch("train"))
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.float().square().sum()) for p in self.model.parameters()))
        if norm < 1e3:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        return float(loss)

    def evaluate(self):
        return evaluate(self.model)


def own_optimizer(seed=0, size=1, dtype="float32"):
    """An optimiser written by hand, in a dataclass."""
    model = make_net(seed, size, dtype, dropout=0.1)
    return SignLoop(model, Sign(model.parameters(), lr=1e-3))


class Adapter(nn.Module):
    def __init__(self, linear, rank=4):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, linear.in_features, dtype=linear.weight.dtype) * 0.05)
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=linear.weight.dtype))

    def forward(self, x):
        return self.linear(x) + 2.0 * (x @ self.down.T @ self.up.T)


def adapters(seed=0, size=1, dtype="float32"):
    """Low-rank adapters on a frozen model; the optimiser holds only them; rows train their second half."""
    model = make_net(seed, size, dtype).requires_grad_(False)
    model.head = Adapter(model.head)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=400)

    def masked_batch(split):
        x, _ = get_batch(split)
        y = x.clone()
        y[:, : LENGTH // 2] = -100
        return x, y

    def loss(x, y):
        return F.cross_entropy(model(x)[:, :-1].float().transpose(1, 2), y[:, 1:])

    def train_step(micro=None):
        micro = micro if micro else [masked_batch("train"), masked_batch("train")]
        optimizer.zero_grad()
        values = []
        for x, y in micro:
            value = loss(x, y) / len(micro)
            value.backward()
            values.append(value.item())
        optimizer.step()
        scheduler.step()
        return sum(values)

    def evaluate_masked():
        with torch.inference_mode():
            return float(loss(*masked_batch("val")))

    return SimpleNamespace(
        model=model, optimizer=optimizer, scheduler=scheduler, get_batch=masked_batch, loss=loss, accum=2,
        train_step=train_step, evaluate=evaluate_masked,
    )  # fmt: skip


_global_model = make_net(0, 1, "float32", dropout=0.05)
_global_optimizer = torch.optim.Adam(_global_model.parameters(), lr=1e-3, foreach=True)
_random = torch.Generator().manual_seed(4)


def script_of_globals(seed=0, size=1, dtype="float32"):
    """A script: the factory returns the same global objects each time; batches come from a generator of its own."""

    def own_batch(split):
        part = PARTS[split]
        starts = torch.randint(len(part) - LENGTH, (BATCH, 1), generator=_random)
        windows = part[starts + torch.arange(LENGTH + 1)]
        return windows[:, :-1], windows[:, 1:]

    def train_step(micro=None):
        _global_model.train()
        x, y = micro[0] if micro else own_batch("train")
        loss = cross_entropy(_global_model, x, y)
        _global_optimizer.zero_grad()
        grads = torch.autograd.grad(loss, list(_global_model.parameters()))
        for p, g in zip(_global_model.parameters(), grads, strict=True):
            p.grad = g
        _global_optimizer.step()
        return loss.item()

    return SimpleNamespace(
        model=_global_model, optimizer=_global_optimizer, get_batch=own_batch, train_step=train_step,
        loss=lambda x, y: cross_entropy(_global_model, x, y),
    )  # fmt: skip


class Kahan(torch.optim.Optimizer):
    """Adam whose updates of 16-bit weights keep what rounding takes away, and add it later."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"n": 0, "m": torch.zeros_like(p), "v": torch.zeros_like(p), "rest": torch.zeros_like(p)}
                state["n"] += 1
                state["m"].lerp_(p.grad, 0.1)
                state["v"].mul_(0.99).addcmul_(p.grad, p.grad, value=0.01)
                m, v = state["m"] / (1 - 0.9 ** state["n"]), state["v"] / (1 - 0.99 ** state["n"])
                wanted = state["rest"] - group["lr"] * m / (v.sqrt() + 1e-8)
                new = p + wanted
                state["rest"].copy_(wanted - (new - p))
                p.copy_(new)


def compensated(seed=0, size=1, dtype="float32"):
    """bfloat16 weights with an optimiser made for them; the rate follows 1/sqrt, set by the loop."""
    model = make_net(seed, size, "bfloat16")
    optimizer = Kahan(model.parameters())
    count = [0]

    def train_step(micro=None):
        count[0] += 1
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 / math.sqrt(max(count[0], 10) / 10)
        x, y = micro[0] if micro else get_batch("train")
        optimizer.zero_grad()
        loss = cross_entropy(model, x, y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return SimpleNamespace(
        model=model, optimizer=optimizer, get_batch=get_batch, train_step=train_step,
        loss=lambda x, y: cross_entropy(model, x, y), evaluate=lambda: evaluate(model),
    )  # fmt: skip

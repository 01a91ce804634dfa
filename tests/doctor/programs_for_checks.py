"""A small program of our own for the tests of checks, correct unless a switch makes it wrong or unusual."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Small(nn.Module):
    """One or two blocks of causal attention; `does` holds the names of what is different."""

    def __init__(self, *does: str, vocab: int = 29, context: int = 16, width: int = 24, layers: int = 1):
        super().__init__()
        self.does, self.context, self.vocab_size, self.block_size = does, context, vocab, context
        self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.drop, self.batch_norm = nn.Dropout(0.1), nn.BatchNorm1d(width)
        self.head = nn.Linear(width, vocab)
        self.register_buffer("mask", torch.ones(context, context).tril().bool())
        self.plain_mask = torch.ones(context, context).tril().bool()
        self.memory: Tensor | None = None
        if "zero" in does:
            for part in self.out:
                nn.init.zeros_(part.weight)
            nn.init.zeros_(self.head.weight)
        if "experts" in does:
            self.router, self.experts = nn.Linear(width, 3), nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def attend(self, x: Tensor, layer: int) -> Tensor:
        T = x.size(1)
        q, k, v = self.qkv[layer](x).chunk(3, -1)
        scores = q @ k.transpose(1, 2) / q.size(-1) ** 0.5
        mask = (self.plain_mask if "plain mask" in self.does else self.mask)[:T, :T]
        if "next token" in self.does:
            mask = torch.ones(T, T, device=x.device).tril(1).bool()
        if "window" in self.does:
            mask = mask & ~torch.ones(T, T, device=x.device).tril(-3).bool()
        if "leak in training" in self.does and self.training:
            mask = torch.ones_like(mask)
        if "first blind" in self.does:
            mask = torch.ones(T, T, device=x.device).tril(-1).bool()
        if "scaled by length" in self.does:
            scores = scores * T
        scores = scores.masked_fill(~mask, -torch.inf)
        if "naive softmax" in self.does:
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        else:
            weights = scores.softmax(-2 if "queries" in self.does else -1)
        return self.out[layer](weights.nan_to_num() @ v if "queries" in self.does else weights @ v)

    def forward(self, ids: Tensor, targets: Tensor | None = None):
        does, T = self.does, ids.size(1)
        if "ids changed" in does:
            ids[ids == 3] = 4
        if "cut" in does:
            ids = ids[:, : self.context]
            T = ids.size(1)
        where = torch.arange(T, device=None if "arange" in does else ids.device)
        where = where.clamp(max=self.context - 1) if "clamped" in does else where
        where = where % 10 if "wrapped" in does else where
        where = where.flip(0) if "from the end" in does else where
        where = (where + (ids == ids[:, -1:])) % self.context if "like the last" in does else where
        x = self.tokens(ids) + self.positions(where)
        x = F.dropout(x, 0.1) if "dropout always" in does else self.drop(x)
        if "no dropout in training" in does:
            self.drop.eval()
        if "noise in training" in does and self.training:
            x = x + 0.1 * torch.randn_like(x)
        for layer, norm in enumerate(self.norms):
            x = x + self.attend(norm(x), layer)
        if "experts" in does:
            chosen = self.router(x).argmax(-1)
            for number, expert in enumerate(self.experts):
                mine = (chosen == number).nonzero(as_tuple=True)
                x = x.index_put(mine, expert(x[mine]), accumulate=True)
        if "rows" in does:
            x = x - 0.5 * x.mean(0, keepdim=True)
        if "batch norm" in does:
            x = self.batch_norm(x.transpose(1, 2)).transpose(1, 2)
        if "memory" in does:
            x, self.memory = x + (0 if self.memory is None else self.memory), x.mean((0, 1)).detach()
        if "huge" in does:
            x = F.layer_norm(x * 1e6, x.shape[-1:])
        logits = self.head(x)
        if "seeded" in does:
            torch.manual_seed(0)
        if "targets seen" in does and targets is not None:
            logits = logits + 0.1 * F.one_hot(targets, logits.size(-1))
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return (logits, loss)


def small(*does: str, **sizes: int) -> Small:
    """Build one with fixed weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Small(*does, **sizes)

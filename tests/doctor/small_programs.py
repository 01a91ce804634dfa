"""A small model whose attention, positions, norm and residual connections can be exchanged."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glassgpt.doctor.report import Check, Outcome, run_checks
from glassgpt.doctor.subject import Subject

V, C, H, D, CONTEXT = 61, 32, 4, 8, 32
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v [B, H, T, D] -> [B, H, T, D]


def masked(scores: Tensor, value: float = float("-inf")) -> Tensor:
    T = scores.size(-1)
    return scores.masked_fill(torch.ones(T, T).triu(1).bool(), value)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.softmax(masked(q @ k.transpose(-2, -1) * D**-0.5), dim=-1) @ v


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Attention(nn.Module):
    def __init__(self, attend: Attend, kv_heads: int):
        super().__init__()
        self.attend, self.kv = attend, kv_heads
        self.q, self.out = nn.Linear(C, C, bias=False), nn.Linear(C, C)
        self.k, self.v = (nn.Linear(C, kv_heads * D, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        q, k, v = (f(x).view(B, T, -1, D).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.out(self.attend(q, k, v).transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    def __init__(self, attend: Attend, kv_heads: int, norm: Callable[[], nn.Module], join: str):
        super().__init__()
        self.attention, self.join = Attention(attend, kv_heads), join
        self.norm_1, self.norm_2 = norm(), norm()
        self.mlp = nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C))

    def forward(self, x: Tensor) -> Tensor:
        if self.join == "post":
            x = self.norm_1(x + self.attention(x))
            return self.norm_2(x + self.mlp(x))
        if self.join == "no attention shortcut":
            x = self.attention(self.norm_1(x))
        elif self.join == "doubled":
            x = x + (x + self.attention(self.norm_1(x)))
        elif self.join == "scaled":
            x = (x + self.attention(self.norm_1(x))) * 0.7
        else:
            x = x + self.attention(self.norm_1(x))
        branch = self.mlp(self.norm_2(x))
        return branch if self.join == "no MLP shortcut" else x + branch


class Model(nn.Module):
    def __init__(
        self,
        attend: Attend = plain,
        kv_heads: int = H,
        norm: Callable[[], nn.Module] = lambda: nn.LayerNorm(C),
        join: str = "pre",
        positions: str = "learned",
        layers: int = 2,
    ):
        super().__init__()
        self.vocab_size, self.block_size, self.positions = V, CONTEXT, positions
        self.tokens = nn.Embedding(V, C)
        self.pos_table = None if positions == "none" else nn.Embedding(CONTEXT, C)
        self.blocks = nn.ModuleList(Block(attend, kv_heads, norm, join) for _ in range(layers))
        self.norm, self.head = norm(), nn.Linear(C, V, bias=False)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0.0, 0.02, generator=generator)

    def forward(self, idx: Tensor) -> Tensor:
        B, T = idx.shape
        x = self.tokens(idx)
        if self.pos_table is not None:
            table = self.pos_table.weight
            places = {
                "learned": lambda: table[:T],
                "rows": lambda: table[:B, None],
                "first": lambda: table[torch.zeros(T, dtype=torch.long)],
                "repeated": lambda: table[torch.arange(T) % 4],
                "clamped": lambda: table[torch.arange(T).clamp(max=CONTEXT // 2)],
                "reversed": lambda: table[:T].flip(0),
                "unused": lambda: torch.zeros(()),
            }
            x = x + places[self.positions]()
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def examine(checks: Sequence[Check[Subject]], module: nn.Module) -> list[Outcome]:
    """All outcomes; a check that ended with an error fails the test."""
    outcomes = list(run_checks(checks, Subject(module)))
    assert not [o.result.message for o in outcomes if "the check ended with" in o.result.message]
    return outcomes


def alarms(checks: Sequence[Check[Subject]], module: nn.Module) -> set[str | None]:
    """The findings of all WARN and FAIL."""
    return {o.result.finding for o in examine(checks, module) if o.result.status in ("WARN", "FAIL")}

"""Dead, unregistered, shared and untied parameters: bugs are named, unusual programs are left in peace."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glassgpt.doctor.models.learning.gradients import GRADIENTS_CHECKS
from glassgpt.doctor.models.learning.parameters import PARAMETERS_CHECKS
from glassgpt.doctor.models.learning.registration import REGISTRATION_CHECKS
from glassgpt.doctor.models.learning.sharing import SHARING_CHECKS
from glassgpt.doctor.report import run_checks
from glassgpt.doctor.subject import Subject

CHECKS = (*GRADIENTS_CHECKS, *PARAMETERS_CHECKS, *REGISTRATION_CHECKS, *SHARING_CHECKS)
V, C, T = 67, 16, 12


class Attention(nn.Module):
    def __init__(self, kept: int = 4):
        super().__init__()
        self.kept = kept
        self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = torch.cat([y[:, : self.kept], y[:, : 4 - self.kept]], 1)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, attention: nn.Module | None = None, mlp: nn.Module | None = None):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.attention = attention or Attention()
        self.mlp = mlp or nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.n1(x))
        return x + self.mlp(self.n2(x))


class LM(nn.Module):
    """A correct model, whose parts the programs below replace."""

    def __init__(self, block: Callable[[], nn.Module] = Block):
        super().__init__()
        self.block_size = T
        self.tokens, self.positions = nn.Embedding(V, C), nn.Embedding(T, C)
        self.blocks = nn.ModuleList([block() for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(C), nn.Linear(C, V, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def embed(self, ids: Tensor) -> Tensor:
        return self.tokens(ids) + self.positions(torch.arange(ids.size(1)))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def findings(make: Callable[[], nn.Module]) -> set[tuple[str, str]]:
    torch.manual_seed(0)
    outcomes = list(run_checks(CHECKS, Subject(make())))
    broken = [o.result.message for o in outcomes if "the check ended" in o.result.message]
    assert not broken, broken
    return {(o.result.status, o.result.finding) for o in outcomes if o.result.finding}


def with_forward(change: Callable[[LM, Tensor], Tensor]) -> nn.Module:
    class Changed(LM):
        def forward(self, ids: Tensor) -> Tensor:
            return change(self, ids)

    return Changed()


def with_head(weight: Callable[[LM], nn.Parameter]) -> nn.Module:
    model = LM()
    model.head.weight = weight(model)
    return model


def zeros(*names: str) -> nn.Module:
    model = LM()
    for name, parameter in model.named_parameters():
        if any(part in name for part in names):
            nn.init.zeros_(parameter)
    return model


class ReZero(Block):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gate * self.mlp(self.n2(x + self.gate * self.attention(self.n1(x))))


class RandomDepth(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and torch.rand(()) < 0.5 else super().forward(x)


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(C, 4), nn.ModuleList([nn.Linear(C, C) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.router(x).softmax(-1).topk(2, -1)
        gate = torch.zeros(*x.shape[:-1], 4).scatter(-1, chosen, weight)
        return sum(gate[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


class Unweighted(Mixture):
    """A router that only chooses, with an auxiliary loss of its own."""

    def forward(self, x: Tensor) -> Tensor:
        p = self.router(x).softmax(-1)
        self.balance = p.mean((0, 1)).square().sum()
        chosen = F.one_hot(p.argmax(-1), 4)
        return sum(chosen[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


class LowRank(nn.Module):
    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(2, C)), nn.Parameter(torch.zeros(linear.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + x @ self.a.t() @ self.b.t()


class Waves(LM):
    """Sinusoidal positions in a plain attribute, and a closure that modules call (as minGPT's `mlpf`)."""

    def __init__(self) -> None:
        super().__init__()
        del self.positions
        angles = torch.arange(T)[:, None] / 10 ** (torch.arange(C // 2) / 4)
        self.table = torch.cat([angles.sin(), angles.cos()], -1)
        norm = self.norm
        self.last = lambda x: norm(x)

    def embed(self, ids: Tensor) -> Tensor:
        return self.tokens(ids) + self.table[: ids.size(1)]

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x))


def lora() -> nn.Module:
    model = LM().requires_grad_(False)
    for block in model.blocks:
        block.attention.qkv = LowRank(block.attention.qkv)
    return model


def recurrent(model: LM, ids: Tensor) -> Tensor:
    x = model.embed(ids)
    for _ in range(3):
        for block in model.blocks:
            x = block(x)
    return model.head(model.norm(x))


def gru() -> nn.Module:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.cells, self.head = nn.Embedding(V, C), nn.GRU(C, C, 2), nn.Linear(C, V)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.cells(self.tokens(ids.t()))[0]).transpose(0, 1)

    return Recurrent()


def long_table() -> nn.Module:
    model = LM()
    model.positions, model.block_size = nn.Embedding(2000, C), 2000
    return model


def one_activation() -> nn.Module:
    gelu = nn.GELU()
    return LM(lambda: Block(mlp=nn.Sequential(nn.Linear(C, 8), gelu, nn.Linear(8, C))))


def one_mlp() -> nn.Module:
    mlp = nn.Sequential(nn.Linear(C, 32), nn.GELU(), nn.Linear(32, C))
    return LM(lambda: Block(mlp=mlp))


class NoPositions(LM):
    """Positions that are made and not added."""

    def embed(self, ids: Tensor) -> Tensor:
        return self.tokens(ids)


def tied() -> nn.Module:
    return with_head(lambda model: model.tokens.weight)


CORRECT = {
    "plain": LM, "tied": tied, "zero head and projections": lambda: zeros("head", "out", "mlp.2"),
    "gates that start at zero": lambda: LM(ReZero), "stochastic depth": lambda: LM(RandomDepth),
    "mixture of experts": lambda: LM(lambda: Block(mlp=Mixture())), "LoRA": lora, "sinusoids and a closure": Waves,
    "blocks called three times": lambda: with_forward(recurrent), "GRU, time first": gru,
    "a long table of positions": long_table, "bfloat16": lambda: LM().to(torch.bfloat16),
    "one activation for all": one_activation,
}  # fmt: skip


@pytest.mark.parametrize("name", CORRECT)
def test_unusual_but_correct_programs_raise_nothing(name: str) -> None:
    assert findings(CORRECT[name]) == set()


class Listed(LM):
    """Blocks in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        blocks = list(self.blocks)
        del self.blocks
        self.blocks = blocks


class PlainTensor(LM):
    """A head that is a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        del self.head
        self.weight = torch.randn(C, V) * 0.02

    def forward(self, ids: Tensor) -> Tensor:
        return self.norm(self.blocks[1](self.blocks[0](self.embed(ids)))) @ self.weight


class PlainPositions(Waves):
    """Drawn positions in a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.randn(T, C) * 0.02


class Moved(LM):
    """A parameter that `.to()` turned into a result of a computation."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(C)) * 0.5

    def embed(self, ids: Tensor) -> Tensor:
        return super().embed(ids) * self.gain


class Cut(Block):
    """A residual stream that gradients cannot pass, beside branches that they can."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach() + self.attention(self.n1(x))
        return x + self.mlp(self.n2(x))


def repeated() -> nn.Module:
    model = LM()
    model.blocks = nn.ModuleList([Block()] * 3)
    return model


def shallow() -> nn.Module:
    model, block = LM(), Block()
    model.blocks = nn.ModuleList([copy.copy(block) for _ in range(3)])
    return model


def no_grad(model: LM, ids: Tensor) -> Tensor:
    with torch.no_grad():
        x = model.blocks[0](model.embed(ids))
    return model.head(model.norm(model.blocks[1](x)))


def config_says_tied() -> nn.Module:
    model = LM()
    model.config = {"tie_word_embeddings": True}
    return model


WRONG = {
    "a layer is never called": ("dead parameters", lambda: with_forward(lambda m, i: m.head(m.blocks[0](m.embed(i))))),
    "part of forward without gradient": ("dead parameters", lambda: with_forward(no_grad)),
    "numbers leave torch": ("dead parameters", lambda: with_forward(lambda m, i: m.head(m.embed(i)).detach() * 1)),
    "a router is not used as a weight": ("dead parameters", lambda: LM(lambda: Block(mlp=Unweighted()))),
    "positions are not added": ("dead parameters", NoPositions),
    "a head is left out": ("dead parameters", lambda: LM(lambda: Block(Attention(kept=3)))),
    "the residual stream is cut": ("dead parameters", lambda: LM(Cut)),
    "two factors are zero": ("init", lambda: zeros("mlp.0", "mlp.2")),
    "blocks in a list": ("unregistered parameters", Listed),
    "a head that is a plain tensor": ("unregistered parameters", PlainTensor),
    "positions that are a plain tensor": ("unregistered parameters", PlainPositions),
    "a parameter times a number": ("unregistered parameters", Moved),
    "a matrix drawn in forward": (
        "unregistered parameters", lambda: with_forward(lambda m, i: m.norm(m.embed(i)) @ torch.randn(C, V))),
    "one block three times": ("shared layers", repeated),
    "copies that are not deep": ("shared layers", shallow),
    "one MLP in all blocks": ("shared layers", one_mlp),
    "cloned, not tied": ("tying", lambda: with_head(lambda m: nn.Parameter(m.tokens.weight.detach().clone()))),
    "a head that reads the embedding detached": (
        "tying", lambda: with_forward(lambda m, i: m.norm(m.embed(i)) @ m.tokens.weight.detach().T)),
    "two parameters on one memory": ("tying", lambda: with_head(lambda m: nn.Parameter(m.tokens.weight.data))),
    "the configuration says tied": ("tying", config_says_tied),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_bugs_are_named(name: str) -> None:
    finding, make = WRONG[name]
    assert ("FAIL", finding) in findings(make)


def test_a_subject_is_left_as_it_was() -> None:
    model = LM()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    list(run_checks(CHECKS, Subject(model)))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())

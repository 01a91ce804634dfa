"""Optimisers against slow arithmetic: Muon by singular values in float64, the decay split, and saved state."""

import copy
import math
from collections.abc import Iterator

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from conftest import thread_count
from glassgpt.config import ModelConfig, OptimConfig, presets
from glassgpt.errors import ConfigError
from glassgpt.model import GPT
from glassgpt.training.optim import Muon, Optimizers, lr_multiplier, orthogonalise

CLASSIC = ModelConfig(vocab_size=13, block_size=8, n_layer=2, n_head=2, n_embd=16)
GROUPED = ModelConfig(13, 8, 2, 4, n_kv_head=2, head_dim=6, n_embd=16, intermediate_size=40, **presets.MODERN)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with thread_count(1):
        yield


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def newton_schulz_by_svd(matrix: np.ndarray, iterations: int = 4) -> np.ndarray:
    """An odd matrix polynomial acts on the singular values alone: so many quintics, one number at a time."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    s = s / (np.sqrt((s**2).sum()) + 1e-7)
    for _ in range(iterations):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ np.diag(s) @ vt


class NaiveMuon:
    """One matrix, the textbook way: momentum, Nesterov, orthogonalise, decay, step."""

    def __init__(self, weight: Tensor, parts: tuple[int, ...]):
        self.weight = weight.detach().double().numpy().copy()
        self.momentum = np.zeros_like(self.weight)
        self.edges = np.cumsum([0, *parts])

    def step(self, gradient: Tensor, lr: float, momentum: float, weight_decay: float) -> np.ndarray:
        g = gradient.double().numpy()
        self.momentum = momentum * self.momentum + (1 - momentum) * g
        ahead = momentum * self.momentum + (1 - momentum) * g
        for start, stop in zip(self.edges, self.edges[1:], strict=False):
            rows, columns = stop - start, g.shape[1]
            size = lr * max(1.0, rows / columns) ** 0.5
            self.weight[start:stop] -= lr * weight_decay * self.weight[start:stop]
            self.weight[start:stop] -= size * newton_schulz_by_svd(ahead[start:stop])
        return self.weight


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
@pytest.mark.parametrize("momentum", [0.0, 0.95])
def test_muon_equals_one_matrix_at_a_time(dtype: torch.dtype, tolerance: float, momentum: float) -> None:
    shapes = {  # shape and parts: square, wide, tall, twice the same, fused with equal and with grouped parts
        "square": ((16, 16), (16,)),
        "wide": ((8, 24), (8,)),
        "tall": ((40, 12), (40,)),
        "same": ((8, 24), (8,)),
        "fused": ((48, 16), (16, 16, 16)),
        "grouped": ((40, 16), (24, 8, 8)),
        "row": ((1, 9), (1,)),
    }
    weights = {
        name: torch.nn.Parameter(random(*shape, seed=i).to(dtype))
        for i, (name, (shape, _)) in enumerate(shapes.items())
    }
    naive = {name: NaiveMuon(weights[name], parts) for name, (_, parts) in shapes.items()}
    muon = Muon([(weights[name], parts) for name, (_, parts) in shapes.items()], 0.02, momentum, 0.1)
    for step in range(4):
        lr = muon.param_groups[0]["lr"] = 0.02 * (step + 1)
        for i, (name, weight) in enumerate(weights.items()):
            weight.grad = random(*shapes[name][0], seed=100 * step + i).to(dtype) * 10.0 ** (i - 3)
        muon.step()
        for name, weight in weights.items():
            expected = naive[name].step(weight.grad, lr, momentum, 0.1)  # type: ignore[arg-type]
            assert np.abs(weight.detach().double().numpy() - expected).max() < tolerance, (name, step)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_muon_is_close_to_torch(dtype: torch.dtype | None) -> None:
    """torch.optim.Muon iterates in bfloat16, so the updates agree in direction and size, not in digits."""
    for shape in ((32, 32), (16, 48), (48, 16)):
        start = random(*shape, seed=1).float()
        ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
        muon = Muon([(ours, (shape[0],))], 0.05, 0.9, 0.3, dtype)
        torch_muon = torch.optim.Muon([theirs], lr=0.05, momentum=0.9, weight_decay=0.3, ns_steps=4)
        for step in range(5):
            ours.grad = theirs.grad = random(*shape, seed=10 + step).float()
            muon.step()
            torch_muon.step()
        assert ours.dtype == muon.state[ours]["momentum"].dtype == torch.float32
        one, other = (ours - start).flatten(), (theirs - start).flatten()
        assert torch.cosine_similarity(one, other, dim=0) > 0.999
        assert float((one.norm() / other.norm()).detach()) == pytest.approx(1, abs=0.01)


def test_muon_passes_over_what_has_no_gradient() -> None:
    with_gradient, without = (torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    muon = Muon([(with_gradient, (4,)), (without, (4,))], 0.1, 0.9, 0.1)
    with_gradient.grad = random(4, 4, seed=0).float()
    muon.step()
    assert torch.equal(without, torch.ones(4, 4)) and not torch.equal(with_gradient, without)


@pytest.mark.parametrize("shape", [(16, 16), (8, 64), (64, 8), (128, 128), (1, 5), (5, 1)])
def test_orthogonalise_pushes_singular_values_to_one(shape: tuple[int, int]) -> None:
    rows, columns = shape
    rank = min(shape)
    u, _ = torch.linalg.qr(random(rows, rank, seed=1))
    v, _ = torch.linalg.qr(random(columns, rank, seed=2))
    values = torch.logspace(0, -1.2, rank, dtype=torch.float64)  # down to a sixteenth of the largest
    matrices = torch.stack([(u * values * scale) @ v.T for scale in (1e-2, 1.0, 1e5)]).float()
    found = orthogonalise(matrices)
    assert found.shape == matrices.shape
    singular = torch.linalg.svdvals(found.double())
    assert singular.min() > 0.6 and singular.max() < 1.3
    assert torch.allclose(found[0], found[1], atol=1e-3) and torch.allclose(found[1], found[2], atol=1e-3)  # any scale
    aligned = u.T @ found[1].double() @ v  # the singular vectors stay
    assert (aligned - torch.diag(aligned.diagonal())).abs().max() < 1e-4
    assert torch.allclose(orthogonalise(matrices.mT), found.mT, atol=1e-5)
    alone = torch.cat([orthogonalise(matrix[None]) for matrix in matrices])
    assert torch.allclose(alone, found, atol=1e-5)


@pytest.mark.parametrize("shape", [(16, 16), (6, 40), (40, 6)])
def test_each_iteration_is_a_quintic_of_the_singular_values(shape: tuple[int, int]) -> None:
    matrices = random(3, *shape, seed=5)
    for iterations in range(7):
        expected = np.stack([newton_schulz_by_svd(matrix.numpy(), iterations) for matrix in matrices])
        assert np.abs(orthogonalise(matrices, iterations).numpy() - expected).max() < 1e-9, iterations
    assert torch.equal(orthogonalise(matrices), orthogonalise(matrices, 4))


def test_orthogonalise_changes_nothing_that_it_is_given() -> None:
    matrices = random(2, 5, 5, seed=6)
    kept = matrices.clone()
    orthogonalise(matrices)
    assert torch.equal(matrices, kept)


def test_orthogonalise_leaves_zero_at_zero() -> None:
    assert torch.equal(orthogonalise(torch.zeros(2, 3, 5)), torch.zeros(2, 3, 5))


# --- who decays, who is whose ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("name", [name for name in presets.names() if not name.startswith("gpt")] + ["grouped"])
def test_every_parameter_is_in_one_group(name: str, optimizer: str) -> None:
    model = GPT(GROUPED if name == "grouped" else presets.get(name).model)
    config = OptimConfig(optimizer=optimizer, weight_decay=0.3, adamw_learning_rate=0.007, muon_learning_rate=0.05)  # type: ignore[arg-type]
    optimizers = Optimizers(model, config)
    owners: dict[int, list[tuple[str, float, float]]] = {}
    for part in optimizers.optimizers:
        for group in part.param_groups:
            for parameter in group["params"]:
                owner = (type(part).__name__, group["weight_decay"], group["lr"])
                owners.setdefault(id(parameter), []).append(owner)
    assert sorted(owners) == sorted({id(parameter) for parameter in model.parameters()})
    for path, parameter in model.named_parameters():
        hidden = optimizer == "muon" and "embedding" not in path and "head" not in path and parameter.dim() == 2
        decays = parameter.dim() == 2
        expected = ("Muon", 0.3, 0.05) if hidden else ("AdamW", 0.3 if decays else 0.0, 0.007)
        assert owners[id(parameter)] == [expected], path
        assert decays == (not path.endswith("bias") and "norm" not in path)
    if optimizer == "muon":
        muon = optimizers.optimizers[1]
        assert isinstance(muon, Muon)
        c = model.config
        qkv = [block.attention.qkv.weight for block in model.blocks]
        for parameter in muon.param_groups[0]["params"]:
            sizes = muon.parts[parameter]
            assert sum(sizes) == parameter.size(0)
            fused = any(parameter is weight for weight in qkv)
            assert sizes == (
                (c.n_head * c.head_dim, c.n_kv_head * c.head_dim, c.n_kv_head * c.head_dim)
                if fused
                else (parameter.size(0),)
            )


def test_learning_rates_follow_the_scale_and_return() -> None:
    optimizers = Optimizers(GPT(CLASSIC), OptimConfig(adamw_learning_rate=0.01, muon_learning_rate=0.1))
    for scale in (0.5, 0.0, 1.0):
        optimizers.step(scale)
        rates = [group["lr"] for part in optimizers.optimizers for group in part.param_groups]
        assert rates == pytest.approx([0.01 * scale, 0.01 * scale, 0.1 * scale])


def fake_gradients(model: GPT, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.empty(parameter.shape).normal_(generator=generator)


def test_a_scale_of_zero_moves_nothing() -> None:
    model = GPT(GROUPED)
    before = copy.deepcopy(model.state_dict())
    optimizers = Optimizers(model, OptimConfig())
    fake_gradients(model, 0)
    optimizers.step(0.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    optimizers.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_adamw_part_equals_arithmetic() -> None:
    """Bias-corrected moments and decoupled decay, in float64, for a matrix and for a vector."""
    model = GPT(CLASSIC)
    model.init_weights(0)
    config = OptimConfig(optimizer="adamw", adamw_learning_rate=0.01, weight_decay=0.2, beta1=0.8, beta2=0.9)
    optimizers = Optimizers(model, config)
    names = ("blocks.0.mlp.up.weight", "final_norm.weight", "token_embedding.weight")
    weights = {name: dict(model.named_parameters())[name] for name in names}
    expected = {name: weight.detach().double().numpy().copy() for name, weight in weights.items()}
    first = {name: np.zeros_like(weight) for name, weight in expected.items()}
    second = {name: np.zeros_like(weight) for name, weight in expected.items()}
    for step in range(1, 6):
        fake_gradients(model, step)
        optimizers.step(0.5)
        for name, weight in weights.items():
            g = weight.grad.double().numpy()  # type: ignore[union-attr]
            first[name] = 0.8 * first[name] + 0.2 * g
            second[name] = 0.9 * second[name] + 0.1 * g * g
            decay = 0.2 if g.ndim == 2 else 0.0
            direction = first[name] / (1 - 0.8**step) / (np.sqrt(second[name] / (1 - 0.9**step)) + 1e-8)
            expected[name] = expected[name] * (1 - 0.005 * decay) - 0.005 * direction
            assert np.abs(weight.detach().double().numpy() - expected[name]).max() < 1e-6


# --- saved state -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("config", [CLASSIC, GROUPED], ids=["classic", "grouped"])
def test_state_round_trip_goes_on_bit_for_bit(config: ModelConfig, optimizer: str) -> None:
    idx = torch.randint(config.vocab_size, (3, config.block_size + 1), generator=torch.Generator().manual_seed(0))
    settings = OptimConfig(optimizer=optimizer, warmup_steps=2)  # type: ignore[arg-type]

    def train(model: GPT, optimizers: Optimizers, steps: range) -> None:
        for step in steps:
            logits = model(idx[:, :-1])
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), idx[:, 1:].flatten()).backward()
            optimizers.step(lr_multiplier(step, 8, settings))
            optimizers.zero_grad()

    straight = GPT(config)
    straight.init_weights(1)
    optimizers = Optimizers(straight, settings)
    assert optimizers.state_dict() == {}
    train(straight, optimizers, range(3))
    saved = safetensors.torch.save(optimizers.state_dict())  # to bytes, as a checkpoint does
    weights = copy.deepcopy(straight.state_dict())
    train(straight, optimizers, range(3, 8))

    resumed = GPT(config)
    resumed.load_state_dict(weights)
    again = Optimizers(resumed, settings)
    again.load_state_dict(safetensors.torch.load(saved))
    assert safetensors.torch.save(again.state_dict()) == saved
    train(resumed, again, range(3, 8))
    for name, parameter in straight.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name
    one, other = optimizers.state_dict(), again.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    owned = {key.rpartition("/")[0] for key in one}
    assert owned == {name for name, _ in straight.named_parameters()}


# --- schedule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "steps", "warmup", "ratio", "expected"),
    [
        (0, 100, 10, 0.1, 0.1),
        (4, 100, 10, 0.1, 0.5),
        (9, 100, 10, 0.1, 1.0),
        (10, 100, 10, 0.1, 1.0),
        (55, 100, 10, 0.1, 0.55),
        (100, 100, 10, 0.1, 0.1),
        (1000, 100, 10, 0.1, 0.1),
        (0, 100, 0, 0.0, 1.0),
        (50, 100, 0, 0.0, 0.5),
        (100, 100, 0, 0.0, 0.0),
        (25, 100, 0, 0.0, 0.5 + math.sqrt(0.5) / 2),
        (70, 100, 10, 1.0, 1.0),
        (0, 1, 1, 0.1, 1.0),
        (3, 5, 10, 0.1, 0.4),
    ],
)
def test_learning_rate_table(step: int, steps: int, warmup: int, ratio: float, expected: float) -> None:
    config = OptimConfig(warmup_steps=warmup, min_lr_ratio=ratio)
    assert lr_multiplier(step, steps, config) == pytest.approx(expected)
    ignored = OptimConfig(warmup_steps=warmup, min_lr_ratio=ratio, schedule="cosine", decay_fraction=0.9)
    assert lr_multiplier(step, steps, ignored) == lr_multiplier(step, steps, config)


@pytest.mark.parametrize(
    ("step", "steps", "warmup", "ratio", "fraction", "expected"),
    [
        (0, 100, 10, 0.1, 0.5, 0.1),
        (9, 100, 10, 0.1, 0.5, 1.0),
        (10, 100, 10, 0.1, 0.5, 1.0),
        (50, 100, 10, 0.1, 0.5, 1.0),
        (51, 100, 10, 0.1, 0.5, 0.1 + 0.9 * 49 / 50),
        (75, 100, 10, 0.1, 0.5, 0.55),
        (99, 100, 10, 0.1, 0.5, 0.1 + 0.9 / 50),
        (100, 100, 10, 0.1, 0.5, 0.1),
        (1000, 100, 10, 0.1, 0.5, 0.1),
        (80, 100, 10, 0.0, 0.2, 1.0),
        (90, 100, 10, 0.0, 0.2, 0.5),
        (10, 100, 10, 0.0, 1.0, 1.0),  # all of the run, but what the warmup takes
        (55, 100, 10, 0.0, 1.0, 0.5),
        (99, 100, 0, 0.0, 0.0, 1.0),  # none of it
        (100, 100, 0, 0.0, 0.0, 0.0),
        (70, 100, 10, 1.0, 0.5, 1.0),
        (0, 1, 1, 0.1, 0.5, 1.0),
        (3, 5, 10, 0.1, 0.5, 0.4),
    ],
)
def test_trapezoid_table(step: int, steps: int, warmup: int, ratio: float, fraction: float, expected: float) -> None:
    config = OptimConfig(schedule="trapezoid", warmup_steps=warmup, min_lr_ratio=ratio, decay_fraction=fraction)
    assert lr_multiplier(step, steps, config) == pytest.approx(expected)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.99, 1.0])
@pytest.mark.parametrize(("steps", "warmup", "ratio"), [(100, 10, 0.1), (1000, 1, 0.0), (7, 3, 0.5), (30, 0, 0.2)])
def test_a_trapezoid_is_level_and_then_straight(steps: int, warmup: int, ratio: float, fraction: float) -> None:
    config = OptimConfig(schedule="trapezoid", warmup_steps=warmup, min_lr_ratio=ratio, decay_fraction=fraction)
    rates = np.array([lr_multiplier(step, steps, config) for step in range(steps + 1)])
    down = rates[rates < 1.0 - 1e-9][warmup - 1 if warmup else 0 :]  # the warmup ends at 1, at step warmup - 1
    assert len(down) == pytest.approx(max(1.0, min(fraction * steps, steps - warmup)), abs=1)
    assert np.all(rates[warmup : len(rates) - len(down)] == 1.0)
    falls = -np.diff(rates[len(rates) - len(down) - 1 :])
    assert falls[1:] == pytest.approx(falls[-1])
    assert 0 < falls[0] <= falls[-1] + 1e-12  # the first may be a part of a step


@pytest.mark.parametrize("schedule", ["cosine", "trapezoid"])
@pytest.mark.parametrize(("steps", "warmup", "ratio"), [(100, 10, 0.1), (1000, 1, 0.0), (7, 3, 0.5), (50, 50, 0.1)])
def test_the_learning_rate_rises_once_and_falls_once(steps: int, warmup: int, ratio: float, schedule: str) -> None:
    config = OptimConfig(warmup_steps=warmup, min_lr_ratio=ratio, schedule=schedule)  # type: ignore[arg-type]
    rates = [lr_multiplier(step, steps, config) for step in range(steps + 1)]
    assert rates[:warmup] == sorted(rates[:warmup]) and rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert max(rates) == pytest.approx(1.0) and min(rates[warmup:]) >= ratio - 1e-12 and rates[0] > 0
    if steps > warmup:
        assert rates[-1] == pytest.approx(ratio)


def test_muon_and_averages_refuse_sharded_weights() -> None:
    """Muon would leave them as they are: its update goes to a copy of the matrices."""
    model = GPT(CLASSIC)
    model.head.weight.full_tensor = lambda: model.head.weight  # type: ignore[attr-defined]  # as a DTensor has
    with pytest.raises(ConfigError, match="muon cannot update sharded weights; use optimizer=adamw"):
        Optimizers(model, OptimConfig(optimizer="muon"))
    Optimizers(model, OptimConfig(optimizer="adamw"))
    with pytest.raises(ConfigError, match="sharded weights have no average; use ema=0"):
        Optimizers(model, OptimConfig(optimizer="adamw", ema=0.9))

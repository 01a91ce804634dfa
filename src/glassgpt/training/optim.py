"""Optimisers: AdamW with the decay split, Muon for the hidden matrices, and the learning-rate schedule.

Sources: AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101); Muon (Jordan et al., 2024,
kellerjordan.github.io/posts/muon).
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from glassgpt.config import OptimConfig
from glassgpt.errors import CheckpointError, ConfigError
from glassgpt.model import GPT
from glassgpt.training.adamw import AdamW, Optimizer
from glassgpt.training.average import WeightAverage
from glassgpt.training.precision import MasterWeights, full_tensor
from glassgpt.transforms.parallel import is_sharded

#: Coefficients of the quintic Newton-Schulz iteration. Muon's author chose them for the steepest slope at zero.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
#: Muon's author takes five; with four the loss is the same and the step costs a fifth less (see RESULTS.md).
ITERATIONS = 4


def lr_multiplier(step: int, steps: int, config: OptimConfig) -> float:
    """The share of the peak learning rates at a step counted from 0.

    Linear warmup, then half a cosine down to ``min_lr_ratio``; or ("trapezoid", also called WSD: warmup-stable-decay)
    constant until the last ``decay_fraction`` of the run, then linearly down.
    """
    warmup, low = config.warmup_steps, config.min_lr_ratio
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "trapezoid":
        decay = max(1.0, min(config.decay_fraction * steps, steps - warmup))
        return low + (1 - low) * max(0.0, min(1.0, (steps - step) / decay))
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))


def orthogonalise(matrices: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Push the singular values of each matrix ``[N, rows, columns]`` towards 1 (Newton-Schulz, about 0.7 to 1.2)."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT  # [N, rows, rows]
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b gram + c gram @ gram
        x = torch.baddbmm(x, polynomial, x, beta=a)  # a x + polynomial @ x
    return x.mT if tall else x


class Muon(Optimizer):
    """Momentum, orthogonalised: every direction of a matrix's update gets the same size.

    Matrices of one shape are orthogonalised together, and the parts of a fused projection (q, k, v) apart, which
    ``torch.optim.Muon`` cannot do. It also always computes in bfloat16.

    Args:
        parameters: matrices, each with the sizes of its parts along the first dimension.
        lr: learning rate; updates are scaled by sqrt(max(1, rows / columns)).
        momentum: of the Nesterov momentum.
        weight_decay: decoupled, times lr.
        dtype: what to orthogonalise in; bfloat16 is exact enough, where it is fast.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[Tensor, tuple[int, ...]]],
        lr: float,
        momentum: float,
        weight_decay: float,
        dtype: torch.dtype | None = None,
    ):
        pairs = list(parameters)
        self.dtype = dtype
        self.parts = dict(pairs)
        super().__init__([{"params": [p for p, _ in pairs]}], lr=lr, momentum=momentum, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self) -> None:
        """Apply one update from the gradients."""
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in trained:
                if not self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            if not trained:
                continue
            gradients = [parameter.grad for parameter in trained]
            momenta = [self.state[parameter]["momentum"] for parameter in trained]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov
            torch._foreach_mul_(trained, 1 - group["lr"] * group["weight_decay"])
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter, update in zip(trained, updates, strict=True):
                sizes = self.parts[parameter]
                for piece, part in zip(parameter.split(sizes), update.split(sizes), strict=True):
                    by_shape[piece.shape].append((piece, part))
            for shape, pairs in by_shape.items():
                pieces, parts = zip(*pairs, strict=True)
                stacked = torch.stack(parts)  # [N, rows, columns]
                orthogonal = orthogonalise(stacked.to(self.dtype or stacked.dtype)).to(stacked.dtype)
                size = group["lr"] * math.sqrt(max(1.0, shape[0] / shape[1]))
                torch._foreach_add_(pieces, orthogonal.unbind(), alpha=-size)


class Optimizers:
    """The optimisers of one model, stepped together. Their state is named by parameter, so that it can be saved.

    Matrices have weight decay, norms and biases do not. With Muon, AdamW still updates the embeddings, the head and
    everything one-dimensional; Muon updates the matrices inside the blocks.

    Args:
        model: the model to train.
        config: the optimisers' settings.
        weights: float32 masters of a model that computes in fewer bits: these are updated and copied into it.

    Attributes:
        updates: how many updates were begun.
        average: of the weights, if ``config.ema`` asks for one.

    Raises:
        ConfigError: for Muon, or an average, on sharded weights.
    """

    def __init__(self, model: GPT, config: OptimConfig, weights: MasterWeights | None = None):
        self.weights = weights or MasterWeights(model, torch.float32)
        named = self.weights.named
        muon = config.optimizer == "muon"
        hidden = {name for name, p in named.items() if muon and name.startswith("blocks.") and p.dim() == 2}
        matrices = [p for name, p in named.items() if p.dim() >= 2 and name not in hidden]
        vectors = [p for p in named.values() if p.dim() < 2]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        betas = (config.beta1, config.beta2)
        self.optimizers: list[Optimizer] = [AdamW(groups, lr=config.adamw_learning_rate, betas=betas)]
        if hidden and is_sharded(model):
            raise ConfigError("optim.optimizer: muon cannot update sharded weights; use optimizer=adamw")
        if config.ema and is_sharded(model):
            raise ConfigError("optim.ema: sharded weights have no average; use ema=0")
        if hidden:
            pairs = [(named[name], self._parts(name, named[name], model)) for name in named if name in hidden]
            dtype = torch.bfloat16 if model.dtype == torch.bfloat16 else None
            self.optimizers.append(Muon(pairs, config.muon_learning_rate, config.momentum, config.weight_decay, dtype))
        self.named, self.updates = named, 0
        self.average = WeightAverage(self.weights, config.ema) if config.ema else None
        self.base_lrs = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]

    @staticmethod
    def _parts(name: str, parameter: Tensor, model: GPT) -> tuple[int, ...]:
        if not name.endswith("attention.qkv.weight"):
            return (parameter.size(0),)
        return model.config.qkv_sizes

    def step(self, multiplier: float) -> None:
        """Update the weights, at this share of the peak learning rates."""
        self.updates += 1
        for optimizer, base_lrs in zip(self.optimizers, self.base_lrs, strict=True):
            for group, base_lr in zip(optimizer.param_groups, base_lrs, strict=True):
                group["lr"] = base_lr * multiplier
            optimizer.step()
        self.weights.copy_master_to_model()
        if self.average:
            self.average.update()

    def learning_rates(self, multiplier: float) -> dict[str, float]:
        """The learning rates at a share of their peaks, by optimiser: ``{"adamw": ..., "muon": ...}``."""
        names = [type(optimizer).__name__.lower() for optimizer in self.optimizers]
        return {name: base_lrs[0] * multiplier for name, base_lrs in zip(names, self.base_lrs, strict=True)}

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        self.weights.zero_grad()

    def state_dict(self) -> dict[str, Tensor]:
        """All state, flat: ``{"blocks.0.mlp.up.weight/momentum": tensor, ...}``; all ranks call this."""
        names: dict[Any, str] = {parameter: name for name, parameter in self.named.items()}
        tensors = {
            f"{names[parameter]}/{key}": full_tensor(value)
            for optimizer in self.optimizers
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
        }
        return tensors | (self.average.state_dict() if self.average else {})

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state that :meth:`state_dict` returned.

        Raises:
            CheckpointError: if it is of another model.
        """
        if self.average:
            self.average.load_state_dict(tensors)
        states: dict[str, dict[str, Any]] = defaultdict(dict)
        for name, tensor in tensors.items():
            parameter, _, key = name.rpartition("/")
            if parameter == "ema":
                continue
            if parameter not in self.named:
                raise CheckpointError(f"the optimiser's state has {name!r}, and the model has no such parameter")
            states[parameter][key] = tensor.to(self.named[parameter].device)
        for optimizer in self.optimizers:
            mine = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            for owner, weight in self.named.items():
                if owner in states and id(weight) in mine:
                    optimizer.state[weight] = states[owner]

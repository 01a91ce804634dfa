"""LoRA: train small matrices beside frozen ones (Hu et al., 2021, arXiv:2106.09685).

A linear layer ``y = x W'`` becomes ``y = x W' + scale (x A') B'`` (' = transposed) with A ``[rank, in]`` and B
``[out, rank]``. B is zero at first, so the model computes what it did before. Only A and B are trained. The scale is
alpha / rank, or alpha / sqrt(rank) (rank-stabilised: Kalajdzievski, 2023, arXiv:2312.03732).

Every *published* matrix has a pair of its own, as in PEFT: q, k and v apart where the family publishes them apart. The
pairs are parameters of our fused layer, named by the published one: ``blocks.0.attention.qkv.lora_A_q_proj``.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glassgpt.config import TuneConfig
from glassgpt.model import GPT
from glassgpt.seeds import derive_seed
from glassgpt.weights.adapter import chosen_matrices, published_parts, to_peft


class LoRALinear(nn.Linear):
    """A linear layer with the weight and bias of another, and a pair (A, B) for each of some parts of its outputs.

    Args:
        base: whose parameters become this layer's own; they are frozen.
        parts: the sizes of the parts by name, in order; they add up to the outputs.
        targets: the names of the parts that get a pair.
        config: rank, alpha and dropout.
    """

    def __init__(self, base: nn.Linear, parts: dict[str, int], targets: list[str], config: TuneConfig):
        nn.Module.__init__(self)  # nn.Linear's own would allocate another weight
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.parts, self.targets, self.rank = parts, targets, config.lora_rank
        self.scale = config.lora_alpha / (math.sqrt(self.rank) if config.rslora else self.rank)
        self.dropout = config.lora_dropout
        self.weight_before_merge: Tensor | None = None
        for name in targets:
            self.register_parameter(f"lora_A_{name}", nn.Parameter(base.weight.new_zeros(self.rank, self.in_features)))
            self.register_parameter(f"lora_B_{name}", nn.Parameter(base.weight.new_zeros(parts[name], self.rank)))

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """A ``[rank, in]`` and B ``[out of the part, rank]``."""
        return getattr(self, f"lora_A_{name}"), getattr(self, f"lora_B_{name}")

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw every A as PEFT does, uniform within 1 / sqrt(in), from a seed of its own. B stays zero."""
        bound = 1 / math.sqrt(self.in_features)
        for name in self.targets:
            generator = torch.Generator().manual_seed(derive_seed(seed, name))
            a, _ = self.pair(name)
            a.copy_(torch.empty(a.shape).uniform_(-bound, bound, generator=generator))

    def _b(self, name: str) -> Tensor:
        """B of a part; without columns if it has no pair."""
        return self.pair(name)[1] if name in self.targets else self.weight.new_zeros(self.parts[name], 0)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in] -> [..., out]``."""
        y = F.linear(x, self.weight, self.bias)  # [..., out]
        if self.weight_before_merge is not None:
            return y
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        # One product for all parts: [..., in] -> [..., targets rank] -> [..., out].
        a = torch.cat([self.pair(name)[0] for name in self.targets])
        b = torch.block_diag(*(self._b(name) for name in self.parts))
        return y + F.linear(self.scale * F.linear(x, a), b)


def add_lora(model: GPT, config: TuneConfig, seed: int) -> None:
    """Give matrices in the blocks LoRA, in place, and freeze all other parameters.

    Args:
        model: that has no LoRA yet.
        config: rank, alpha, dropout, and ``lora_targets``: names of published modules, with as many of the components
            before as needed (``q_proj``, ``mlp.c_proj``), separated by commas; or ``all``.
        seed: of every A, whatever the other targets are.

    Raises:
        ConfigError: if no matrix has such a name.
    """
    assert not is_lora(model), "this model has LoRA already"
    layers = published_parts(model.config)
    chosen = chosen_matrices(model.config, config)
    model.requires_grad_(False)
    for ours, parts in layers.items():
        targets = [_last(module) for module in parts if module in chosen]
        if targets:
            base = model.get_submodule(ours)
            assert isinstance(base, nn.Linear)
            layer = LoRALinear(base, {_last(module): size for module, size in parts.items()}, targets, config)
            layer.init_weights(derive_seed(seed, "lora", ours))
            _replace(model, ours, layer)


def _last(module: str) -> str:
    return module.rpartition(".")[2]


def _replace(model: GPT, name: str, layer: nn.Linear) -> None:
    parent, _, own = name.rpartition(".")
    layer.train(model.training)
    setattr(model.get_submodule(parent), own, layer)


def lora_layers(model: GPT) -> list[LoRALinear]:
    """The layers that have LoRA."""
    return [module for module in model.modules() if isinstance(module, LoRALinear)]


def is_lora(model: GPT) -> bool:
    """Whether a model has LoRA."""
    return bool(lora_layers(model))


def adapters(model: GPT) -> dict[str, Tensor]:
    """Every A and B by PEFT's name without ``base_model.model.``: ``<published module>.lora_A.weight``."""
    return to_peft(model.state_dict(), model.config)


@torch.no_grad()
def merge(model: GPT) -> None:
    """Add every ``scale B A`` to its weight: the model is as fast as without LoRA. Nothing happens if it is merged."""
    for layer in lora_layers(model):
        if layer.weight_before_merge is not None:
            continue
        layer.weight_before_merge = layer.weight.detach().clone()
        exact = torch.promote_types(layer.weight.dtype, torch.float32)
        for name, rows in zip(layer.parts, layer.weight.split([*layer.parts.values()]), strict=True):
            if name in layer.targets:
                a, b = (matrix.to(exact) for matrix in layer.pair(name))
                rows.copy_(rows.to(exact).addmm(b, a, alpha=layer.scale))


@torch.no_grad()
def unmerge(model: GPT) -> None:
    """Undo :func:`merge`; the weights get back their very bits. Nothing happens if the model is not merged."""
    for layer in lora_layers(model):
        if layer.weight_before_merge is not None:
            layer.weight.copy_(layer.weight_before_merge)
            layer.weight_before_merge = None


def remove_lora(model: GPT) -> None:
    """Make a model plain again, and trainable: with LoRA in its weights if it is merged, as it was before if not."""
    for name, layer in [*model.named_modules()]:
        if isinstance(layer, LoRALinear):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
            plain.weight, plain.bias = layer.weight, layer.bias
            _replace(model, name, plain)
    model.requires_grad_(True)

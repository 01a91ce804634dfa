"""The exercises of lesson 27."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from glassgpt.config import TuneConfig
from glassgpt.learn.exercises import Exercise, Wrong
from glassgpt.transforms.lora import LoRALinear


def check_merge(answer: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """Apply the merged weight, and compare with the package's layer."""
    generator = torch.Generator().manual_seed(0)
    for out, width, rank, alpha in ((3, 3, 1, 1.0), (6, 4, 2, 16.0), (5, 8, 8, 4.0)):
        base = nn.Linear(width, out, bias=False)
        layer = LoRALinear(base, {"p": out}, ["p"], TuneConfig(lora_rank=rank, lora_alpha=alpha))
        a, b = layer.pair("p")
        for parameter in (base.weight, a, b):
            parameter.data = torch.randn(parameter.shape, generator=generator)
        weight = base.weight.detach().clone()
        found = answer(weight.clone(), a.detach().clone(), b.detach().clone(), alpha)
        case = f"weight [{out}, {width}], rank {rank}, alpha {alpha:g}"
        if not isinstance(found, Tensor) or found.shape != (out, width):
            raise Wrong(f"{case}: the merged weight should be [{out}, {width}], and is {found!r}")
        x = torch.randn(7, width, generator=generator)
        difference = float((x @ found.T - layer(x).detach()).abs().max())
        if not difference < 1e-4:
            raise Wrong(f"{case}: the merged layer's outputs differ from the unmerged ones by {difference:.3g}")


class _Model(nn.Module):
    """Two layers with a pair each, and a norm; the base starts in a state that the answer cannot rely on."""

    def __init__(self, frozen: bool):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 6 + i) for i in range(2))
        for i, layer in enumerate(self.layers):
            layer.lora_a = nn.Parameter(torch.zeros(2, 4))
            layer.lora_b = nn.Parameter(torch.zeros(6 + i, 2))
        self.norm = nn.LayerNorm(4)
        self.requires_grad_(not frozen)


def check_freeze(answer: Callable[[nn.Module], int]) -> None:
    """Look at what requires a gradient afterwards."""
    for frozen in (False, True):
        model = _Model(frozen)
        count = answer(model)
        start = "all frozen before" if frozen else "all trained before"
        for name, parameter in model.named_parameters():
            wanted = name.endswith(("lora_a", "lora_b"))
            if parameter.requires_grad != wanted:
                raise Wrong(f"{start}: {name} should {'' if wanted else 'not '}be trained")
        right = sum(p.numel() for p in model.parameters() if p.requires_grad)
        if count != right:
            raise Wrong(f"{start}: it should return {right} trained numbers, and returns {count!r}")


EXERCISES = (
    Exercise("merge", "W with A and B in it.", check_merge,
             "Which product of A and B has the shape of W? Then the scale: two numbers make it."),
    Exercise("freeze", "Train only A and B.", check_freeze,
             "`named_parameters()` gives names and parameters. Set both kinds, in both directions."),
)  # fmt: skip

"""The preset ``tiny``, measured: the shapes of a batch and the parameters of each part."""

from functools import cache

import torch

from glassgpt.config import presets
from glassgpt.model import GPT
from glassgpt.shapes import trace_shapes

CONFIG = presets.get("tiny").model
BATCH = presets.get("tiny").layer["train"]["batch_size"]


@cache
def model() -> GPT:
    """The model, initialised."""
    gpt = GPT(CONFIG)
    gpt.init_weights(0)
    return gpt


@cache
def shapes() -> dict[str, str]:
    """The shapes of a training batch, observed: ``[B, T] = [32, 64]`` by the tensor's name."""
    idx = torch.zeros(BATCH, CONFIG.block_size, dtype=torch.int64)
    return {shape.name: f"{shape.symbols} = {list(shape.sizes)}" for shape in trace_shapes(model(), idx)}


def parameters(prefix: str) -> int:
    """The number of parameters of a part."""
    return sum(p.numel() for name, p in model().named_parameters() if f"{name}.".startswith(f"{prefix}."))

"""The shapes of a batch on its way through a model, observed on a real forward pass."""

from dataclasses import dataclass

import torch
from torch import Tensor

from glassgpt.model import GPT
from glassgpt.recording import axes_of, evaluation_mode, watch

#: The tensors to show, by their names in a recording.
_SHOWN = {
    "idx": "idx", "embeddings": "embeddings", "q": "q", "k": "k", "v": "v", "attention weights": "scores",
    "head outputs": "attention output", "hidden": "MLP hidden", "residual after mlp": "block output",
    "logits": "logits",
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """One tensor: where it is, its dimensions by name, and their sizes."""

    name: str
    symbols: str
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name:<18} {self.symbols:<14} {list(self.sizes)}"


@torch.no_grad()
def trace_shapes(model: GPT, idx: Tensor) -> list[Shape]:
    """The shapes of one batch ``idx [B, T]`` through the embeddings, the first block, and the head.

    The first block's attention is done by the explicit path, so that the scores exist to be seen. No tensor is held.
    """
    shapes: list[Shape] = []

    def see(name: str, layer: int | None, tensor: Tensor) -> None:
        if name in _SHOWN:
            axes = ", ".join(axes_of(name, model.config))
            shapes.append(Shape(_SHOWN[name], f"[{axes}]", tuple(tensor.shape)))

    with evaluation_mode(model), watch(model, see, layers=[0]):
        model(idx)
    return shapes

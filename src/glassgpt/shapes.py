"""The shapes of a batch on its way through a model, observed on a real forward pass."""

from dataclasses import dataclass

from torch import Tensor

from glassgpt.model import GPT
from glassgpt.recording import axes_of, record

#: The tensors to show, by their names in a recording.
_SHOWN = {
    "embeddings": "embeddings", "q": "q", "k": "k", "v": "v", "attention weights": "scores",
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


def trace_shapes(model: GPT, idx: Tensor) -> list[Shape]:
    """The shapes of one batch ``idx [B, T]`` through the embeddings, the first block, and the head.

    The first block's attention is done by the explicit path, so that the scores exist to be seen.
    """
    tensors = record(model, idx, ("idx", *_SHOWN), layers=[0]).tensors
    names = {"idx": "idx"} | _SHOWN
    return [
        Shape(names[name], f"[{', '.join(axes_of(name, model.config))}]", tuple(tensor.shape))
        for (name, _), tensor in tensors.items()
    ]

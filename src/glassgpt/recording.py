"""See every tensor of a real forward pass, by hooks; the model's code does not change, and nothing is left behind.

With ``attention="fused"`` the pass computes the very same numbers as one without hooks. The scores and the attention
weights exist only with ``attention="explicit"``, whose logits agree with the fused ones but for rounding.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from glassgpt.config import ModelConfig
from glassgpt.model import GPT, Block, ExplicitAttention
from glassgpt.model.gpt import Attention

#: The axes of each tensor, in the order in which a pass makes them: those before, in, and after the blocks. Those
#: that a model does not have (a rotation, a gate, ...) do not occur. B batch, T time, C n_embd, H heads, KV key/value
#: heads, D head_dim, S keys, I intermediate_size, V vocab_size; P = (H + 2 KV) D, A = H D.
BEFORE_BLOCKS = {"idx": "B T", "token embedding": "B T C", "position embedding": "T C", "embeddings": "B T C"}
IN_BLOCK = {
    "norm 1": "B T C", "qkv": "B T P", "q": "B H T D", "normed q": "B H T D", "k": "B KV T D", "normed k": "B KV T D",
    "v": "B KV T D", "rotated q": "B H T D", "rotated k": "B KV T D",
    "k per query head": "B H S D", "v per query head": "B H S D",
    "scores": "B H T S", "scaled scores": "B H T S", "masked scores": "B H T S", "attention weights": "B H T S",
    "head outputs": "B H T D", "concatenated heads": "B T A", "attention output": "B T C",
    "residual after attention": "B T C", "norm 2": "B T C", "gate": "B T I", "up": "B T I", "hidden": "B T I",
    "mlp output": "B T C", "residual after mlp": "B T C",
}  # fmt: skip
AFTER_BLOCKS = {"final norm": "B T C", "logits": "B T V"}
AXES = BEFORE_BLOCKS | IN_BLOCK | AFTER_BLOCKS


def axes_of(name: str, config: ModelConfig) -> tuple[str, ...]:
    """Return the axes of a tensor of this model: (B, H, T, D). Without grouped queries, KV is H; S is T: no cache."""
    names = {"KV": "H"} if config.n_kv_head == config.n_head else {}
    return tuple((names | {"S": "T"}).get(axis, axis) for axis in AXES[name].split())


#: Receives the name of a tensor (a key of AXES), its layer (None outside the blocks), and the tensor itself.
See = Callable[[str, int | None, Tensor], None]
AttentionKind = Literal["fused", "explicit"]


@contextmanager
def watch(
    model: GPT, see: See, attention: AttentionKind = "explicit", layers: Collection[int] | None = None
) -> Iterator[None]:
    """Call ``see`` with every tensor that the model computes while the context lasts, in order.

    Of blocks, only those in ``layers`` are watched, and changed to explicit attention; by default all.
    """
    hooks: list[Any] = []

    def on_output(module: nn.Module, name: str, layer: int | None = None) -> None:
        hooks.append(module.register_forward_hook(lambda _, inputs, output: see(name, layer, output)))

    def on_input(module: nn.Module, name: str, layer: int | None = None) -> None:
        hooks.append(module.register_forward_pre_hook(lambda _, inputs: see(name, layer, inputs[0])))

    on_input(model.token_embedding, "idx")
    on_output(model.token_embedding, "token embedding")
    if (table := model.position_embedding) is not None:
        weight = table.weight
        hooks.append(
            model.dropout.register_forward_pre_hook(
                lambda _, inputs: see("position embedding", None, weight[: inputs[0].size(1)])
            )
        )
    on_output(model.dropout, "embeddings")
    fused: list[tuple[Attention, nn.Module]] = []
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        if layers is not None and layer not in layers:
            continue
        part = block.attention
        if attention == "explicit":
            fused.append((part, part.attend))
            part.attend = ExplicitAttention(lambda name, tensor, layer=layer: see(name, layer, tensor))  # type: ignore[misc]
        on_output(block.norm_1, "norm 1", layer)
        on_output(part.qkv, "qkv", layer)
        hooks.append(part.attend.register_forward_pre_hook(_see_qkv(model, layer, see)))
        on_input(part.q_norm, "q", layer)
        on_input(part.k_norm, "k", layer)
        if model.config.qk_norm:
            on_output(part.q_norm, "normed q", layer)
            on_output(part.k_norm, "normed k", layer)
        hooks.append(
            part.attend.register_forward_hook(lambda _, i, output, layer=layer: see("head outputs", layer, output[0]))
        )
        on_input(part.out, "concatenated heads", layer)
        on_output(part, "attention output", layer)
        on_input(block.norm_2, "residual after attention", layer)
        on_output(block.norm_2, "norm 2", layer)
        if block.mlp.gate is not None:
            on_output(block.mlp.gate, "gate", layer)
        on_output(block.mlp.up, "up", layer)
        on_input(block.mlp.down, "hidden", layer)
        on_output(block.mlp, "mlp output", layer)
        on_output(block, "residual after mlp", layer)
    on_output(model.final_norm, "final norm")
    on_output(model.head, "logits")
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for part, attend in fused:
            part.attend = attend


def _see_qkv(model: GPT, layer: int, see: See) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """See v, and q and k after the rotation if there is one: the inputs of the attention."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        q, k, v = inputs[:3]
        see("v", layer, v)
        if model.config.position == "rope":
            see("rotated q", layer, q)
            see("rotated k", layer, k)

    return hook


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Turn dropout off while the context lasts; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@dataclass(frozen=True)
class Recording:
    """The tensors of one pass.

    Attributes:
        logits: ``[B, T, V]``.
        tensors: by (name, layer); layer None outside the blocks.
    """

    logits: Tensor
    tensors: dict[tuple[str, int | None], Tensor] = field(default_factory=dict)

    def get(self, name: str, layer: int | None = None) -> Tensor:
        """Return one tensor."""
        return self.tensors[name, layer]

    def layers(self, name: str) -> list[Tensor]:
        """Return the tensor of that name in every layer, from the first."""
        return [tensor for (key, layer), tensor in self.tensors.items() if key == name and layer is not None]


@torch.no_grad()
def record(
    model: GPT,
    idx: Tensor,
    names: Collection[str] = tuple(AXES),
    attention: AttentionKind = "explicit",
    layers: Collection[int] | None = None,
) -> Recording:
    """Run the model on ``idx [B, T]``, without dropout, and keep the tensors with these names, of all or these layers.

    Raises:
        ValueError: if the tokens do not fit the context.
    """
    tensors: dict[tuple[str, int | None], Tensor] = {}

    def see(name: str, layer: int | None, tensor: Tensor) -> None:
        if name in names:
            tensors[name, layer] = tensor.detach()

    with evaluation_mode(model), watch(model, see, attention, layers):
        return Recording(model(idx), tensors)

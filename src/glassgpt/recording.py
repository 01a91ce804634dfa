"""See every tensor of a real forward pass, by hooks; the model's code does not change, and nothing is left behind.

With ``attention="fused"`` the pass computes the very same numbers as one without hooks. The scores and the attention
weights exist only with ``attention="explicit"``, whose logits agree with the fused ones but for rounding.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal

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
    with _Hooks(see) as hooks:
        hooks.on_input(model.token_embedding, "idx")
        hooks.on_output(model.token_embedding, "token embedding")
        if model.position_embedding is not None:
            hooks.on_position_embedding(model.dropout, model.position_embedding.weight)
        hooks.on_output(model.dropout, "embeddings")
        for layer, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            if layers is None or layer in layers:
                if attention == "explicit":
                    hooks.make_explicit(block.attention, layer)
                hooks.on_block(block, layer, model.config)
        hooks.on_output(model.final_norm, "final norm")
        hooks.on_output(model.head, "logits")
        yield


class _Hooks(ExitStack):
    """Hooks on modules, which are removed when the context ends."""

    def __init__(self, see: See):
        super().__init__()
        self.see = see

    def on_output(self, module: nn.Module, name: str, layer: int | None = None) -> None:
        self.enter_context(module.register_forward_hook(lambda _, inputs, output: self.see(name, layer, output)))

    def on_inputs(self, module: nn.Module, see: Callable[..., None]) -> None:
        self.enter_context(module.register_forward_pre_hook(lambda _, inputs: see(*inputs)))

    def on_input(self, module: nn.Module, name: str, layer: int | None = None) -> None:
        self.on_inputs(module, lambda x, *others: self.see(name, layer, x))

    def on_position_embedding(self, dropout: nn.Module, table: Tensor) -> None:
        self.on_inputs(dropout, lambda x: self.see("position embedding", None, table[: x.size(1)]))

    def make_explicit(self, attention: Attention, layer: int) -> None:
        self.callback(setattr, attention, "attend", attention.attend)
        attention.attend = ExplicitAttention(lambda name, tensor: self.see(name, layer, tensor))

    def on_block(self, block: Block, layer: int, config: ModelConfig) -> None:
        part = block.attention

        def see_qkv(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
            self.see("v", layer, v)
            if config.position == "rope":
                self.see("rotated q", layer, q)
                self.see("rotated k", layer, k)

        self.on_output(block.norm_1, "norm 1", layer)
        self.on_output(part.qkv, "qkv", layer)
        self.on_inputs(part.attend, see_qkv)
        self.on_input(part.q_norm, "q", layer)
        self.on_input(part.k_norm, "k", layer)
        if config.qk_norm:
            self.on_output(part.q_norm, "normed q", layer)
            self.on_output(part.k_norm, "normed k", layer)
        self.enter_context(
            part.attend.register_forward_hook(lambda _, inputs, output: self.see("head outputs", layer, output[0]))
        )
        self.on_input(part.out, "concatenated heads", layer)
        self.on_output(part, "attention output", layer)
        self.on_input(block.norm_2, "residual after attention", layer)
        self.on_output(block.norm_2, "norm 2", layer)
        if block.mlp.gate is not None:
            self.on_output(block.mlp.gate, "gate", layer)
        self.on_output(block.mlp.up, "up", layer)
        self.on_input(block.mlp.down, "hidden", layer)
        self.on_output(block.mlp, "mlp output", layer)
        self.on_output(block, "residual after mlp", layer)


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
        """Return one tensor. :data:`AXES` has the names, and the axes of each: ``"q"`` is ``[B, H, T, D]``.

        Raises:
            KeyError: if it was not recorded.
        """
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

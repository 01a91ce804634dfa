"""The tensors of a page, in the order in which they are kept until the page is full.

All that follows from them by a formula (residual sums, norms, rotations, scores, activations) is computed in the page.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glassgpt.config import ModelConfig
from glassgpt.model import GPT, Block
from glassgpt.recording import Recording

#: The recorded tensors of a block without which there is no page, and those that are kept while there is room.
REQUIRED_IN_BLOCK = ("qkv", "attention weights", "attention output", "mlp output")
OPTIONAL_IN_BLOCK = ("gate", "up")
#: Bytes that describe what a block does at a position, and a tensor, at most.
PER_PREDICTION, PER_TENSOR = 160, 300
RECORDED = ("token embedding", "position embedding", *REQUIRED_IN_BLOCK, *OPTIONAL_IN_BLOCK, "logits")


@dataclass(frozen=True)
class PageTensor:
    """A tensor for the page, without the batch dimension; ``required`` if there is no page without it."""

    name: str
    layer: int | None
    values: Tensor
    required: bool = False

    def __str__(self) -> str:
        """Return its name and place: ``up of block 3``."""
        return self.name if self.layer is None else f"{self.name} of block {self.layer}"


def page_tensors(model: GPT, recording: Recording) -> Iterator[PageTensor]:
    """Yield the tensors of a page, the most important first.

    First the residual stream's parts, attention, q, k, v and all vectors of weights; then the MLPs from the first block
    on; the logits of all positions; and the weight matrices: the head, all of block 0, those of attention, the others.
    """
    for (name, layer), tensor in recording.tensors.items():
        if name in RECORDED and name not in (*OPTIONAL_IN_BLOCK, "logits"):
            values = tensor if name == "position embedding" else tensor[0]
            yield PageTensor(name, layer, values, required=True)
    yield PageTensor("last logits", None, recording.logits[0, -1:], required=True)
    yield from _vectors(model, recording.logits.size(1))
    for (name, layer), tensor in recording.tensors.items():
        if name in OPTIONAL_IN_BLOCK:
            yield PageTensor(name, layer, tensor[0])
    yield PageTensor("logits", None, recording.logits[0])
    yield PageTensor("head weight", None, model.head.weight)
    matrices = [PageTensor(f"{name} weight", layer, linear.weight) for layer, name, linear in _linears(model)]
    in_attention = ("qkv weight", "attention output weight")
    yield from (matrix for matrix in matrices if matrix.layer == 0)
    yield from (matrix for matrix in matrices if matrix.layer != 0 and matrix.name in in_attention)
    yield from (matrix for matrix in matrices if matrix.layer != 0 and matrix.name not in in_attention)


def _linears(model: GPT) -> Iterator[tuple[int, str, nn.Linear]]:
    """Yield the linear layers of every block, each under the name of the tensor that it makes."""
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        yield layer, "qkv", block.attention.qkv
        yield layer, "attention output", block.attention.out
        if block.mlp.gate is not None:
            yield layer, "gate", block.mlp.gate
        yield layer, "up", block.mlp.up
        yield layer, "mlp output", block.mlp.down


def _vectors(model: GPT, T: int) -> Iterator[PageTensor]:
    """Yield the weights of the norms, the biases, and the rotary tables at the prompt's positions."""
    norms: list[tuple[str, int | None, nn.Module]] = [("final norm", None, model.final_norm)]
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        norms += [("norm 1", layer, block.norm_1), ("norm 2", layer, block.norm_2)]
        if model.config.qk_norm:
            norms += [("normed q", layer, block.attention.q_norm), ("normed k", layer, block.attention.k_norm)]
    for name, of_layer, norm in norms:
        for kind, vector in norm.named_parameters():
            yield PageTensor(f"{name} {kind}", of_layer, vector, required=True)
    for layer, name, linear in _linears(model):
        if linear.bias is not None:
            yield PageTensor(f"{name} bias", layer, linear.bias, required=True)
    if model.config.position == "rope":
        yield PageTensor("rotary cosines", None, model.rope_cos[:T], required=True)
        yield PageTensor("rotary sines", None, model.rope_sin[:T], required=True)


def required_bytes(config: ModelConfig, T: int) -> int:
    """Return how large all that a page of T tokens needs is: 4.8 bytes per number, and what describes it.

    Of four bytes with 33 % for base64, compression saves about an eighth; of attention weights, the zeros take nothing.
    """
    P, C, I = sum(config.qkv_sizes), config.n_embd, config.intermediate_size  # noqa: E741
    in_block = T * (P + 2 * C) + config.n_head * T * (T + 1) // 2 + 6 * C + P + 2 * I + 2 * config.head_dim
    outside = 2 * T * (C + config.head_dim) + 2 * C + config.vocab_size
    described = (config.n_layer + 1) * (T * PER_PREDICTION + 12 * PER_TENSOR)
    return (config.n_layer * in_block + outside) * 24 // 5 + described


def longest_prompt(config: ModelConfig, limit: int) -> int:
    """Return how many tokens fit a page of ``limit`` bytes; 0 if none do."""
    for T in range(config.block_size):
        if required_bytes(config, T + 1) > limit:
            return T
    return config.block_size


def as_float32(values: Tensor) -> Tensor:
    """Return a tensor on the CPU, in float32."""
    return values.detach().to("cpu", torch.float32)

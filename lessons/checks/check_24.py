"""The exercises of lesson 24."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from glassgpt.config import ModelConfig
from glassgpt.learn.exercises import Exercise, Wrong
from glassgpt.model import GPT
from glassgpt.weights.families import FAMILIES
from glassgpt.weights.mapping import to_published


def check_convert(answer: Callable[[dict[str, Tensor], int], dict[str, Tensor]]) -> None:
    """Load what the answer gives, and compare logits."""
    for n_layer, n_head, n_embd in ((1, 1, 8), (3, 2, 16)):
        config = ModelConfig(vocab_size=30, block_size=12, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
        right, loaded = GPT(config).eval(), GPT(config).eval()
        generator = torch.Generator().manual_seed(n_layer)
        for parameter in right.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        published = to_published(right.state_dict(), config, FAMILIES["gpt2"])
        published["lm_head.weight"] = published["transformer.wte.weight"]
        found = answer({name: tensor.clone() for name, tensor in published.items()}, n_layer)
        _load(loaded, found)
        idx = torch.randint(30, (2, 12), generator=generator)
        with torch.no_grad():
            difference = float((loaded(idx) - right(idx)).abs().max())
        if difference > 1e-4:
            raise Wrong(
                f"it loads, but with n_layer = {n_layer}, n_embd = {n_embd} the logits differ by {difference:.3g}"
            )


def _load(model: GPT, found: Any) -> None:
    if not isinstance(found, dict):
        raise Wrong(f"convert() should return a dictionary, and returns {type(found).__name__}")
    shapes = model.state_dict()
    missing = [name for name in shapes if name not in found and name != "head.weight"]  # the head is tied
    if missing:
        raise Wrong(f"these names are missing: {', '.join(missing[:4])}")
    if unknown := [name for name in found if name not in shapes]:
        raise Wrong(f"the GPT has no weights with these names: {', '.join(unknown[:4])}")
    for name, tensor in found.items():
        if tensor.shape != shapes[name].shape:
            raise Wrong(f"{name} should be {list(shapes[name].shape)}, and is {list(tensor.shape)}")
    model.load_state_dict(found, strict=False)


def check_split_qkv(answer: Callable[[Tensor, int, int, int], tuple[Tensor, Tensor, Tensor]]) -> None:
    """Compare with the package's table for Llama."""
    for n_head, n_kv_head, head_dim in ((2, 2, 4), (6, 2, 4), (4, 1, 8)):
        config = ModelConfig(
            n_layer=1, n_head=n_head, n_kv_head=n_kv_head, head_dim=head_dim, n_embd=n_head * head_dim,
            norm="rmsnorm", norm_bias=False, mlp="swiglu", position="rope", qkv_bias=False, attention_out_bias=False,
            mlp_bias=False,
        )  # fmt: skip
        model = GPT(config)
        model.init_weights(seed=0)
        published = to_published(model.state_dict(), config, FAMILIES["llama"])
        found = answer(model.blocks[0].attention.qkv.weight.detach().clone(), n_head, n_kv_head, head_dim)
        call = f"split_qkv(weight, {n_head}, {n_kv_head}, {head_dim})"
        if len(found) != 3:
            raise Wrong(f"{call} should return q, k and v, and returns {len(found)} things")
        for name, tensor in zip("qkv", found, strict=True):
            right = published[f"model.layers.0.self_attn.{name}_proj.weight"]
            if tensor.shape != right.shape:
                raise Wrong(f"{call}: {name} should be {list(right.shape)}, and is {list(tensor.shape)}")
            if not torch.equal(tensor, right):
                raise Wrong(f"{call}: {name} has the right shape, but not the right rows")


EXERCISES = (
    Exercise("convert", "GPT-2's weights under the names of this package's GPT.", check_convert,
             "Four matrices of each block lie the other way round, and one of them is square. Vectors have none."),
    Exercise("split_qkv", "A fused q, k, v matrix, cut as Llama has it.", check_split_qkv,
             "The rows of all query heads come first. How many rows does each of the three have?"),
)  # fmt: skip

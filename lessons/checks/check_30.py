"""The exercises of lesson 30."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from glassgpt.config import ModelConfig
from glassgpt.learn.exercises import Exercise, Wrong
from glassgpt.model import GPT
from glassgpt.model.attention import ExplicitAttention


def check_block_flops(answer: Callable[[int, int, int], int]) -> None:
    """Compare with what torch counts in the package's block."""
    for T, C, hidden in ((16, 8, 32), (5, 16, 64), (32, 8, 20)):
        config = ModelConfig(vocab_size=5, block_size=T, n_layer=1, n_head=2, n_embd=C, intermediate_size=hidden)
        model = GPT(config)
        model.init_weights(seed=0)
        model.blocks[0].attention.attend = ExplicitAttention()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, T, dtype=torch.long), apply_head=False)
        right, found = counter.get_total_flops(), answer(T, C, hidden)
        if found != right:
            raise Wrong(f"block_flops({T}, {C}, {hidden}) should be {right:,}, and is {found!r}")


class _Sizes(TorchFunctionMode):
    """Notes the largest tensor that any function returns."""

    largest = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def check_blockwise(answer: Callable[[Tensor, Tensor, Tensor, int], Tensor]) -> None:
    """Compare with attention over all, and watch the sizes of the tensors."""
    generator = torch.Generator().manual_seed(0)
    for T, D, block in ((1, 4, 3), (8, 4, 4), (7, 4, 3), (64, 2, 8)):
        q, k, v = torch.randn(3, T, D, generator=generator)
        right, _ = ExplicitAttention()(q[None, None], k[None, None], v[None, None], None)
        with _Sizes() as sizes:
            found = answer(q, k, v, block)
        case = f"T = {T}, D = {D}, block = {block}"
        if not isinstance(found, Tensor) or found.shape != (T, D):
            raise Wrong(f"{case}: the output should be [{T}, {D}], and is {getattr(found, 'shape', found)!r}")
        difference = float((found - right[0, 0]).abs().max())
        if not difference < 1e-5:
            rows = (found - right[0, 0]).abs().amax(1)
            raise Wrong(f"{case}: the outputs differ by {difference:.3g}; the worst query is {int(rows.argmax())}")
        if sizes.largest > max(block, D) * T:
            raise Wrong(f"{case}: a tensor with {sizes.largest} numbers was made; {block} x {T} scores are allowed")


EXERCISES = (
    Exercise("block_flops", "FLOPs of one block.", check_block_flops,
             "A product of [T, a] with [a, b] costs 2 T a b. List the six products of a block."),
    Exercise("blockwise", "Causal attention for some queries at a time.", check_blockwise,
             "Cut the queries, not the keys. Which keys may the queries of a piece see? The mask depends on it."),
)  # fmt: skip

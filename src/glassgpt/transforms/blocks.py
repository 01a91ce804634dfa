"""How the blocks of a model run: which attention, recomputed in the backward pass, compiled."""

from collections.abc import Callable

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from glassgpt.model import GPT, UnfusedAttention


def recompute_blocks(model: GPT) -> None:
    """Activation checkpointing (Chen et al., 2016, arXiv:1604.06174): less memory for a second forward pass.

    Only each block's input is kept for the backward pass; what lies inside is computed again when it is needed.
    Weights keep their names. Dropout draws the same numbers the second time.
    """

    def recomputed(inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
        # A function of its own, not a partial: torch.compile would pass that over.
        def forward(*inputs: object) -> Tensor:
            return checkpoint(inner, *inputs, use_reentrant=False)

        return forward

    for block in model.blocks:
        block.forward = recomputed(block.forward)


def compile_blocks(model: GPT) -> None:
    """Compile each block with torch.compile, when it first runs. They are alike, so they share the work.

    Each shape of input is compiled for itself, which runs faster than code for all shapes.
    """
    for block in model.blocks:
        block.compile(dynamic=False)


def is_compiled(model: GPT) -> bool:
    """Whether the blocks run compiled."""
    return model.blocks[0]._compiled_call_impl is not None


def stop_compiling(model: GPT) -> None:
    """Run the blocks without torch.compile from now on."""
    for block in model.blocks:
        block._compiled_call_impl = None


def prepare_blocks(model: GPT, recompute: bool, compile: bool, attention: str = "fused") -> None:
    """Choose the attention of a fresh model, recompute and compile its blocks, in the order in which these wrap."""
    if attention == "unfused":
        for block in model.blocks:
            block.attention.attend = UnfusedAttention()  # type: ignore[union-attr]
    if recompute:
        recompute_blocks(model)
    if compile:
        compile_blocks(model)

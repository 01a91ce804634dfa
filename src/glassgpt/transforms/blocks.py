"""How the blocks of a model are run: recomputed in the backward pass, compiled, or both."""

import functools

from torch.utils.checkpoint import checkpoint

from glassgpt.model import GPT


def recompute_blocks(model: GPT) -> None:
    """Activation checkpointing (Chen et al., 2016, arXiv:1604.06174): less memory for a second forward pass.

    Only each block's input is kept for the backward pass; what lies inside is computed again when it is needed.
    Weights keep their names. Dropout draws the same numbers the second time.
    """
    for block in model.blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def compile_blocks(model: GPT) -> None:
    """Compile each block with torch.compile, when it first runs. They are alike, so they share the work."""
    for block in model.blocks:
        block.compile()


def prepare_blocks(model: GPT, *, recompute: bool, compile: bool) -> None:
    """Do what was asked for, in the order in which these wrap each other."""
    if recompute:
        recompute_blocks(model)
    if compile:
        compile_blocks(model)

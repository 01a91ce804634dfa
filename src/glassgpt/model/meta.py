"""A model without memory for its weights: to know its shapes, or to load the weights later."""

from collections.abc import Collection
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from glassgpt.config import ModelConfig
from glassgpt.model.gpt import GPT


class _SkipInit(TorchFunctionMode):
    """Skips ``torch.nn.init``. It has no effect on the meta device, but would import torch's compiler (two seconds)."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__module__", "") == "torch.nn.init":
            return None
        return function(*args, **(kwargs or {}))


def meta_model(config: ModelConfig) -> GPT:
    """Build a model on the meta device; :func:`materialize` allocates its weights."""
    with torch.device("meta"), _SkipInit():
        return GPT(config)


def materialize(model: GPT, dtype: torch.dtype, device: torch.device, skip: Collection[str] = frozenset()) -> None:
    """Allocate the weights of a model on the meta device, uninitialised. (``to_empty`` imports torch's compiler.)

    Those in ``skip`` stay on the meta device.
    """
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name in skip:
            continue
        tied = name == "head.weight" and model.config.tie_embeddings
        state[name] = state["token_embedding.weight"] if tied else torch.empty(tensor.shape, dtype=dtype, device=device)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights_and_build_rope()

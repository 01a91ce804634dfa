"""A model that takes no memory: to know its shapes, or to give it its weights later."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from glassgpt.config import ModelConfig
from glassgpt.model.gpt import GPT


class _LeftUnfilled(TorchFunctionMode):
    """Leaves out the random values that torch gives new weights.

    There are none on the meta device, and drawing them there imports torch's compiler, which takes two seconds.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__module__", "") == "torch.nn.init":
            return None
        return function(*args, **(kwargs or {}))


def meta_model(config: ModelConfig) -> GPT:
    """A model on the meta device; :func:`materialize` gives it memory."""
    with torch.device("meta"), _LeftUnfilled():
        return GPT(config)


def materialize(model: GPT, dtype: torch.dtype, device: torch.device) -> None:
    """Give a model from the meta device memory for its weights, whose values are then still to come.

    As ``to_empty`` does, which imports torch's compiler.
    """
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        tied = name == "head.weight" and model.config.tie_embeddings
        state[name] = state["token_embedding.weight"] if tied else torch.empty(tensor.shape, dtype=dtype, device=device)
    model.load_state_dict(state, assign=True)
    model.tie_weights_and_build_rope()

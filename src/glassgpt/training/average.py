"""The exponential moving average (EMA) of the weights: a model that may be better than the weights of any one step.

The weights of a step carry the noise of the last few batches. Their average over many steps carries less of it, as
after a lower learning rate; so it gains little where the learning rate has fallen to almost zero.
Sources: Polyak and Juditsky, 1992, doi:10.1137/0330046; the lower decay of the first updates is that of TensorFlow's
``tf.train.ExponentialMovingAverage``.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from glassgpt.training.precision import MasterWeights


class WeightAverage:
    """The average of the weights that are trained, in float32.

    Args:
        weights: to average, as they are after each update.
        decay: the share of the old average in the new one; the average is over about the last 1 / (1 - decay) updates.

    Attributes:
        named: the average by parameter name.
        updates: how many updates it has seen.
    """

    def __init__(self, weights: MasterWeights, decay: float):
        self.weights, self.decay, self.updates = weights, decay, 0
        self.named = {name: weight.detach().clone() for name, weight in weights.named.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Average the weights in, after each update; at first with a lower decay, to forget the random start."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.named.values()), list(self.weights.named.values()), 1 - decay)

    @contextlib.contextmanager
    def in_model(self) -> Iterator[None]:
        """While this lasts, the model and its masters have the average as their weights, to evaluate or to save it."""
        masters = [weight.detach() for weight in self.weights.named.values()]  # of the same memory
        trained = [weight.clone() for weight in masters]
        self._replace(masters, list(self.named.values()))
        try:
            yield
        finally:
            self._replace(masters, trained)

    def _replace(self, masters: list[Tensor], values: list[Tensor]) -> None:
        torch._foreach_copy_(masters, values)
        self.weights.copy_master_to_model()

    def state_dict(self) -> dict[str, Tensor]:
        """``{"ema/updates": int64 scalar, "ema/blocks.0.mlp.up.weight": ...}``."""
        return {"ema/updates": torch.tensor(self.updates)} | {f"ema/{name}": t for name, t in self.named.items()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state, which may be among other tensors. Where it is missing, the average begins anew."""
        if "ema/updates" in tensors:
            self.updates = int(tensors["ema/updates"])
            for name, average in self.named.items():
                average.copy_(tensors[f"ema/{name}"])

"""A task: the batches, the objective, and how to validate. The loop trains any :class:`Task`."""

from typing import Protocol

from torch import Tensor

from glassgpt.data.batch import Batch
from glassgpt.loss import Baselines, Evaluation
from glassgpt.model import GPT
from glassgpt.tokenizer.base import Tokenizer


class Task(Protocol):
    """The task of a run. Every process has the same task and calls its methods in the same order.

    Attributes:
        tokenizer: saved with every checkpoint.
        batch_size: rows in the global batch.
        tokens_per_step: token positions in the global batch, for the speed in tokens per second.
        rows_together: so many neighbouring rows are never split between micro-batches or processes: 1, or 2 for the
            two answers of a preference pair.
    """

    tokenizer: Tokenizer
    batch_size: int
    tokens_per_step: int
    rows_together: int

    def batch(self, k: int) -> Batch:
        """This process's rows of batch k of the global sequence: a pure function of the configuration and k."""
        ...

    def loss(self, model: GPT, batch: Batch) -> Tensor:
        """The objective: the summed loss of a micro-batch, a scalar in nats."""
        ...

    def count(self, batch: Batch) -> int:
        """How many terms the summed loss of these rows has: trained tokens, or preference pairs."""
        ...

    def validate(self, model: GPT, *, full: bool = False, max_rows: int | None = None) -> Evaluation:
        """The loss on the fixed validation subset, or on the full split; the same in every process.

        Args:
            model: in eval mode.
            full: whether to use the full validation split.
            max_rows: rows per forward pass at most, if memory has run out before.
        """
        ...

    def baselines(self) -> Baselines | None:
        """Losses to compare the model's with; None if there are none."""
        ...

    def initial_loss_warning(self, loss: float) -> str:
        """Why the validation loss of the model at step 0 is suspicious; empty if it is not."""
        ...

    def sample(self, model: GPT, seed: int) -> str:
        """A text that the model generates, to be shown during training. Every process generates it."""
        ...

    def close(self) -> None:
        """End what reads batches ahead."""
        ...

"""A task that is not pre-training: preference pairs, as in DPO, without a reference model."""

import torch
from torch import Tensor
from torch.nn import functional

from glassgpt.data.batch import Batch
from glassgpt.loss import Baselines, Evaluation
from glassgpt.model import GPT
from glassgpt.processes import Processes
from glassgpt.tokenizer import CharTokenizer


class PreferencePairs:
    """Rows 2 i and 2 i + 1 are two answers; training makes the first more likely than the second."""

    rows_together = 2
    tokenizer = CharTokenizer(list("abcdefgh"))

    def __init__(self, batch_size: int, block_size: int, processes: Processes | None = None):
        self.batch_size, self.block_size = batch_size, block_size
        self.tokens_per_step = batch_size * block_size
        self.rows = (processes or Processes()).share(batch_size, self.rows_together)
        self.closed = False
        self.max_rows: list[int | None] = []  # that validation was limited to

    def batch(self, k: int) -> Batch:
        ids = torch.randint(8, (self.batch_size, self.block_size + 1), generator=torch.Generator().manual_seed(k))
        ids[::2] = ids[::2] // 2  # the preferred answers have the letters a to d
        return Batch(ids[self.rows, :-1].contiguous(), ids[self.rows, 1:].contiguous())

    def loss(self, model: GPT, batch: Batch) -> Tensor:
        assert len(batch.idx) % 2 == 0, "a pair was split"
        losses = functional.cross_entropy(model(batch.idx).flatten(0, 1), batch.targets.flatten(), reduction="none")
        scores = -losses.view(batch.targets.shape).sum(dim=1)  # log-likelihood of each answer
        return -functional.logsigmoid(scores[::2] - scores[1::2]).sum()

    def count(self, batch: Batch) -> int:
        return len(batch.idx) // 2

    def validate(self, model: GPT, *, full: bool = False, max_rows: int | None = None) -> Evaluation:
        self.max_rows.append(max_rows)
        rows, self.rows = self.rows, slice(None)
        batch, self.rows = self.batch(10**6 + full), rows
        with torch.no_grad():
            return Evaluation(float(self.loss(model, batch)) / self.count(batch), 0.0, self.tokens_per_step)

    def baselines(self) -> Baselines | None:
        return None

    def initial_loss_warning(self, loss: float) -> str:
        return ""

    def sample(self, model: GPT, seed: int) -> str:
        return "no text"

    def close(self) -> None:
        self.closed = True

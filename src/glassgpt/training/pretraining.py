"""Pre-training: predict the next token of a text. The first :class:`~glassgpt.training.task.Task`."""

import math

import torch
from torch import Tensor

from glassgpt.config import RunConfig
from glassgpt.data.batch import Batch
from glassgpt.data.batches.loader import Loader
from glassgpt.data.batches.windows import Batches
from glassgpt.data.corpus.manifest import TokenStream
from glassgpt.errors import ConfigError, GenerationError
from glassgpt.estimate import LOGITS_AT_A_TIME, TOKENS_PER_PASS
from glassgpt.inference.decode import complete
from glassgpt.inference.decoders import choose_decoder
from glassgpt.loss import Baselines, Evaluation, counting_baselines, evaluate, subset
from glassgpt.model import GPT
from glassgpt.processes import Processes
from glassgpt.sampling import SamplingConfig
from glassgpt.training.objective import next_token_loss


class Pretraining:
    """Next-token prediction on a token stream; see :class:`~glassgpt.training.task.Task`.

    Args:
        config: of the run, resolved.
        stream: the tokens and their tokenizer.
        device: where the model computes.
        processes: that share every batch.
        all_offsets: see :class:`~glassgpt.data.Batches`.
    """

    rows_together = 1

    def __init__(
        self, config: RunConfig, stream: TokenStream, device: torch.device, processes: Processes,
        all_offsets: bool = True,
    ):  # fmt: skip
        train, T = config.train, config.model.block_size
        self.config, self.stream, self.device, self.processes = config, stream, device, processes
        self.tokenizer, self.batch_size, self.tokens_per_step = stream.tokenizer, train.batch_size, train.batch_size * T
        self.loader = Loader(
            Batches(stream.train, T, train.batch_size, train.seed, config.data.order, all_offsets),
            processes.share(train.batch_size, self.rows_together),
            mask_documents=config.data.mask_documents,
            num_workers=config.runtime.num_workers,
            pin_memory=device.type == "cuda",
        )
        self.validation_windows = subset(stream.val, T, train.eval_tokens)

    def batch(self, k: int) -> Batch:
        """This process's rows of batch k."""
        return self.loader.get(k)

    def loss(self, model: GPT, batch: Batch) -> Tensor:
        """The summed cross-entropy of the next token."""
        return next_token_loss(model, batch)

    def count(self, batch: Batch) -> int:
        """The number of targets that count in the loss."""
        return batch.num_loss_tokens()

    def validate(self, model: GPT, *, full: bool = False, max_rows: int | None = None) -> Evaluation:
        """The loss on the validation subset or the full split, in forward passes of about 8,192 tokens."""
        T, vocab_size = self.config.model.block_size, self.config.model.vocab_size
        rows = max(1, min(TOKENS_PER_PASS // T, LOGITS_AT_A_TIME // (T * vocab_size)))
        return evaluate(
            model,
            self.stream.val,
            T,
            self.device,
            starts=None if full else self.validation_windows,
            batch_size=min(rows, max_rows or rows),
            mask_documents=self.config.data.mask_documents,
            tokens_per_byte=self.stream.tokens_per_byte,
            processes=self.processes,
        )

    def baselines(self) -> Baselines:
        """The losses of counting models."""
        return counting_baselines(self.stream.train, self.stream.val, self.config.model.vocab_size)

    def initial_loss_warning(self, loss: float) -> str:
        """A model from scratch predicts every token with about the same probability."""
        uniform = math.log(self.config.model.vocab_size)
        if self.config.train.init_from or abs(loss / uniform - 1) <= 0.05:
            return ""
        return (
            f"initial loss {loss:.3f} is not within 5 % of ln(V) = {uniform:.3f}. Lower: targets leak into the inputs. "
            "Higher: the initial weights are too large"
        )

    def sample(self, model: GPT, seed: int) -> str:
        """A text from the empty prompt; or why there is none, since a sample never ends a run."""
        tokens = self.config.train.sample_tokens
        try:
            decoder, _ = choose_decoder(model, self.config.runtime.decode)
            return complete(
                model, self.tokenizer, [""], tokens, SamplingConfig(temperature=0.8), seed=seed, decoder=decoder
            )[0]
        except (ConfigError, GenerationError) as error:
            return f"(no sample: {error})"

    def close(self) -> None:
        """End the worker processes."""
        self.loader.close()

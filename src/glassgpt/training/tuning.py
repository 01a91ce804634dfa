"""Fine-tuning on conversations: predict the assistant's tokens. A :class:`~glassgpt.training.task.Task`."""

import math

import torch
from torch import Tensor

from glassgpt.config import RunConfig
from glassgpt.data.batch import Batch
from glassgpt.data.conversations.batches import ChatBatches, choose_rows
from glassgpt.data.conversations.dataset import ChatData
from glassgpt.errors import ConfigError, GenerationError
from glassgpt.inference.decode import Request, generate_text
from glassgpt.inference.decoders import choose_decoder
from glassgpt.loss import Evaluation
from glassgpt.model import GPT
from glassgpt.processes import Processes
from glassgpt.sampling import SamplingConfig
from glassgpt.tokenizer import chat
from glassgpt.training.objective import answer_loss


class ChatTuning:
    """The loss of the assistant's tokens and of the tokens that end their turns; see Task.

    The loss is the mean over the trained tokens of the global batch: a long answer counts more than a short one.

    Args:
        config: of the run, resolved.
        chats: the conversations.
        device: where the model computes.
        processes: that share every batch.
    """

    rows_together = 1

    def __init__(self, config: RunConfig, chats: ChatData, device: torch.device, processes: Processes):
        self.config, self.chats, self.device, self.processes = config, chats, device, processes
        train, packing = config.train, config.tune.packing
        self.tokenizer, self.batch_size = chats.tokenizer, train.batch_size
        self.batches = chats.batches(train.batch_size, train.seed, packing)
        self.val = choose_rows(chats.val, train.eval_tokens, train.seed)
        self.share = processes.share(train.batch_size, self.rows_together)
        self.tokens_per_step = self.batches.tokens_per_batch

    def batch(self, k: int) -> Batch:
        """This process's rows of batch k."""
        return self.batches.get(k, self.share)

    def loss(self, model: GPT, batch: Batch) -> Tensor:
        """The summed cross-entropy of the tokens that are trained."""
        return answer_loss(model, batch)

    def count(self, batch: Batch) -> int:
        """The number of tokens that are trained."""
        return batch.num_loss_tokens()

    @torch.no_grad()
    def validate(self, model: GPT, *, full: bool = False, max_rows: int | None = None) -> Evaluation:
        """The loss on conversations of the validation split, one per row; on as many as eval_tokens allows."""
        rows = self.val
        count = len(rows)
        sums, tokens = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
        for first in range(0, count, self.processes.world_size):
            mine = first + self.processes.rank
            row = rows[min(mine, count - 1)]  # with nothing left to do, repeat the last, and do not count it
            batch = ChatBatches([row], self.chats.max_length, 1, 0, packing=False).get(0)
            loss = answer_loss(model, batch.micro_batch(0, 1, self.device))
            if mine < count:
                sums[mine], tokens[mine] = float(loss), batch.num_loss_tokens()
        sums, tokens = self.processes.sum(sums), self.processes.sum(tokens)
        mean = float(sums.sum() / tokens.sum())
        # of a ratio of sums: the spread of each conversation's excess over the mean
        spread = float((sums - mean * tokens).std()) if count > 1 else math.nan
        return Evaluation(mean, spread * math.sqrt(count) / float(tokens.sum()), int(tokens.sum()))

    def baselines(self) -> None:
        """There are none."""

    def initial_loss_warning(self, loss: float) -> str:
        """A trained model is better than a uniform guess."""
        uniform = math.log(self.config.model.vocab_size)
        if loss < uniform:
            return ""
        return (
            f"initial loss {loss:.3f} is not below ln(V) = {uniform:.3f}: the model is no better than a uniform "
            "guess. Is it trained?"
        )

    def sample(self, model: GPT, seed: int) -> str:
        """The greedy answer to the first question of the validation split; or why there is none."""
        if (question := self.chats.first_question()) is None:
            return "(no sample: there is no conversation to validate on)"
        template = self.tokenizer.published.chat_templates["default"]
        prompt = chat.encode(self.tokenizer, template, question)
        request = Request(prompt, self.config.train.sample_tokens, SamplingConfig(temperature=0.0))
        text = ""
        try:
            decoder, _ = choose_decoder(model, self.config.runtime.decode)
            for _, streamers in generate_text(model, self.tokenizer, [request], decoder=decoder):
                text = streamers[0].text
        except (ConfigError, GenerationError) as error:
            text = f"(no answer: {error})"
        return f"> {question[-1]['content']}\n{text}"

    def close(self) -> None:
        """Nothing reads ahead."""

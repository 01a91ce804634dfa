"""What a model answers to questions, and how likely it finds the reference answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from glassgpt import loss
from glassgpt.errors import ConfigError, DataError
from glassgpt.evaluation.questions import Question
from glassgpt.files import Progress
from glassgpt.inference.decode import Request, generate_text
from glassgpt.inference.stream import TextStreamer, require_known
from glassgpt.model import GPT
from glassgpt.sampling import SamplingConfig
from glassgpt.tokenizer import Tokenizer, chat

#: Window of :func:`text_loss`, in tokens; less if the model's context is shorter.
TEXT_WINDOW = 1024
#: Logits that exist at a time in :func:`text_loss`: 400 MB in float32.
_LOGITS_AT_A_TIME = 100_000_000


@dataclass(frozen=True)
class Answer:
    """A generated answer.

    Attributes:
        text: without the end token.
        tokens: how many it has, without the end token.
        ended: whether the model ended it, in contrast to ``max_new_tokens``.
    """

    text: str
    tokens: int
    ended: bool


@dataclass(frozen=True)
class ReferenceLoss:
    """The negative log-likelihood of a reference answer and its end token, given the question.

    Attributes:
        sum: in nats.
        tokens: how many were predicted; 0 without a reference answer.
    """

    sum: float
    tokens: int


def answer_questions(
    model: GPT, tokenizer: Tokenizer, questions: Sequence[Question], *, max_new_tokens: int = 96, batch_size: int = 40,
    progress: Progress | None = None,
) -> list[Answer]:  # fmt: skip
    """Generate the most likely next token again and again (greedy), from each question in the model's chat template.

    Questions of similar length are in one batch; the answers do not depend on it but for rounding.

    Args:
        model: in eval mode, in any dtype.
        tokenizer: with a chat template.
        questions: to answer.
        max_new_tokens: of an answer.
        batch_size: questions that are answered at a time.
        progress: called at every step, with the questions that are answered.

    Raises:
        ConfigError: if the tokenizer has no chat template.
        TokenizerError: if the template rejects the messages of a question.
        GenerationError: if the logits are not numbers.
    """
    assert max_new_tokens > 0, "an answer needs at least one token"
    template = _template(tokenizer)
    prompts = [chat.encode(tokenizer, template, question.messages, prompt=True) for question in questions]
    if not all(prompts):
        raise ConfigError("the chat template makes no tokens of a question; use a model with another template")
    greedy = SamplingConfig(temperature=0.0)
    answers: dict[int, Answer] = {}
    for batch in _batches([len(ids) for ids in prompts], batch_size):
        requests = [Request(prompts[i], max_new_tokens, greedy) for i in batch]
        streamers = list[TextStreamer]()
        for step, current in generate_text(model, tokenizer, requests):
            streamers = current
            if progress:
                progress("answering", len(answers) + step.active.count(False), len(questions))
        for i, streamer in zip(batch, streamers, strict=True):
            length = len(streamer.tokens)
            answers[i] = Answer(streamer.text.strip(), length, ended=length < max_new_tokens)
        if progress:
            progress("answering", len(answers), len(questions))
    return [answers[i] for i in range(len(questions))]


@torch.no_grad()
def reference_loss(
    model: GPT, tokenizer: Tokenizer, questions: Sequence[Question], *, batch_size: int = 16
) -> list[ReferenceLoss]:
    """Measure how unlikely the reference answers are, each with the token that ends its turn.

    Of a conversation that is longer than the context, the newest tokens are used.

    Args:
        model: in eval mode, in any dtype; the loss is computed in float32.
        tokenizer: with a chat template.
        questions: those without a reference answer have 0 tokens.
        batch_size: conversations in a forward pass, padded on the right.

    Raises:
        ConfigError, TokenizerError: as :func:`answer_questions`.
        GenerationError: if the tokenizer belongs to another model.
    """
    template, context = _template(tokenizer), model.config.block_size
    rows: dict[int, tuple[list[int], int, int]] = {}  # ids, and the first and last of the answer that are predicted
    for i, question in enumerate(questions):
        if not question.answer:
            continue
        messages = [*question.messages, {"role": "assistant", "content": question.answer}]
        ids, trained = chat.encode_trained(tokenizer, template, messages)
        require_known(ids, model.config.vocab_size, "a question")
        if True not in trained:
            continue
        end = len(trained) - trained[::-1].index(True)  # the last answer is the reference
        start = next((at + 1 for at in range(end - 1, -1, -1) if not trained[at]), 0)
        cut = max(0, end - context - 1)
        rows[i] = ids[cut:end], max(1, start - cut), end - cut
    losses = [ReferenceLoss(0.0, 0)] * len(questions)
    order = list(rows)
    for batch in _batches([len(rows[i][0]) for i in order], batch_size):
        chosen = [order[i] for i in batch]
        longest = max(len(rows[i][0]) for i in chosen)
        padded = [rows[i][0] + [0] * (longest - len(rows[i][0])) for i in chosen]
        idx = torch.tensor(padded, device=model.device)  # [B, T + 1]
        hidden_states = model(idx[:, :-1], apply_head=False)  # [B, T, C]
        for row, i in enumerate(chosen):
            _, start, end = rows[i]
            logits = model.head(hidden_states[row, start - 1 : end - 1]).float()  # [n, V]
            nll = F.cross_entropy(logits, idx[row, start:end], reduction="none")
            losses[i] = ReferenceLoss(float(nll.double().sum().cpu()), end - start)
    return losses


def text_loss(model: GPT, tokenizer: Tokenizer, text: str) -> float:
    """Measure the mean loss per token of a text, in nats, in windows of :data:`TEXT_WINDOW` tokens.

    Raises:
        DataError: if the text has fewer than two tokens.
        TokenizerError: if it has characters that the tokenizer does not know.
        GenerationError: if the tokenizer belongs to another model.
    """
    ids = tokenizer.encode_array(text)
    if len(ids) < 2:
        raise DataError(f"a text of {len(ids)} tokens has no loss; use a longer text")
    require_known([int(ids.min()), int(ids.max())], model.config.vocab_size, "the text")
    window = min(TEXT_WINDOW, model.config.block_size)
    batch_size = max(1, _LOGITS_AT_A_TIME // (window * model.config.vocab_size))
    return loss.evaluate(model, ids, window, model.device, batch_size=batch_size).loss


def _template(tokenizer: Tokenizer) -> str:
    template = tokenizer.published.chat_templates.get("default")
    if template is None:
        raise ConfigError("the model has no chat template, so it cannot be asked questions; tune it on chats first")
    return template


def _batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, the longest first: if memory runs out, it does so at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for at in range(0, len(order), size):
        yield order[at : at + size]

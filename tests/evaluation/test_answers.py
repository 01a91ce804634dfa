"""Answers and losses in batches equal those one by one, and brute force."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from conftest import thread_count
from glassgpt.config import ModelConfig
from glassgpt.config.presets import MODERN
from glassgpt.errors import ConfigError, DataError
from glassgpt.evaluation.answers import Answer, ReferenceLoss, answer_questions, reference_loss, text_loss
from glassgpt.evaluation.questions import Question
from glassgpt.evaluation.report import (
    Evaluated,
    compare,
    evaluate_model,
    read_evaluated,
    save_evaluated,
    summarize,
    write_report,
)
from glassgpt.model import GPT
from glassgpt.tokenizer import Tokenizer, chat
from glassgpt.tokenizer.base import attach
from glassgpt.tokenizer.bpe.bytelevel import BPEModel
from glassgpt.tokenizer.bpe.tokenizer import BPETokenizer
from glassgpt.tokenizer.published import PublishedSettings

SPECIAL = {"<|im_start|>": 256, "<|im_end|>": 257}
TEXTS = ["Why?", "What is a causal mask, and where is it used in a model?", "Hello", "Größe 日本"]


def questions() -> list[Question]:
    asked = [Question(({"role": "user", "content": text},), f"It is {text.lower()}.") for text in TEXTS]
    talk = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "bcd"}, {"role": "user", "content": "e"})
    return [*asked, Question(talk, "an answer"), Question(asked[0].messages), dataclasses.replace(asked[0], answer="x")]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with thread_count(1):
        yield


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One token per byte, and ChatML's two control tokens."""
    model = BPEModel({bytes([i]): i for i in range(256)}, [], special=SPECIAL, eos="<|im_end|>")
    tokenizer = BPETokenizer(model)
    attach(tokenizer, PublishedSettings(chat_templates={"default": chat.CHATML}))
    return tokenizer


@pytest.fixture(scope="module")
def model() -> GPT:
    """Random weights; the end token is likely enough to end some answers."""
    shape = ModelConfig(vocab_size=260, block_size=160, n_layer=2, n_head=4, n_embd=32, tie_embeddings=False)
    model = GPT(dataclasses.replace(shape, **MODERN, n_kv_head=2, intermediate_size=48))
    model.init_weights(3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return model.eval()


def template_of(tokenizer: Tokenizer) -> str:
    return tokenizer.published.chat_templates["default"]


@torch.no_grad()
def brute_force(model: GPT, tokenizer: Tokenizer, question: Question, limit: int) -> Answer:
    ids = chat.encode(tokenizer, template_of(tokenizer), question.messages, prompt=True)
    generated: list[int] = []
    while len(generated) < limit:
        logits = model(torch.tensor([ids + generated]))[0, -1, : tokenizer.vocab_size]
        generated.append(int(logits.argmax()))
        if generated[-1] == SPECIAL["<|im_end|>"]:
            return Answer(tokenizer.decode(generated[:-1]).strip(), len(generated) - 1, True)
    return Answer(tokenizer.decode(generated).strip(), limit, False)


def test_answers_in_batches_are_those_of_a_loop_without_cache(model: GPT, tokenizer: Tokenizer) -> None:
    asked = questions()
    done: list[tuple[int, int]] = []
    answers = answer_questions(
        model, tokenizer, asked, max_new_tokens=12, batch_size=3, progress=lambda _, n, of: done.append((n, of))
    )
    assert answers == [brute_force(model, tokenizer, question, 12) for question in asked]
    assert done == sorted(done) and done[-1] == (7, 7)
    assert answers == answer_questions(model, tokenizer, asked, max_new_tokens=12)


def test_an_answer_ends_at_the_end_token(model: GPT, tokenizer: Tokenizer) -> None:
    class Ending(torch.nn.Module):
        """A head that prefers the end token after the fifth token of an answer."""

        def __init__(self, head: torch.nn.Module):
            super().__init__()
            self.head, self.calls = head, 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = self.head(x).clone()
            self.calls += 1
            logits[..., SPECIAL["<|im_end|>"]] += 1e4 if self.calls > 5 else -1e4
            return logits

    head = model.head
    try:
        model.head = Ending(head)  # type: ignore[assignment]
        (answer,) = answer_questions(model, tokenizer, questions()[:1], max_new_tokens=6)
        assert (answer.tokens, answer.ended) == (5, True)
        model.head = Ending(head)  # type: ignore[assignment]
        (answer,) = answer_questions(model, tokenizer, questions()[:1], max_new_tokens=5)
        assert (answer.tokens, answer.ended) == (5, False)
    finally:
        model.head = head


@torch.no_grad()
def test_reference_losses_in_padded_batches_equal_brute_force(model: GPT, tokenizer: Tokenizer) -> None:
    asked = questions()
    losses = reference_loss(model, tokenizer, asked, batch_size=3)
    for question, loss in zip(asked, losses, strict=True):
        prompt = chat.encode(tokenizer, template_of(tokenizer), question.messages, prompt=True)
        answer = [*question.answer.encode("utf-8"), SPECIAL["<|im_end|>"]] if question.answer else []
        log_p = model(torch.tensor([prompt + answer]))[0].double().log_softmax(dim=-1)
        expected = -sum(float(log_p[len(prompt) + at - 1, i]) for at, i in enumerate(answer))
        assert loss.tokens == len(answer)
        assert loss.sum == pytest.approx(expected, rel=1e-5)
    alone = [reference_loss(model, tokenizer, [question])[0] for question in asked]
    assert [loss.sum for loss in losses] == pytest.approx([loss.sum for loss in alone], rel=1e-6)


@torch.no_grad()
def test_of_a_long_conversation_the_newest_tokens_are_used(model: GPT, tokenizer: Tokenizer) -> None:
    question = Question(({"role": "user", "content": "long " * 60},), "x" * 20)
    (loss,) = reference_loss(model, tokenizer, [question])
    messages = [*question.messages, {"role": "assistant", "content": question.answer}]
    ids = chat.encode(tokenizer, template_of(tokenizer), messages, prompt=False)
    window = ids[:-1][-161:]  # without the line end
    log_p = model(torch.tensor([window[:-1]]))[0].double().log_softmax(dim=-1)
    assert loss.tokens == 21
    assert loss.sum == pytest.approx(-sum(float(log_p[i, window[i + 1]]) for i in range(139, 160)), rel=1e-5)
    (loss,) = reference_loss(model, tokenizer, [dataclasses.replace(question, answer="y" * 400)])
    assert loss.tokens == 160


@torch.no_grad()
def test_text_loss_is_the_mean_over_all_tokens(model: GPT, tokenizer: Tokenizer, prose: str) -> None:
    text = prose[:150]
    ids = torch.tensor([tokenizer.encode(text)])
    expected = torch.nn.functional.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:])
    assert text_loss(model, tokenizer, text) == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(DataError, match="longer text"):
        text_loss(model, tokenizer, "a")


def test_a_model_without_a_template_is_an_error(model: GPT, tokenizer: Tokenizer) -> None:
    bare = BPETokenizer(BPEModel({bytes([i]): i for i in range(256)}, [], special=SPECIAL, eos="<|im_end|>"))
    for function in (answer_questions, reference_loss):
        with pytest.raises(ConfigError, match="chat template"):
            function(model, bare, questions())


# --- the report


def evaluated(texts: list[str], loss: float, of_text: float | None, rubric: bool = True) -> Evaluated:
    asked = [
        Question(({"role": "user", "content": "Mask?"},), "It hides.", (("hides", "hide"), ("future",)) * rubric),
        Question(({"role": "user", "content": "Cats?"},), "No.", (("only",),) * rubric, topic="refusal" * rubric),
    ]
    answers = [Answer(text, len(text.split()), at == 0) for at, text in enumerate(texts)]
    return Evaluated(asked, answers, [ReferenceLoss(loss, 4), ReferenceLoss(2 * loss, 4)], of_text, 96)


def test_the_comparison_has_the_numbers_of_both_models() -> None:
    before = evaluated(["I only help with cats ``` |", "Cats are nice."], 8.0, 2.0)
    after = evaluated(["It hides the future.", "I only know GPTs."], 4.0, 2.01)
    assert compare(before, after) == [
        ("reference answers, loss per token", "3.000", "1.500", "-1.500"),
        ("reference answers, probability per token", "5.0%", "22.3%", "x 4.48"),
        ("rubric points", "0.0%", "100.0%", "+100.0 points"),
        ("refusals right", "0 of 1", "1 of 1", "+1"),
        ("wrongly refused", "1 of 1", "0 of 1", "-1"),
        ("answers that ended by themselves", "1 of 2", "1 of 2", "+0"),
        ("mean length of an answer, in tokens", "5.0", "4.0", "-1.0"),
        ("perplexity on general text", "7.39", "7.46", "+1.0%"),
    ]


def test_questions_without_rubric_have_fewer_rows(tmp_path: Path) -> None:
    before, after = (evaluated(["a", "b c"], loss, None, rubric=False) for loss in (8.0, 4.0))
    assert [row[0].split(",")[0] for row in compare(before, after)] == [
        "reference answers", "reference answers", "answers that ended by themselves", "mean length of an answer"
    ]  # fmt: skip
    assert summarize(before).points is None
    write_report(tmp_path / "report.md", before, after, "my run")
    assert "points" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_the_report_shows_every_answer_as_it_is(tmp_path: Path) -> None:
    before = evaluated(["I only help with cats ```` | <b>", "# Cats\nare nice."], 8.0, 2.0)
    after = evaluated(["It hides the future.", "I only know GPTs."], 4.0, 2.01)
    write_report(tmp_path / "report.md", before, after, "my run")
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "`````text\nI only help with cats ```` | <b>\n`````" in report
    assert "```text\n# Cats\nare nice.\n```" in report
    assert "missed: hides / hide" in report
    with pytest.raises(ConfigError, match="cannot be written"):
        write_report(tmp_path / "nothing" / "report.md", before, after, "my run")


def test_what_was_measured_can_be_kept(model: GPT, tokenizer: Tokenizer, tmp_path: Path, prose: str) -> None:
    path, asked = tmp_path / "before.json", questions()
    measured = evaluate_model(model, tokenizer, asked, prose[:300], max_new_tokens=4)
    save_evaluated(path, measured)
    assert read_evaluated(path, asked, max_new_tokens=4) == measured
    assert read_evaluated(path, asked) is None
    assert read_evaluated(path, asked[1:], max_new_tokens=4) is None
    assert read_evaluated(tmp_path / "other.json", asked) is None
    for damaged in (path.read_text(encoding="utf-8")[:-40], "[]", "{}", '{"answers": 1}'):
        path.write_text(damaged, encoding="utf-8")
        assert read_evaluated(path, asked, max_new_tokens=4) is None

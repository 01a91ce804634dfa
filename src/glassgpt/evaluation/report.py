"""A model before and after training on the same questions: measured, kept as JSON, compared, written as a report."""

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import regex

from glassgpt.errors import ConfigError
from glassgpt.evaluation.answers import Answer, ReferenceLoss, answer_questions, reference_loss, text_loss
from glassgpt.evaluation.questions import Question, Score, refuses, score
from glassgpt.files import Progress, read_json_object, write_text
from glassgpt.model import GPT
from glassgpt.tokenizer import Tokenizer

#: Columns of an answer in the report.
_COLUMNS = 110


@dataclass(frozen=True)
class Evaluated:
    """What was measured of one model; every list has an entry for each question.

    Attributes:
        questions: as they were asked.
        answers: generated.
        losses: of the reference answers.
        text_loss: mean loss per token on a general text, in nats; None if there was no text.
        max_new_tokens: of an answer.
    """

    questions: list[Question]
    answers: list[Answer]
    losses: list[ReferenceLoss]
    text_loss: float | None
    max_new_tokens: int

    @property
    def scores(self) -> list[Score | None]:
        """The rubric points of each answer."""
        return [score(question, answer.text) for question, answer in zip(self.questions, self.answers, strict=True)]


def evaluate_model(
    model: GPT, tokenizer: Tokenizer, questions: Sequence[Question], text: str = "", *, max_new_tokens: int = 96,
    progress: Progress | None = None,
) -> Evaluated:  # fmt: skip
    """Answer the questions, and measure the loss on their reference answers and on a general text (if not empty).

    Raises:
        GlassError: as the functions of :mod:`glassgpt.evaluation.answers`.
    """
    answers = answer_questions(model, tokenizer, questions, max_new_tokens=max_new_tokens, progress=progress)
    losses = reference_loss(model, tokenizer, questions)
    of_text = text_loss(model, tokenizer, text) if text else None
    return Evaluated(list(questions), answers, losses, of_text, max_new_tokens)


@dataclass(frozen=True)
class Summary:
    """The numbers of one model; a number is None if it does not apply.

    Attributes:
        reference_loss: mean loss per token of the reference answers, in nats.
        points: mean of the rubric points, 0 to 1, of the questions that are to be answered.
        refusals_right: refusals that meet their rubric in full, of ``refusals``.
        wrongly_refused: refusals of questions that are to be answered, of ``answerable``; None without refusals.
        ended: answers that ended by themselves, of ``count``.
        mean_tokens: mean length of an answer, in tokens.
        text_loss: mean loss per token on the general text, in nats.
    """

    count: int
    answerable: int
    refusals: int
    reference_loss: float | None
    points: float | None
    refusals_right: int | None
    wrongly_refused: int | None
    ended: int
    mean_tokens: float
    text_loss: float | None


def summarize(model: Evaluated) -> Summary:
    """Sum up what was measured of one model."""
    count, tokens = len(model.questions), sum(loss.tokens for loss in model.losses)
    rows = list(zip(model.questions, model.answers, model.scores, strict=True))
    points = [scored.points for question, _, scored in rows if scored and not question.is_refusal]
    refusals = [scored for question, _, scored in rows if question.is_refusal]
    refused = sum(refuses(answer.text) for question, answer, _ in rows if not question.is_refusal)
    return Summary(
        count=count,
        answerable=count - len(refusals),
        refusals=len(refusals),
        reference_loss=math.fsum(loss.sum for loss in model.losses) / tokens if tokens else None,
        points=math.fsum(points) / len(points) if points else None,
        refusals_right=sum(scored is not None and scored.points == 1 for scored in refusals) if refusals else None,
        wrongly_refused=refused if refusals else None,
        ended=sum(answer.ended for answer in model.answers),
        mean_tokens=sum(answer.tokens for answer in model.answers) / max(1, count),
        text_loss=model.text_loss,
    )


def compare(before: Evaluated, after: Evaluated) -> list[tuple[str, str, str, str]]:
    """Compare a model before and after training: rows of a table with the quantity, before, after, and the change.

    Quantities that do not apply to these questions are left out.
    """
    assert before.questions == after.questions, "the same questions have to be asked before and after"
    b, a = summarize(before), summarize(after)
    rows: list[tuple[str, str, str, str]] = []
    if b.reference_loss is not None and a.reference_loss is not None:
        change = a.reference_loss - b.reference_loss
        p_before, p_after = (f"{math.exp(-loss):.1%}" for loss in (b.reference_loss, a.reference_loss))
        rows.append(_row("reference answers, loss per token", b.reference_loss, a.reference_loss, ".3f"))
        rows.append(("reference answers, probability per token", p_before, p_after, f"x {math.exp(-change):.2f}"))
    if b.points is not None and a.points is not None:
        rows.append(
            ("rubric points", f"{b.points:.1%}", f"{a.points:.1%}", f"{100 * (a.points - b.points):+.1f} points")
        )
    rows += [
        (name, f"{x} of {n}", f"{y} of {n}", f"{y - x:+d}")
        for name, x, y, n in (
            ("refusals right", b.refusals_right, a.refusals_right, b.refusals),
            ("wrongly refused", b.wrongly_refused, a.wrongly_refused, b.answerable),
            ("answers that ended by themselves", b.ended, a.ended, b.count),
        )
        if x is not None and y is not None
    ]
    rows.append(_row("mean length of an answer, in tokens", b.mean_tokens, a.mean_tokens, ".1f"))
    if b.text_loss is not None and a.text_loss is not None:
        ppl_before, ppl_after = (f"{_perplexity(loss):.2f}" for loss in (b.text_loss, a.text_loss))
        change = _perplexity(a.text_loss - b.text_loss) - 1
        rows.append(("perplexity on general text", ppl_before, ppl_after, f"{change:+.1%}"))
    return rows


def _row(name: str, before: float, after: float, form: str) -> tuple[str, str, str, str]:
    return name, f"{before:{form}}", f"{after:{form}}", f"{after - before:+{form}}"


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))  # more is no float


def save_evaluated(path: Path, model: Evaluated) -> None:
    """Write what was measured as JSON, so that a resumed run need not measure it again.

    Raises:
        OSError: if it cannot be written.
    """
    write_text(path, json.dumps(asdict(model), ensure_ascii=False, indent=1) + "\n")


def read_evaluated(path: Path, questions: Sequence[Question], *, max_new_tokens: int = 96) -> Evaluated | None:
    """Read what :func:`save_evaluated` wrote; None if it is missing, damaged, or of other questions or lengths."""
    try:
        content: dict[str, Any] = read_json_object(path)
        answers = [Answer(str(a["text"]), int(a["tokens"]), bool(a["ended"])) for a in content["answers"]]
        losses = [ReferenceLoss(float(loss["sum"]), int(loss["tokens"])) for loss in content["losses"]]
        text_loss = None if content["text_loss"] is None else float(content["text_loss"])
        saved = content["questions"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    asked = json.loads(json.dumps([asdict(question) for question in questions]))
    if (
        saved != asked
        or content.get("max_new_tokens") != max_new_tokens
        or not len(answers) == len(losses) == len(asked)
    ):
        return None
    return Evaluated(list(questions), answers, losses, text_loss, max_new_tokens)


def write_report(path: Path, before: Evaluated, after: Evaluated, title: str) -> None:
    """Write a report in Markdown: the table of :func:`compare`, then every question with its answers and points.

    Raises:
        ConfigError: if it cannot be written.
    """
    lines = [f"# {title}", "", "| | before | after | change |", "|-|-:|-:|-:|"]
    lines += [f"| {' | '.join(row)} |" for row in compare(before, after)]
    lines += ["", "Answers are greedy: always the most likely token.", ""]
    for number, question in enumerate(before.questions, start=1):
        topic = f" ({question.topic})" if question.topic else ""
        lines += [f"## {number}. Question{topic}", ""]
        for message in question.messages:
            lines += _block("" if message["role"] == "user" else message["role"], message["content"])
        if question.answer:
            lines += _block("**reference**", question.answer)
        for name, model in (("before", before), ("after", after)):
            lines += _block(_remarks(name, model, number - 1), model.answers[number - 1].text)
    try:
        write_text(path, "\n".join(lines))
    except OSError as error:
        raise ConfigError(f"the report {path} cannot be written: {error.strerror or error}") from None


def _remarks(name: str, model: Evaluated, at: int) -> str:
    """Describe an answer in one line: the points, the groups that it missed, the wrong words, the loss, its end."""
    parts, scored, loss = [f"**{name}**"], model.scores[at], model.losses[at]
    if scored:
        question = model.questions[at]
        groups = len(question.must)
        parts.append(f"{round(scored.points * groups)} of {groups} points")
        parts += [f"missed: {' / '.join(group[:3])}{' / ...' * (len(group) > 3)}" for group in scored.missed]
        parts += [f"wrong: {text}" for text in scored.wrong]
        parts += ["wrongly refused"] if not question.is_refusal and refuses(model.answers[at].text) else []
    parts += [f"loss of the reference {loss.sum / loss.tokens:.2f}"] if loss.tokens else []
    parts += [] if model.answers[at].ended else [f"cut after {model.answers[at].tokens} tokens"]
    return "; ".join(parts)


def _block(heading: str, text: str) -> list[str]:
    """A text as it is, in lines that fit a screen, under a heading; Markdown in it has no effect."""
    wrapped = [part for line in text.splitlines() for part in textwrap.wrap(line, _COLUMNS) or [""]]
    fence = "`" * max(3, 1 + max(map(len, regex.findall("`+", text)), default=0))
    return [*([f"{heading}:", ""] if heading else []), f"{fence}text", *wrapped, fence, ""]

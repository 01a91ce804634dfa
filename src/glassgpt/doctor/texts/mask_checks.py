"""The checks of labels: which tokens of a conversation are trained, and whether the end of a turn is."""

import re
from collections.abc import Iterator
from typing import Any

from glassgpt.doctor.report import NotRun, Result, failed, passed, warned
from glassgpt.doctor.texts.alignment import Place, locate, need_labels, need_messages, need_rows, text_of
from glassgpt.doctor.texts.conversation_subject import Conversations, ExaminedRow

#: How templates begin the turns of users and systems.
_PROMPT_MARKS = re.compile(
    r"<\|im_start\|>\s*(?:user|system)|<\|start_header_id\|>\s*(?:user|system)|<\|(?:user|system)\|>"
    r"|<start_of_turn>user|\[INST\]|^#+ *(?:Instruction|Input|User|Human)\b|^(?:User|Human|System):", re.MULTILINE,
)  # fmt: skip
#: How templates write a token that ends a turn or a text.
_END_MARK = re.compile(r"\s*(<\|[^|<>\s]{1,30}\|>|</s>|<eos>|<end_of_turn>|\[EOS\])")


def check_trained(subject: Conversations) -> Iterator[Result]:
    """Every row trains something, and no label stands for padding."""
    need_rows(subject)
    empty = [i for i, row in enumerate(subject.rows) if not any(label >= 0 for label in row.labels)]
    share = len(empty) / len(subject.rows)
    evidence: dict[str, Any] = {"rows": len(subject.rows), "without": len(empty)}
    if empty:
        message = (
            f"{len(empty)} of {len(subject.rows)} rows train nothing (the first: row {empty[0]}): all their labels are "
            "ignored; the answer was cut away, or the mask covers it"
        )
        yield failed("mask", message, **evidence) if share >= 0.01 else warned("mask", message, **evidence)
    elif subject.shifted is None:
        yield failed("targets", "the labels are neither the tokens of their row nor the next ones", **evidence)
    elif subject.shifts_again:
        yield failed(
            "targets", "the labels are shifted by one against input_ids, as in rows (x, y); models that read input_ids "
            "and labels shift them again, and train each place on the token after the next", **evidence,
        )  # fmt: skip
    elif padded := [i for i, row in enumerate(subject.rows) if _trains_padding(row)]:
        yield failed(
            "mask", f"{len(padded)} of {len(subject.rows)} rows train the padding at their end (row {padded[0]}); set "
            "its labels to -100", **evidence,
        )  # fmt: skip
    elif wrong := _wrong_masks(subject):
        yield failed("mask", wrong, **evidence)
    else:
        trained = sum(label >= 0 for row in subject.rows for label in row.labels)
        total = sum(len(row.labels) for row in subject.rows)
        yield passed(f"{trained / total:.0%} of the tokens of {len(subject.rows)} rows are trained", **evidence)


def _trains_padding(row: ExaminedRow) -> bool:
    """Whether a run of one token at the end, which is not there before, or that the mask leaves out, is trained."""
    if row.mask is not None:
        off = [at for at, on in enumerate(row.mask[: len(row.labels)]) if not on]
        return sum(row.labels[at] >= 0 for at in off) > 1
    last = row.labels[-1] if row.labels else -1
    run = next((n for n, label in enumerate(reversed(row.labels)) if label != last), len(row.labels))
    return last >= 0 and run >= 4 and row.ids[-1] == last


def _wrong_masks(subject: Conversations) -> str:
    """What is wrong with attention masks: zeros between tokens that are read."""
    for i, row in enumerate(subject.rows):
        if row.mask is None:
            continue
        on = [at for at, value in enumerate(row.mask) if value]
        if on and on[-1] - on[0] + 1 > len(on) and set(row.mask) <= {0, 1}:
            return (
                f"row {i}: the attention mask hides {on[-1] - on[0] + 1 - len(on)} tokens between others that it shows"
            )
    return ""


def check_prompts(subject: Conversations) -> Iterator[Result]:
    """No token of a user's or system's message is trained."""
    need_labels(subject)
    if subject.trains_on_prompts:
        yield passed("the prompts are trained, as is declared")
        return
    if subject.tokenizer is None:
        if all(label >= 0 for row in subject.rows for label in row.labels):
            yield warned(
                "mask", "every token of every row is trained: prompts as well as answers, if these are conversations"
            )
            return
        raise NotRun("without a tokenizer, prompts and answers cannot be told apart")
    found, examined, example = 0, 0, ""
    for row, places in locate(subject):
        prompts = [place for place in places if place.role in ("user", "system")]
        trained = [place for place in prompts if _share_trained(subject, row, place) > 0.5]
        examined, found = examined + bool(prompts), found + bool(trained)
        example = example or (f"{trained[0].role}: {trained[0].text[:60]!r}" if trained else "")
    if not examined:  # no messages: by the marks of templates
        for row in subject.rows:
            text = "\n".join(text_of(subject.tokenizer, span) for span in subject.trained_spans(row))
            mark = _PROMPT_MARKS.search(text)
            examined, found = examined + 1, found + bool(mark)
            example = example or (f"{mark[0].strip()!r}" if mark else "")
    evidence: dict[str, Any] = {"rows": examined, "with": found}
    if found > 0.02 * examined:
        yield failed(
            "mask", f"in {found} of {examined} rows, tokens of the prompt are trained ({example}): the model learns to "
            "write the user's part; set their labels to -100", **evidence,
        )  # fmt: skip
        return
    yield passed(f"no message of a user or a system is trained in {examined} rows", **evidence)


def check_answers(subject: Conversations) -> Iterator[Result]:
    """The last answer of each conversation is in its row, and all of its tokens are trained."""
    tokenizer = need_messages(subject)
    missing, partly, cut, examined, example = 0, 0, 0, 0, ""
    longest = max(len(row.ids) for row in subject.rows)
    for row, places in locate(subject):
        answers = [place for place in places if place.role == "assistant"]
        users = [place for place in places if place.role == "user" and place.first is not None]
        if not answers or not users:
            continue
        examined += 1
        last = answers[-1]
        if last.first is None:
            full = len(row.ids) >= longest and last.began
            if full or last.row_starts is None:  # in a packed row, its end may be in the next one
                cut += 1
            else:
                missing += 1
                example = example or f"the answer {last.text[:50]!r} is not in its row of {len(row.ids)} tokens"
            continue
        trained = subject.trained_places(row)[last.first : last.end]
        if not all(trained):
            partly += 1
            at = trained.index(False)
            lost = text_of(tokenizer, row.ids[last.first + at : last.first + at + 1])
            example = example or f"of the answer {last.text[:50]!r} the token {lost!r} (number {at + 1}) is not trained"
    if not examined:
        raise NotRun("no conversation was found in the rows")
    evidence: dict[str, Any] = {"rows": examined, "cut away": missing, "partly": partly, "cut at the end": cut}
    bad = missing + partly
    if bad > 0.02 * examined or bad == examined:
        yield failed("mask", f"{bad} of {examined} rows do not train their answer: {example}", **evidence)
    elif cut > 0.5 * examined:
        yield warned(
            "mask", f"the answers of {cut} of {examined} rows are cut at the end: rows are too short", **evidence
        )
    else:
        note = f"; {cut} long ones are cut at the end" if cut else ""
        yield passed(f"the last answers of {examined} rows are trained{note}", **evidence)


def check_end(subject: Conversations) -> Iterator[Result]:
    """The token that ends a turn follows each trained answer, is one token, and is trained."""
    tokenizer = need_messages(subject)
    single = {*tokenizer.special.values(), *tokenizer.end_ids} - {tokenizer.roles.get("unk", -1)}
    untrained, absent, split, examined, example = 0, 0, 0, 0, ""
    longest = max(len(row.ids) for row in subject.rows)
    for row, places in locate(subject):
        answers = [place for place in places if place.role == "assistant" and place.first is not None]
        trained = subject.trained_places(row)
        answers = [place for place in answers if all(trained[place.first : place.end])]
        if not answers or (
            answers[-1].end >= len(row.ids) >= longest and len(subject.rows) > 1 and _is_cut(subject, row)
        ):
            continue
        place = answers[-1]
        examined += 1
        after = row.ids[place.end : place.end + 24]
        at = next((n for n, i in enumerate(after[:4]) if i in single), None)
        mark = _END_MARK.match(text_of(tokenizer, after))
        if at is not None:
            if not trained[place.end + at]:
                untrained += 1
                example = example or repr(text_of(tokenizer, after[at : at + 1]))
        elif mark:
            split += 1
            example = example or repr(mark[1])
        else:
            absent += 1
    if not examined:
        raise NotRun("no trained answer was found in the rows")
    yield _end_result(subject, examined, untrained, absent, split, example)


def _is_cut(subject: Conversations, row: ExaminedRow) -> bool:
    """Whether a row fills the context, so that its end was cut away."""
    return subject.context is not None and len(row.ids) >= subject.context


def _end_result(subject: Conversations, examined: int, untrained: int, absent: int, split: int, example: str) -> Result:
    evidence: dict[str, Any] = {"rows": examined, "not trained": untrained, "absent": absent, "split": split}
    tokenizer = subject.tokenizer
    assert tokenizer is not None
    few = 0.02 * examined
    if split > few:
        return failed(
            "tokenizer", f"the end of the turn {example} is not one token: the tokenizer splits it into several, so "
            "that generation never stops at it; add it as a special token", **evidence,
        )  # fmt: skip
    if untrained > few:
        return failed(
            "mask", f"in {untrained} of {examined} rows the token {example} that ends the answer is not trained: the "
            "model never learns to stop (is it the padding token, too?)", **evidence,
        )  # fmt: skip
    if absent > few and tokenizer.end_ids:
        return failed(
            "mask", f"in {absent} of {examined} rows no end token follows the answer (the tokenizer's is "
            f"{tokenizer.decode(list(tokenizer.end_ids[:1]))!r}): the model never learns to stop", **evidence,
        )  # fmt: skip
    if absent > few:
        return passed("answers end without a special token; the tokenizer names none that could end them", **evidence)
    return passed(f"a trained end token follows the last answer in {examined} rows", **evidence)


def _share_trained(subject: Conversations, row: ExaminedRow, place: Place) -> float:
    """The share of a message's tokens that are trained; of one that was not found, 0."""
    if place.first is None or place.end <= place.first:
        return 0.0
    trained = subject.trained_places(row)[place.first : place.end]
    return sum(trained) / max(1, len(trained))

"""The checks of conversations: what is trained, what ends a turn, and whether training and sampling see the same text."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from glassgpt.data.conversations.rows import USER_TURN_CUT
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed, warned
from glassgpt.doctor.texts.alignment import Place, clean, locate, text_of
from glassgpt.doctor.texts.conversation_subject import Conversations, ExaminedRow
from glassgpt.doctor.texts.nasty import first_difference

#: Share of rows with a fault from which it is a bug of the program; below, a few bad rows of the data.
_MANY = 0.1
#: How templates begin the turns of users and systems.
_PROMPT_MARKS = re.compile(
    r"<\|im_start\|>\s*(?:user|system)|<\|start_header_id\|>\s*(?:user|system)|<\|(?:user|system)\|>"
    r"|<start_of_turn>user|\[INST\]|^#+ *(?:Instruction|Input|User|Human)\b|^(?:User|Human|System):", re.MULTILINE,
)  # fmt: skip
#: How templates write a token that ends a turn or a text.
_END_MARK = re.compile(r"\s*(<\|[^|<>\s]{1,30}\|>|</s>|<eos>|<end_of_turn>|\[EOS\])")
#: Kinds of problems of a file: what a row teaches wrongly, and the class of bug.
_FILE_FAULTS = {
    "empty turn": "mask", "no assistant turn": "mask", "nothing to train": "mask", "too long": "mask",
    "turn order": "template", "wrong role": "template", "system turn": "template", "not encoded": "template",
}  # fmt: skip


def check_trained(subject: Conversations) -> Iterator[Result]:
    """Every row trains something, and no label stands for padding."""
    _need_rows(subject)
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
            return f"row {i}: the attention mask hides {on[-1] - on[0] + 1 - len(on)} tokens between others that it shows"
    return ""


def check_prompts(subject: Conversations) -> Iterator[Result]:
    """No token of a user's or system's message is trained."""
    _need_labels(subject)
    if subject.trains_on_prompts:
        yield passed("the prompts are trained, as is declared")
        return
    if subject.tokenizer is None:
        if all(label >= 0 for row in subject.rows for label in row.labels):
            yield warned("mask", "every token of every row is trained: prompts as well as answers, if these are conversations")
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
    tokenizer = _need_messages(subject)
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
            full = len(row.ids) >= longest
            if full and last.began:
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
        yield warned("mask", f"the answers of {cut} of {examined} rows are cut at the end: rows are too short", **evidence)
    else:
        note = f"; {cut} long ones are cut at the end" if cut else ""
        yield passed(f"the last answers of {examined} rows are trained{note}", **evidence)


def check_end(subject: Conversations) -> Iterator[Result]:
    """The token that ends a turn follows each trained answer, is one token, and is trained."""
    tokenizer = _need_messages(subject)
    single = {*tokenizer.special.values(), *tokenizer.end_ids} - {tokenizer.roles.get("unk", -1)}
    untrained, absent, split, examined, example = 0, 0, 0, 0, ""
    longest = max(len(row.ids) for row in subject.rows)
    for row, places in locate(subject):
        answers = [place for place in places if place.role == "assistant" and place.first is not None]
        trained = subject.trained_places(row)
        answers = [place for place in answers if all(trained[place.first : place.end])]
        if not answers or (answers[-1].end >= len(row.ids) >= longest and len(subject.rows) > 1 and _is_cut(subject, row)):
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


def check_begin(subject: Conversations) -> Iterator[Result]:
    """No row begins with two begin tokens."""
    _need_rows(subject)
    tokenizer = subject.tokenizer
    begin = tokenizer.roles.get("bos") if tokenizer else None
    special = set(tokenizer.special.values()) if tokenizer else set()
    doubled = 0
    for row in subject.rows:
        ids = [i for at, i in enumerate(row.ids) if row.mask is None or row.mask[min(at, len(row.mask) - 1)]]
        same = len(ids) > 2 and ids[0] == ids[1] != ids[2]
        doubled += same and (ids[0] == begin if begin is not None else ids[0] in special)
    if doubled > 0.5 * len(subject.rows):
        yield failed(
            "template", f"{doubled} of {len(subject.rows)} rows begin with two begin tokens: the template writes one and "
            "the tokenizer adds another", rows=len(subject.rows), doubled=doubled,
        )  # fmt: skip
        return
    yield passed("no row begins with two begin tokens", rows=len(subject.rows), doubled=doubled)


def check_template(subject: Conversations) -> Iterator[Result]:
    """The text before an answer is the same in a training row and where the model is sampled."""
    tokenizer = _need_messages(subject)
    if subject.render is None:
        raise NotRun("there is no render(messages), the text at sampling")
    examined, wrong, example = 0, 0, ""
    for row, places in locate(subject):
        numbers = [n for n, place in enumerate(places) if place.role == "assistant"]
        if not numbers or places[numbers[-1]].first is None:
            continue
        answer = places[numbers[-1]]
        try:
            prompt = subject.render([place.message for place in places[: numbers[-1]]])
        except Exception as error:  # of somebody's code
            raise NotRun(f"render failed: {type(error).__name__}: {error}") from None
        if not isinstance(prompt, str):
            prompt = text_of(tokenizer, _ids_of(prompt))
        examined += 1
        problem = _compare(subject, row, prompt, answer, answer.row_starts or 0, answer.row_starts is None)
        wrong += bool(problem)
        example = example or problem
    if not examined:
        raise NotRun("no conversation was found in the rows")
    evidence: dict[str, Any] = {"rows": examined, "different": wrong}
    if wrong > _MANY * examined:
        yield failed(
            "template", f"the text before an answer differs between training and sampling in {wrong} of {examined} "
            f"rows: {example}", **evidence,
        )  # fmt: skip
        return
    yield passed(f"training rows and sampling have the same text before the answer in {examined} conversations", **evidence)


def _compare(
    subject: Conversations, row: ExaminedRow, prompt: str, answer: Place, start: int, packed: bool
) -> str:
    """How the prompt at sampling differs from the tokens of a row before its answer; empty if it does not."""
    tokenizer = subject.tokenizer
    assert tokenizer is not None and answer.first is not None
    strip = {i for role in ("bos", "eos") if (i := tokenizer.roles.get(role)) is not None}
    first = start
    while first < answer.first and row.ids[first] in strip:
        first += 1
    names = [tokenizer.decode([i]) for i in strip]
    while name := next((name for name in names if name and prompt.startswith(name)), ""):
        prompt = prompt.removeprefix(name)
    bare = clean(tokenizer, prompt)
    whole = text_of(tokenizer, row.ids[first : answer.first])
    if packed:
        whole = whole[max(whole.rfind(bare[:16]), 0) :]
    if whole == bare:
        return ""
    gap_text = whole.removeprefix(bare) if whole.startswith(bare) else None
    if gap_text is not None:
        trained = subject.trained_places(row)
        places = range(answer.first, first - 1, -1)
        at = next((n for n in places if text_of(tokenizer, row.ids[n : answer.first]) == gap_text), None)
        if at is not None and all(trained[at : answer.first]):
            return ""  # the model itself writes what is between
        return f"before each answer, training has {gap_text!r} that the sampling prompt lacks, and it is not trained"
    if bare.startswith(whole) and not bare.removeprefix(whole).strip(" "):
        return f"the sampling prompt ends with {bare.removeprefix(whole)!r}, which is part of the answer's first token in training"
    return f"sampling against training, {first_difference(bare, whole)}"


def check_roles(subject: Conversations) -> Iterator[Result]:
    """Turns are in order and have text: perhaps a system's, then user and assistant, the last one an answer."""
    if not subject.messages and not subject.problems:
        raise NotRun("there are no messages")
    faults, total = Counter[tuple[str, str]](), max(subject.total, len(subject.messages or ()))
    for messages in subject.messages or ():
        if fault := _order_fault(messages):
            faults[fault] += 1
    for problem in subject.problems:
        if problem.kind in _FILE_FAULTS:
            faults[_FILE_FAULTS[problem.kind], problem.kind] += 1
    counts = {kind: n for (_, kind), n in faults.items()}
    counts |= {kind: n for kind in ("cut", USER_TURN_CUT) if (n := sum(p.kind == kind for p in subject.problems))}
    if not faults:
        note = "; ".join(f"{kind}: {n} rows" for kind, n in counts.items())
        yield passed(f"the turns of {total} conversations are in order{'; ' + note if note else ''}", **counts)
        return
    for (finding, kind), n in faults.most_common():
        message = f"{kind}: {n} of {total} conversations"
        if n >= _MANY * total:
            yield failed(finding, message, **counts)
        elif kind == "too long":
            yield passed(f"{message}; they are left out", **counts)
        else:
            yield warned(finding, message, **counts)


def _order_fault(messages: Sequence[Any]) -> tuple[str, str] | None:
    """The class and the name of a fault in the order of turns."""
    turns = [(str(m.get("role", m.get("from"))), m.get("content", m.get("value"))) for m in messages]
    roles = [{"human": "user", "gpt": "assistant", "bot": "assistant", "developer": "system"}.get(r, r) for r, _ in turns]
    for role, (_, content) in zip(roles, turns, strict=True):
        calls = any(m.get("tool_calls") for m in messages)
        if role == "assistant" and not calls and not (isinstance(content, list) and content) and not str(content or "").strip():
            return "mask", "an answer is empty"
    if "assistant" not in roles:
        return "mask", "there is no answer"
    if "system" in roles[1:]:
        return "template", "a system turn is not the first"
    spoken = [role for role in roles if role != "system"]
    if spoken[0] == "assistant" and spoken[-1] == "user":
        return "template", "the roles are swapped: the assistant asks and the user answers"
    if spoken[-1] == "user":
        return "template", "the last turn is the user's: nothing answers it"
    if any(a == b == "assistant" for a, b in zip(spoken, spoken[1:], strict=False)):
        return "template", "two answers follow each other"
    return None


def check_length(subject: Conversations) -> Iterator[Result]:
    """No row is longer than the context, and all ids are below the vocabulary size."""
    _need_rows(subject)
    longest = max(len(row.ids) for row in subject.rows)
    size = subject.tokenizer.vocab_size if subject.tokenizer else None
    used = [i for row in subject.rows for i in (*row.ids, *row.labels)]
    known = [size, subject.tokenizer.model_vocab_size] if subject.tokenizer else []
    limit = max((n for n in known if n is not None), default=None)
    if limit is not None and max(used) >= limit:
        yield failed("tokenizer", f"a row has the id {max(used)}, and ids are below {limit}", largest_id=max(used))
    elif subject.context is not None and longest > subject.context + 1:
        many = sum(len(row.ids) > subject.context + 1 for row in subject.rows)
        yield failed(
            "max length", f"{many} rows are longer than the context of {subject.context} tokens, the longest has "
            f"{longest}", longest=longest, context=subject.context,
        )  # fmt: skip
    elif any(len(row.labels) != len(row.ids) for row in subject.rows):
        yield failed("targets", "a row has not as many labels as ids", longest=longest)
    elif subject.context is None:
        yield passed(f"the longest row has {longest} tokens; the context is not known", longest=longest)
    else:
        yield passed(f"the longest row has {longest} tokens, the context {subject.context}", longest=longest)


def _need_rows(subject: Conversations) -> None:
    if not subject.rows:
        raise NotRun("there are no rows")


def _need_labels(subject: Conversations) -> None:
    _need_rows(subject)
    if subject.shifted is None:
        raise NotRun("the labels are not those of their rows")


def _need_messages(subject: Conversations) -> Any:
    _need_labels(subject)
    if subject.tokenizer is None:
        raise NotRun("there is no tokenizer, so the rows cannot be read")
    if not subject.messages:
        raise NotRun("there are no messages to compare the rows with")
    return subject.tokenizer


def _share_trained(subject: Conversations, row: ExaminedRow, place: Place) -> float:
    """The share of a message's tokens that are trained; of one that was not found, 0."""
    if place.first is None or place.end <= place.first:
        return 0.0
    trained = subject.trained_places(row)[place.first : place.end]
    return sum(trained) / max(1, len(trained))


def _ids_of(prompt: Any) -> list[int]:
    prompt = prompt["input_ids"] if hasattr(prompt, "keys") else prompt
    prompt = prompt.flatten().tolist() if hasattr(prompt, "flatten") else prompt
    return [int(i) for i in prompt]


CONVERSATION_CHECKS: tuple[Check[Conversations], ...] = (
    Check(
        "trained tokens", "Counts the labels of each row; looks for rows without any, and for padding that is trained.",
        "one look at each row", "less than 1 % of the rows may train nothing (long prompts that were cut)",
        ("mask", "targets"), check_trained,
    ),
    Check(
        "prompts are not trained", "Looks for the text of user and system messages among the trained tokens.",
        "decodes each row", "a message of which more than half is trained, in more than 2 % of the rows",
        ("mask",), check_prompts,
    ),
    Check(
        "answers are trained", "Looks for the last answer of each conversation, token by token, among the trained ones.",
        "decodes each row", "all tokens of the answer, in 98 % of the rows; answers cut by the context do not count",
        ("mask",), check_answers,
    ),
    Check(
        "end of turn is trained", "Looks at what follows the last answer: one end token, which is trained.",
        "decodes each row", "98 % of the rows", ("mask", "tokenizer"), check_end,
    ),
    Check(
        "begin token", "Looks for rows that begin with two begin tokens.", "one look at each row",
        "more than half of the rows: then a program does it, not padding", ("template",), check_begin,
    ),
    Check(
        "template", "Compares the text before each answer with the prompt that is rendered at sampling.",
        "renders and decodes each row", "equal but for the begin token and for text that the model itself writes",
        ("template",), check_template,
    ),
    Check(
        "roles", "Looks at the order of turns and for empty ones.", "one look at each message",
        f"{_MANY:.0%} of the conversations: fewer are bad rows of the data, which are only warned of",
        ("mask", "template"), check_roles,
    ),
    Check(
        "length of rows", "Compares the longest row with the context, and ids with the vocabulary size.",
        "one look at each row", "the context, and one token more, which is only a target",
        ("max length", "tokenizer", "targets"), check_length,
    ),
)  # fmt: skip

"""The checks of the form of conversations: begin tokens, templates, the order of turns, lengths."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from glassgpt.data.conversations.rows import USER_TURN_CUT
from glassgpt.doctor.report import NotRun, Result, failed, passed, warned
from glassgpt.doctor.texts.alignment import ROLES, Place, clean, locate, need_messages, need_rows, text_of
from glassgpt.doctor.texts.conversation_subject import Conversations, ExaminedRow
from glassgpt.doctor.texts.nasty import first_difference

#: Share of conversations with a fault from which it is a bug of the program; below, a few bad rows of the data.
MANY = 0.1
#: Kinds of problems of a file: what a row teaches wrongly, and the class of bug.
_FILE_FAULTS = {
    "empty turn": "mask", "no assistant turn": "mask", "nothing to train": "mask", "too long": "mask",
    "turn order": "template", "wrong role": "template", "system turn": "template", "not encoded": "template",
}  # fmt: skip


def check_begin(subject: Conversations) -> Iterator[Result]:
    """No row begins with two begin tokens."""
    need_rows(subject)
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
            "template", f"{doubled} of {len(subject.rows)} rows begin with two begin tokens: the template writes "
                        f"one and "
            "the tokenizer adds another", rows=len(subject.rows), doubled=doubled,
        )  # fmt: skip
        return
    yield passed("no row begins with two begin tokens", rows=len(subject.rows), doubled=doubled)


def check_template(subject: Conversations) -> Iterator[Result]:
    """The text before an answer is the same in a training row and where the model is sampled."""
    tokenizer = need_messages(subject)
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
    if wrong > MANY * examined:
        yield failed(
            "template", f"the text before an answer differs between training and sampling in {wrong} of {examined} "
            f"rows: {example}", **evidence,
        )  # fmt: skip
        return
    yield passed(
        f"training rows and sampling have the same text before the answer in {examined} conversations", **evidence
    )


def _compare(subject: Conversations, row: ExaminedRow, prompt: str, answer: Place, start: int, packed: bool) -> str:
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
        end = bare.removeprefix(whole)
        return f"the sampling prompt ends with {end!r}, which is part of the answer's first token in training"
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
    counts: dict[str, Any] = {kind: n for (_, kind), n in faults.items()}
    counts |= {kind: n for kind in ("cut", USER_TURN_CUT) if (n := sum(p.kind == kind for p in subject.problems))}
    if not faults:
        note = "; ".join(f"{kind}: {n} rows" for kind, n in counts.items())
        yield passed(f"the turns of {total} conversations are in order{'; ' + note if note else ''}", **counts)
        return
    for (finding, kind), n in faults.most_common():
        message = f"{kind}: {n} of {total} conversations"
        if n >= MANY * total:
            yield failed(finding, message, **counts)
        elif kind == "too long":
            yield passed(f"{message}; they are left out", **counts)
        else:
            yield warned(finding, message, **counts)


def _order_fault(messages: Sequence[Any]) -> tuple[str, str] | None:
    """The class and the name of a fault in the order of turns."""
    turns = [(str(m.get("role", m.get("from"))), m.get("content", m.get("value"))) for m in messages]
    roles = [ROLES.get(role, role) for role, _ in turns]
    for role, (_, content) in zip(roles, turns, strict=True):
        calls = any(m.get("tool_calls") for m in messages)
        if (
            role == "assistant"
            and not calls
            and not (isinstance(content, list) and content)
            and not str(content or "").strip()
        ):
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
    if any(a == b == "assistant" for a, b in itertools.pairwise(spoken)):
        return "template", "two answers follow each other"
    return None


def check_length(subject: Conversations) -> Iterator[Result]:
    """No row is longer than the context, and all ids are below the vocabulary size."""
    need_rows(subject)
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


def _ids_of(prompt: Any) -> list[int]:
    prompt = prompt["input_ids"] if hasattr(prompt, "keys") else prompt
    prompt = prompt.flatten().tolist() if hasattr(prompt, "flatten") else prompt
    return [int(i) for i in prompt]

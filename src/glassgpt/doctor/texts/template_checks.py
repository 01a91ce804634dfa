"""The checks of the form of conversations: begin tokens, templates, the order of turns, lengths."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from glassgpt.data.conversations.rows import USER_TURN_CUT
from glassgpt.doctor.report import NotRun, Result, failed, passed, warned
from glassgpt.doctor.texts.alignment import ROLES, locate, need_messages, need_rows
from glassgpt.doctor.texts.conversation_subject import Conversations
from glassgpt.doctor.texts.rendering import Rendering

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
    render = Rendering(tokenizer, subject.render, subject.renders_prompts)
    found: dict[bool, list[str]] = {}  # by whether there are earlier answers: only these show what ends an answer
    for row, places in locate(subject):
        numbers = [n for n, place in enumerate(places) if place.role == "assistant"]
        if numbers and places[numbers[-1]].first is not None:
            problem = render.problem(row, subject.trained_places(row), places[: numbers[-1] + 1])
            found.setdefault(len(numbers) > 1, []).append(problem)
    if not found:
        raise NotRun("no conversation was found in the rows")
    problems = {several: [text for text in texts if text] for several, texts in found.items()}
    examined, wrong = sum(map(len, found.values())), sum(map(len, problems.values()))
    evidence: dict[str, Any] = {"rows": examined, "different": wrong}
    if bad := next((texts for several, texts in problems.items() if len(texts) > MANY * len(found[several])), None):
        yield failed(
            "template", f"the text before an answer differs between training and sampling in {wrong} of {examined} "
            f"rows: {bad[0]}", **evidence,
        )  # fmt: skip
        return
    yield passed(
        f"training rows and sampling have the same text before the answer in {examined} conversations", **evidence
    )


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

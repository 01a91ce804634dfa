"""The checks of the tokenizer on the messages themselves: text comes back, and only the template writes its tokens."""

from collections.abc import Iterator

from glassgpt.doctor.report import NotRun, Result, failed, passed
from glassgpt.doctor.texts.alignment import content_of, locate, text_of
from glassgpt.doctor.texts.conversation_subject import Conversations
from glassgpt.doctor.texts.round_trip import check_round_trip

#: Messages that are encoded and decoded.
_TRIED = 200


def check_messages(subject: Conversations) -> Iterator[Result]:
    """The messages come back from ids unchanged, and have no control token inside."""
    tokenizer = subject.tokenizer
    if tokenizer is None or not subject.messages:
        raise NotRun("there is no tokenizer, or there are no messages")
    begin = tokenizer.roles.get("bos")
    named = {*tokenizer.special.values(), *tokenizer.end_ids} - {begin, tokenizer.roles.get("unk")}
    control = {i for i in named if len(text_of(tokenizer, [i])) != 1}  # a line end may end turns, by choice
    forged, begun, answers, example = 0, 0, 0, ""
    for row, places in locate(subject):
        found = [place for place in places if place.first is not None]
        covered = {n for place in found for n in range(place.first or 0, place.end)}
        template = control & {i for n, i in enumerate(row.ids) if n not in covered}  # not marks such as <think>
        for place in found:
            assert place.first is not None
            inside = place.role != "assistant" and template & {*row.ids[place.first : place.end]}
            forged += bool(inside)
            example = example or (f"{place.role}: {place.text[:60]!r}" if inside else "")
            if place.role == "assistant" and place.first > (place.row_starts or 0):
                answers += 1
                begun += begin is not None and row.ids[place.first - 1] == begin
    if forged:
        yield failed(
            "tokenizer", f"{forged} messages that spell a control token have its id in their row ({example}): whoever "
            "writes it ends or forges a turn; encode messages as plain text", messages=forged,
        )  # fmt: skip
    elif begun > 0.5 * answers:
        yield failed(
            "tokenizer", f"a begin token stands before {begun} of {answers} answers: encode adds one to each part",
            answers=answers, begun=begun,
        )  # fmt: skip
    else:
        yield passed("only the template writes control tokens")
    contents = [content_of(message).strip() for messages in subject.messages for message in messages]
    texts = {f"message {n}": text for n, text in enumerate(dict.fromkeys(filter(None, contents)), 1)}
    yield from check_round_trip(tokenizer, dict(list(texts.items())[:_TRIED]))

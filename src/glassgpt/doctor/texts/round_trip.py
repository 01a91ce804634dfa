"""The checks of what a tokenizer loses: texts that tokenizers get wrong, and texts of its own tokens."""

import random
from collections.abc import Iterator, Mapping
from typing import Any

from glassgpt.doctor.report import NotRun, Result, failed, passed, warned
from glassgpt.doctor.texts.nasty import NASTY, first_difference, name_loss
from glassgpt.doctor.texts.tokenizer_subject import TokenizerSubject, is_word_level

#: Tokens, and texts of its own tokens, that are tried.
TRIED, _OWN_TEXTS = 1500, 20


def check_round_trip(tokenizer: TokenizerSubject, texts: Mapping[str, str] = NASTY) -> Iterator[Result]:
    """Decode what was encoded, on texts that tokenizers get wrong, or on others, by their names."""
    require(tokenizer)
    lost: dict[str, list[str]] = {}
    refused, unknown, spaced = list[str](), 0, 0
    for name, text in texts.items():
        usable = text
        try:
            ids = tokenizer.encode(text)
        except Exception:  # a closed alphabet refuses what it does not have
            refused.append(name)
            usable = "".join(c for c in text if _knows(tokenizer, c))
            if len(usable) < 2:
                continue
            try:
                ids = tokenizer.encode(usable)
            except Exception:
                continue
        if tokenizer.encode(usable) != ids:
            yield failed("tokenizer", f"{name}: the same text gets other ids the second time", text=usable[:80])
            return
        decoded = decode(tokenizer, ids)
        if decoded == usable:
            continue
        if tokenizer.roles.get("unk") in ids:
            unknown += 1
            continue
        if decoded == f" {usable}":
            spaced += 1
            continue
        kind = name_loss(usable, decoded)
        lost.setdefault(kind, []).append(f"{name}, {first_difference(usable, decoded)}")
    if not try_encode(tokenizer, "\x01"):
        lost.pop("control characters", None)  # it has no token for them, as many published ones
    if is_word_level(tokenizer):
        lost.pop("white space", None)  # whether words stay apart is another check
    if len(refused) == len(texts) and not any(try_encode(tokenizer, c) for c in map(chr, range(0x20, 0x7F))):
        raise NotRun("encode(text) raises for every text")
    yield _round_trip_result(tokenizer, texts, lost, refused, unknown, spaced)


def _round_trip_result(
    tokenizer: TokenizerSubject,
    texts: Mapping[str, str],
    lost: dict[str, list[str]],
    refused: list[str],
    unknown: int,
    spaced: int,
) -> Result:
    evidence: dict[str, Any] = {
        "lost": {kind: len(found) for kind, found in lost.items()},
        "refused": len(refused),
        "unknown": unknown,
    }
    by_design = tokenizer.declared or ("unk" in tokenizer.roles and (bool(unknown) or is_word_level(tokenizer)))
    if (wrong := lost.get("characters")) and by_design and _drops_unknown(tokenizer, texts):
        wrong = None
    if wrong or (lost and not by_design):
        kind = "characters" if wrong else next(iter(lost))
        if kind == "characters" and _is_closed(tokenizer) and _drops_unknown(tokenizer, texts):
            return warned(
                "tokenizer", "characters that are not in the alphabet are dropped without a word: "
                f"{lost[kind][0]}; raise an error for them, or give them an unknown token", **evidence,
            )  # fmt: skip
        return failed(
            "tokenizer", f"decode(encode(text)) is another text in {sum(map(len, lost.values()))} of {len(texts)} "
            f"texts; lost: {kind}: {lost[kind][0]}", **evidence,
        )  # fmt: skip
    notes = [f"{kind} is changed, as the tokenizer declares" for kind in lost]
    notes += [f"unknown words are lost in {unknown} of {len(texts)} texts (a token for them)"] if unknown else []
    notes += ["a space is put before each text"] if spaced else []
    notes += [f"{len(refused)} texts have characters that the alphabet refuses"] if refused else []
    return passed("; ".join(["all texts that it takes come back", *notes] if not lost else notes), **evidence)


def _drops_unknown(tokenizer: TokenizerSubject, texts: Mapping[str, str]) -> bool:
    """Whether all that is lost is characters that encode to nothing."""
    for text in texts.values():
        known = "".join(c for c in text if try_encode(tokenizer, c))
        ids = try_encode(tokenizer, text)
        if ids is not None and tokenizer.roles.get("unk") not in ids:
            decoded = decode(tokenizer, ids)
            if decoded != known and name_loss(known, decoded) == "characters":
                return False
    return True


def _is_closed(tokenizer: TokenizerSubject) -> bool:
    """Whether the vocabulary is an alphabet of characters."""
    plain = [t for i, t in tokenizer.tokens.items() if i not in set(tokenizer.special.values())]
    return bool(plain) and all(len(t if isinstance(t, str) else t.decode("utf-8", "replace")) <= 1 for t in plain)


def check_own_texts(tokenizer: TokenizerSubject) -> Iterator[Result]:
    """Texts made of the tokenizer's own tokens, and sentences of its own words, come back unchanged."""
    require(tokenizer)
    if not tokenizer.tokens:
        raise NotRun("the vocabulary was not found; give the object an attribute that maps tokens to ids")
    chance, special = random.Random(0), set(tokenizer.special.values()) | set(tokenizer.roles.values())
    ids = [i for i in tokenizer.tokens if i not in special]
    sample = chance.sample(ids, min(len(ids), TRIED))
    if lost := _unreachable_words(tokenizer, sample):
        yield lost
        return
    words = _words(tokenizer, sample)
    texts = [" ".join(chance.choices(words, k=8)) for _ in range(_OWN_TEXTS)] if len(words) >= 8 else []
    lossy = is_word_level(tokenizer) or tokenizer.declared
    if not lossy:
        own = ("".join(decode(tokenizer, [i]) for i in chance.choices(ids, k=30)) for _ in range(_OWN_TEXTS))
        texts += [text for text in own if "\ufffd" not in text]
    if not texts:
        raise NotRun("the vocabulary has too few tokens that are text")
    for text in texts:
        encoded = try_encode(tokenizer, text)
        if encoded is None or (lossy and tokenizer.roles.get("unk") in encoded):
            continue
        decoded = decode(tokenizer, encoded)
        same = decoded.strip() == text if lossy else decoded in (text, f" {text}")
        if not same and not (lossy and name_loss(text, decoded) in ("case", "Unicode normal form")):
            yield failed(
                "tokenizer", f"a text of its own tokens comes back changed, {first_difference(text, decoded)}",
                loss=name_loss(text, decoded),
            )  # fmt: skip
            return
    yield passed(f"{len(texts)} texts of its own tokens come back unchanged", texts=len(texts))


def _unreachable_words(tokenizer: TokenizerSubject, ids: list[int]) -> Result | None:
    """The failure of a word tokenizer whose own words become unknown: it was made of texts in another form."""
    unknown = tokenizer.roles.get("unk")
    words = [word for i in ids if (word := decode(tokenizer, [i])).isalpha() and len(word) > 1]
    lost = [word for word in words if unknown is not None and unknown in (try_encode(tokenizer, word) or ())]
    if len(lost) <= max(2, 0.1 * len(words)):
        return None
    return failed(
        "tokenizer", f"{len(lost)} of {len(words)} words of its own vocabulary become unknown, such as {lost[0]!r}: "
                     f"the "
        "vocabulary was made in another form (upper and lower case?) than texts are encoded in", unknown=len(lost),
    )  # fmt: skip


def _words(tokenizer: TokenizerSubject, ids: list[int]) -> list[str]:
    """Whole words of the vocabulary."""
    found = (decode(tokenizer, [i]).strip() for i in ids)
    return sorted(
        {word for word in found if word.isalpha() and word.isascii() and len(word) > 1 and _one(tokenizer, word)}
    )


def _one(tokenizer: TokenizerSubject, word: str) -> bool:
    encoded = try_encode(tokenizer, word)
    return bool(encoded) and tokenizer.roles.get("unk") not in (encoded or ())


def require(tokenizer: TokenizerSubject) -> None:
    """Raise NotRun if the file cannot be read as a tokenizer."""
    if tokenizer.problem:
        raise NotRun("the file cannot be read as a tokenizer")


def decode(tokenizer: TokenizerSubject, ids: list[int]) -> str:
    """Decode ids; an error of the tokenizer is shown as the text."""
    try:
        return tokenizer.decode(ids)
    except Exception as error:  # of somebody's code: shown as the decoded text
        return f"<decode raised {type(error).__name__}>"


def try_encode(tokenizer: TokenizerSubject, text: str) -> list[int] | None:
    """Encode a text; None if the tokenizer refuses it."""
    try:
        return tokenizer.encode(text)
    except Exception:  # of somebody's code: it refuses the text
        return None


def _knows(tokenizer: TokenizerSubject, character: str) -> bool:
    return bool(try_encode(tokenizer, character))
